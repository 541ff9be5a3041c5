"""Group commit: work is collected while the last batch commits, and goes to the store as one batch.

A lane has one batch in flight. A tenant is in one lane at a time, so that the messages of one connection
apply in the order sent. There is no timer: an idle lane commits a single message at once, a busy one
collects.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from engine.commit.counters import Counters
from engine.commit.lane import IsContended, Lane, OnCommitted, OnUnknownOutcome
from engine.commit.overload import overloaded
from engine.commit.ports import Store, WorkQueue
from engine.commit.queue import Charge, CommitLimits, CommitQueue, OnOutcome
from engine.plan.bounds.capacity import BlockedRecords
from engine.plan.context import PlanContext
from engine.plan.work import Work
from engine.runtime.metrics import Metric, Value, gauge
from engine.runtime.ports import WorkClock

#: A batch that takes longer may wait for the lock of one tenant. Other tenants then get a batch of their own.
_BLOCKING_FOR_S: Final = 0.05
#: Bounds of ``retry_after_ms`` of a refused message, before jitter.
_SHORTEST_RETRY_MS: Final = 200
_LONGEST_RETRY_MS: Final = 5000


class Committer(WorkQueue):
    """Queues work and commits it in batches, one batch per lane at a time."""

    def __init__(
        self,
        store: Store,
        context: PlanContext,
        clock: WorkClock,
        on_committed: OnCommitted,
        outcome_unknown: OnUnknownOutcome,
        limits: CommitLimits,
        lanes: int = 1,
        is_contended: IsContended = lambda _: False,
    ) -> None:
        """Make a committer; ``run`` starts it.

        Args:
            store: The transactions.
            context: What plans need besides work and rows.
            clock: The time.
            on_committed: Called with the new versions of each committed batch.
            outcome_unknown: Called with the tenants of a batch that may have been committed, when the
                versions it wrote are not known.
            limits: Bounds of a batch and of the queue.
            lanes: The most batches in flight at once.
            is_contended: Returns whether several tenants want the event loop at an instant.
        """
        self.counters = Counters()
        self._limits = limits
        self._queue = CommitQueue(limits, max_isolated_batches=max(1, lanes - 1))
        self._spread_from_items = max(1, limits.batch_items // 2)
        self._idle_lanes: list[asyncio.Future[None]] = []
        blocked_records = BlockedRecords()
        self._lanes = [
            Lane(
                store,
                context,
                clock,
                on_committed,
                outcome_unknown,
                self._queue,
                self.counters,
                blocked_records,
                is_contended,
            )
            for _ in range(lanes)
        ]
        self._clock = clock
        self._waking: asyncio.TimerHandle | None = None
        self._batches_in_flight = 0
        self._blocking_lanes: set[Lane] = set()
        self._last_batch_ended_s = clock.monotonic_s()
        self._idle = asyncio.Event()
        self._idle.set()
        self._batch_ended = asyncio.Event()

    def submit(self, work: Work, reply: OnOutcome, charge: Charge | None = None) -> None:
        """Queue work.

        Args:
            work: The message to commit.
            reply: Called once, on the event loop, after the batch is durable.
            charge: Called before ``reply`` with the seconds that planning took, if they are worth charging.

        Raises:
            SyncError: ``overloaded``: the queue is full and nothing was accepted. ``should_shed`` tells the
                same earlier and at less cost, before the message is decoded.
        """
        if not self._queue.add(work, reply, self._clock.monotonic_s(), charge):
            self.counters.refused_queue_full += 1
            raise overloaded(self.retry_after_ms())
        self._idle.clear()
        self._wake_lane()

    def should_shed(self, tenant_id: int) -> bool:
        """Return whether to refuse a tenant's syncs now, before they are decoded."""
        return self._queue.should_shed(tenant_id)

    def retry_after_ms(self) -> int:
        """Return the time to store the queue, with jitter so that refused devices do not come at once."""
        queue = self._queue
        wait_ms = 1000 * queue.overload.wait_s(queue.size_bytes)
        wait_ms = min(max(wait_ms, _SHORTEST_RETRY_MS), _LONGEST_RETRY_MS)
        return int(wait_ms * random.uniform(0.5, 1.5))

    async def yield_to_writes(self, tenant_id: int, longest_s: float) -> None:
        """Let queued writes go first: wait until the queue is below its target, at most ``longest_s``.

        The queue of the one other tenant with the most queued does not count (``CommitQueue.over_target``).
        """
        if not self._queue.over_target(tenant_id):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while self._queue.over_target(tenant_id):
                    self._batch_ended.clear()
                    await self._batch_ended.wait()

    def over_target(self, tenant_id: int) -> bool:
        """Return whether the queue delays a tenant for longer than it should."""
        return self._queue.over_target(tenant_id)

    def metrics(self) -> Iterator[Metric]:
        """Yield the counters of batches and the length of the queue."""
        yield from self.counters.metrics()
        queue = self._queue
        yield gauge("tidemark_queued_messages", "Messages that wait to be stored", queue.messages)
        age_s = queue.age_s(self._clock.monotonic_s())
        yield gauge(
            "tidemark_queue_age_seconds", "How long the oldest message in the queue has waited", age_s
        )
        text = "The part of a bound of the queue that is in use"
        used = {
            "messages": queue.messages / self._limits.queue_messages,
            "bytes": queue.size_bytes / self._limits.queue_bytes,
        }
        yield Value("gauge", "tidemark_queue_used_ratio", text, used, "bound")

    @property
    def queued_messages(self) -> int:
        """The number of messages in the queue, without those in flight."""
        return self._queue.messages

    async def run(self) -> None:
        """Commit until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._run(lane))

    async def _run(self, lane: Lane) -> None:
        queue = self._queue
        while True:
            if not self._needs_a_batch:
                if not self._batches_in_flight and not queue.messages:
                    self._idle.set()
                woken = asyncio.get_running_loop().create_future()
                self._idle_lanes.append(woken)
                await woken
                continue
            await self._run_batch(lane)

    async def _run_batch(self, lane: Lane) -> None:
        queue, clock = self._queue, self._clock
        began_s = clock.monotonic_s()
        batch = queue.take(began_s)
        self._wake_resting()
        if not batch.queued:
            return
        self._batches_in_flight += 1
        if not batch.dominated_by_one_tenant:
            self._blocking_lanes.add(lane)
        timer = asyncio.get_running_loop().call_later(_BLOCKING_FOR_S, self._stop_waiting_for, lane)
        self._wake_lane()
        deferred_bytes = 0
        try:
            deferred_bytes = await lane.run(batch.queued)
        finally:
            timer.cancel()
            self._batches_in_flight -= 1
            self._blocking_lanes.discard(lane)
            queue.release_tenants(batch)
            now_s = clock.monotonic_s()
            self.counters.batch_durations.add(now_s - began_s)
            stored_bytes = batch.size_bytes - deferred_bytes
            if batch.reached_limit and stored_bytes:
                since_s = max(self._last_batch_ended_s, began_s)
                queue.overload.record_batch(stored_bytes, now_s - began_s, now_s - since_s)
            self._last_batch_ended_s = now_s
            self._batch_ended.set()

    def _wake_resting(self) -> None:
        """Free the tenants whose devices have rested, now and when the next ones have."""
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        now_s = self._clock.monotonic_s()
        due_s = self._queue.wake(now_s)
        if due_s is not None:
            self._waking = asyncio.get_running_loop().call_later(due_s - now_s, self._on_rested)

    def _on_rested(self) -> None:
        self._wake_resting()
        self._wake_lane()

    def _stop_waiting_for(self, lane: Lane) -> None:
        self._blocking_lanes.discard(lane)
        self._wake_lane()

    @property
    def _needs_a_batch(self) -> bool:
        """Whether to begin another batch: small batches side by side cost more than they gain.

        A batch that is nearly all of one tenant, or that takes long, does not hold the next one back.
        """
        queue = self._queue
        return queue.ready and (not self._blocking_lanes or queue.items >= self._spread_from_items)

    def _wake_lane(self) -> None:
        """Wake one idle lane, if there is enough work for it."""
        if self._idle_lanes and self._needs_a_batch:
            woken = self._idle_lanes.pop()
            if not woken.done():
                woken.set_result(None)

    async def drain(self) -> None:
        """Wait until everything that was accepted has been answered."""
        await self._idle.wait()
