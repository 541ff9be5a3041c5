"""Analytics of two workers that are killed: commits are counted exactly, all else up to the last flush.

Every device keeps what it was told. Every process writes each duration that it counts to a file of its own,
so that percentiles can be compared with the durations themselves.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import signal
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from engine.cache.minutes import FLUSH_S
from engine.operate.figures.analytics import Figures, analytics
from storage.stores.monitoring.aggregation import PostgresAggregation
from storage.stores.monitoring.analytics import PostgresAnalytics
from tests.harness.services import Serving, rows
from tests.harness.supervised import Supervise, Supervised
from tests.harness.ws_device import Closed, Device, connected, item, put, token

DEVICES = 8
KILLS = 3
#: A flush takes a moment itself, and this machine may be busy.
LOST_S = FLUSH_S + 3
HOUR_US = 3_600_000_000
_ROOT = Path(__file__).parents[2]
#: Runs at the start of every process: appends each duration, in microseconds, to a file named by the process.
_WRITES_RAW = """
import os, sys
if "worker" in sys.orig_argv or "serve" in sys.orig_argv:
    from engine.model.minutes import Durations
    count, path = Durations.add, os.path.join(os.environ["RAW_DURATIONS"], str(os.getpid()))
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    def add(self, duration_us):
        os.write(descriptor, duration_us.to_bytes(8, "little"))
        count(self, duration_us)
    Durations.add = add
"""


class Mixed:
    """A device whose syncs meet every status, and some of which are refused.

    ``told`` has the results of every key, ``failed_at_s`` when the device's own errors came.
    """

    def __init__(self, number: int) -> None:
        self.told: dict[str, list[dict[str, Any]]] = {}
        self.failed_at_s: list[float] = []
        self.stopping = False
        self._name = f"device-{number}"
        self._random = random.Random(number)
        self._numbers = itertools.count(1)
        self._unanswered: tuple[str, list[dict[str, Any]]] | None = None

    async def run(self, server: Supervised, session: ClientSession) -> None:
        """Sync until told to stop; what was not answered is sent again under its key."""
        signed = token("acme", self._name)
        while not (self.stopping and self._unanswered is None):
            try:
                async with connected(server.url, session, signed=signed) as device:
                    while not (self.stopping and self._unanswered is None):
                        await self._sync(device)
            except (Closed, ClientError, ConnectionError, TimeoutError):
                await asyncio.sleep(0.05)

    async def _sync(self, device: Device) -> None:
        key, items = self._unanswered = self._unanswered or self._next()
        answer = await device.ask("sync", key=key, items=items)
        if answer["type"] == "synced":
            self.told[key] = answer["results"]
            self._unanswered = None
        elif not answer["retryable"]:
            self.failed_at_s.append(time.monotonic())
            self._unanswered = None

    def _next(self) -> tuple[str, list[dict[str, Any]]]:
        number, chance = next(self._numbers), self._random.random
        if chance() < 0.1 and self.told:
            return self._random.choice(list(self.told)), [put(f"other {number}", None, n=number)]
        items = [put(f"{self._name} {number}", None, n=number)]
        if chance() < 0.3:
            domain = self._random.choice(["task", "ticket", "attendance", "journal"])
            items.append(item("put", domain, "shared", base=None, data={"n": number, "by": self._name}))
        if chance() < 0.2:
            items.append(item("append", "session", f"s{number}", data={"session_id": f"{number}"}))
        if chance() < 0.1:
            items.append(put(f"{self._name} {number}", None, n=number))
        return f"{self._name} {number}", items


async def figures(dsn: str) -> Figures:
    """Read all figures of the tenant, as the command does."""
    database = Serving(dsn, 1)
    now_us = time.time_ns() // 1000
    try:
        found = await analytics(PostgresAnalytics(database), "acme", now_us - HOUR_US, now_us, "hour")
    finally:
        await database.close()
    return found.total


async def summed(dsn: str) -> None:
    """Make snapshots of the last two hours, the present one included, twice."""
    database = Serving(dsn, 1)
    until_us = (time.time_ns() // 1000 // HOUR_US + 1) * HOUR_US
    try:
        for _ in range(2):
            await PostgresAggregation(database).sum_hours([1], until_us - 2 * HOUR_US, until_us)
        await PostgresAggregation(database).summed(until_us)
    finally:
        await database.close()


def raw(directory: Path) -> Iterator[tuple[int, ...]]:
    """Read the durations of each process."""
    for path in directory.iterdir():
        written = path.read_bytes()
        yield struct.unpack(f"<{len(written) // 8}q", written)


def stored_parts(dsn: str, directory: Path) -> list[int]:
    """Return the durations that minutes have: of each process those from its start to its last flush."""
    written = list(raw(directory))
    found: list[int] = []
    for syncs, duration_us in rows(
        dsn,
        "SELECT sum((SELECT sum(n) FROM unnest(duration_counts) AS n))::int, sum(duration_us)::bigint"
        " FROM sync_minutes GROUP BY process",
    ):
        assert isinstance(syncs, int)
        (part,) = {one[:syncs] for one in written if sum(one[:syncs]) == duration_us}
        assert len(part) == syncs, "a flush has everything up to an instant, and nothing twice"
        found += part
    return found


@pytest.mark.slow
async def test_analytics_of_killed_workers_are_exact_in_commits_and_lack_seconds_of_all_else(
    supervise: Supervise, dsn: str, tmp_path: Path
) -> None:
    directory = tmp_path / "raw"
    directory.mkdir()
    (tmp_path / "sitecustomize.py").write_text(_WRITES_RAW)
    server = await supervise(
        2, PYTHONPATH=f"{tmp_path}{os.pathsep}{_ROOT}", RAW_DURATIONS=str(directory), PYTHONUNBUFFERED="1"
    )
    devices = [Mixed(number) for number in range(DEVICES)]
    kills_at_s: list[float] = []
    async with ClientSession() as session, asyncio.TaskGroup() as group:
        for device in devices:
            group.create_task(device.run(server, session))
        for kill in range(KILLS):
            worker = kill % 2 + 1
            await asyncio.sleep(FLUSH_S * 1.4)  # a flush, and then some that the kill takes
            kills_at_s.append(time.monotonic())
            os.kill(server.pid_of(worker), signal.SIGKILL)
            await server.until("listening", kill // 2 + 2, worker=worker)
        for device in devices:
            device.stopping = True
    assert await server.terminate() == 0

    told = Counter[tuple[str, str]]()
    for device in devices:
        for results in device.told.values():
            told.update((result["domain"], result["status"]) for result in results)
    statuses = Counter[str]()
    for (_, status), count in told.items():
        statuses[status] += count
    assert min(statuses[status] for status in ("applied", "unchanged", "resolved")) > 0
    parts = stored_parts(dsn, directory)
    failed_at_s = [at_s for device in devices for at_s in device.failed_at_s]
    perhaps_lost = [at_s for at_s in failed_at_s if any(0 <= kill_s - at_s < LOST_S for kill_s in kills_at_s)]

    live = await figures(dsn)
    await summed(dsn)
    assert await figures(dsn) == live, "a snapshot has what its hour had, however often it is made"
    assert live.succeeded == sum(len(device.told) for device in devices)
    assert {
        (domain, status): count
        for domain, counts in live.domains.items()
        for status, count in counts.items()
        if count
    } == told
    assert (live.conflicts_auto, live.conflicts_manual) == (statuses["resolved"], statuses["conflict"])
    assert live.without_duration == live.succeeded + live.replayed - len(parts) > 0
    assert len(failed_at_s) - len(perhaps_lost) <= live.failed <= len(failed_at_s)
    nearest_rank = sorted(parts)[math.ceil(0.95 * len(parts)) - 1] / 1000
    assert live.p95_duration_ms == pytest.approx(nearest_rank, rel=0.02)
    assert live.avg_duration_ms == pytest.approx(sum(parts) / len(parts) / 1000)
