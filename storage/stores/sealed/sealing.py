"""Sealed values in columns: sealed as they are written, opened as they are read. All else sees plain values.

A json column has a sealed value as a string of base64, where a plain value is an object or a list. A text
column has it behind ``TEXT_MARK``, which no plain value begins with. So rows need no rewrite, and a reader
knows a sealed value by its first character, which costs the others 0.03 µs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from types import GeneratorType
from typing import Final, TypeVar, overload

import msgspec

from engine.runtime.ports import StoreRetryError, StoreUnreadableError
from engine.seal.ports import KeyRing, KeysMissingError
from engine.seal.sealer import (
    NONCE_BYTES,
    BrokenSealError,
    TenantKeys,
    UnknownKeyError,
    hash_key_number,
    head_of,
)
from storage.postgres.plain_bytes import TEXT_MARK
from storage.stores.sealed.followed import SealingChangedError, sealed_text
from storage.stores.sealed.no_keys import NoKeys

#: What the associated data call the place of a value: table and column.
RECORD_DATA: Final = "records.data"
RECORD_LAST_DATA: Final = "records.last_data"
RECORD_FILES: Final = "records.attachments"
EVENT_DATA: Final = "events.data"
ANSWER: Final = "sync_idempotency_record.results"
REQUEST: Final = "sync_idempotency_record.request_sha256"
CONFLICT_SERVER: Final = "conflict_resolution_log.server_data"
CONFLICT_CLIENT: Final = "conflict_resolution_log.client_data"
CONFLICT_CHANGE: Final = "conflict_resolution_log.client_changes"
CONFLICT_DECISION: Final = "conflict_resolution_log.settled_sha256"
QUARANTINED: Final = "quarantine.item"
FILE_NAME: Final = "upload_session.file_name"
FILE_METADATA: Final = "upload_session.metadata"
FILE_WANTED_SHA256: Final = "upload_session.wanted_sha256"
FILE_SHA256: Final = "upload_session.sha256"
VOICE_RESULT: Final = "voice_verification_log.result"
VOICE_ID: Final = "voice_verification_log.verification_id"

#: In place of a domain for values that hold items of several.
ANY_DOMAIN: Final = ""
#: ``request_sha256`` if the hash is sealed with the results: an empty text would be no element of an array.
HASH_IN_RESULTS: Final = "00"
#: Sealed text that is opened before the loop is given back: 0.3 ms of work. A value costs as much as so many
#: characters, whatever its length.
SLICE_CHARS: Final = 1 << 18
VALUE_CHARS: Final = 2048

#: Tenant, domain, id, version and the plain value.
_Value = tuple[int, str, str, int, bytes | None]
_Result = TypeVar("_Result")
_Row = TypeVar("_Row")
_Told = Callable[[_Row], None] | None

#: Twice as fast as binascii, quotes included.
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(bytes).decode


class UnreadableValueError(StoreUnreadableError):
    """A sealed value that cannot be opened: it was changed, is of another place, or its key is lost."""

    def __init__(self, tenant_id: int, sentence: str) -> None:
        super().__init__(sentence)
        self.tenant_id = tenant_id


class Sealing:
    """Seals and opens for every tenant. Values are opened in any domain, whether it is sealed now or not.

    Args:
        ring: The keys of tenants; None if there is no master key.
        domains: The configured domains.

    Attributes:
        on: True if any domain is sealed.
    """

    def __init__(self, ring: KeyRing | None = None, domains: Collection[str] = ()) -> None:
        self.on = False
        self._ring: KeyRing = NoKeys() if ring is None else ring
        self._domains = frozenset(domains)
        self._sealed: str | None = None
        self._unsealed = self._domains
        self._room_chars = SLICE_CHARS

    def follow(self, sealed_domains: Collection[str]) -> None:
        """Seal the values of some domains from now on, and if there are any, all values of unknown domains.

        A rejected item of an unknown domain may be one of a sealed domain whose name is misspelt.
        """
        self._unsealed = self._domains.difference(sealed_domains)
        self._sealed = sealed_text(sealed_domains)
        self.on = bool(sealed_domains)

    async def follow_again(self, tenant_ids: Collection[int]) -> None:
        """Read again what is sealed, and the keys of tenants that are to be written. Raises StoreError."""
        if self.on:
            await self._ring.load_to_seal(tenant_ids)

    def check(self, sealed: str | None, key_ids: Mapping[int, str | None]) -> None:
        """See that the database seals as this process does.

        Args:
            sealed: ``SEALED_SQL``, as a transaction read it that is to write values.
            key_ids: The keys that seal there for the tenants whose values it is to write.

        Raises:
            SealingChangedError: It does not: ``follow_again``.
            StoreRetryError: As ``seal``.
        """
        if sealed != self._sealed:
            raise SealingChangedError
        if self.on:
            for tenant_id, key_id in key_ids.items():
                if self._keys_to_write(tenant_id).active_id != key_id:
                    raise SealingChangedError

    def unsealed_domains(self) -> frozenset[str] | None:
        """Return the domains whose values are stored as they are; None if nothing is sealed."""
        return self._unsealed if self.on else None

    def covers(self, domain: str | None) -> bool:
        """Return whether values of a domain are sealed. None is a domain that could not be read."""
        return self.on and domain not in self._unsealed

    async def load_missing(self, tenant_ids: Collection[int]) -> None:
        """Have the keys of tenants in memory, before anything of theirs is written. Raises StoreError."""
        if self.on:
            await self.load_keys(tenant_ids)

    async def load_keys(self, tenant_ids: Collection[int]) -> None:
        """Have the keys of tenants ready to seal, whether or not anything is sealed. Raises StoreError."""
        missing = [tenant_id for tenant_id in tenant_ids if not self._can_seal(tenant_id)]
        if missing:
            await self._ring.load_to_seal(missing)

    def seals_as(self, tenant_id: int) -> tuple[str | None, str]:
        """Return what ``check`` compares: sealed domains, the id of a tenant's key. Raises as ``seal``."""
        return self._sealed, self._keys_to_write(tenant_id).active_id

    def active_head(self, tenant_id: int) -> bytes:
        """Return the bytes with which a tenant's values begin that are sealed now. Raises as ``seal``."""
        return head_of(self._keys_to_write(tenant_id).active)

    async def load_again(self, missing: KeysMissingError | UnreadableValueError, asked: set[int]) -> None:
        """Read a tenant's keys again, once, to open values: nothing is written.

        Args:
            missing: What could not be opened.
            asked: The tenants whose keys were read again for these rows. This one is added.

        Raises:
            UnreadableValueError: They were read already.
            StoreError: Keys could not be read.
        """
        tenant_id = missing.tenant_id
        if tenant_id not in asked:
            asked.add(tenant_id)
            await self._ring.load([tenant_id])
        elif isinstance(missing, KeysMissingError):
            raise UnreadableValueError(
                tenant_id,
                "the key that sealed a value is not in the database: restore the rows of tenant"
                f" {tenant_id} in tenant_keys from a backup",
            )
        else:
            raise missing

    def seal(
        self, place: str, tenant_id: int, domain: str, value_id: str, version: int, plain: bytes | None
    ) -> bytes | None:
        """Return a value of a domain as a json column has it: itself, or sealed.

        Args:
            place: One of the constants above.
            tenant_id: The tenant.
            domain: The domain.
            value_id: What names the row in its table.
            version: As of ``TenantKeys.seal``.
            plain: JSON, an object or a list; None stays None.

        Raises:
            StoreRetryError: The keys are not in memory: ``load_missing``, then write again.
        """
        if plain is None or not self.on or domain in self._unsealed:
            return plain
        return _encode(self._keys_to_write(tenant_id).seal(place, domain, value_id, version, plain))

    def seal_all(self, place: str, values: Sequence[_Value]) -> list[bytes | None]:
        """Seal the values of a column as ``seal`` does, while ``on``. Raises StoreRetryError, as ``seal``."""
        unsealed = self._unsealed
        nonces = os.urandom(NONCE_BYTES * len(values))  # one call of the system for all
        sealers: dict[tuple[int, str], Callable[[str, int, bytes, bytes], bytes]] = {}
        found: list[bytes | None] = []
        at = 0
        for tenant_id, domain, value_id, version, plain in values:
            if plain is None or domain in unsealed:
                found.append(plain)
                continue
            sealer = sealers.get((tenant_id, domain))
            if sealer is None:
                keys = self._keys_to_write(tenant_id)
                sealer = sealers[tenant_id, domain] = keys.sealer(place, domain)
            found.append(_encode(sealer(value_id, version, plain, nonces[at : at + NONCE_BYTES])))
            at += NONCE_BYTES
        return found

    def open(
        self, place: str, tenant_id: int, domain: str, value_id: str, version: int, stored: str | None
    ) -> bytes | None:
        """Return the plain value of a json column, sealed or not.

        Raises:
            KeysMissingError: The key is not in memory: ``load_again``.
            UnreadableValueError: The value was changed, or is of another place. After a failover its key may
                be one that is not in memory, where another has its number: ``load_again``, once.
        """
        if stored is None or stored[0] != '"':
            return None if stored is None else stored.encode()
        self._room_chars -= len(stored) + VALUE_CHARS
        keys = self._ring.keys_of(tenant_id)
        try:
            return keys.open(place, domain, value_id, version, _decode(stored))
        except UnknownKeyError:
            raise KeysMissingError(tenant_id) from None
        except (BrokenSealError, msgspec.DecodeError) as error:
            raise UnreadableValueError(tenant_id, f"{place} of {domain} {value_id}: {error}") from None

    def seal_text(
        self, place: str, tenant_id: int, domain: str | None, value_id: str, version: int, plain: str | None
    ) -> str | None:
        """Return a value as a text column has it: itself, or sealed. The rest is as of ``seal``."""
        if plain is None or not self.covers(domain):
            return plain
        name = domain or ANY_DOMAIN
        sealed = self.seal(place, tenant_id, name, value_id, version, plain.encode())
        assert sealed is not None
        return TEXT_MARK + sealed[1:-1].decode()

    def open_text(
        self, place: str, tenant_id: int, domain: str | None, value_id: str, version: int, stored: str | None
    ) -> str | None:
        """Return the plain value of a text column, sealed or not. Raises as ``open``."""
        if stored is None or not stored.startswith(TEXT_MARK):
            return stored
        coded = f'"{stored[1:]}"'
        plain = self.open(place, tenant_id, domain or ANY_DOMAIN, value_id, version, coded)
        return None if plain is None else plain.decode()

    def keyed_hash(self, place: str, tenant_id: int, domain: str, plain: str) -> str:
        """Return what stands for a text that is looked up: itself, or a hash that only keys can make.

        Raises:
            StoreRetryError: As ``seal``.
        """
        keyed = self.hasher(place, tenant_id) if self.covers(domain) else None
        return plain if keyed is None else TEXT_MARK + keyed(plain.encode()).hex()

    def former_hashes(self, place: str, tenant_id: int, domain: str, plain: str) -> list[str]:
        """Return what stood for a text before: itself, and its hashes by keys that only open now.

        Raises:
            StoreRetryError: As ``seal``.
        """
        if not self.covers(domain):
            return []
        keys = self._keys_to_write(tenant_id)
        hashes = [keys.hasher(place, number)(plain.encode()).hex() for number in keys.former_numbers()]
        return [plain, *(TEXT_MARK + one for one in hashes)]

    def hasher(self, place: str, tenant_id: int, like: str | None = None) -> Callable[[bytes], bytes] | None:
        """Return what makes hashes that only the keys of a tenant can make; None if there is no master key.

        Args:
            place: One of the constants above.
            tenant_id: The tenant.
            like: A hash that a key made, as hex: the same key makes this one. None is the key that seals.

        Raises:
            StoreRetryError: As ``seal``.
        """
        if isinstance(self._ring, NoKeys):
            return None
        number = None if like is None else hash_key_number(bytes.fromhex(like))
        try:
            return self._ring.keys_of(tenant_id).hasher(place, number)
        except (KeysMissingError, UnknownKeyError) as missing:
            raise StoreRetryError(str(missing)) from None

    def need_key_of(self, place: str, tenant_id: int, keyed: str) -> None:
        """See that the key that made a hash is in memory, unless there is no master key.

        Raises:
            KeysMissingError: It is not: ``load_again``.
        """
        if isinstance(self._ring, NoKeys):
            return
        try:
            self._ring.keys_of(tenant_id).hasher(place, hash_key_number(bytes.fromhex(keyed)))
        except UnknownKeyError:
            raise KeysMissingError(tenant_id) from None

    def slice_is_full(self) -> bool:
        """Return whether the loop is to be given back, since so much was opened."""
        if self._room_chars > 0:
            return False
        self._room_chars = SLICE_CHARS
        return True

    @overload
    async def opened(
        self,
        rows: Iterable[_Row],
        make: Callable[[_Row], Generator[None, None, _Result]],
        unreadable: _Told[_Row] = None,
    ) -> list[_Result]: ...

    @overload
    async def opened(
        self, rows: Iterable[_Row], make: Callable[[_Row], _Result], unreadable: _Told[_Row] = None
    ) -> list[_Result]: ...

    async def opened(
        self,
        rows: Iterable[_Row],
        make: Callable[[_Row], object],
        unreadable: _Told[_Row] = None,
    ) -> Sequence[object]:
        """Return what ``make`` makes of each row, opening its values. The loop is given back between slices.

        Keys that are missing, or may be others, are read, and the row is made again.

        Args:
            rows: The rows.
            make: Makes one of a row. For rows of several large values it does so in steps, and yields when
                ``slice_is_full``.
            unreadable: Is told of a row that cannot be opened, and is left out then. None: it is an error.

        Raises:
            UnreadableValueError: A value cannot be opened.
            StoreError: Keys could not be read.
        """
        made: list[object] = []
        asked: set[int] = set()
        for row in rows:
            while True:
                try:
                    one = make(row)
                    made.append(await in_steps(one) if isinstance(one, GeneratorType) else one)
                except (KeysMissingError, UnreadableValueError) as error:
                    try:
                        await self.load_again(error, asked)
                    except UnreadableValueError:
                        if unreadable is None:
                            raise
                        unreadable(row)
                        break
                else:
                    break
            if self.slice_is_full():
                await asyncio.sleep(0)
        return made

    def _can_seal(self, tenant_id: int) -> bool:
        try:
            self._ring.sealing_keys_of(tenant_id)
        except KeysMissingError:
            return False
        return True

    def _keys_to_write(self, tenant_id: int) -> TenantKeys:
        try:
            return self._ring.sealing_keys_of(tenant_id)
        except KeysMissingError as missing:  # its block of seals ended since
            raise StoreRetryError(str(missing)) from None


async def in_steps(steps: Generator[None, None, _Result]) -> _Result:
    """Run steps, and let others have the loop between them."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: _Result = done.value
            return result
        await asyncio.sleep(0)
