"""What waits to be stored: a queue per tenant, taken from in turns, so that nobody waits behind all of one.

A tenant whose jobs are in a batch is held until that batch is settled, which keeps what one device sends
in the order sent. A batch takes every tenant that is free, so that a second one forms beside it only when
there is more to do than one batch may hold, or when the first is nearly all of one tenant.

When more comes than can be stored, arrivals are refused, those of the tenants that have most waiting; what
was taken in stays.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec

from engine.commit.overload import Overload
from engine.plan.work import Attach, Outcome, Push, Work

#: What a job and each of its items cost besides their bytes, so that many tiny ones are bounded too.
WORK_BYTES = 512
ITEM_BYTES = 1024
#: One tenant gets one of so many parts of a batch, while others were heard for as long as this: what a batch
#: holds keeps the loop busy, and whoever sends little would feel it most.
_TENANT_SHARE = 2
_OTHERS_SEEN_WITHIN_S = 1.0
#: How long a tenant is taken alone after something laborious: what it sends next is likely to be like it.
_ISOLATE_FOR_S = 1.0


class CommitLimits(msgspec.Struct, frozen=True):
    """Bounds of a batch and of all that waits. What a batch holds keeps the loop busy at a stretch."""

    batch_items: int
    batch_bytes: int
    queue_messages: int
    queue_bytes: int


class OnOutcome(Protocol):
    """Who waits for the outcome; called once."""

    def __call__(self, outcome: Outcome, /) -> None:
        """Take the outcome."""


class Charge(Protocol):
    """Whom the time of a job is charged to."""

    def __call__(self, spent_s: float, /) -> None:
        """Take in how long the loop was busy with the job."""


class QueuedWork(msgspec.Struct, frozen=True, gc=False):
    """A job and who waits for its outcome, since when (monotonic), and who is charged for it."""

    work: Work
    reply: OnOutcome
    items: int
    size_bytes: int
    since_s: float
    charge: Charge | None = None


class _Queue(msgspec.Struct):
    """What waits of one tenant."""

    jobs: deque[QueuedWork]
    size_bytes: int = 0


class Batch(msgspec.Struct, frozen=True):
    """Work that was taken from the queue together.

    ``dominated_by_one_tenant``: the batch is large and most of it is of one tenant. ``reached_limit``: the
    batch is as large as a batch may be or as the queue should get, so its duration tells what the store can
    do. ``apart``: the batch has one tenant only, which is isolated.
    """

    jobs: list[QueuedWork]
    size_bytes: int
    dominated_by_one_tenant: bool
    reached_limit: bool
    apart: bool = False


class CommitQueue:
    """Jobs by tenant. ``messages``, ``items`` and ``size_bytes`` count what waits, not what was taken."""

    def __init__(self, limits: CommitLimits, apart_at_once: int = 1) -> None:
        self._limits = limits
        self._apart: dict[int, float] = {}
        self._apart_at_once = apart_at_once
        self._apart_held = 0
        self._queues: dict[int, _Queue] = {}
        self._free: deque[int] = deque()
        self._held: set[int] = set()
        self._latest_tenant: int | None = None
        self._changed_s = -_OTHERS_SEEN_WITHIN_S
        self.overload = Overload()
        self.messages = 0
        self.items = 0
        self.size_bytes = 0

    def add(self, work: Work, reply: OnOutcome, now_s: float, charge: Charge | None = None) -> bool:
        """Take a job in; False, and nothing done, when too much waits."""
        items, size_bytes = 1, WORK_BYTES
        if type(work) is Push:
            items = len(work.items) or 1
            size_bytes += len(work.raw_items) + ITEM_BYTES * len(work.items)
        elif type(work) is Attach:
            size_bytes += len(work.entry or b"") + ITEM_BYTES
        limits = self._limits
        if self.messages >= limits.queue_messages or self.size_bytes + size_bytes > limits.queue_bytes:
            return False
        if work.tenant_id != self._latest_tenant:
            if self._latest_tenant is not None:
                self._changed_s = now_s
            self._latest_tenant = work.tenant_id
        self.messages += 1
        self.items += items
        self.size_bytes += size_bytes
        queue = self._queue(work.tenant_id)
        queue.jobs.append(QueuedWork(work, reply, items, size_bytes, now_s, charge))
        queue.size_bytes += size_bytes
        return True

    def _queue(self, tenant_id: int) -> _Queue:
        queue = self._queues.get(tenant_id)
        if queue is None:
            queue = self._queues[tenant_id] = _Queue(deque())
            if tenant_id not in self._held:
                self._free.append(tenant_id)
        return queue

    @property
    def ready(self) -> bool:
        """Whether something waits whose tenant is free, and may be taken now."""
        if not self._apart or self._apart_held < self._apart_at_once:
            return bool(self._free)
        return any(tenant_id not in self._apart for tenant_id in self._free)

    def over_target(self, tenant_id: int) -> bool:
        """Return whether what waits holds a tenant up: it takes longer to be stored than is to stand.

        Of all others the tenant that has most waiting does not count: that waits behind itself.
        """
        target_bytes = self.overload.target_bytes
        if self.size_bytes <= target_bytes:
            return False
        largest_bytes = max(
            (queue.size_bytes for other, queue in self._queues.items() if other != tenant_id), default=0
        )
        return self.size_bytes - largest_bytes > target_bytes

    def should_shed(self, tenant_id: int) -> bool:
        """Whether a tenant is to send no more: too much waits, and of it no less than its part."""
        most_bytes = self.overload.admit_bytes
        if self.size_bytes <= most_bytes:
            return False
        queue = self._queues.get(tenant_id)
        return queue is not None and queue.size_bytes * len(self._queues) >= most_bytes

    def isolate(self, tenant_id: int, now_s: float) -> None:
        """Take what a tenant sends without that of others for a while: something of it was laborious."""
        self._apart[tenant_id] = now_s + _ISOLATE_FOR_S

    def _is_apart(self, tenant_id: int, now_s: float) -> bool:
        until_s = self._apart.get(tenant_id)
        if until_s is None:
            return False
        if until_s > now_s:
            return True
        del self._apart[tenant_id]
        return False

    def take(self, now_s: float) -> Batch:
        """Take a batch, all that one free tenant after another has, and hold them; one job at least.

        A tenant that was set apart is taken alone, in its turn.
        """
        most, most_bytes = self._limits.batch_items, self._limits.batch_bytes
        batch: list[QueuedWork] = []
        largest = items = size_bytes = 0
        oldest_s = now_s
        full = apart = False
        passed: list[int] = []
        share = most // _TENANT_SHARE if now_s - self._changed_s < _OTHERS_SEEN_WITHIN_S else most
        while self._free and not full and not apart:
            tenant_id = self._free.popleft()
            if self._apart and self._is_apart(tenant_id, now_s):
                if batch or self._apart_held >= self._apart_at_once:
                    passed.append(tenant_id)
                    continue
                apart = True
            queue = self._queues[tenant_id]
            jobs = queue.jobs
            first, before, before_bytes = len(batch), items, size_bytes
            while jobs:
                waiting = jobs[0]
                if batch and (items + waiting.items > most or size_bytes + waiting.size_bytes > most_bytes):
                    full = True
                    break
                if items > before and items - before + waiting.items > share:
                    break
                batch.append(jobs.popleft())
                items += waiting.items
                size_bytes += waiting.size_bytes
            if len(batch) == first:  # it is first the next time
                self._free.appendleft(tenant_id)
                break
            oldest_s = min(oldest_s, batch[first].since_s)
            largest = max(largest, items - before)
            self._held.add(tenant_id)
            if jobs:
                queue.size_bytes -= size_bytes - before_bytes
            else:
                del self._queues[tenant_id]
        self._free.extendleft(reversed(passed))
        self._apart_held += apart
        self.messages -= len(batch)
        self.items -= items
        self.size_bytes -= size_bytes
        if not apart:  # what waits there waits for its own tenant
            self.overload.record_wait(now_s - oldest_s, now_s, all_taken=not self.messages)
        # Else nothing would be learnt any more once too little may stand to fill a batch.
        full = full or size_bytes >= self.overload.target_bytes
        dominated_by_one_tenant = apart or (items * _TENANT_SHARE * 2 >= most and largest * 2 > items)
        return Batch(batch, size_bytes, dominated_by_one_tenant, full, apart)

    def requeue(self, batch: list[QueuedWork]) -> None:
        """Let jobs of held tenants wait again, before all that came later."""
        for waiting in reversed(batch):
            queue = self._queue(waiting.work.tenant_id)
            queue.jobs.appendleft(waiting)
            queue.size_bytes += waiting.size_bytes
            self.messages += 1
            self.items += waiting.items
            self.size_bytes += waiting.size_bytes

    def release_tenants(self, batch: Batch) -> None:
        """Free the tenants of a batch; the last of several, which was cut short, is first the next time."""
        self._apart_held -= batch.apart
        tenants = list(dict.fromkeys([waiting.work.tenant_id for waiting in batch.jobs]))
        self._held.difference_update(tenants)
        going_on = [tenant_id for tenant_id in tenants if tenant_id in self._queues]
        if len(tenants) > 1 and going_on:
            self._free.appendleft(going_on.pop())
        self._free.extend(going_on)

    def drain_older(self, batch: list[QueuedWork], since_s: float) -> list[QueuedWork]:
        """Take what was there by then and waits, of held tenants, too, and all of the devices of both.

        Args:
            batch: Jobs that are not to be stored: what their devices sent later builds on them.
            since_s: What came later than this, of other devices, goes on waiting.
        """
        devices = {(waiting.work.tenant_id, waiting.work.device_id) for waiting in batch}
        taken: list[QueuedWork] = []
        for tenant_id, queue in list(self._queues.items()):
            kept: deque[QueuedWork] = deque()
            for waiting in queue.jobs:
                device = (tenant_id, waiting.work.device_id)
                if waiting.since_s > since_s and device not in devices:
                    kept.append(waiting)
                    continue
                devices.add(device)
                taken.append(waiting)
                queue.size_bytes -= waiting.size_bytes
                self.messages -= 1
                self.items -= waiting.items
                self.size_bytes -= waiting.size_bytes
            queue.jobs = kept
            if not kept:
                del self._queues[tenant_id]
        self._free = deque(tenant_id for tenant_id in self._free if tenant_id in self._queues)
        return taken
