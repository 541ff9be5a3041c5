"""Group commit: collects while the last commit runs, hands one batch to the store, answers everyone.

A lane holds one batch in flight. A tenant is in one lane at a time, so what one connection sends applies
in the order sent. No timer: an idle lane commits a lone job at once, a busy one gathers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Protocol

from engine.commit.lane import Counters, Lane, OnCommitted, OnUnknownOutcome, Wanted
from engine.commit.overload import overloaded
from engine.commit.ports import Store
from engine.commit.queue import Charge, CommitLimits, CommitQueue, OnOutcome
from engine.plan.capacity import BlockedRecords
from engine.plan.context import PlanContext
from engine.plan.work import Outcome, Work
from engine.runtime.metrics import Metric, gauge
from engine.runtime.ports import WorkClock
from engine.wire.errors import SyncError

#: A batch that takes longer may be held up by one tenant; others are not to wait for it.
_HELD_UP_S: Final = 0.05
#: What devices that are refused are told to wait, at least and at most, before jitter.
_SHORTEST_RETRY_MS: Final = 200
_LONGEST_RETRY_MS: Final = 5000


class Committer:
    """Queues work and commits it in batches, one batch per lane at a time.

    Args:
        store: The transactions.
        context: What plans need besides work and rows.
        clock: The time.
        on_committed: Called with the new versions of each committed batch.
        outcome_unknown: Called with the tenants of a batch that may have been committed, when the versions
            it wrote are not known.
        limits: Bounds of a batch and of the queue.
        lanes: The most batches in flight at once.
        wanted: Returns whether several tenants want the event loop at an instant.
    """

    def __init__(
        self,
        store: Store,
        context: PlanContext,
        clock: WorkClock,
        on_committed: OnCommitted,
        outcome_unknown: OnUnknownOutcome,
        limits: CommitLimits,
        lanes: int = 1,
        wanted: Wanted = lambda _: False,
    ) -> None:
        self.counters = Counters()
        self._queue = CommitQueue(limits, apart_at_once=max(1, lanes - 1))
        self._spread_from = max(1, limits.batch_items // 2)
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
                wanted,
            )
            for _ in range(lanes)
        ]
        self._clock = clock
        self._busy = 0
        self._blocking_lanes: set[Lane] = set()
        self._settled_s = clock.monotonic_s()
        self._idle = asyncio.Event()
        self._idle.set()
        self._settled = asyncio.Event()

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
            raise overloaded(self.retry_after_ms())
        self._idle.clear()
        self._wake_lane()

    def should_shed(self, tenant_id: int) -> bool:
        """Whether a tenant's syncs are to be refused for now, before anybody decodes them."""
        return self._queue.should_shed(tenant_id)

    def retry_after_ms(self) -> int:
        """Return when to come again: once what waits is stored, jittered so that not all come at once."""
        queue = self._queue
        wait_ms = 1000 * queue.overload.wait_s(queue.size_bytes)
        wait_ms = min(max(wait_ms, _SHORTEST_RETRY_MS), _LONGEST_RETRY_MS)
        return int(wait_ms * random.uniform(0.5, 1.5))

    async def yield_to_writes(self, tenant_id: int, longest_s: float) -> None:
        """Wait until what was accepted is stored soon, but no longer: reads yield, and do not starve.

        A tenant's reads do not yield to what one other tenant alone has waiting.
        """
        if not self._queue.over_target(tenant_id):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while self._queue.over_target(tenant_id):
                    self._settled.clear()
                    await self._settled.wait()

    def over_target(self, tenant_id: int) -> bool:
        """Return whether what was accepted holds a tenant up for longer than it should."""
        return self._queue.over_target(tenant_id)

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts of batches, and how much waits."""
        yield from self.counters.metrics()
        yield gauge("tidemark_queued_messages", "Messages that wait to be stored", self.queued_messages)

    @property
    def queued_messages(self) -> int:
        """How many jobs wait."""
        return self._queue.messages

    async def run(self) -> None:
        """Commit until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._run(lane))

    async def _run(self, lane: Lane) -> None:
        queue = self._queue
        while True:
            if not self._worth_a_batch:
                if not self._busy and not queue.messages:
                    self._idle.set()
                called = asyncio.get_running_loop().create_future()
                self._idle_lanes.append(called)
                await called
                continue
            await self._run_batch(lane)

    async def _run_batch(self, lane: Lane) -> None:
        queue, clock = self._queue, self._clock
        began_s = clock.monotonic_s()
        batch = queue.take(began_s)
        self._busy += 1
        if not batch.dominated_by_one_tenant:
            self._blocking_lanes.add(lane)
        held_up = asyncio.get_running_loop().call_later(_HELD_UP_S, self._stop_waiting_for, lane)
        self._wake_lane()
        left_bytes = 0
        try:
            left_bytes = await lane.run(batch.jobs)
        finally:
            held_up.cancel()
            self._busy -= 1
            self._blocking_lanes.discard(lane)
            queue.release_tenants(batch)
            now_s = clock.monotonic_s()
            self.counters.batch_s += now_s - began_s
            stored_bytes = batch.size_bytes - left_bytes
            if batch.reached_limit and stored_bytes:
                since_s = max(self._settled_s, began_s)
                queue.overload.record_batch(stored_bytes, now_s - began_s, now_s - since_s)
            self._settled_s = now_s
            self._settled.set()

    def _stop_waiting_for(self, lane: Lane) -> None:
        self._blocking_lanes.discard(lane)
        self._wake_lane()

    @property
    def _worth_a_batch(self) -> bool:
        """Whether another batch is to be begun: small ones side by side cost more than they gain.

        Though nobody waits for a batch that is nearly all of one tenant, or held up.
        """
        queue = self._queue
        return queue.ready and (not self._blocking_lanes or queue.items >= self._spread_from)

    def _wake_lane(self) -> None:
        """Wake one lane, if one waits and there is enough for it."""
        if self._idle_lanes and self._worth_a_batch:
            called = self._idle_lanes.pop()
            if not called.done():
                called.set_result(None)

    async def drain(self) -> None:
        """Wait until everything accepted is answered."""
        await self._idle.wait()


class WorkQueue(Protocol):
    """Who takes jobs in (``engine.commit.committer.Committer``)."""

    def submit(self, work: Work, reply: OnOutcome, charge: Charge | None = None, /) -> None:
        """Queue a job. Raises SyncError when nothing more is taken in."""


async def settled(jobs: WorkQueue, work: Work, charge: Charge | None = None) -> Outcome:
    """Have a job committed, and wait for what became of it; one that was not taken in is a SyncError."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def reply(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    try:
        jobs.submit(work, reply, charge)
    except SyncError as error:
        return error
    return await future
