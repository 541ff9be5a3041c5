"""What commands do to keys: show, rotate, and switch sealing on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Final

import anyio.to_thread

from compose.sealing.master_key import (
    MasterKeySource,
    file_alone,
    made_master_key,
    master_keys,
    put_in_front,
    refused,
)
from compose.sealing.start import unsealed_domains
from compose.sealing.stores import open_sealing
from engine.cache.key_ring import COMMAND_SEALS, TenantKeyRing
from engine.operate.key_admin import Watch
from engine.operate.ports import RefusedError
from engine.operate.rows import KeyStatus, MasterRotation, TenantVerification
from engine.runtime.ports import StoreError, StoreUnavailableError
from engine.runtime.settings import Settings
from engine.seal.master_keys import NONCE_BYTES, MasterKeys, require_given
from storage.postgres.pool import Database
from storage.stores.keys.admin import PostgresKeyAdmin, RunningProcess, TenantKey, refuse_without_key
from storage.stores.keys.verify import PostgresVerify
from storage.stores.keys.wrapped import PostgresTenantKeys

#: Servers read the file of master keys again every ten seconds.
_READ_AGAIN_S: Final = 25.0
_LOOK_S: Final = 0.5


class KeyAdmin:
    """``engine.operate.key_admin.KeyAdmin``.

    Args:
        settings: All settings.
        database: The database.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._store = PostgresKeyAdmin(database)
        self._source = MasterKeySource(settings)
        self._ring = TenantKeyRing(PostgresTenantKeys(database), self._source, os.urandom, COMMAND_SEALS)

    async def status(self) -> KeyStatus:
        """Return all keys."""
        sealed = await self._store.sealed_domains()
        return KeyStatus(
            await self._source.ids(),
            await self._store.master_keys_in_use(),
            sealed,
            unsealed_domains(self._settings, sealed),
            await self._store.tenants(),
        )

    async def verify(self, tenant: str | None, watch: Watch) -> list[TenantVerification]:
        """Open every sealed value of a tenant, or of all."""
        store = PostgresVerify(self._database, await open_sealing(self._settings, self._database))
        found: list[TenantVerification] = []
        for tenant_id, name in await store.tenants(tenant):
            try:
                verified = await store.verify(tenant_id, lambda rows: watch(f"{name}, {rows:,} rows"))  # noqa: B023  # called at once
                found.append(TenantVerification(name, *verified))
            except StoreUnavailableError:
                raise
            except StoreError as error:  # its keys: other tenants go on
                found.append(TenantVerification(name, 0, error=str(error)))
        return found

    async def rotate_master(self, watch: Watch) -> MasterRotation:
        """Wrap the keys of all tenants by a new master key."""
        made = made_master_key(self._settings)
        if made is None:
            return await self._rotate_master(watch)
        # The command itself writes the file. Another one at once would write over its key, which wraps data.
        with ExitStack() as stack:
            try:
                alone = stack.enter_context(file_alone(made))
            except OSError as error:
                raise _unwritable(made, error) from None
            if not alone:
                raise RefusedError(
                    "another `keys rotate-master` is at work here: wait until it ends, and see"
                    " `run.py keys status` before you run this again"
                )
            return await self._rotate_master(watch)

    async def _rotate_master(self, watch: Watch) -> MasterRotation:
        with refused():
            masters = await self._source.keys()
            unused = await self._store.retire_unused(masters.ids)
            in_use = await self._store.master_keys_in_use()
            require_given(in_use, masters.ids)
            is_last = in_use == [masters.active] or (not in_use and made_master_key(self._settings))
            if is_last and not unused:
                masters = await self._with_new_key(masters)
            await self._wait_for_servers(masters.active, watch)
            keys, retired = await self._rewrap(masters, watch)
        return MasterRotation(masters.active, sorted({*unused, *retired}), keys)

    async def _rewrap(self, masters: MasterKeys, watch: Watch) -> tuple[int, list[str]]:
        """Wrap keys anew; return how many, and the master keys that wrap nothing now."""
        keys = 0
        while found := await self._store.wrapped_by_others(masters.active):
            keys += await self._store.rewrap(masters.ids, [(one, _rewrapped(masters, one)) for one in found])
            watch(f"{keys:,} keys")
        return keys, await self._store.end_rotation(masters.ids, keys)

    async def _with_new_key(self, masters: MasterKeys) -> MasterKeys:
        """Put a new key into the file of the embedded default.

        Raises:
            RefusedError: There is another source, or this account may not write the file.
            MasterKeyError: The file cannot be read.
        """
        made = made_master_key(self._settings)
        if made is None:
            raise RefusedError(
                f"the master key {masters.active} is in use already: put a new one before it, with a space"
                " or a line between, on every host (`openssl rand -base64 32` makes one), and run this again"
            )
        try:
            await anyio.to_thread.run_sync(put_in_front, made)
            return await anyio.to_thread.run_sync(master_keys, self._settings)
        except OSError as error:
            raise _unwritable(made, error) from None

    async def _wait_for_servers(self, master_key_id: str, watch: Watch) -> None:
        """Wait until every server process has a master key. Raises RefusedError."""

        async def without() -> list[RunningProcess]:
            processes = await self._store.processes()
            return [one for one in processes if master_key_id not in one.master_keys]

        refuse_without_key(await _until_empty(without, _READ_AGAIN_S, watch), master_key_id)

    async def rotate_tenant(self, tenant: str) -> int:
        """Make a new key for a tenant."""
        tenant_id = await self._store.tenant_id(tenant)
        with refused():
            await self._source.keys()  # an error in them is said before anything is changed
        return await self._ring.rotate(tenant_id)

    async def seal_domain(self, domain: str) -> datetime | None:
        """Switch the sealing of a domain on."""
        found = self._settings.domains.get(domain)
        if found is None or not found.pii:
            named = ", ".join(name for name, one in self._settings.domains.items() if one.pii) or "none does"
            raise RefusedError(
                f"the domain {domain} names no pii fields in the settings: name them in [domains.{domain}]"
                f" (those that do: {named})"
            )
        with refused():
            return await self._store.seal_domain(domain, (await self._source.keys()).ids)


def _unwritable(made: Path, error: OSError) -> RefusedError:
    return RefusedError(f"{made}: {error.strerror}: let this account write it")


def _rewrapped(masters: MasterKeys, one: TenantKey) -> bytes:
    data_key = masters.unwrap(one.tenant_uuid, one.key)
    return masters.wrap(one.tenant_uuid, one.key.number, data_key, os.urandom(NONCE_BYTES)).wrapped


async def _until_empty(
    read: Callable[[], Awaitable[list[RunningProcess]]], patience_s: float, watch: Watch
) -> list[RunningProcess]:
    """Read again and again until nothing is left, or the patience is over; return what is left."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + patience_s
    while (left := await read()) and loop.time() < give_up_s:
        watch(f"waiting for {len(left)} server processes to read it")
        await asyncio.sleep(_LOOK_S)
    return left
