"""What waits to be stored: a queue per tenant, taken from in turns, so that nobody waits behind all of one.

A tenant whose jobs are in a batch is held until that batch is settled, which keeps what one device sends
in the order sent. A batch takes every tenant that is free, so that a second one forms beside it only when
there is more to do than one batch may hold.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import msgspec

from engine.jobs import Job, Outcome, Push

#: What a job and each of its items cost besides their bytes, so that many tiny ones are bounded too.
JOB_BYTES = 512
ITEM_BYTES = 1024


class CommitLimits(msgspec.Struct, frozen=True):
    """Bounds of a batch and of all that waits."""

    batch_messages: int
    batch_bytes: int
    queue_messages: int
    queue_bytes: int


class Reply(Protocol):
    """Who waits for the outcome; called once."""

    def __call__(self, outcome: Outcome, /) -> None:
        """Take the outcome."""


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """A job and who waits for its outcome."""

    job: Job
    reply: Reply
    size_bytes: int


class Backlog:
    """Jobs by tenant. ``messages`` and ``size_bytes`` count what waits, not what was taken."""

    def __init__(self, limits: CommitLimits) -> None:
        self._limits = limits
        self._queues: dict[int, deque[Waiting]] = {}
        self._free: deque[int] = deque()
        self._held: set[int] = set()
        self.messages = 0
        self.size_bytes = 0

    def add(self, job: Job, reply: Reply) -> bool:
        """Take a job in; False, and nothing done, when too much waits."""
        size_bytes = JOB_BYTES
        if type(job) is Push:
            size_bytes += len(job.raw_items) + ITEM_BYTES * len(job.items)
        limits = self._limits
        if self.messages >= limits.queue_messages or self.size_bytes + size_bytes > limits.queue_bytes:
            return False
        self.messages += 1
        self.size_bytes += size_bytes
        tenant_id = job.tenant_id
        queue = self._queues.get(tenant_id)
        if queue is None:
            queue = self._queues[tenant_id] = deque()
            if tenant_id not in self._held:
                self._free.append(tenant_id)
        queue.append(Waiting(job, reply, size_bytes))
        return True

    @property
    def ready(self) -> bool:
        """Whether something waits whose tenant is free."""
        return bool(self._free)

    def take(self) -> list[Waiting]:
        """Take a batch, all that one free tenant after another has, and hold them; one job at least."""
        most, room = self._limits.batch_messages, self._limits.batch_bytes
        batch: list[Waiting] = []
        while self._free and len(batch) < most:
            tenant_id = self._free.popleft()
            queue = self._queues[tenant_id]
            first = len(batch)
            while queue and len(batch) < most:
                if batch and queue[0].size_bytes > room:
                    break
                waiting = queue.popleft()
                room -= waiting.size_bytes
                batch.append(waiting)
            if len(batch) == first:  # no room for its next one: it is first the next time
                self._free.appendleft(tenant_id)
                break
            self._held.add(tenant_id)
            if not queue:
                del self._queues[tenant_id]
        self._count_out(batch)
        return batch

    def put_back(self, batch: list[Waiting]) -> None:
        """Let jobs of held tenants wait again, before all that came later."""
        for waiting in reversed(batch):
            tenant_id = waiting.job.tenant_id
            self._queues.setdefault(tenant_id, deque()).appendleft(waiting)
            self.messages += 1
            self.size_bytes += waiting.size_bytes

    def settled(self, batch: list[Waiting]) -> None:
        """Free the tenants of a batch."""
        for tenant_id in {waiting.job.tenant_id for waiting in batch}:
            self._held.discard(tenant_id)
            if tenant_id in self._queues:
                self._free.append(tenant_id)

    def take_all(self) -> list[Waiting]:
        """Take everything that waits, of held tenants, too."""
        everything = [waiting for queue in self._queues.values() for waiting in queue]
        self._queues.clear()
        self._free.clear()
        self._count_out(everything)
        return everything

    def _count_out(self, batch: list[Waiting]) -> None:
        self.messages -= len(batch)
        self.size_bytes -= sum([waiting.size_bytes for waiting in batch])
