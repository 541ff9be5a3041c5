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
JOB_BYTES = 512
ITEM_BYTES = 1024
#: One tenant gets one of so many parts of a batch, while others were heard for as long as this: what a batch
#: holds keeps the loop busy, and whoever sends little would feel it most.
_PARTS = 2
_COMPANY_S = 1.0
#: How long a tenant is taken alone after something laborious: what it sends next is likely to be like it.
_APART_S = 1.0


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

    job: Work
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
    """Jobs taken together.

    ``one_sided``: it is large and most of it is of one tenant. ``full``: there was no room for others, or
    more is not to stand anyway, so that how long it takes tells what the store can do. ``apart``: it is of a
    tenant that was set apart.
    """

    jobs: list[QueuedWork]
    size_bytes: int
    one_sided: bool
    full: bool
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
        self._changed_s = -_COMPANY_S
        self.overload = Overload()
        self.messages = 0
        self.items = 0
        self.size_bytes = 0

    def add(self, job: Work, reply: OnOutcome, now_s: float, charge: Charge | None = None) -> bool:
        """Take a job in; False, and nothing done, when too much waits."""
        items, size_bytes = 1, JOB_BYTES
        if type(job) is Push:
            items = len(job.items) or 1
            size_bytes += len(job.raw_items) + ITEM_BYTES * len(job.items)
        elif type(job) is Attach:
            size_bytes += len(job.entry or b"") + ITEM_BYTES
        limits = self._limits
        if self.messages >= limits.queue_messages or self.size_bytes + size_bytes > limits.queue_bytes:
            return False
        if job.tenant_id != self._latest_tenant:
            if self._latest_tenant is not None:
                self._changed_s = now_s
            self._latest_tenant = job.tenant_id
        self.messages += 1
        self.items += items
        self.size_bytes += size_bytes
        queue = self._queue(job.tenant_id)
        queue.jobs.append(QueuedWork(job, reply, items, size_bytes, now_s, charge))
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

    def presses(self, tenant_id: int) -> bool:
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

    def sheds(self, tenant_id: int) -> bool:
        """Whether a tenant is to send no more: too much waits, and of it no less than its part."""
        most_bytes = self.overload.most_bytes
        if self.size_bytes <= most_bytes:
            return False
        queue = self._queues.get(tenant_id)
        return queue is not None and queue.size_bytes * len(self._queues) >= most_bytes

    def set_apart(self, tenant_id: int, now_s: float) -> None:
        """Take what a tenant sends without that of others for a while: something of it was laborious."""
        self._apart[tenant_id] = now_s + _APART_S

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
        share = most // _PARTS if now_s - self._changed_s < _COMPANY_S else most
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
            self.overload.waited(now_s - oldest_s, now_s, all_taken=not self.messages)
        # Else nothing would be learnt any more once too little may stand to fill a batch.
        full = full or size_bytes >= self.overload.target_bytes
        one_sided = apart or (items * _PARTS * 2 >= most and largest * 2 > items)
        return Batch(batch, size_bytes, one_sided, full, apart)

    def put_back(self, batch: list[QueuedWork]) -> None:
        """Let jobs of held tenants wait again, before all that came later."""
        for waiting in reversed(batch):
            queue = self._queue(waiting.job.tenant_id)
            queue.jobs.appendleft(waiting)
            queue.size_bytes += waiting.size_bytes
            self.messages += 1
            self.items += waiting.items
            self.size_bytes += waiting.size_bytes

    def settled(self, batch: Batch) -> None:
        """Free the tenants of a batch; the last of several, which was cut short, is first the next time."""
        self._apart_held -= batch.apart
        tenants = list(dict.fromkeys([waiting.job.tenant_id for waiting in batch.jobs]))
        self._held.difference_update(tenants)
        going_on = [tenant_id for tenant_id in tenants if tenant_id in self._queues]
        if len(tenants) > 1 and going_on:
            self._free.appendleft(going_on.pop())
        self._free.extend(going_on)

    def take_those_behind(self, batch: list[QueuedWork], since_s: float) -> list[QueuedWork]:
        """Take what was there by then and waits, of held tenants, too, and all of the devices of both.

        Args:
            batch: Jobs that are not to be stored: what their devices sent later builds on them.
            since_s: What came later than this, of other devices, goes on waiting.
        """
        devices = {(waiting.job.tenant_id, waiting.job.device_id) for waiting in batch}
        taken: list[QueuedWork] = []
        for tenant_id, queue in list(self._queues.items()):
            kept: deque[QueuedWork] = deque()
            for waiting in queue.jobs:
                device = (tenant_id, waiting.job.device_id)
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
