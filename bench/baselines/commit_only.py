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
from functools import partial
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
from storage.stores.sealed.sealing import Sealing

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
    """Keep a number of syncs in flight: each is of a device that pushes again as soon as it is answered."""

    def __init__(self, committer: Committer, tenant_ids: list[int], in_flight: int) -> None:
        self._committer = committer
        self._tenant_ids = tenant_ids
        self._name = uuid.uuid4().hex[:8]
        self._workers = [Worker(random.random) for _ in range(in_flight)]
        self._numbers = count()
        self.stopping = False
        self.done = 0
        for index in range(in_flight):
            self._push(index)

    def _push(self, index: int) -> None:
        device = f"{self._name}-{index}"
        record, base = self._workers[index].next()
        number = next(self._numbers)
        data = data_of(record, number)
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
        key_hash = f"{self._name}{number:024x}"
        push = Push(
            tenant_id=self._tenant_ids[index % len(self._tenant_ids)],
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
        self._committer.submit(push, partial(self._answered, index, record, base))

    def _answered(self, index: int, record: int, base: int, outcome: Outcome) -> None:
        if not isinstance(outcome, PushAnswer) or b'"status":"applied"' not in outcome.results:
            sys.exit(f"limit (b) was refused: {outcome}")
        self.done += 1
        self._workers[index].acknowledged(record, base + 1)
        if not self.stopping:
            self._push(index)


def _new_id() -> str:
    return uuid.uuid4().hex


async def _measure(task: Task, _: Lines) -> None:
    limits, commit, domains = task.settings.limits, task.settings.commit, Domains(dict(task.settings.domains))
    policies = domains.default_policies
    database = Database(task.dsn, commit.lanes)
    committer = Committer(
        PostgresStore(database, task.settings.idempotency.lifetime_h, Sealing()),
        PlanContext(domains, lambda _: policies, _new_id, limits.record_bytes, limits.answer_data_bytes),
        _Clock(),
        lambda _: None,
        lambda _: None,
        CommitLimits(commit.batch_items, commit.batch_bytes, commit.queue_messages, commit.queue_bytes),
        commit.lanes,
    )
    running = asyncio.create_task(committer.run())
    for in_flight in task.in_flight:
        devices = _Devices(committer, task.tenant_ids, in_flight)
        await asyncio.sleep(_WARMUP_S)
        began_s, done, batches = perf_counter(), devices.done, committer.counters.batches
        await asyncio.sleep(task.duration_s)
        done, took_s = devices.done - done, perf_counter() - began_s
        batch_messages = done / max(1, committer.counters.batches - batches)
        devices.stopping = True
        await committer.drain()
        say(Measured(in_flight, done / took_s, batch_messages))
    running.cancel()
    await database.close()


if __name__ == "__main__":
    main(Task, _measure)
