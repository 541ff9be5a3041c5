"""One batch in flight: from queued work to its answers, whatever the store does."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from engine.cache.key_ring import KeysUnavailableError
from engine.commit.counters import Counters
from engine.commit.planning import MESSAGE_S, TooLongError, run_plan
from engine.commit.ports import Store, Transaction
from engine.commit.queue import ITEM_BYTES, CommitQueue, QueuedWork
from engine.model.rows import OpenConflictRef, Record, Snapshot
from engine.plan.batch import Plan, read_set, steps
from engine.plan.bounds.capacity import BlockedRecords
from engine.plan.bounds.costs import Costs
from engine.plan.context import PlanContext
from engine.plan.kinds import KINDS
from engine.plan.weighing import select
from engine.plan.work import Outcome, Push, Work
from engine.runtime.backoff import Backoff
from engine.runtime.metered import metered
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

#: Called with the new versions of a committed batch, each with the session that pushed it.
OnCommitted = Callable[[list[tuple[Record, str]]], None]
#: Called with the tenants of a batch whose COMMIT may have succeeded although the store did not say so.
OnUnknownOutcome = Callable[[set[int]], None]
#: Returns whether several tenants want the event loop at an instant of the monotonic clock.
IsContended = Callable[[float], bool]

#: A batch is tried again for this long before its devices are told to come back later.
RETRY_FOR_S: Final = 10.0
#: A key whose answer is older than a day is counted when it is used for another message: releases that kept
#: answers for one day accepted such a message.
_OLD_KEY_S: Final = 86_400
#: Planning that takes less is not charged, because the rate of messages already bounds it.
_CHARGED_FROM_S: Final = 0.001
_log = structlog.get_logger()


class _Committed(msgspec.Struct, frozen=True):
    """The plan that was committed.

    ``spent_s`` are the seconds of the loop that each message took, ``charged_s`` those that its device was
    charged for already, by the message's index.
    ``is_light``: all of it is small. ``deferred`` are the indexes of the messages that were left for another
    batch. ``isolated`` are the tenants to be planned without others.
    """

    plan: Plan
    spent_s: list[float]
    charged_s: dict[int, float]
    is_light: bool
    deferred: Sequence[int]
    isolated: frozenset[int]


class Lane:
    """Commits one batch after another. ``Committer`` hands the batches on."""

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
        is_contended: IsContended,
    ) -> None:
        """Make a lane. The arguments are those of ``Committer``, and what its lanes share."""
        self._is_contended = is_contended
        self._blocked_records = blocked_records
        self._store = store
        self._context = context
        self._clock = clock
        self._on_committed = on_committed
        self._outcome_unknown = outcome_unknown
        self._queue = queue
        self._counters = counters
        self._store_is_away = False
        self._tried_at_s = 0.0

    async def run(self, batch: list[QueuedWork]) -> int:
        """Commit a batch and answer its devices.

        A batch that cannot be stored is halved until the message at fault stands alone, or until all are of
        the tenant whose keys are lost.

        Returns:
            The bytes of the messages that were put back into the queue.
        """
        if not batch:
            return 0
        try:
            committed = await self._commit(batch)
        except (StoreRetryError, StoreUnknownError, StoreUnavailableError, StoreFullError) as error:
            self._fail_everything(batch, error)
            return 0
        except TooLongError as error:
            return await self._run_without(batch, error)
        except Exception as error:
            if len(batch) == 1:
                return await self._fail_alone(batch[0], error)
            if isinstance(error, KeysUnavailableError) and len({one.work.tenant_id for one in batch}) == 1:
                for queued in batch:
                    self._fail_for_now(queued, error)
                return 0
            middle = len(batch) // 2
            # If the store goes away during the first half, the second half is refused in its own batch.
            return self._requeue(batch[middle:]) + await self.run(batch[:middle])
        deferred_bytes = self._requeue([batch[index] for index in committed.deferred])
        for tenant_id in committed.isolated:
            self._queue.isolate(tenant_id, self._clock.monotonic_s())
        if committed.deferred:
            deferred = set(committed.deferred)
            batch = [queued for index, queued in enumerate(batch) if index not in deferred]
        if batch:
            self._answer_all(batch, committed)
        return deferred_bytes

    def _answer_all(self, batch: list[QueuedWork], committed: _Committed) -> None:
        plan = committed.plan
        self._counters.committed(len(batch), plan)
        self._on_committed(plan.changes)
        for push, age_s in plan.reused_keys:
            self._note_reuse(push, age_s)
        uncharged = committed.spent_s
        if committed.charged_s:
            uncharged = [
                spent_s - committed.charged_s.get(index, 0.0) for index, spent_s in enumerate(uncharged)
            ]
        if not committed.is_light:
            # Many messages below a millisecond each, as patches of a large record, are seconds together.
            uncharged = _by_device(batch, uncharged)
        for queued, outcome, spent_s, message_s in zip(
            batch, plan.outcomes, uncharged, committed.spent_s, strict=True
        ):
            if type(outcome) is SyncError and outcome.code == "insufficient_storage":
                self._counters.refused_at_limit += 1
                outcome.details["retry_after_ms"] = retry_later_ms()
            if spent_s > _CHARGED_FROM_S or message_s > _CHARGED_FROM_S:
                self._charge(queued, spent_s, message_s)
            _answer(queued, outcome)

    def _requeue(self, batch: list[QueuedWork]) -> int:
        if batch:
            self._queue.requeue(batch)
        return sum([queued.size_bytes for queued in batch])

    async def _run_without(self, batch: list[QueuedWork], error: TooLongError) -> int:
        """Refuse a message that takes too long to plan, and commit the others."""
        queued = batch[error.index]
        work = queued.work
        self._counters.failed += 1
        _log.warning("message_too_long", tenant_id=work.tenant_id, device_id=work.device_id)
        self._queue.isolate(work.tenant_id, self._clock.monotonic_s())
        self._charge(queued, 0.0, error.spent_s[error.index])
        _answer(
            queued,
            SyncError("too_large", f"items: applying them takes over {MESSAGE_S:.0f} s: send fewer at once"),
        )
        return await self.run([*batch[: error.index], *batch[error.index + 1 :]])

    def _note_reuse(self, push: Push, age_s: int) -> None:
        """Log a device that uses old keys for new messages (``_OLD_KEY_S``)."""
        if age_s > _OLD_KEY_S:
            self._counters.old_keys_reused += 1
            _log.warning(
                "old_key_reused", tenant_id=push.tenant_id, device_id=push.device_id, age_h=age_s // 3600
            )

    def _fail_everything(self, batch: list[QueuedWork], error: StoreError) -> None:
        """Refuse a batch and everything that was queued before its last try.

        Later changes of a device build on its earlier ones, so those of the same devices are refused too.
        What other devices sent after the last try is kept: the database may have come back since.
        """
        self._store_is_away = True
        refused = [*batch, *self._queue.drain_older(batch, self._tried_at_s)]
        _log.warning("batch_unavailable", messages=len(refused), reason=type(error).__name__)
        self._counters.failed += len(refused)
        is_full = isinstance(error, StoreFullError)
        if is_full:  # it may have room again at once, and what comes next must not overtake these
            pushes = [queued.work for queued in refused if isinstance(queued.work, Push)]
            self._blocked_records.block(pushes, self._clock.monotonic_s())
        for queued in refused:
            _answer(queued, _disk_full() if is_full else unavailable(retry_soon_ms()))

    async def _fail_alone(self, queued: QueuedWork, error: Exception) -> int:
        """Quarantine the items of a message that the database refuses, so that it does not block its queue.

        A message of a kind without items, and a fault of this process, are refused as ``internal``.
        """
        work = queued.work
        if isinstance(error, StorePoisonError):
            rejected = KINDS[type(work)].with_items_rejected(
                work, "the database refused a value of this message"
            )
            if rejected is not None:
                self._counters.poisoned += 1
                _log.warning("message_poisoned", tenant_id=work.tenant_id, device_id=work.device_id)
                return await self.run([msgspec.structs.replace(queued, work=rejected)])
        elif isinstance(error, StoreError):
            self._fail_for_now(queued, error)
            return 0
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
        _answer(queued, SyncError("internal", "the server failed on this message", error_id=error_id))
        return 0

    def _fail_for_now(self, queued: QueuedWork, error: StoreError) -> None:
        """Refuse a message until a person has mended what it needs, such as a key of its tenant.

        Its tenant is isolated until the message comes again: to find it among others costs tries.
        """
        work = queued.work
        wait_ms = retry_soon_ms()
        self._counters.failed += 1
        self._queue.isolate(work.tenant_id, self._clock.monotonic_s() + wait_ms / 1000)
        _log.warning(
            "store_failed",
            tenant_id=work.tenant_id,
            device_id=work.device_id,
            reason=type(error).__name__,
            detail=error.detail,
        )
        sentence = "the database cannot serve this message now; send the same message again"
        _answer(queued, SyncError("unavailable", sentence, retry_after_ms=wait_ms))

    def _charge(self, queued: QueuedWork, spent_s: float, message_s: float = 0.0) -> None:
        """Charge a device (``Charge``), and have it rest if it is over its share."""
        if queued.charge is not None:
            rest = queued.charge(spent_s, message_s)
            if rest is not None:
                work = queued.work
                self._queue.rest(work.tenant_id, work.device_id, rest, self._clock.monotonic_s())

    async def _commit(self, batch: list[QueuedWork]) -> _Committed:
        """Run one batch until its outcome is certain.

        After a COMMIT of unknown outcome the same batch runs again under its locks. Its keys then tell
        whether it was committed, but not which versions it wrote: ``outcome_unknown`` is called. A restart or
        a failover of the database is a pause of at most ``RETRY_FOR_S``. While a longer outage lasts, each
        batch is tried once.

        Raises:
            StoreError: What the store said at the last try.
        """
        give_up_s = self._clock.monotonic_s() + (0.0 if self._store_is_away else RETRY_FOR_S)
        backoff = Backoff()
        unknown = False
        try:
            while True:
                self._tried_at_s = self._clock.monotonic_s()
                try:
                    committed = await self._attempt(batch)
                except (StoreRetryError, StoreUnknownError, StoreUnavailableError) as error:
                    if isinstance(error, StoreUnknownError):
                        self._counters.unknown_outcomes += 1
                        unknown = True
                    self._counters.retries += 1
                    if self._clock.monotonic_s() >= give_up_s:
                        raise
                else:
                    self._store_is_away = False
                    return committed
                await backoff.pause()
        finally:
            if unknown:
                self._outcome_unknown({queued.work.tenant_id for queued in batch})

    async def _attempt(self, batch: list[QueuedWork]) -> _Committed:
        everything = [queued.work for queued in batch]
        tenants = {work.tenant_id for work in everything}
        context = self._context.as_of_now(tenants)
        blocked = self._blocked_records.of(tenants, self._clock.monotonic_s())
        extra_conflicts: set[OpenConflictRef] = set()
        rows_s = 0.0  # the loop's time for rows, before the plan and after it

        def took(spent_s: float) -> None:
            nonlocal rows_s
            rows_s += spent_s

        def charge(index: int, spent_s: float) -> None:
            self._charge(payers[index], spent_s - charged_s.get(index, 0.0))
            charged_s[index] = spent_s

        clock_s = self._clock.monotonic_s
        while True:
            reads = read_set(everything, context, extra_conflicts)
            transaction: Transaction = await metered(self._store.begin(reads), clock_s, took)
            try:
                selected = select(everything, transaction.snapshot)
                taken, payers = everything, batch
                if selected.deferred:
                    deferred = set(selected.deferred)
                    payers = [queued for index, queued in enumerate(batch) if index not in deferred]
                    taken = [queued.work for queued in payers]
                planning = steps(
                    taken, transaction.snapshot, context, extra_conflicts, blocked, selected.items_per_step
                )
                rests = (
                    bool(selected.isolated)
                    and len(tenants) == 1
                    and self._is_contended(self._clock.monotonic_s())
                )
                charged_s: dict[int, float] = {}
                plan, spent_s = await run_plan(planning, len(taken), self._clock, charge, rests=rests)
            except BaseException:
                await transaction.rollback()
                raise
            if not plan.unread_conflicts:
                if taken:
                    began_s = clock_s()
                    await metered(transaction.commit(plan.writes), clock_s, took)
                    self._counters.commit_durations.add(clock_s() - began_s)
                    if rows_s > _CHARGED_FROM_S and not selected.is_light:
                        _share_out(rows_s, taken, transaction.snapshot, spent_s)
                    now_s = self._clock.monotonic_s()
                    self._blocked_records.update(tenants, blocked, plan.blocked, plan.refused_keys, now_s)
                else:
                    await transaction.rollback()
                return _Committed(
                    plan, spent_s, charged_s, selected.is_light, selected.deferred, selected.isolated
                )
            # Run again with the conflicts that were not read. This is rare: it costs more than reading them
            # within the same transaction would, but other batches pay nothing.
            await transaction.rollback()
            extra_conflicts.update(plan.unread_conflicts)


def _share_out(rows_s: float, batch: list[Work], snapshot: Snapshot, spent_s: list[float]) -> None:
    """Add the time of a batch's rows to that of its messages, by the bytes that each reads and writes."""
    costs = Costs(snapshot)
    touched = [ITEM_BYTES + KINDS[type(work)].touched_bytes(work, costs) for work in batch]
    byte_s = rows_s / sum(touched)
    for index, size_bytes in enumerate(touched):
        spent_s[index] += byte_s * size_bytes


def _by_device(batch: list[QueuedWork], spent_s: list[float]) -> list[float]:
    """Move the time of all messages of a device to the first of them that can be charged."""
    moved_s = [0.0] * len(batch)
    first: dict[tuple[int, str], int] = {}
    for index, queued in enumerate(batch):
        if queued.charge is not None:
            work = queued.work
            moved_s[first.setdefault((work.tenant_id, work.device_id), index)] += spent_s[index]
    return moved_s


def _answer(queued: QueuedWork, outcome: Outcome) -> None:
    try:
        queued.reply(outcome)
    except Exception:
        _log.exception("reply_failed", tenant_id=queued.work.tenant_id)


def _disk_full() -> SyncError:
    return SyncError(
        "insufficient_storage",
        "the database's disk is full; send the same message again",
        retry_after_ms=retry_later_ms(),
    )


def unavailable(retry_after_ms: int) -> SyncError:
    """Return the refusal of a message that cannot be stored now."""
    return SyncError(
        "unavailable", "the database is away; send the same message again", retry_after_ms=retry_after_ms
    )
