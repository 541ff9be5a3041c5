"""The keys of tenants in memory, and the blocks of seals that this process may use of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final, Protocol

import msgspec
import structlog

from engine.cache.ports import KeyStore, StoredKeys
from engine.runtime.ports import StoreError, StoreUnavailableError, StoreUnreadableError
from engine.seal.master_keys import NONCE_BYTES, MasterKeyError, MasterKeys, WrappedKey
from engine.seal.ports import KeysMissingError
from engine.seal.sealer import KEY_BYTES, TenantKeys

#: Seals that a server takes of a key at a time. Of 2^32 there are 16,384 such blocks: a key outlives as many
#: starts of a process. A block of a busy server lasts for half a minute.
SERVER_SEALS: Final = 1 << 18
#: Seals that a command takes, which seals a few values.
COMMAND_SEALS: Final = 1 << 14
#: The part of a block that is left when the next one is taken: more than a batch seals between two looks.
_LEFT_PART: Final = 4
#: Times that other processes may be faster in making or rotating a key.
_TRIES: Final = 5
#: Tenants read by one statement, so that neither the statement nor its answer takes long.
_READ_TENANTS: Final = 500

#: Sentences that are logged once each: one for a tenant whose keys are lost.
_MOST_REFUSED: Final = 1000
#: Tenants whose keys are opened before the loop is given back: 0.8 ms of work on a busy core.
_OPENED_TENANTS: Final = 20

_log = structlog.get_logger()


class KeysUnavailableError(StoreUnreadableError):
    """The keys of a tenant cannot be opened: nothing of it is read or written. Other tenants go on."""


class MasterKeySource(Protocol):
    """Where master keys come from."""

    async def keys(self, wanted: str | None = None) -> MasterKeys:
        """Return the master keys as of now.

        Args:
            wanted: The id of one that has to be among them, else they are read again.

        Raises:
            MasterKeyError: There is none, or they cannot be read.
        """


class _Ring(msgspec.Struct):
    """The keys of one tenant. ``granted`` seals may be used, of which ``keys.seals`` are."""

    stored: StoredKeys
    keys: TenantKeys
    granted: int = 0


class TenantKeyRing:
    """``engine.seal.ports.KeyRing``: keys that are read from the store, and opened by master keys.

    Args:
        store: Where wrapped keys are.
        source: Where master keys come from.
        random_bytes: Returns so many random bytes, fit for keys.
        block_seals: The seals that are taken of a key at a time.

    Attributes:
        failures: How often keys of a tenant could not be opened.
    """

    def __init__(
        self,
        store: KeyStore,
        source: MasterKeySource,
        random_bytes: Callable[[int], bytes],
        block_seals: int = SERVER_SEALS,
    ) -> None:
        self._store = store
        self._source = source
        self._random_bytes = random_bytes
        self._block_seals = block_seals
        self._left_seals = block_seals // _LEFT_PART
        self._rings: dict[int, _Ring] = {}
        self._refused: set[str] = set()
        self.failures = 0

    def __len__(self) -> int:
        """The number of tenants whose keys are in memory."""
        return len(self._rings)

    def keys_of(self, tenant_id: int) -> TenantKeys:
        """Return the keys of a tenant to open values. Raises KeysMissingError."""
        ring = self._rings.get(tenant_id)
        if ring is None:
            raise KeysMissingError(tenant_id)
        return ring.keys

    def sealing_keys_of(self, tenant_id: int) -> TenantKeys:
        """Return the keys of a tenant to seal. Raises KeysMissingError, also shortly before a block ends."""
        ring = self._rings.get(tenant_id)
        if ring is None or ring.granted - ring.keys.seals < self._left_seals:
            raise KeysMissingError(tenant_id)
        return ring.keys

    async def load(self, tenant_ids: Collection[int]) -> None:
        """Read keys of tenants, and write nothing.

        Raises:
            KeysUnavailableError: A master key is missing.
            StoreError: The store failed.
        """
        await self._read(tenant_ids)

    async def load_to_seal(self, tenant_ids: Collection[int]) -> None:
        """Read keys of tenants, make first ones, and take blocks of seals.

        Raises:
            KeysUnavailableError: A master key is missing.
            StoreError: The store failed.
        """
        await self._read(tenant_ids, first=True)
        wanted = set(tenant_ids)
        for _ in range(_TRIES):
            needed = {
                tenant_id: ring
                for tenant_id in wanted
                if (ring := self._rings.get(tenant_id)) is not None
                and ring.granted - ring.keys.seals < self._left_seals
            }
            if not needed:
                return
            keys = {tenant_id: ring.keys.active_id for tenant_id, ring in needed.items()}
            leased = await self._store.lease(keys, self._block_seals)
            for tenant_id in leased:
                needed[tenant_id].granted += self._block_seals
            for tenant_id in needed.keys() - leased:
                await self._replace_used_up(tenant_id)
        raise StoreUnavailableError("other processes change the keys of these tenants: try again")

    async def refresh(self) -> None:
        """Read again the keys that are in memory, because they may have changed. Raises StoreError.

        Keys that cannot be opened are dropped: ``load`` says why, and other tenants go on.
        """
        await self._read(list(self._rings), drop=True)

    async def rotate(self, tenant_id: int) -> int:
        """Make a new key that seals, in place of the one that does; return its number.

        What the old one sealed is sealed again by the job.

        Raises:
            KeysUnavailableError: A master key is missing.
            StoreError: The store failed, or there is no such tenant.
        """
        for _ in range(_TRIES):
            await self._read([tenant_id], first=True)
            ring = self._rings.get(tenant_id)
            if ring is None:
                raise StoreError("the tenant was removed")
            if (number := await self._replace(ring.stored, reseal=True)) is not None:
                await self._read([tenant_id])
                return number
        raise StoreUnavailableError("other processes rotate the key of this tenant: try again")

    async def _read(self, tenant_ids: Collection[int], *, drop: bool = False, first: bool = False) -> None:
        """Read keys; ``drop`` those that cannot be opened, make ``first`` ones."""
        wanted = list(tenant_ids)
        for start in range(0, len(wanted), _READ_TENANTS):
            part = wanted[start : start + _READ_TENANTS]
            found = await self._store.read(part)
            for place, tenant_id in enumerate(part, 1):
                if place % _OPENED_TENANTS == 0:
                    await asyncio.sleep(0)
                stored = found.get(tenant_id)
                if stored is not None and not _had_keys(stored) and first:
                    stored = await self._first(stored)
                if stored is None or not _had_keys(stored):
                    self._rings.pop(tenant_id, None)
                    continue
                try:
                    await self._note(stored)
                except KeysUnavailableError:
                    self._rings.pop(tenant_id, None)
                    if not drop:
                        raise

    async def _first(self, stored: StoredKeys) -> StoredKeys | None:
        """Make the first key of a tenant, unless another process did. Returns None if the tenant is gone."""
        await self._replace(stored)
        return (await self._store.read([stored.tenant_id])).get(stored.tenant_id)

    async def _note(self, stored: StoredKeys) -> None:
        before = self._rings.get(stored.tenant_id)
        if before is not None and _same(before.stored, stored):
            before.stored = stored  # perhaps wrapped by another master key
            return
        active = _active(stored)
        if active is None or active.number < stored.newest:
            raise self._unavailable(MasterKeyError(_lost(stored)))
        opened = {key.number: await self._open(stored.tenant_uuid, key) for key in stored.keys}
        keys = TenantKeys(stored.tenant_uuid, opened, active.number, self._random_bytes, active.key_id)
        self._rings[stored.tenant_id] = _Ring(stored, keys)

    async def _open(self, tenant_uuid: bytes, key: WrappedKey) -> bytes:
        masters = await self._given(key.master_key_id)
        try:
            return masters.unwrap(tenant_uuid, key)
        except MasterKeyError as error:
            raise self._unavailable(error) from None

    async def _given(self, master_key_id: str | None = None) -> MasterKeys:
        try:
            return await self._source.keys(master_key_id)
        except MasterKeyError as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: MasterKeyError) -> KeysUnavailableError:
        self.failures += 1
        sentence = str(error)
        if sentence not in self._refused:
            if len(self._refused) == _MOST_REFUSED:
                self._refused.clear()
            self._refused.add(sentence)
            _log.error("keys_unavailable", reason=sentence)
        return KeysUnavailableError(sentence)

    async def _replace_used_up(self, tenant_id: int) -> None:
        """Read a key again that gives no seals: it is replaced, unless another process did."""
        ring = self._rings.get(tenant_id)
        await self._read([tenant_id])
        if ring is None or self._rings.get(tenant_id) is not ring:
            return
        if await self._replace(ring.stored) is not None:
            _log.info("tenant_key_used_up", tenant_id=tenant_id, key=ring.keys.active)
            await self._read([tenant_id])

    async def _replace(self, stored: StoredKeys, *, reseal: bool = False) -> int | None:
        """Store a new key that seals; return its number, None if another process was faster."""
        masters = await self._given()
        number = max(stored.newest, *(key.number for key in stored.keys), 0) + 1
        before = _active(stored)
        data_key, nonce = self._random_bytes(KEY_BYTES), self._random_bytes(NONCE_BYTES)
        wrapped = masters.wrap(stored.tenant_uuid, number, data_key, nonce)
        try:
            stored_now = await self._store.replace(
                stored.tenant_id, before, wrapped, masters.ids, reseal=reseal
            )
        except MasterKeyError as error:
            raise self._unavailable(error) from None
        return number if stored_now else None


def _had_keys(stored: StoredKeys) -> bool:
    return bool(stored.keys or stored.newest)


def _lost(stored: StoredKeys) -> str:
    known = max((key.number for key in stored.keys), default=0)
    number = f"the number {stored.newest}" if known < stored.newest else f"a number above {known}"
    return (
        f"tenant {stored.tenant_id} has lost its newest key, which has {number}:"
        " restore its rows of tenant_keys from a backup; without them what is sealed cannot be read, and the"
        " tenant gets no new key"
    )


def _active(stored: StoredKeys) -> WrappedKey | None:
    return next((key for key in stored.keys if not key.retired), None)


def _same(one: StoredKeys, other: StoredKeys) -> bool:
    """Return whether the same keys open and the same one seals. Another key may have the same number."""
    return [(key.key_id, key.retired) for key in one.keys] == [
        (key.key_id, key.retired) for key in other.keys
    ]
