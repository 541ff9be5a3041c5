"""Of the server processes that use a database, one is the first, whoever is started, stopped or killed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from storage.postgres.pool import Database
from storage.postgres.server_processes import GONE_S, ServerProcess
from tests.harness.services import Serving, execute

_PASS = "UPDATE server_processes SET seen_at = seen_at - interval '{} seconds'"

Start = Callable[..., "Worker"]


class Worker:
    """A worker of this host, that records when it is told to."""

    def __init__(self, database: Database, number: int) -> None:
        self.told: list[tuple[bool, int]] = []
        self.process = ServerProcess(database, 8080, number, lambda *told: self.told.append(told))

    async def is_first(self) -> bool:
        """Record that it runs; return whether it is the first."""
        await self.process.record()
        return self.told[-1][0]


@pytest.fixture
async def worker(dsn: str) -> AsyncIterator[Start]:
    """Return what starts workers."""
    database = Serving(dsn, 1)
    yield lambda number: Worker(database, number)
    await database.close()


async def test_server_process_first_is_the_one_of_the_first_slot(worker: Start) -> None:
    second, tenth, first = worker(2), worker(10), worker(1)
    assert await tenth.is_first()
    assert await second.is_first()
    assert await first.is_first()
    assert [await one.is_first() for one in (tenth, second, first)] == [False, False, True]
    assert first.told[0][1] > second.told[0][1] > 1e15


async def test_server_process_started_again_is_first_at_once(worker: Start) -> None:
    first, second = worker(1), worker(2)
    assert await first.is_first()
    assert not await second.is_first()
    assert await worker(1).is_first(), "the row of the one that was killed is there"


async def test_server_process_stopped_first_is_followed_by_the_next(worker: Start) -> None:
    first, second, third = worker(1), worker(2), worker(3)
    for one in (first, second, third):
        await one.process.record()
    await first.process.leave()
    assert [await one.is_first() for one in (third, second)] == [False, True]


async def test_server_process_killed_first_is_followed_when_it_is_silent(worker: Start, dsn: str) -> None:
    first, second = worker(1), worker(2)
    await first.process.record()
    execute(dsn, _PASS.format(GONE_S + 1))
    await second.process.record()
    assert await second.is_first()


async def test_server_process_outage_of_all_leaves_the_first_in_its_place(worker: Start, dsn: str) -> None:
    first, second = worker(1), worker(2)
    for one in (first, second):
        await one.process.record()
    execute(dsn, _PASS.format(GONE_S * 10))
    assert not await second.is_first()
    assert await first.is_first()
    assert not await second.is_first()
