"""What a person decides is committed as a device's message is: one job through a committer of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from typing import Final

import anyio

from compose.server import SystemClock
from engine.commit.committer import Committer
from engine.commit.ports import Store
from engine.commit.queue import CommitLimits
from engine.commit.validation import MessageValidator
from engine.model.domains import DomainPolicy, Domains
from engine.model.rows import QuarantineRef, Record
from engine.operate.conflicts import as_resolution
from engine.operate.ports import ConflictCase, QuarantineCase, Recovered, RefusedError
from engine.operate.quarantine_retry import RetryStore, decode_results, retry_push
from engine.plan.conflict import holding
from engine.plan.context import PlanContext
from engine.plan.work import Outcome, PushAnswer, ResolveAnswer, Work
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from engine.wire.errors import SyncError
from engine.wire.messages import Choice
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresStore
from storage.stores.conflicts import PostgresConflicts
from storage.stores.quarantine import PostgresQuarantine
from storage.stores.tenants import PostgresTenants

#: Is called with the tenants whose feeds a command advanced.
OnCommitted = Callable[[set[int]], None]
#: Returns the store that the work is committed to, made of the one that is given.
WrapStore = Callable[[Store], Store]

_clock: Final = SystemClock()


class ConflictAdmin(PostgresConflicts):
    """``engine.operate.ports.ConflictAdmin``.

    Args:
        database: Where reads are made.
        dsn: The same database, for a committer.
        settings: Those of a server.
        on_committed: Called when something was committed.
    """

    def __init__(self, database: Database, dsn: str, settings: Settings, on_committed: OnCommitted) -> None:
        super().__init__(database)
        self._dsn = dsn
        self._settings = settings
        self._on_committed = on_committed

    async def settle(
        self,
        case: ConflictCase,
        choice: Choice,
        version: int,
        merged: bytes | None,
        changes: int | None = None,
    ) -> ResolveAnswer:
        """Settle a conflict by the rules of ``engine.plan.resolve``."""
        show = f"`run.py conflicts show {case.conflict.conflict_id}`"
        if case.record is None:
            raise RefusedError("the record of this conflict was erased: there is nothing left to settle")
        try:
            intake = _intake(self._settings)
            work = as_resolution(case, choice, version, merged, intake, _clock.now_us(), changes)
        except SyncError as error:
            raise RefusedError(error.message) from None
        outcome = await _commit(self._dsn, self._settings, case.tenant, work, self._on_committed)
        if isinstance(outcome, ResolveAnswer):
            return outcome
        match outcome:
            case SyncError(code="conflict_stale"):
                raise RefusedError(f"{outcome.message}: look again with {show}")
            case SyncError(code="conflict_closed"):
                raise RefusedError(f"{outcome.message}: {show} says how")
        raise _refused(outcome)


class QuarantineAdmin(PostgresQuarantine):
    """``engine.operate.ports.QuarantineAdmin``.

    Args:
        database: Where reads are made.
        dsn: The same database, for a committer.
        settings: Those of a server.
        on_committed: Called when something was committed.
    """

    def __init__(self, database: Database, dsn: str, settings: Settings, on_committed: OnCommitted) -> None:
        super().__init__(database)
        self._dsn = dsn
        self._settings = settings
        self._on_committed = on_committed

    async def retry(self, case: QuarantineCase, data: bytes | None, *, hold: bool = False) -> Recovered:
        """Send an item again through the intake, and those behind it."""
        row = case.row
        rows = [row, *await self.behind(row)]
        items = [QuarantineRef(one.tenant_id, one.quarantine_id) for one in rows]
        recovery: list[RetryStore] = []

        def through(store: Store) -> Store:
            recovery.append(RetryStore(store, items, [len(one.item) for one in rows]))
            return recovery[0]

        try:
            work = retry_push(rows, case.tenant, data, _intake(self._settings), _clock.now_us())
        except SyncError as error:
            drop = f"`run.py quarantine drop {row.quarantine_id}`"
            raise RefusedError(
                f"this cannot be sent, correct it with --data: {error.message} (what no data can correct,"
                f" {drop} gives up)"
            ) from None
        held = row.domain if hold else None
        outcome = await _commit(
            self._dsn, self._settings, case.tenant, work, self._on_committed, through, held
        )
        if isinstance(outcome, SyncError) and outcome.code == "idempotency_key_reused":
            raise RefusedError("another retry stored this item, with other data")
        if not isinstance(outcome, PushAnswer):
            raise _refused(outcome)
        if recovery[0].late:
            raise RefusedError(
                "some of these items were recovered at the same time:"
                " see with `run.py quarantine list` whether this one is left, and try again"
            )
        result, *behind = decode_results(outcome.results)
        if result.error is not None:
            await self.note_retry(items[0], result.error, corrected=data is not None)
        else:  # else nothing was written, and those behind it wait on
            for item, one in zip(items[1:], behind, strict=True):
                if one.error is not None:
                    await self.note_retry(item, one.error, corrected=False)
        lost = result.status == "resolved" and result.winner == "server"
        return Recovered(
            result,
            {item.quarantine_id: one for item, one in zip(items[1:], behind, strict=True)},
            await self.record(row) if lost else None,
        )


def _intake(settings: Settings) -> MessageValidator:
    return MessageValidator(Domains(dict(settings.domains)), settings.limits.items)


def _refused(outcome: Outcome) -> StoreError:
    assert isinstance(outcome, SyncError)
    if outcome.kind.retryable:
        return StoreError(f"{outcome.message}: run the command again")
    return RefusedError(outcome.message)


async def _commit(
    dsn: str,
    settings: Settings,
    tenant: str,
    work: Work,
    on_committed: OnCommitted,
    wrap: WrapStore = lambda store: store,
    held_domain: str | None = None,
) -> Outcome:
    """See one job through; what a server would do with it happens here. Raises StoreError.

    A conflict in ``held_domain`` is left to a person.
    """
    tenants: set[int] = set()
    database = Database(dsn, 1)
    try:
        found = await PostgresTenants(database).find(tenant)
        if found is None or found.tenant.tenant_id != work.tenant_id:
            raise RefusedError(f"there is no tenant {tenant} any more")
        store = wrap(PostgresStore(database, settings.idempotency.lifetime_h))
        committer = command_committer(store, settings, found.own, tenants, held_domain)
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        committer.submit(work, outcome.set_result)
        async with anyio.create_task_group() as group:
            group.start_soon(committer.run)
            answered = await outcome
            group.cancel_scope.cancel()
    finally:
        await database.close()
    if tenants:
        on_committed(tenants)
    return answered


def command_committer(
    store: Store,
    settings: Settings,
    own: Mapping[str, DomainPolicy],
    moved: set[int],
    held_domain: str | None = None,
) -> Committer:
    """Make a command's own committer; whose feeds it moves is added to ``moved``.

    ``own`` are policies that are set for the tenant, by domain. A conflict in ``held_domain`` is left to a
    person.
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
    )
    return Committer(
        store,
        context,
        _clock,
        lambda changes: moved.update(_tenants(changes)),
        moved.update,
        CommitLimits(
            settings.commit.batch_items,
            settings.commit.batch_bytes,
            settings.commit.queue_messages,
            settings.commit.queue_bytes,
        ),
    )


def _tenants(changes: list[tuple[Record, str]]) -> set[int]:
    return {record.tenant_id for record, _ in changes}
