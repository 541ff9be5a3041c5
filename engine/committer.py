"""Group commit: collects while the last commit runs, hands one batch to the store, answers everyone.

A lane holds one batch in flight; a tenant always takes the same lane, so what one connection sends
applies in the order sent. No timer: an idle lane commits a lone job at once, a busy one gathers.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from engine.batch import Plan, lookups, plan
from engine.errors import SyncError
from engine.jobs import Job, Outcome, Push, Refused
from engine.ports import (
    Clock,
    Store,
    StoreError,
    StorePoisonError,
    StoreRetryError,
    StoreUnavailableError,
    StoreUnknownError,
    Transaction,
)
from engine.rows import Record
from engine.rules import Rules

Reply = Callable[[Outcome], None]
Published = Callable[[list[tuple[Record, str]]], None]
Doubted = Callable[[set[int]], None]

#: How long a batch is tried again before its senders are told to come back.
PATIENCE_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.25
#: What a job and each of its items cost besides their bytes, so that many tiny ones are bounded too.
_JOB_BYTES: Final = 512
_ITEM_BYTES: Final = 1024

_log = structlog.get_logger()


class CommitLimits(msgspec.Struct, frozen=True):
    """Bounds of a batch and of a lane's queue."""

    batch_messages: int
    batch_bytes: int
    queue_messages: int
    queue_bytes: int


class _Waiting(msgspec.Struct, frozen=True, gc=False):
    job: Job
    reply: Reply
    size_bytes: int


class Counters(msgspec.Struct):
    """What the committer did since it started."""

    batches: int = 0
    messages: int = 0
    retries: int = 0
    unknown_outcomes: int = 0
    poisoned: int = 0
    failed: int = 0


class Committer:
    """Spreads jobs over lanes by tenant.

    ``publish`` is told what was committed, ``doubt`` the tenants of a batch that may have been committed
    although what it wrote is not known.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        clock: Clock,
        publish: Published,
        doubt: Doubted,
        limits: CommitLimits,
        lanes: int = 1,
    ) -> None:
        self.counters = Counters()
        self._lanes = [
            _Lane(store, rules, clock, publish, doubt, limits, self.counters) for _ in range(lanes)
        ]

    def submit(self, job: Job, reply: Reply) -> None:
        """Queue a job; ``reply`` is called once on the event loop after its batch is durable.

        Raises SyncError ``overloaded`` when the queue is full: then nothing was accepted.
        """
        lanes = self._lanes
        lanes[job.tenant_id % len(lanes)].submit(job, reply)

    @property
    def queued_messages(self) -> int:
        """How many jobs wait in all lanes."""
        return sum(lane.queued_messages for lane in self._lanes)

    async def run(self) -> None:
        """Commit until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(lane.run())

    async def drain(self) -> None:
        """Wait until everything accepted is answered."""
        for lane in self._lanes:
            await lane.idle.wait()


class _Lane:
    def __init__(
        self,
        store: Store,
        rules: Rules,
        clock: Clock,
        publish: Published,
        doubt: Doubted,
        limits: CommitLimits,
        counters: Counters,
    ) -> None:
        self._store = store
        self._rules = rules
        self._clock = clock
        self._publish = publish
        self._doubt = doubt
        self._limits = limits
        self._counters = counters
        self._queue: deque[_Waiting] = deque()
        self._queue_bytes = 0
        self._away = False
        self._work = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def queued_messages(self) -> int:
        return len(self._queue)

    def submit(self, job: Job, reply: Reply) -> None:
        size_bytes = _JOB_BYTES
        if type(job) is Push:
            size_bytes += len(job.raw_items) + _ITEM_BYTES * len(job.items)
        limits = self._limits
        if (
            len(self._queue) >= limits.queue_messages
            or self._queue_bytes + size_bytes > limits.queue_bytes
        ):
            raise SyncError(
                "overloaded", "too much is waiting to be stored", retry_after_ms=_spread_ms()
            )
        self._queue.append(_Waiting(job, reply, size_bytes))
        self._queue_bytes += size_bytes
        self.idle.clear()
        self._work.set()

    async def run(self) -> None:
        while True:
            if not self._queue:
                self.idle.set()
                self._work.clear()
                await self._work.wait()
            await self._settle(self._take())

    def _take(self) -> list[_Waiting]:
        queue = self._queue
        most, room = self._limits.batch_messages, self._limits.batch_bytes
        batch = [queue.popleft()]
        room -= batch[0].size_bytes
        while queue and len(batch) < most and queue[0].size_bytes <= room:
            waiting = queue.popleft()
            room -= waiting.size_bytes
            batch.append(waiting)
        self._queue_bytes -= self._limits.batch_bytes - room
        return batch

    async def _settle(self, batch: list[_Waiting]) -> None:
        """See a batch through; one that cannot be stored is halved until the culprit stands alone."""
        try:
            planned = await self._commit([waiting.job for waiting in batch])
        except (StoreRetryError, StoreUnknownError, StoreUnavailableError) as error:
            self._give_up(batch, error)
        except Exception as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                self._put_back(batch[middle:])
                await self._settle(batch[:middle])
            else:
                await self._settle_culprit(batch[0], error)
        else:
            self._counters.batches += 1
            self._counters.messages += len(batch)
            self._publish(planned.changes)
            for waiting, outcome in zip(batch, planned.outcomes, strict=True):
                _answer(waiting, outcome)

    def _put_back(self, batch: list[_Waiting]) -> None:
        """Let the later half wait at the front, where it is refused in its turn should the store go away."""
        self._queue.extendleft(reversed(batch))
        self._queue_bytes += sum(waiting.size_bytes for waiting in batch)

    def _give_up(self, batch: list[_Waiting], error: StoreError) -> None:
        """Refuse a batch and all that waits behind it: a device's later changes build on its earlier ones."""
        self._away = True
        refused = [*batch, *self._queue]
        self._queue.clear()
        self._queue_bytes = 0
        _log.warning("batch_unavailable", messages=len(refused), reason=type(error).__name__)
        self._counters.failed += len(refused)
        for waiting in refused:
            _answer(waiting, _unavailable())

    async def _settle_culprit(self, waiting: _Waiting, error: Exception) -> None:
        """What the database refuses is quarantined item by item, so that it blocks no queue."""
        job = waiting.job
        if isinstance(error, StorePoisonError) and type(job) is Push:
            refused = _refused_whole(job)
            if refused is not None:
                self._counters.poisoned += 1
                _log.warning("message_poisoned", tenant_id=job.tenant_id, device_id=job.device_id)
                await self._settle([_Waiting(refused, waiting.reply, waiting.size_bytes)])
                return
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
        _answer(
            waiting, SyncError("internal", "the server failed on this message", error_id=error_id)
        )

    async def _commit(self, jobs: list[Job]) -> Plan:
        """Run one batch until its outcome is certain.

        After a COMMIT of unknown outcome the same batch runs again under its locks: its keys tell what
        became of it, though not which versions it wrote, hence the doubt. Retries until patience runs
        out, then raises what the store said last. So a restart or a failover of the database is a
        pause; while a longer outage lasts, each batch tries once.
        """
        give_up_s = self._clock.monotonic_s() + (0.0 if self._away else PATIENCE_S)
        pause_s = _FIRST_PAUSE_S
        unknown = False
        try:
            while True:
                try:
                    planned = await self._attempt(jobs)
                except (StoreRetryError, StoreUnknownError, StoreUnavailableError) as error:
                    if isinstance(error, StoreUnknownError):
                        self._counters.unknown_outcomes += 1
                        unknown = True
                    self._counters.retries += 1
                    if self._clock.monotonic_s() >= give_up_s:
                        raise
                else:
                    self._away = False
                    return planned
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        finally:
            if unknown:
                self._doubt({job.tenant_id for job in jobs})

    async def _attempt(self, jobs: list[Job]) -> Plan:
        rules = self._rules.as_of_now({job.tenant_id for job in jobs})
        transaction: Transaction = await self._store.begin(lookups(jobs, rules))
        try:
            planned = plan(jobs, transaction.state, rules)
        except BaseException:
            await transaction.rollback()
            raise
        await transaction.commit(planned.writes)
        return planned


def _answer(waiting: _Waiting, outcome: Outcome) -> None:
    try:
        waiting.reply(outcome)
    except Exception:
        _log.exception("reply_failed", tenant_id=waiting.job.tenant_id)


def _refused_whole(push: Push) -> Push | None:
    if all(type(item) is Refused for item in push.items):
        return None
    sentence = "the database refused a value of this message"
    items = [
        item
        if type(item) is Refused
        else Refused(item.domain, item.id, "invalid_item", sentence)
        for item in push.items
    ]
    return msgspec.structs.replace(push, items=items)


def _unavailable() -> SyncError:
    return SyncError(
        "unavailable", "the database is away; send the same message again", retry_after_ms=_spread_ms()
    )


def _spread_ms() -> int:
    return random.randint(500, 1500)
