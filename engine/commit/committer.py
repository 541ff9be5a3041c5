"""Group commit: collects while the last commit runs, hands one batch to the store, answers everyone.

A lane holds one batch in flight. A tenant is in one lane at a time, so what one connection sends applies
in the order sent. No timer: an idle lane commits a lone job at once, a busy one gathers.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Final, Protocol

from engine.commit.lane import Counters, Lane, OnCommitted, OnUnknownOutcome, Wanted
from engine.commit.overload import overloaded
from engine.commit.ports import Store
from engine.commit.queue import Charge, CommitLimits, CommitQueue, OnOutcome
from engine.plan.context import PlanContext
from engine.plan.room import KeptBack
from engine.plan.work import Outcome, Work
from engine.runtime.ports import WorkClock
from engine.wire.errors import SyncError

#: A batch that takes longer may be held up by one tenant; others are not to wait for it.
_HELD_UP_S: Final = 0.05
#: What devices that are refused are told to wait, at least and at most, before jitter.
_SHORTEST_RETRY_MS: Final = 200
_LONGEST_RETRY_MS: Final = 5000


class Committer:
    """Takes jobs in and has its lanes commit them.

    ``publish`` is told what was committed, ``doubt`` the tenants of a batch that may have been committed
    although what it wrote is not known. ``wanted`` says whether several tenants want the loop at an instant.
    """

    def __init__(
        self,
        store: Store,
        rules: PlanContext,
        clock: WorkClock,
        publish: OnCommitted,
        doubt: OnUnknownOutcome,
        limits: CommitLimits,
        lanes: int = 1,
        wanted: Wanted = lambda _: False,
    ) -> None:
        self.counters = Counters()
        self._backlog = CommitQueue(limits, apart_at_once=max(1, lanes - 1))
        self._spread_from = max(1, limits.batch_items // 2)
        self._waiting: list[asyncio.Future[None]] = []
        kept_back = KeptBack()
        self._lanes = [
            Lane(store, rules, clock, publish, doubt, self._backlog, self.counters, kept_back, wanted)
            for _ in range(lanes)
        ]
        self._clock = clock
        self._busy = 0
        self._waited_for: set[Lane] = set()
        self._settled_s = clock.monotonic_s()
        self._idle = asyncio.Event()
        self._idle.set()
        self._settled = asyncio.Event()

    def submit(self, job: Work, reply: OnOutcome, charge: Charge | None = None) -> None:
        """Queue a job; ``reply`` is called once on the event loop after its batch is durable.

        ``charge`` is called before that with the seconds that planning the job took, if they are worth it.
        Raises SyncError ``overloaded`` when the queue is full: then nothing was accepted. Who asks ``sheds``
        before is refused earlier, and cheaper.
        """
        if not self._backlog.add(job, reply, self._clock.monotonic_s(), charge):
            raise overloaded(self.retry_after_ms())
        self._idle.clear()
        self._call_a_lane()

    def sheds(self, tenant_id: int) -> bool:
        """Whether a tenant's syncs are to be refused for now, before anybody decodes them."""
        return self._backlog.sheds(tenant_id)

    def retry_after_ms(self) -> int:
        """Return when to come again: once what waits is stored, jittered so that not all come at once."""
        backlog = self._backlog
        wait_ms = 1000 * backlog.overload.wait_s(backlog.size_bytes)
        wait_ms = min(max(wait_ms, _SHORTEST_RETRY_MS), _LONGEST_RETRY_MS)
        return int(wait_ms * random.uniform(0.5, 1.5))

    async def lull(self, tenant_id: int, longest_s: float) -> None:
        """Wait until what was accepted is stored soon, but no longer: reads yield, and do not starve.

        A tenant's reads do not yield to what one other tenant alone has waiting.
        """
        if not self._backlog.presses(tenant_id):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                while self._backlog.presses(tenant_id):
                    self._settled.clear()
                    await self._settled.wait()

    def presses(self, tenant_id: int) -> bool:
        """Return whether what was accepted holds a tenant up for longer than it should."""
        return self._backlog.presses(tenant_id)

    @property
    def queued_messages(self) -> int:
        """How many jobs wait."""
        return self._backlog.messages

    async def run(self) -> None:
        """Commit until cancelled."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(self._run(lane))

    async def _run(self, lane: Lane) -> None:
        backlog = self._backlog
        while True:
            if not self._worth_a_batch:
                if not self._busy and not backlog.messages:
                    self._idle.set()
                called = asyncio.get_running_loop().create_future()
                self._waiting.append(called)
                await called
                continue
            await self._see_through(lane)

    async def _see_through(self, lane: Lane) -> None:
        backlog, clock = self._backlog, self._clock
        began_s = clock.monotonic_s()
        batch = backlog.take(began_s)
        self._busy += 1
        if not batch.one_sided:
            self._waited_for.add(lane)
        held_up = asyncio.get_running_loop().call_later(_HELD_UP_S, self._go_on_without, lane)
        self._call_a_lane()
        left_bytes = 0
        try:
            left_bytes = await lane.settle(batch.jobs)
        finally:
            held_up.cancel()
            self._busy -= 1
            self._waited_for.discard(lane)
            backlog.settled(batch)
            now_s = clock.monotonic_s()
            self.counters.batch_s += now_s - began_s
            stored_bytes = batch.size_bytes - left_bytes
            if batch.full and stored_bytes:
                since_s = max(self._settled_s, began_s)
                backlog.overload.stored(stored_bytes, now_s - began_s, now_s - since_s)
            self._settled_s = now_s
            self._settled.set()

    def _go_on_without(self, lane: Lane) -> None:
        self._waited_for.discard(lane)
        self._call_a_lane()

    @property
    def _worth_a_batch(self) -> bool:
        """Whether another batch is to be begun: small ones side by side cost more than they gain.

        Though nobody waits for a batch that is nearly all of one tenant, or held up.
        """
        backlog = self._backlog
        return backlog.ready and (not self._waited_for or backlog.items >= self._spread_from)

    def _call_a_lane(self) -> None:
        """Wake one lane, if one waits and there is enough for it."""
        if self._waiting and self._worth_a_batch:
            called = self._waiting.pop()
            if not called.done():
                called.set_result(None)

    async def drain(self) -> None:
        """Wait until everything accepted is answered."""
        await self._idle.wait()


class WorkQueue(Protocol):
    """Who takes jobs in (``engine.commit.committer.Committer``)."""

    def submit(self, job: Work, reply: OnOutcome, charge: Charge | None = None, /) -> None:
        """Queue a job. Raises SyncError when nothing more is taken in."""


async def settled(jobs: WorkQueue, job: Work, charge: Charge | None = None) -> Outcome:
    """Have a job committed, and wait for what became of it; one that was not taken in is a SyncError."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def reply(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    try:
        jobs.submit(job, reply, charge)
    except SyncError as error:
        return error
    return await future
