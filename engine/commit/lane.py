"""One batch in flight: from its jobs to their answers, whatever the store does until then."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import structlog

from engine.commit.planning import MESSAGE_S, TooLongError, planned
from engine.commit.ports import Store, Transaction
from engine.commit.queue import CommitQueue, QueuedWork
from engine.model.rows import OpenConflictRef, Record
from engine.plan.batch import Plan, read_set, steps
from engine.plan.capacity import BlockedRecords
from engine.plan.context import PlanContext
from engine.plan.weighing import select
from engine.plan.work import Outcome, Push, RejectedItem, Work
from engine.runtime.metrics import Metric, counter
from engine.runtime.ports import (
    StoreError,
    StoreFullError,
    StorePoisonError,
    StoreRetryError,
    StoreUnavailableError,
    StoreUnknownError,
    WorkClock,
)
from engine.runtime.rate_limit import retry_later_ms, retry_soon_ms
from engine.wire.errors import SyncError

OnCommitted = Callable[[list[tuple[Record, str]]], None]
OnUnknownOutcome = Callable[[set[int]], None]
Wanted = Callable[[float], bool]

#: How long a batch is tried again before its senders are told to come back.
RETRY_FOR_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.005
#: Answers were once kept for so long.
_OLD_KEY_S: Final = 86_400
_LONGEST_PAUSE_S: Final = 0.25
#: Planning that takes less is not charged: the rate of messages bounds it.
_CHARGED_FROM_S: Final = 0.001
_log = structlog.get_logger()


class _Settled(msgspec.Struct, frozen=True):
    """What was committed of a batch: the plan, and the jobs that it is of.

    ``spent_s`` are the seconds that planning each took, ``left`` the indexes of those that have to wait,
    ``apart`` the tenants that are to be planned without others.
    """

    plan: Plan
    spent_s: list[float]
    left: Sequence[int]
    apart: frozenset[int]


class Counters(msgspec.Struct):
    """What the committer did since it started. ``batch_s`` is the time that batches took, added up."""

    batches: int = 0
    batch_s: float = 0.0
    messages: int = 0
    retries: int = 0
    unknown_outcomes: int = 0
    poisoned: int = 0
    failed: int = 0
    old_keys_reused: int = 0
    refused_at_limit: int = 0

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield from (
            counter("tidemark_batches", "Batches committed", self.batches),
            counter("tidemark_batch_seconds", "Time that batches took, added up", self.batch_s),
            counter("tidemark_batch_messages", "Messages in committed batches", self.messages),
            counter("tidemark_batch_retries", "Batches tried again", self.retries),
            counter("tidemark_commits_unknown", "Commits of unknown outcome", self.unknown_outcomes),
            counter("tidemark_messages_poisoned", "Messages refused by the database", self.poisoned),
            counter("tidemark_messages_failed", "Messages that could not be stored", self.failed),
            counter(
                "tidemark_messages_without_room", "Messages refused for a full tenant", self.refused_at_limit
            ),
            counter(
                "tidemark_old_keys_reused", "Keys used again after more than a day", self.old_keys_reused
            ),
        )


class Lane:
    """Commits one batch after the other, as ``Committer`` hands them on."""

    def __init__(
        self,
        store: Store,
        context: PlanContext,
        clock: WorkClock,
        on_committed: OnCommitted,
        outcome_unknown: OnUnknownOutcome,
        queue: CommitQueue,
        counters: Counters,
        blocked_records: BlockedRecords,
        wanted: Wanted,
    ) -> None:
        self._wanted = wanted
        self._blocked_records = blocked_records
        self._store = store
        self._context = context
        self._clock = clock
        self._on_committed = on_committed
        self._outcome_unknown = outcome_unknown
        self._queue = queue
        self._counters = counters
        self._away = False
        self._tried_s = 0.0

    async def run(self, batch: list[QueuedWork]) -> int:
        """See a batch through; one that cannot be stored is halved until the culprit stands alone.

        Returns:
            The bytes of those that have to wait for another batch.
        """
        if not batch:
            return 0
        try:
            settled = await self._commit([waiting.work for waiting in batch])
        except (StoreRetryError, StoreUnknownError, StoreUnavailableError, StoreFullError) as error:
            self._fail_everything(batch, error)
            return 0
        except TooLongError as error:
            return await self._run_without(batch, error)
        except Exception as error:
            if len(batch) == 1:
                return await self._fail_alone(batch[0], error)
            middle = len(batch) // 2
            # Should the store go away meanwhile, the later half is refused in its turn.
            return self._requeue(batch[middle:]) + await self.run(batch[:middle])
        left_bytes = self._requeue([batch[index] for index in settled.left])
        for tenant_id in settled.apart:
            self._queue.isolate(tenant_id, self._clock.monotonic_s())
        if settled.left:
            left = set(settled.left)
            batch = [waiting for index, waiting in enumerate(batch) if index not in left]
        if batch:
            self._counters.batches += 1
            self._counters.messages += len(batch)
            self._on_committed(settled.plan.changes)
            for push, age_s in settled.plan.reused:
                self._note_reuse(push, age_s)
            for waiting, outcome, spent_s in zip(batch, settled.plan.outcomes, settled.spent_s, strict=True):
                if type(outcome) is SyncError and outcome.code == "insufficient_storage":
                    self._counters.refused_at_limit += 1
                    outcome.details["retry_after_ms"] = retry_later_ms()
                if spent_s > _CHARGED_FROM_S:
                    _charge(waiting, spent_s)
                _answer(waiting, outcome)
        return left_bytes

    def _requeue(self, left: list[QueuedWork]) -> int:
        if left:
            self._queue.requeue(left)
        return sum([waiting.size_bytes for waiting in left])

    async def _run_without(self, batch: list[QueuedWork], error: TooLongError) -> int:
        """Refuse a message that takes too long to plan; the others never notice."""
        waiting = batch[error.index]
        work = waiting.work
        self._counters.failed += 1
        _log.warning("message_too_long", tenant_id=work.tenant_id, device_id=work.device_id)
        self._queue.isolate(work.tenant_id, self._clock.monotonic_s())
        _charge(waiting, error.spent_s[error.index])
        _answer(
            waiting,
            SyncError("too_large", f"items: applying them takes over {MESSAGE_S:.0f} s: send fewer at once"),
        )
        return await self.run([*batch[: error.index], *batch[error.index + 1 :]])

    def _note_reuse(self, push: Push, age_s: int) -> None:
        """Tell of a device that uses keys again: while answers were kept for a day, this was applied."""
        if age_s > _OLD_KEY_S:
            self._counters.old_keys_reused += 1
            _log.warning(
                "old_key_reused", tenant_id=push.tenant_id, device_id=push.device_id, age_h=age_s // 3600
            )

    def _fail_everything(self, batch: list[QueuedWork], error: StoreError) -> None:
        """Refuse a batch and all that waits behind it: a device's later changes build on its earlier ones.

        The database may have come back since it was tried. What other devices sent since then is tried.
        """
        self._away = True
        refused = [*batch, *self._queue.drain_older(batch, self._tried_s)]
        _log.warning("batch_unavailable", messages=len(refused), reason=type(error).__name__)
        self._counters.failed += len(refused)
        full = isinstance(error, StoreFullError)
        for waiting in refused:
            _answer(waiting, _disk_full() if full else unavailable(retry_soon_ms()))

    async def _fail_alone(self, waiting: QueuedWork, error: Exception) -> int:
        """What the database refuses is quarantined item by item, so that it blocks no queue."""
        work = waiting.work
        if isinstance(error, StorePoisonError) and type(work) is Push:
            refused = _refused_whole(work)
            if refused is not None:
                self._counters.poisoned += 1
                _log.warning("message_poisoned", tenant_id=work.tenant_id, device_id=work.device_id)
                return await self.run([msgspec.structs.replace(waiting, work=refused)])
        error_id = uuid.uuid4().hex
        self._counters.failed += 1
        _log.error(
            "message_failed",
            error_id=error_id,
            tenant_id=work.tenant_id,
            device_id=work.device_id,
            reason=type(error).__name__,
            exc_info=None if isinstance(error, StoreError) else error,
        )
        _answer(waiting, SyncError("internal", "the server failed on this message", error_id=error_id))
        return 0

    async def _commit(self, jobs: list[Work]) -> _Settled:
        """Run one batch until its outcome is certain.

        After a COMMIT of unknown outcome the same batch runs again under its locks: its keys tell what
        became of it, though not which versions it wrote, hence the doubt. Retries until patience runs
        out, then raises what the store said last. So a restart or a failover of the database is a
        pause; while a longer outage lasts, each batch tries once.
        """
        give_up_s = self._clock.monotonic_s() + (0.0 if self._away else RETRY_FOR_S)
        pause_s = _FIRST_PAUSE_S
        unknown = False
        try:
            while True:
                self._tried_s = self._clock.monotonic_s()
                try:
                    settled = await self._attempt(jobs)
                except (StoreRetryError, StoreUnknownError, StoreUnavailableError) as error:
                    if isinstance(error, StoreUnknownError):
                        self._counters.unknown_outcomes += 1
                        unknown = True
                    self._counters.retries += 1
                    if self._clock.monotonic_s() >= give_up_s:
                        raise
                else:
                    self._away = False
                    return settled
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        finally:
            if unknown:
                self._outcome_unknown({work.tenant_id for work in jobs})

    async def _attempt(self, jobs: list[Work]) -> _Settled:
        tenants = {work.tenant_id for work in jobs}
        context = self._context.as_of_now(tenants)
        blocked = self._blocked_records.of(tenants, self._clock.monotonic_s())
        extra_conflicts: set[OpenConflictRef] = set()
        while True:
            transaction: Transaction = await self._store.begin(read_set(jobs, context, extra_conflicts))
            try:
                selected = select(jobs, transaction.snapshot)
                taken = jobs
                if selected.left:
                    left = set(selected.left)
                    taken = [work for index, work in enumerate(jobs) if index not in left]
                deciding = steps(
                    taken, transaction.snapshot, context, extra_conflicts, blocked, selected.items_per_step
                )
                rests = bool(selected.apart) and len(tenants) == 1 and self._wanted(self._clock.monotonic_s())
                plan, spent_s = await planned(deciding, len(taken), self._clock, rests=rests)
            except BaseException:
                await transaction.rollback()
                raise
            if not plan.unread_conflicts:
                if taken:
                    await transaction.commit(plan.writes)
                    now_s = self._clock.monotonic_s()
                    self._blocked_records.update(tenants, plan.blocked, plan.refused, now_s)
                else:
                    await transaction.rollback()
                return _Settled(plan, spent_s, selected.left, selected.apart)
            # Begins again, seldom: it is dearer than one more look, and costs other batches nothing.
            await transaction.rollback()
            extra_conflicts.update(plan.unread_conflicts)


def _charge(waiting: QueuedWork, spent_s: float) -> None:
    if spent_s > _CHARGED_FROM_S and waiting.charge is not None:
        waiting.charge(spent_s)


def _answer(waiting: QueuedWork, outcome: Outcome) -> None:
    try:
        waiting.reply(outcome)
    except Exception:
        _log.exception("reply_failed", tenant_id=waiting.work.tenant_id)


def _refused_whole(push: Push) -> Push | None:
    if all(type(item) is RejectedItem for item in push.items):
        return None
    sentence = "the database refused a value of this message"
    items = [
        item if type(item) is RejectedItem else RejectedItem(item.domain, item.id, "invalid_item", sentence)
        for item in push.items
    ]
    return msgspec.structs.replace(push, items=items)


def _disk_full() -> SyncError:
    return SyncError(
        "insufficient_storage",
        "the database's disk is full; send the same message again",
        retry_after_ms=retry_later_ms(),
    )


def unavailable(retry_after_ms: int) -> SyncError:
    """Make the refusal of what cannot be stored now."""
    return SyncError(
        "unavailable", "the database is away; send the same message again", retry_after_ms=retry_after_ms
    )
