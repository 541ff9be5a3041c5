"""Tenants and their policies in memory, so that nothing on the hot path asks the store.

A tenant is read when it first connects, then whenever the generation moved, and at the latest when
its time to live has passed. What was read stays usable while the store is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import msgspec
import structlog

from engine.domains import DomainPolicy
from engine.ports import Clock, StoreError, Tenant, TenantStore

POLL_S: Final = 0.5
TTL_S: Final = 3600.0

_log = structlog.get_logger()


class Watcher(Protocol):
    """Who is told of changes."""

    def policies_changed(self, tenant_id: int) -> None:
        """A tenant's policies are others than before."""

    def tenant_removed(self, tenant_id: int) -> None:
        """A tenant is no more."""


class _Known(msgspec.Struct):
    tenant: Tenant
    policies: Mapping[str, DomainPolicy]
    read_at_s: float


class PolicyBook:
    """Every tenant that this process has served since it started.

    ``renewed`` is awaited whenever the generation moved, before anyone is told of policies.
    """

    def __init__(
        self,
        store: TenantStore,
        clock: Clock,
        defaults: Mapping[str, DomainPolicy],
        watcher: Watcher,
        renewed: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._defaults = defaults
        self._watcher = watcher
        self._renewed = renewed
        self._known: dict[int, _Known] = {}
        self._by_name: dict[str, _Known] = {}
        self._generation: tuple[int, str] | None = None
        self._reading = asyncio.Lock()

    def of(self, tenant_id: int) -> Mapping[str, DomainPolicy]:
        """Return the policies of a tenant that was admitted."""
        known = self._known.get(tenant_id)
        return self._defaults if known is None else known.policies

    async def admit(self, name: str) -> Tenant | None:
        """Find a tenant and have its policies at hand. Raises StoreError."""
        known = self._by_name.get(name)
        if known is None:
            async with self._reading:
                known = self._by_name.get(name)
                if known is None:
                    tenant = await self._store.tenant(name)
                    if tenant is None:
                        return None
                    known = await self._read(tenant)
        return known.tenant

    async def run(self) -> None:
        """Follow the generation and the time to live until cancelled."""
        away = False
        while True:
            try:
                await self._follow()
                away = False
            except StoreError as error:
                if not away:
                    _log.warning("policies_not_followed", reason=type(error).__name__)
                away = True
            await asyncio.sleep(POLL_S)

    async def _follow(self) -> None:
        generation = await self._store.generation()
        moved = generation != self._generation
        if moved:
            await self._renewed()
        oldest_s = self._clock.monotonic_s() - TTL_S
        for known in list(self._known.values()):
            if moved or known.read_at_s < oldest_s:
                await self._read_again(known)
        self._generation = generation

    async def _read_again(self, known: _Known) -> None:
        tenant = known.tenant
        async with self._reading:
            if await self._store.tenant(tenant.name) != tenant:
                del self._known[tenant.tenant_id]
                del self._by_name[tenant.name]
                self._watcher.tenant_removed(tenant.tenant_id)
                return
            before = known.policies
            after = (await self._read(tenant)).policies
        if after != before:
            self._watcher.policies_changed(tenant.tenant_id)

    async def _read(self, tenant: Tenant) -> _Known:
        read_at_s = self._clock.monotonic_s()
        own = await self._store.policies(tenant.tenant_id)
        policies = {**self._defaults, **own} if own else self._defaults
        known = _Known(tenant, policies, read_at_s)
        self._known[tenant.tenant_id] = self._by_name[tenant.name] = known
        return known
