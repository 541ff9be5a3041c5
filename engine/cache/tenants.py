"""Tenants and their policies in memory, so that nothing on the hot path asks the store.

Tenants are read at the start, as many as one statement reads, and the others when one of their devices first
connects; then whenever the generation changes, and when their time to live has passed. While the store is
unavailable, the known policies stay in use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Final, Protocol

import msgspec
import structlog

from engine.cache.ports import TenantStore
from engine.model.domains import DomainPolicy
from engine.model.tenants import Tenant, TenantPolicies
from engine.runtime.metrics import LOOKUP_BOUNDS_S, Distribution, Metric, counter, gauge
from engine.runtime.ports import Clock, StoreError, StoreUnavailableError

#: The pause between two reads of the generation, unless ``refresh_soon`` is called.
POLL_S: Final = 0.5
#: A tenant is read again after this time even if the generation does not change.
TTL_S: Final = 3600.0
#: A name that no tenant has is not asked for again for this long, unless the generation changes.
UNKNOWN_S: Final = 5.0
UNKNOWN_NAMES: Final = 10_000
#: Of the lookups of a batch each so many is timed, and counts for all of them: timing takes longer than they.
_TIMED: Final = 64
#: Tenants read by one statement, so that neither the statement nor its answer takes long.
_REREAD_TENANTS: Final = 500

_log = structlog.get_logger()


class TenantWatcher(Protocol):
    """Is told of changes."""

    def policies_changed(self, tenant_id: int) -> None:
        """A tenant's policies changed."""

    def tenant_removed(self, tenant_id: int) -> None:
        """A tenant was removed."""


class _Known(msgspec.Struct):
    tenant: Tenant
    policies: Mapping[str, DomainPolicy]
    read_at_s: float


class TenantCache:
    """The tenants read at the start, and every other that this process has served since.

    Args:
        store: Where tenants are read.
        clock: For times to live.
        defaults: The policy of each domain, for tenants without one of their own.
        watcher: Is told of changes.
        on_generation: Is awaited whenever the generation changed, before the watcher is told. After a
            StoreError it is awaited again at each read of the generation. Tenants are followed anyway.
    """

    def __init__(
        self,
        store: TenantStore,
        clock: Clock,
        defaults: Mapping[str, DomainPolicy],
        watcher: TenantWatcher,
        on_generation: Callable[[], Awaitable[None]],
    ) -> None:
        #: Lookups answered from memory, and those that asked the store, waited for it or knew no tenant.
        self.hits = self.misses = 0
        self.durations = Distribution(LOOKUP_BOUNDS_S)
        self._store = store
        self._clock = clock
        self._defaults = defaults
        self._watcher = watcher
        self._on_generation = on_generation
        self._known: dict[int, _Known] = {}
        self._by_name: dict[str, _Known] = {}
        self._unknown: dict[str, float] = {}
        self._lookups: dict[str, asyncio.Future[StoreError | None]] = {}
        #: The generation seen last, the one that ``on_generation`` followed, and that of the tenants.
        self._seen: tuple[int, str] | None = None
        self._told: tuple[int, str] | None = None
        self._generation: tuple[int, str] | None = None
        #: Counts changes of the generation. A read that began before a change may be older than that change.
        self._generations_seen = 0
        self._refresh_due = asyncio.Event()

    def __len__(self) -> int:
        """The number of tenants in memory."""
        return len(self._known)

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts of lookups, and the number of tenants in memory."""
        yield gauge("tidemark_tenants_remembered", "Tenants whose policies are in memory", len(self))
        yield counter("tidemark_policy_hits", "Reads of policies answered from memory", self.hits)
        yield counter("tidemark_policy_misses", "Reads of policies not answered from memory", self.misses)
        text = "Reads of policies, from memory or from the database"
        yield self.durations.metric("tidemark_policy_read_duration_seconds", text)

    def name_of(self, tenant_id: int) -> str | None:
        """Return the name of a tenant in memory, None for any other."""
        known = self._known.get(tenant_id)
        return None if known is None else known.tenant.name

    def policies_of(self, tenant_id: int) -> Mapping[str, DomainPolicy]:
        """Return the policies of a tenant, by domain. The tenant was found by ``find`` before."""
        if self.hits % _TIMED == _TIMED - 1:
            began_s = self._clock.monotonic_s()
            known = self._known.get(tenant_id)
            self.durations.add(self._clock.monotonic_s() - began_s, _TIMED)
        else:
            known = self._known.get(tenant_id)
        if known is None:
            self.misses += 1
            return self._defaults
        self.hits += 1
        return known.policies

    async def find(self, name: str) -> Tenant | None:
        """Find a tenant by its name, and keep its policies in memory.

        Simultaneous lookups of one name share one read. Lookups of different names do not wait for each
        other.

        Returns:
            The tenant; None if there is none of this name.

        Raises:
            StoreError: The tenant is not in memory, and the store failed.
        """
        began_s = self._clock.monotonic_s()
        try:
            return await self._find(name)
        finally:
            self.durations.add(self._clock.monotonic_s() - began_s)

    async def _find(self, name: str) -> Tenant | None:
        waited = False
        while True:
            known = self._by_name.get(name)
            if known is not None:
                self.misses += waited
                self.hits += not waited
                return known.tenant
            if self._unknown.get(name, 0.0) > self._clock.monotonic_s():
                return None
            lookup = self._lookups.get(name)
            if lookup is None:
                self.misses += 1
                return await self._lookup(name)
            waited = True
            failure = await asyncio.shield(lookup)
            if failure is not None:
                raise StoreUnavailableError(str(failure))

    async def _lookup(self, name: str) -> Tenant | None:
        """Read a tenant by name. Its future then tells the other lookups to look again, or the error."""
        lookup = self._lookups[name] = asyncio.get_running_loop().create_future()
        failure: StoreError | None = None
        try:
            while True:
                generations_seen, now_s = self._generations_seen, self._clock.monotonic_s()
                found = await self._store.find(name)
                if generations_seen == self._generations_seen:
                    break
            if found is None:
                self._note_unknown(name, now_s + UNKNOWN_S)
                return None
            return self._note(found, now_s).tenant
        except StoreError as error:
            failure = error
            raise
        finally:
            del self._lookups[name]
            lookup.set_result(failure)

    async def preload(self, tenant_ids: Collection[int]) -> None:
        """Read tenants that are not in memory, and then the newest others, as many as one statement reads.

        Before ``run`` it misses no change: the first generation that ``run`` sees has all tenants read again.

        Args:
            tenant_ids: The tenants that come first.

        Raises:
            StoreError: The store failed.
        """
        generations_seen, now_s = self._generations_seen, self._clock.monotonic_s()
        wanted = dict.fromkeys([*tenant_ids, *await self._store.newest(_REREAD_TENANTS)])
        unknown = [tenant_id for tenant_id in wanted if tenant_id not in self._known]
        read = await self._store.reread(unknown[:_REREAD_TENANTS])
        if generations_seen == self._generations_seen:
            for tenant_id, found in read.items():
                if tenant_id not in self._known:  # a lookup that ended first may have read a later change
                    self._note(found, now_s)

    def refresh_soon(self) -> None:
        """Have the generation read at once, because it may have changed."""
        self._refresh_due.set()

    async def run(self) -> None:
        """Read tenants again when the generation changed or their time is over, until cancelled."""
        away = False
        while True:
            self._refresh_due.clear()
            try:
                await self._refresh()
                away = False
            except StoreError as error:
                if not away:
                    _log.warning("policies_not_followed", reason=type(error).__name__)
                away = True
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._refresh_due.wait()

    async def _refresh(self) -> None:
        generation = await self._store.generation()
        if generation != self._seen:
            self._seen = generation
            self._generations_seen += 1
            self._unknown.clear()
        failure: StoreError | None = None
        if generation != self._told:
            try:
                await self._on_generation()
                self._told = generation
            except StoreError as error:
                failure = error
        await self._reread_due(generation)
        if failure is not None:
            raise failure

    async def _reread_due(self, generation: tuple[int, str]) -> None:
        moved = generation != self._generation
        oldest_s = self._clock.monotonic_s() - TTL_S
        due = [one.tenant for one in self._known.values() if moved or one.read_at_s < oldest_s]
        for start in range(0, len(due), _REREAD_TENANTS):
            await self._read_again(due[start : start + _REREAD_TENANTS])
        self._generation = generation

    async def _read_again(self, tenants: list[Tenant]) -> None:
        now_s = self._clock.monotonic_s()
        read = await self._store.reread([tenant.tenant_id for tenant in tenants])
        for tenant in tenants:
            found = read.get(tenant.tenant_id)
            before = self._known[tenant.tenant_id]
            if found is None or found.tenant != tenant:
                del self._known[tenant.tenant_id]
                if self._by_name.get(tenant.name) is before:
                    del self._by_name[tenant.name]
                self._watcher.tenant_removed(tenant.tenant_id)
            elif self._note(found, now_s).policies != before.policies:
                self._watcher.policies_changed(tenant.tenant_id)

    def _note(self, found: TenantPolicies, read_at_s: float) -> _Known:
        policies = {**self._defaults, **found.own} if found.own else self._defaults
        known = _Known(found.tenant, policies, read_at_s)
        self._known[found.tenant.tenant_id] = self._by_name[found.tenant.name] = known
        return known

    def _note_unknown(self, name: str, until_s: float) -> None:
        if len(self._unknown) >= UNKNOWN_NAMES:
            self._unknown.clear()  # costs one more read for each
        self._unknown[name] = until_s
