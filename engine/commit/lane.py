"""One batch in flight: from its jobs to their answers, whatever the store does until then."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from engine.commit.planning import MESSAGE_S, TooLongError, planned
from engine.commit.ports import Store, Transaction
from engine.commit.queue import CommitQueue, QueuedWork
from engine.model.rows import OpenConflictRef, Record
from engine.plan.batch import Plan, lookups, steps
from engine.plan.context import PlanContext
from engine.plan.room import KeptBack
from engine.plan.weighing import select
from engine.plan.work import Outcome, Push, RejectedItem, Work
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
    without_room: int = 0


class Lane:
    """Commits one batch after the other, as ``Committer`` hands them on."""

    def __init__(
        self,
        store: Store,
        rules: PlanContext,
        clock: WorkClock,
        publish: OnCommitted,
        doubt: OnUnknownOutcome,
        backlog: CommitQueue,
        counters: Counters,
        kept_back: KeptBack,
        wanted: Wanted,
    ) -> None:
        self._wanted = wanted
        self._kept_back = kept_back
        self._store = store
        self._rules = rules
        self._clock = clock
        self._publish = publish
        self._doubt = doubt
        self._backlog = backlog
        self._counters = counters
        self._away = False
        self._tried_s = 0.0

    async def settle(self, batch: list[QueuedWork]) -> int:
        """See a batch through; one that cannot be stored is halved until the culprit stands alone.

        Returns:
            The bytes of those that have to wait for another batch.
        """
        if not batch:
            return 0
        try:
            settled = await self._commit([waiting.job for waiting in batch])
        except (StoreRetryError, StoreUnknownError, StoreUnavailableError, StoreFullError) as error:
            self._give_up(batch, error)
            return 0
        except TooLongError as error:
            return await self._settle_without(batch, error)
        except Exception as error:
            if len(batch) == 1:
                return await self._settle_culprit(batch[0], error)
            middle = len(batch) // 2
            # Should the store go away meanwhile, the later half is refused in its turn.
            return self._put_back(batch[middle:]) + await self.settle(batch[:middle])
        left_bytes = self._put_back([batch[index] for index in settled.left])
        for tenant_id in settled.apart:
            self._backlog.set_apart(tenant_id, self._clock.monotonic_s())
        if settled.left:
            left = set(settled.left)
            batch = [waiting for index, waiting in enumerate(batch) if index not in left]
        if batch:
            self._counters.batches += 1
            self._counters.messages += len(batch)
            self._publish(settled.plan.changes)
            for push, age_s in settled.plan.reused:
                self._note_reuse(push, age_s)
            for waiting, outcome, spent_s in zip(batch, settled.plan.outcomes, settled.spent_s, strict=True):
                if type(outcome) is SyncError and outcome.code == "insufficient_storage":
                    self._counters.without_room += 1
                    outcome.details["retry_after_ms"] = retry_later_ms()
                if spent_s > _CHARGED_FROM_S:
                    _charge(waiting, spent_s)
                _answer(waiting, outcome)
        return left_bytes

    def _put_back(self, left: list[QueuedWork]) -> int:
        if left:
            self._backlog.put_back(left)
        return sum([waiting.size_bytes for waiting in left])

    async def _settle_without(self, batch: list[QueuedWork], error: TooLongError) -> int:
        """Refuse a message that takes too long to plan; the others never notice."""
        waiting = batch[error.index]
        job = waiting.job
        self._counters.failed += 1
        _log.warning("message_too_long", tenant_id=job.tenant_id, device_id=job.device_id)
        self._backlog.set_apart(job.tenant_id, self._clock.monotonic_s())
        _charge(waiting, error.spent_s[error.index])
        _answer(
            waiting,
            SyncError("too_large", f"items: applying them takes over {MESSAGE_S:.0f} s: send fewer at once"),
        )
        return await self.settle([*batch[: error.index], *batch[error.index + 1 :]])

    def _note_reuse(self, push: Push, age_s: int) -> None:
        """Tell of a device that uses keys again: while answers were kept for a day, this was applied."""
        if age_s > _OLD_KEY_S:
            self._counters.old_keys_reused += 1
            _log.warning(
                "old_key_reused", tenant_id=push.tenant_id, device_id=push.device_id, age_h=age_s // 3600
            )

    def _give_up(self, batch: list[QueuedWork], error: StoreError) -> None:
        """Refuse a batch and all that waits behind it: a device's later changes build on its earlier ones.

        The database may have come back since it was tried. What other devices sent since then is tried.
        """
        self._away = True
        refused = [*batch, *self._backlog.take_those_behind(batch, self._tried_s)]
        _log.warning("batch_unavailable", messages=len(refused), reason=type(error).__name__)
        self._counters.failed += len(refused)
        full = isinstance(error, StoreFullError)
        for waiting in refused:
            _answer(waiting, _disk_full() if full else unavailable(retry_soon_ms()))

    async def _settle_culprit(self, waiting: QueuedWork, error: Exception) -> int:
        """What the database refuses is quarantined item by item, so that it blocks no queue."""
        job = waiting.job
        if isinstance(error, StorePoisonError) and type(job) is Push:
            refused = _refused_whole(job)
            if refused is not None:
                self._counters.poisoned += 1
                _log.warning("message_poisoned", tenant_id=job.tenant_id, device_id=job.device_id)
                return await self.settle([msgspec.structs.replace(waiting, job=refused)])
        error_id = uuid.uuid4().hex
        self._counters.failed += 1
        _log.error(
            "message_failed",
            error_id=error_id,
            tenant_id=job.tenant_id,
            device_id=job.device_id,
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
                self._doubt({job.tenant_id for job in jobs})

    async def _attempt(self, jobs: list[Work]) -> _Settled:
        tenants = {job.tenant_id for job in jobs}
        rules = self._rules.as_of_now(tenants)
        behind = self._kept_back.of(tenants, self._clock.monotonic_s())
        also_held: set[OpenConflictRef] = set()
        while True:
            transaction: Transaction = await self._store.begin(lookups(jobs, rules, also_held))
            try:
                selected = select(jobs, transaction.state)
                taken = jobs
                if selected.left:
                    left = set(selected.left)
                    taken = [job for index, job in enumerate(jobs) if index not in left]
                deciding = steps(taken, transaction.state, rules, also_held, behind, selected.items_per_step)
                rests = bool(selected.apart) and len(tenants) == 1 and self._wanted(self._clock.monotonic_s())
                plan, spent_s = await planned(deciding, len(taken), self._clock, rests=rests)
            except BaseException:
                await transaction.rollback()
                raise
            if not plan.missing:
                if taken:
                    await transaction.commit(plan.writes)
                    now_s = self._clock.monotonic_s()
                    self._kept_back.planned(tenants, plan.behind, plan.refused, now_s)
                else:
                    await transaction.rollback()
                return _Settled(plan, spent_s, selected.left, selected.apart)
            # Begins again, seldom: it is dearer than one more look, and costs other batches nothing.
            await transaction.rollback()
            also_held.update(plan.missing)


def _charge(waiting: QueuedWork, spent_s: float) -> None:
    if spent_s > _CHARGED_FROM_S and waiting.charge is not None:
        waiting.charge(spent_s)


def _answer(waiting: QueuedWork, outcome: Outcome) -> None:
    try:
        waiting.reply(outcome)
    except Exception:
        _log.exception("reply_failed", tenant_id=waiting.job.tenant_id)


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
