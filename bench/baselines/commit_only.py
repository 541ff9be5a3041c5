"""Limit (b): the product's group commit alone, without a socket, in a process of its own.

``python -m bench.baselines.commit_only`` with a Task on stdin; for each number of syncs in flight it
writes a Measured as a line of JSON.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
import uuid
from itertools import count
from time import perf_counter
from typing import Final

import msgspec

from bench.load.child_process import Lines, main, say
from bench.load.workload import DOMAIN, Worker, data_of, record_id
from engine.commit.committer import Committer
from engine.commit.queue import CommitLimits
from engine.model.domains import Domains
from engine.plan.context import PlanContext
from engine.plan.work import Change, Outcome, Push, PushAnswer
from engine.runtime.settings import Settings
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresStore

_WARMUP_S: Final = 1.0


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure: a migrated database, ids of its tenants, numbers of syncs in flight."""

    dsn: str
    tenant_ids: list[int]
    in_flight: list[int]
    duration_s: float
    settings: Settings


class Measured(msgspec.Struct, frozen=True):
    """What came of one number of syncs in flight."""

    in_flight: int
    per_s: float
    batch_messages: float


class _Clock:
    now_us = staticmethod(lambda: time.time_ns() // 1000)
    monotonic_s = staticmethod(time.monotonic)
    cpu_s = staticmethod(time.thread_time)


class _Devices:
    """Keeps a number of syncs in flight: each is of a device that pushes again as soon as it is answered."""

    def __init__(self, committer: Committer, tenant_ids: list[int], in_flight: int) -> None:
        self._committer = committer
        self._hashes = count(uuid.uuid4().int)
        name = uuid.uuid4().hex[:8]
        self._devices = [
            (f"{name}-{index}", tenant_ids[index % len(tenant_ids)]) for index in range(in_flight)
        ]
        self._workers = [Worker(random.random) for _ in self._devices]
        self._numbers = count()
        self._stopping = False
        self.done = 0

    def start(self) -> None:
        """Push from every device."""
        for index in range(len(self._devices)):
            self._push(index)

    def stop(self) -> None:
        """Push no more."""
        self._stopping = True

    def _push(self, index: int) -> None:
        device, tenant_id = self._devices[index]
        record, base = self._workers[index].next()
        data = data_of(record, next(self._numbers))
        now_us = _Clock.now_us()
        change = Change(
            domain=DOMAIN,
            id=record_id(device, record),
            op="put",
            base=base,
            at_us=now_us,
            sent_at_us=now_us,
            fields=msgspec.json.decode(data),
            data=data,
            changed=None,
        )
        key_hash = f"{next(self._hashes):032x}"[-32:]
        push = Push(
            tenant_id=tenant_id,
            device_id=device,
            session_id=device,
            key_hash=key_hash,
            request_sha256=key_hash * 2,
            atomic=False,
            items=[change],
            raw_items=data,
            encoding="json",
            now_us=now_us,
        )
        self._committer.submit(push, lambda outcome: self._answered(index, record, base, outcome))

    def _answered(self, index: int, record: int, base: int, outcome: Outcome) -> None:
        if not isinstance(outcome, PushAnswer) or b'"status":"applied"' not in outcome.results:
            sys.exit(f"limit (b) was refused: {outcome}")
        self.done += 1
        self._workers[index].acknowledged(record, base + 1)
        if not self._stopping:
            self._push(index)


async def _measure(task: Task, _: Lines) -> None:
    chosen = task.settings
    domains = Domains(dict(chosen.domains))
    limits, commit = chosen.limits, chosen.commit
    database = Database(task.dsn, commit.lanes)
    committer = Committer(
        PostgresStore(database, chosen.idempotency.lifetime_h),
        PlanContext(
            domains,
            lambda _: domains.default_policies,
            lambda: uuid.uuid4().hex,
            limits.record_bytes,
            limits.answer_data_bytes,
        ),
        _Clock(),
        lambda _: None,
        lambda _: None,
        CommitLimits(commit.batch_items, commit.batch_bytes, commit.queue_messages, commit.queue_bytes),
        commit.lanes,
    )
    running = asyncio.create_task(committer.run())
    for in_flight in task.in_flight:
        flying = _Devices(committer, task.tenant_ids, in_flight)
        flying.start()
        await asyncio.sleep(_WARMUP_S)
        began_s, done, batches = perf_counter(), flying.done, committer.counters.batches
        await asyncio.sleep(task.duration_s)
        done = flying.done - done
        per_s = done / (perf_counter() - began_s)
        batch_messages = done / max(1, committer.counters.batches - batches)
        flying.stop()
        await committer.drain()
        say(Measured(in_flight, per_s, batch_messages))
    running.cancel()
    await database.close()


if __name__ == "__main__":
    main(Task, _measure)
