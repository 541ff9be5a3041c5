"""Leases of jobs: one owner at a time, released or run out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from compose.server import SystemClock
from engine.cluster.leases import JobLeases, LeaseLostError
from storage.postgres.pool import Database
from storage.stores.leases import PostgresLeases
from tests.harness.services import execute, rows


class HandClock(SystemClock):
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def monotonic_s(self) -> float:
        """The time that the test says."""
        return self.at_s


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[PostgresLeases]:
    database = Database(dsn, 2)
    yield PostgresLeases(database)
    await database.close()


async def test_lease_many_at_once_one_gets_it(store: PostgresLeases) -> None:
    for _ in range(3):
        asked = [store.begin("job", f"h{number}", 0) for number in range(8)]
        taken = [number for number, now_us in enumerate(await asyncio.gather(*asked)) if now_us]
        assert len(taken) == 1
        await store.end("job", f"h{taken[0]}", None)


async def test_lease_begin_only_when_free_and_due(store: PostgresLeases, dsn: str) -> None:
    assert await store.begin("job", "first", 300)
    assert await store.begin("other", "first", 300), "each job has leases of its own"
    assert await store.begin("job", "first", 300), "who asks again, not knowing of the answer, has it"
    assert await store.begin("job", "second", 0) is None
    await store.end("job", "first", b'{"n":1}')
    assert await store.begin("job", "second", 300) is None
    execute(dsn, "UPDATE cluster_job SET began_at = now() - interval '299 s'")
    assert await store.begin("job", "second", 300) is None
    execute(dsn, "UPDATE cluster_job SET began_at = now() - interval '300 s'")
    assert await store.begin("job", "second", 300)
    await store.end("job", "first", b'{"n":2}')
    assert await store.begin("job", "third", 0) is None, "nobody gives another's lease back"
    assert msgspec.json.decode(await store.report("job") or b"") == {"n": 1}
    await store.end("job", "second", None)
    assert msgspec.json.decode(await store.report("job") or b"") == {"n": 1}
    assert await store.report("never") is None


async def test_lease_renewed_in_time_is_kept_else_lost(store: PostgresLeases, dsn: str) -> None:
    lapse = "UPDATE cluster_job SET held_until = now() - interval '1 s'"
    lapsed = "SELECT held_until < now() FROM cluster_job"
    clock = HandClock()
    leases = JobLeases(store, clock)
    async with leases.acquire("job", 0) as lease:
        assert lease is not None
        execute(dsn, lapse)
        await lease.renew()
        assert rows(dsn, lapsed) == [(True,)], "a word each time would cost more than the work"
        clock.at_s = 20.0
        await lease.renew()
        assert rows(dsn, lapsed) == [(False,)]
        execute(dsn, lapse)
        assert await store.begin("job", "another", 0)
        clock.at_s = 40.0
        with pytest.raises(LeaseLostError):
            await lease.renew()
    assert await store.begin("job", "third", 0) is None, "it is the other's still"


async def test_lease_job_fails_is_released(store: PostgresLeases) -> None:
    leases = JobLeases(store, SystemClock())
    with pytest.raises(ValueError, match="amiss"):
        async with leases.acquire("job", 0):
            raise ValueError("something is amiss")
    assert await store.begin("job", "next", 0)
