"""What seals and opens for the stores of one process."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

import anyio.to_thread

from compose.sealing.master_key import MasterKeySource, master_keys, refused
from engine.cache.key_ring import COMMAND_SEALS, SERVER_SEALS, TenantKeyRing
from engine.runtime.metrics import Metric, Value
from engine.runtime.settings import Settings
from engine.seal.master_keys import require_given
from engine.seal.ports import KeysMissingError
from storage.postgres.pool import Database
from storage.stores.keys.admin import PostgresKeyAdmin
from storage.stores.keys.wrapped import PostgresTenantKeys
from storage.stores.sealed.sealing import Sealing, UnreadableValueError
from storage.stores.tenants import PostgresTenants


class FollowedSealing(Sealing):
    """Sealing by the keys of the database, of the domains that are sealed there."""

    def __init__(self, settings: Settings, database: Database, source: MasterKeySource, seals: int) -> None:
        self._keys = TenantKeyRing(PostgresTenantKeys(database), source, os.urandom, seals)
        self._store = PostgresKeyAdmin(database)
        self._unreadable = 0
        super().__init__(self._keys, settings.domains)

    def metrics(self) -> Iterator[Metric]:
        """Yield how often sealed data could not be opened."""
        yield Value(
            "counter",
            "tidemark_sealed_failures",
            "Sealed data that could not be opened when needed: a value, or the keys of a tenant",
            {"value": self._unreadable, "key": self._keys.failures},
            "cause",
        )

    async def load_again(self, missing: KeysMissingError | UnreadableValueError, asked: set[int]) -> None:
        """Read a tenant's keys again, once; count values that cannot be opened with them either."""
        try:
            await super().load_again(missing, asked)
        except UnreadableValueError:
            self._unreadable += 1
            raise

    async def refresh(self) -> None:
        """Read again which domains are sealed, and the keys that are in memory. Raises StoreError."""
        await self._follow()
        await self._keys.refresh()

    async def follow_again(self, tenant_ids: Collection[int]) -> None:
        """Read again which domains are sealed, and the keys of tenants."""
        await self._follow()
        await super().follow_again(tenant_ids)

    async def _follow(self) -> None:
        self.follow([one.domain for one in await self._store.sealed_domains()])


def server_sealing(settings: Settings, database: Database, source: MasterKeySource) -> FollowedSealing:
    """Return the sealing of a server, which ``refresh`` has follow the database."""
    return FollowedSealing(settings, database, source, SERVER_SEALS)


async def open_sealing(settings: Settings, database: Database) -> FollowedSealing:
    """Return the sealing of a command, as of now. Raises StoreError."""
    sealing = FollowedSealing(settings, database, MasterKeySource(settings), COMMAND_SEALS)
    await sealing.refresh()
    return sealing


class TenantsWithKeys(PostgresTenants):
    """Tenants that get their first key when they are added, once anything is sealed.

    Others get it from the server that needs it first.
    """

    def __init__(self, settings: Settings, database: Database) -> None:
        super().__init__(database)
        self._settings = settings

    async def add(self, name: str) -> None:
        """Create a tenant, its counter and its key. Raises RefusedError if a master key is missing."""
        sealing = await open_sealing(self._settings, self._database)
        if sealing.on:
            with refused():
                given = await anyio.to_thread.run_sync(master_keys, self._settings)
                require_given(await PostgresKeyAdmin(self._database).master_keys_in_use(), given.ids)
        await super().add(name)
        number = await self.number(name)
        if sealing.on and number is not None:
            await sealing.load_keys([number])
