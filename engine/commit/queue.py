"""The queue of work to commit: one queue per tenant, served in turns, so that no tenant waits behind another.

A tenant whose work is in a batch is not served again until that batch has ended. This keeps the messages of
one device in the order sent. A batch takes work of every tenant that is free. So a second batch forms beside
it only when there is more work than one batch may hold, or when the first is nearly all of one tenant.

A device that owes time of the event loop rests: its accepted work waits until it is within its share again,
and the work of its tenant's other devices does not wait behind it. A tenant that owes rests as a whole. Then
the work of the device comes first that was charged longest ago, so that each has its equal part.

When more arrives than can be stored, new messages are refused, those of the tenants with the most queued
first. What was accepted stays in the queue.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Protocol

import msgspec

from engine.commit.overload import Overload
from engine.plan.kinds import KINDS
from engine.plan.work import Outcome, Work
from engine.runtime.loop_share import Rest

#: What a message and each of its items count for besides their bytes, so that many tiny ones are bounded too.
WORK_BYTES = 512
ITEM_BYTES = 1024
#: One tenant gets this share of a batch while others were seen lately: a batch keeps the event loop busy, and
#: the tenants that send little would feel it most.
_TENANT_SHARE = 0.5
_OTHERS_SEEN_WITHIN_S = 1.0
_NEVER = float("-inf")
#: Which device was charged last is kept for this long after its rest, for the order of what waits.
_CHARGED_LATELY_S = 10.0
#: A tenant is isolated for this long after an expensive message: its next messages are likely to be
#: expensive.
_ISOLATE_FOR_S = 1.0


class CommitLimits(msgspec.Struct, frozen=True):
    """Bounds of a batch and of the queue. A batch keeps the event loop busy in one go."""

    batch_items: int
    batch_bytes: int
    queue_messages: int
    queue_bytes: int


class OnOutcome(Protocol):
    """Called once with the outcome of queued work."""

    def __call__(self, outcome: Outcome, /) -> None:
        """Take the outcome."""


class Charge(Protocol):
    """Charges the time of a message to its device."""

    def __call__(self, spent_s: float, message_s: float = 0.0, /) -> Rest | None:
        """Charge ``spent_s`` of the event loop, not charged yet, to the device's share of it.

        ``message_s`` is all that the message took, for the device's rate: 0 while it is under way. Returns
        how long nothing more of the device and of its tenant is to be committed, None if both go on.
        """


class QueuedWork(msgspec.Struct, frozen=True, gc=False):
    """Work in the queue. ``since_s`` is the monotonic time at which it came."""

    work: Work
    reply: OnOutcome
    items: int
    size_bytes: int
    since_s: float
    charge: Charge | None = None


class _TenantQueue(msgspec.Struct):
    """The queue of one tenant."""

    queued: deque[QueuedWork]
    size_bytes: int = 0


class _Rests(msgspec.Struct):
    """Until when a tenant rests, and each of its devices that was charged lately."""

    tenant_until_s: float
    devices: dict[str, float]


class Batch(msgspec.Struct, frozen=True):
    """Work that was taken from the queue together.

    ``dominated_by_one_tenant``: the batch is large and most of it is of one tenant. ``reached_limit``: the
    batch is as large as a batch may be or as the queue should get, so its duration tells what the store can
    do. ``isolated``: the batch is of one isolated tenant.
    """

    queued: list[QueuedWork]
    size_bytes: int
    dominated_by_one_tenant: bool
    reached_limit: bool
    isolated: bool = False


class CommitQueue:
    """Work by tenant. ``messages``, ``items`` and ``size_bytes`` do not count what is in a batch."""

    def __init__(self, limits: CommitLimits, max_isolated_batches: int = 1) -> None:
        """Make an empty queue.

        Args:
            limits: Bounds of a batch and of the queue.
            max_isolated_batches: The most batches of isolated tenants in flight at once.
        """
        self._limits = limits
        self._max_isolated_batches = max_isolated_batches
        self._isolated_batches = 0
        self._isolated_until_s: dict[int, float] = {}
        self._queues: dict[int, _TenantQueue] = {}
        self._free_tenants: deque[int] = deque()
        self._in_flight: set[int] = set()
        #: Of tenants of which a device was charged lately. Most have none.
        self._rests: dict[int, _Rests] = {}
        #: Tenants that rest, or with work of resting devices only, and until when.
        self._resting: dict[int, float] = {}
        self._latest_tenant: int | None = None
        self._tenant_changed_at_s = -_OTHERS_SEEN_WITHIN_S
        self.overload = Overload()
        self.messages = 0
        self.items = 0
        self.size_bytes = 0

    def age_s(self, now_s: float) -> float:
        """Return how long the oldest message has waited. It costs 0.05 µs a tenant."""
        return now_s - min(
            (one.queued[0].since_s for one in self._queues.values() if one.queued), default=now_s
        )

    def add(self, work: Work, reply: OnOutcome, now_s: float, charge: Charge | None = None) -> bool:
        """Queue work.

        Returns:
            False if the queue is full. Then nothing was done.
        """
        item_count, sent_bytes = KINDS[type(work)].size(work)
        size_bytes = WORK_BYTES + sent_bytes + ITEM_BYTES * item_count
        limits = self._limits
        if self.messages >= limits.queue_messages or self.size_bytes + size_bytes > limits.queue_bytes:
            return False
        if work.tenant_id != self._latest_tenant:
            if self._latest_tenant is not None:
                self._tenant_changed_at_s = now_s
            self._latest_tenant = work.tenant_id
        items = item_count or 1
        self.messages += 1
        self.items += items
        self.size_bytes += size_bytes
        queue = self._queue_of(work.tenant_id)
        queue.queued.append(QueuedWork(work, reply, items, size_bytes, now_s, charge))
        queue.size_bytes += size_bytes
        if work.tenant_id in self._resting and not self._rests_now(work, now_s):
            del self._resting[work.tenant_id]
            self._free_tenants.append(work.tenant_id)
        return True

    def _rests_now(self, work: Work, now_s: float) -> bool:
        rests = self._rests.get(work.tenant_id)
        return rests is not None and now_s < max(
            rests.tenant_until_s, rests.devices.get(work.device_id, _NEVER)
        )

    def _queue_of(self, tenant_id: int) -> _TenantQueue:
        queue = self._queues.get(tenant_id)
        if queue is None:
            queue = self._queues[tenant_id] = _TenantQueue(deque())
            if tenant_id not in self._in_flight:
                self._free_tenants.append(tenant_id)
        return queue

    @property
    def ready(self) -> bool:
        """Whether a batch can be taken now: work is queued of a tenant that is free."""
        if not self._isolated_until_s or self._isolated_batches < self._max_isolated_batches:
            return bool(self._free_tenants)
        return any(tenant_id not in self._isolated_until_s for tenant_id in self._free_tenants)

    def over_target(self, tenant_id: int) -> bool:
        """Return whether the queue delays a tenant: storing it takes longer than the target.

        The queue of the one other tenant with the most queued does not count: it delays that tenant alone.
        The same holds for tenants whose devices rest.
        """
        target_bytes = self.overload.target_bytes
        if self.size_bytes <= target_bytes:
            return False
        resting_bytes = sum([self._queues[other].size_bytes for other in self._resting if other != tenant_id])
        largest_bytes = max(
            (
                queue.size_bytes
                for other, queue in self._queues.items()
                if other != tenant_id and other not in self._resting
            ),
            default=0,
        )
        return self.size_bytes - resting_bytes - largest_bytes > target_bytes

    def should_shed(self, tenant_id: int) -> bool:
        """Return True if the queue is over its limit and this tenant holds at least its fair share of it."""
        admit_bytes = self.overload.admit_bytes
        if self.size_bytes <= admit_bytes:
            return False
        queue = self._queues.get(tenant_id)
        return queue is not None and queue.size_bytes * len(self._queues) >= admit_bytes

    def isolate(self, tenant_id: int, now_s: float) -> None:
        """Take a tenant's work in batches of its own for a while, because a message of it was expensive."""
        self._isolated_until_s[tenant_id] = now_s + _ISOLATE_FOR_S

    def rest(self, tenant_id: int, device_id: str, rest: Rest, now_s: float) -> None:
        """Commit nothing more of a device and of its tenant for a while, and isolate the tenant after it."""
        rests = self._rests.get(tenant_id)
        if rests is None:
            rests = self._rests[tenant_id] = _Rests(now_s, {})
        devices = rests.devices
        devices[device_id] = max(now_s + rest.device_s, devices.get(device_id, now_s))
        rests.tenant_until_s = max(rests.tenant_until_s, now_s + rest.tenant_s)
        self.isolate(tenant_id, max(rests.tenant_until_s, *devices.values()))

    def wake(self, now_s: float) -> float | None:
        """Free the tenants whose devices have rested.

        Returns:
            When the next one may be freed, None if no tenant rests.
        """
        for tenant_id, until_s in list(self._resting.items()):
            if until_s <= now_s:
                del self._resting[tenant_id]
                self._free_tenants.append(tenant_id)
        return min(self._resting.values(), default=None)

    def _set_aside(self, tenant_id: int, queue: _TenantQueue, now_s: float) -> deque[QueuedWork] | None:
        """Take the work of resting devices out of a tenant's queue. Note how long all of the queue rests."""
        rests = self._rests.get(tenant_id)
        if rests is None:
            return None
        if rests.tenant_until_s > now_s:
            self._resting[tenant_id] = rests.tenant_until_s
            return None
        rests.devices = devices = {
            device_id: until_s
            for device_id, until_s in rests.devices.items()
            if until_s > now_s - _CHARGED_LATELY_S
        }
        if not devices:
            del self._rests[tenant_id]
            return None
        # In Python's stable sort a device's messages stay in the order sent.
        by_rest = sorted(queue.queued, key=lambda queued: devices.get(queued.work.device_id, _NEVER))
        first = bisect_right(by_rest, now_s, key=lambda queued: devices.get(queued.work.device_id, _NEVER))
        if not first:
            self._resting[tenant_id] = devices[by_rest[0].work.device_id]
            return None
        queue.queued = deque(by_rest[:first])
        return deque(by_rest[first:])

    def _is_isolated(self, tenant_id: int, now_s: float) -> bool:
        until_s = self._isolated_until_s.get(tenant_id)
        if until_s is None:
            return False
        if until_s > now_s:
            return True
        del self._isolated_until_s[tenant_id]
        return False

    def take(self, now_s: float) -> Batch:
        """Take a batch: the work of one free tenant after another.

        The batch has one message at least, unless all queued work of free tenants is of resting devices.

        The tenants of the batch are not free until ``release_tenants``. An isolated tenant is taken alone,
        when its turn comes.
        """
        max_items, max_bytes = self._limits.batch_items, self._limits.batch_bytes
        batch: list[QueuedWork] = []
        largest = items = size_bytes = 0
        oldest_s = now_s
        is_full = isolated = False
        passed_over: list[int] = []
        has_others = now_s - self._tenant_changed_at_s < _OTHERS_SEEN_WITHIN_S
        share_items = int(max_items * _TENANT_SHARE) if has_others else max_items
        while self._free_tenants and not is_full and not isolated:
            tenant_id = self._free_tenants.popleft()
            alone = bool(self._isolated_until_s) and self._is_isolated(tenant_id, now_s)
            if alone and (batch or self._isolated_batches >= self._max_isolated_batches):
                passed_over.append(tenant_id)
                continue
            queue = self._queues[tenant_id]
            aside = self._set_aside(tenant_id, queue, now_s) if self._rests else None
            if tenant_id in self._resting:
                continue
            isolated = alone
            first, items_before, bytes_before = len(batch), items, size_bytes
            while queue.queued:
                queued = queue.queued[0]
                if batch and (items + queued.items > max_items or size_bytes + queued.size_bytes > max_bytes):
                    is_full = True
                    break
                if items > items_before and items - items_before + queued.items > share_items:
                    break
                batch.append(queue.queued.popleft())
                items += queued.items
                size_bytes += queued.size_bytes
            if aside:
                queue.queued.extend(aside)
            if len(batch) == first:  # this tenant is the first of the next batch
                self._free_tenants.appendleft(tenant_id)
                break
            oldest_s = min(oldest_s, batch[first].since_s)
            largest = max(largest, items - items_before)
            self._in_flight.add(tenant_id)
            if queue.queued:
                queue.size_bytes -= size_bytes - bytes_before
            else:
                del self._queues[tenant_id]
        self._free_tenants.extendleft(reversed(passed_over))
        self._isolated_batches += isolated
        self._count_out(len(batch), items, size_bytes)
        if batch and not isolated:  # work of an isolated tenant waits for its tenant, not for the store
            self.overload.record_wait(now_s - oldest_s, now_s, all_taken=not self.messages)
        # A batch of the target's size counts too: once the target is below a full batch, no batch is ever
        # full, and nothing more would be learned.
        reached_limit = is_full or size_bytes >= self.overload.target_bytes
        is_large = items * 2 >= max_items * _TENANT_SHARE
        return Batch(
            batch, size_bytes, isolated or (is_large and largest * 2 > items), reached_limit, isolated
        )

    def _count_out(self, messages: int, items: int, size_bytes: int) -> None:
        self.messages -= messages
        self.items -= items
        self.size_bytes -= size_bytes

    def requeue(self, batch: list[QueuedWork]) -> None:
        """Put work of tenants in flight back, in front of everything that came later."""
        for queued in reversed(batch):
            queue = self._queue_of(queued.work.tenant_id)
            queue.queued.appendleft(queued)
            queue.size_bytes += queued.size_bytes
            self._count_out(-1, -queued.items, -queued.size_bytes)

    def release_tenants(self, batch: Batch) -> None:
        """Free the tenants of a batch that has ended.

        The last of several tenants, whose work the batch cut short, is the first of the next batch.
        """
        self._isolated_batches -= batch.isolated
        tenants = list(dict.fromkeys([queued.work.tenant_id for queued in batch.queued]))
        self._in_flight.difference_update(tenants)
        with_more = [tenant_id for tenant_id in tenants if tenant_id in self._queues]
        if len(tenants) > 1 and with_more:
            self._free_tenants.appendleft(with_more.pop())
        self._free_tenants.extend(with_more)

    def drain_older(self, batch: list[QueuedWork], since_s: float) -> list[QueuedWork]:
        """Take all work that came until ``since_s``, and all later work of the same devices.

        This includes tenants in flight. Later changes of a device build on its earlier ones, so they must not
        be stored without them.

        Args:
            batch: Work that will not be stored. All queued work of its devices is taken, too.
            since_s: A monotonic time. Later work of other devices stays in the queue.

        Returns:
            What was taken.
        """
        devices = {(queued.work.tenant_id, queued.work.device_id) for queued in batch}
        taken: list[QueuedWork] = []
        for tenant_id, queue in list(self._queues.items()):
            kept: deque[QueuedWork] = deque()
            for queued in queue.queued:
                device = (tenant_id, queued.work.device_id)
                if queued.since_s > since_s and device not in devices:
                    kept.append(queued)
                    continue
                devices.add(device)
                taken.append(queued)
                queue.size_bytes -= queued.size_bytes
                self._count_out(1, queued.items, queued.size_bytes)
            queue.queued = kept
            if not kept:
                del self._queues[tenant_id]
        self._free_tenants = deque(tenant_id for tenant_id in self._free_tenants if tenant_id in self._queues)
        self._resting = {one: until_s for one, until_s in self._resting.items() if one in self._queues}
        return taken
