"""Commits the work of one command, by the same committer and rules as a device's message."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from functools import partial

import anyio

from compose.server import SystemClock
from engine.commit.committer import Committer
from engine.commit.ports import Store
from engine.commit.queue import CommitLimits
from engine.commit.validation import MessageValidator
from engine.model.domains import DomainPolicy, Domains
from engine.model.rows import Record
from engine.operate.ports import RefusedError
from engine.plan.conflict import holding
from engine.plan.context import PlanContext
from engine.plan.work import Outcome, Work
from engine.runtime.settings import Settings
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresStore
from storage.stores.sealed.answers import keyed_request
from storage.stores.sealed.sealing import Sealing
from storage.stores.tenants import PostgresTenants

#: Is called with the tenants whose feeds a command advanced.
OnFeedsAdvanced = Callable[[set[int]], None]
#: Returns the store that the work is committed to, made of the one that is given.
WrapStore = Callable[[Store], Store]


class WorkCommitter:
    """Commits one piece of work at a time.

    Args:
        dsn: The database.
        settings: Those of a server.
        sealing: Seals what is written.
        on_feeds_advanced: Called after a commit, so that servers are told.
    """

    def __init__(
        self, dsn: str, settings: Settings, sealing: Sealing, on_feeds_advanced: OnFeedsAdvanced
    ) -> None:
        self.validator = MessageValidator(Domains(dict(settings.domains)), settings.limits.items)
        self._dsn = dsn
        self._settings = settings
        self.sealing = sealing
        self._on_feeds_advanced = on_feeds_advanced
        self._clock = SystemClock()

    def now_us(self) -> int:
        """Return the time, in microseconds since 1970."""
        return self._clock.now_us()

    async def commit(
        self,
        tenant: str,
        work: Work,
        wrap: WrapStore = lambda store: store,
        held_domain: str | None = None,
    ) -> Outcome:
        """Commit one piece of work and return its outcome.

        Args:
            tenant: The name of the tenant whose work it is.
            work: The work.
            wrap: Makes the store that it is committed to.
            held_domain: A conflict in this domain is left to a person, whatever the policy.

        Raises:
            RefusedError: The tenant was removed.
            StoreError: The database is away.
        """
        advanced: set[int] = set()
        database = Database(self._dsn, 1)
        try:
            found = await PostgresTenants(database).find(tenant)
            if found is None or found.tenant.tenant_id != work.tenant_id:
                raise RefusedError(f"there is no tenant {tenant} any more")
            store = wrap(PostgresStore(database, self._settings.idempotency.lifetime_h, self.sealing))
            committer = command_committer(
                store, self._settings, self.sealing, found.own, advanced, held_domain
            )
            outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            committer.submit(work, outcome.set_result)
            async with anyio.create_task_group() as group:
                group.start_soon(committer.run)
                answer = await outcome
                group.cancel_scope.cancel()
        finally:
            await database.close()
        if advanced:
            self._on_feeds_advanced(advanced)
        return answer


def command_committer(
    store: Store,
    settings: Settings,
    sealing: Sealing,
    own: Mapping[str, DomainPolicy],
    advanced: set[int],
    held_domain: str | None = None,
) -> Committer:
    """Return a committer for a command.

    Args:
        store: Where it commits.
        settings: Those of a server.
        sealing: Seals what the store writes.
        own: The tenant's own policies, by domain.
        advanced: The ids of tenants whose feeds it advances are added to this set.
        held_domain: A conflict in this domain is left to a person, whatever the policy.
    """
    domains = Domains(dict(settings.domains))
    policies = {**domains.default_policies, **own}
    if held_domain in policies:
        policies[held_domain] = holding(policies[held_domain])
    context = PlanContext(
        domains,
        lambda _: policies,
        lambda: uuid.uuid4().hex,
        settings.limits.record_bytes,
        settings.limits.answer_data_bytes,
        settings.records.tombstone_data_h > 0,
        unsealed_domains=sealing.unsealed_domains,
        keyed_request=partial(keyed_request, sealing),
    )
    return Committer(
        store,
        context,
        SystemClock(),
        lambda changes: advanced.update(_tenants(changes)),
        advanced.update,
        CommitLimits(
            settings.commit.batch_items,
            settings.commit.batch_bytes,
            settings.commit.queue_messages,
            settings.commit.queue_bytes,
        ),
    )


def _tenants(changes: list[tuple[Record, str]]) -> set[int]:
    return {record.tenant_id for record, _ in changes}
