"""What the driver relies on of aiopg, and keeps away from it; on uvloop, as servers run."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
from psycopg2.errors import QueryCanceled

from storage.postgres.driver import Link, _Duplicated, connect
from tests.harness.postgres_stalls import SLEEPS, backend, until
from tests.harness.services import execute

Pair = tuple[socket.socket, socket.socket]

_PATIENCE_S = 30.0
_TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name = 'tidemark'"
)
_SLEEPS_LONG = "SELECT pg_sleep(60)"


def _heard() -> list[dict[str, Any]]:
    """Collect what the loop is told of that nobody waits for."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    return heard


async def _connected(dsn: str) -> Link:
    return await connect(dsn, application_name="tidemark")


def _watched(link: Link) -> int:
    assert link._fileno is not None
    return int(link._fileno)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two connected sockets, open before any descriptor of the test is let go of."""
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@asynccontextmanager
async def _watching_another(number: int, pair: Pair) -> AsyncIterator[None]:
    """Watch another socket under a number that was let go of; at the end it must still be watched."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    os.dup2(pair[0].fileno(), number)
    loop.add_reader(number, told.set)
    try:
        yield
        pair[1].send(b"1")
        async with asyncio.timeout(_PATIENCE_S):
            await told.wait()
    finally:
        loop.remove_reader(number)
        os.close(number)


async def _lost(link: Link) -> None:
    """Wait until the connection's end was noticed and its descriptor is let go of."""

    async def look() -> bool:
        return link._conn._duplicate is None

    await until(look)


async def test_run_server_cancels_the_statement_loop_hears_of_no_error(dsn: str) -> None:
    heard, link = _heard(), await _connected(dsn)
    running = asyncio.create_task(link.run(_SLEEPS_LONG, None, _PATIENCE_S))
    execute(dsn, f"SELECT pg_cancel_backend({await backend(dsn, SLEEPS)})")
    with pytest.raises(QueryCanceled):
        await running
    assert await link.run("SELECT 1", None, _PATIENCE_S) == [(1,)]
    link.close()
    assert heard == []


class _Failing(psycopg2.extensions.connection):
    fails = False

    def poll(self) -> int:
        if self.fails:
            raise OSError("of the system")
        return super().poll()


class _FailingDuplicated(_Duplicated, _Failing):
    pass


async def test_run_error_that_is_none_of_psycopg2_reaches_the_caller(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.driver._Duplicated", _FailingDuplicated)
    link = await _connected(dsn)
    assert await link.run("SELECT 1", None, _PATIENCE_S) == [(1,)]
    monkeypatch.setattr(_Failing, "fails", True)
    with pytest.raises(OSError, match="of the system"):
        await link.run("SELECT 1", None, _PATIENCE_S)
    assert link.closed
    await _lost(link)


@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
async def test_connect_loop_watches_a_duplicate_that_libpq_does_not_close(dsn: str, sslmode: str) -> None:
    link = await connect(dsn, application_name="tidemark", sslmode=sslmode)
    of_libpq = psycopg2.extensions.connection.fileno(link._conn)
    assert _watched(link) != of_libpq
    assert os.path.sameopenfile(_watched(link), of_libpq)
    assert not os.get_inheritable(_watched(link))
    link.close()


async def test_connect_no_descriptor_is_left_leaves_none_open(dsn: str) -> None:
    heard, held = _heard(), list(Path("/proc/self/fd").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = os.dup(0)
    os.close(last)
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))  # libpq's socket takes the last
    try:
        with pytest.raises(OSError, match="Too many open files"):
            await _connected(dsn)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    gc.collect()
    assert list(Path("/proc/self/fd").iterdir()) == held
    assert heard == []


async def test_run_given_up_is_timeout_and_ends_the_connection(dsn: str) -> None:
    heard, link = _heard(), await _connected(dsn)
    with pytest.raises(TimeoutError):
        await link.run(_SLEEPS_LONG, None, 0.05)
    assert link.closed
    with pytest.raises(psycopg2.InterfaceError):
        await link.run("SELECT 1", None, _PATIENCE_S)
    assert heard == []


async def test_close_and_cancel_at_once_leaves_the_descriptor_to_others(dsn: str, pair: Pair) -> None:
    """For aiopg closes the connection of a cancelled statement, closed already or not."""
    heard, link = _heard(), await _connected(dsn)
    running = asyncio.create_task(link.run(_SLEEPS_LONG, None, _PATIENCE_S))
    await backend(dsn, SLEEPS)
    number = _watched(link)
    link.close()
    async with _watching_another(number, pair):
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()
        link.close()
    del running
    gc.collect()  # of an error that nobody asked for the loop is told in the end
    assert heard == []


async def test_idle_connection_is_lost_lets_go_of_its_descriptor(dsn: str, pair: Pair) -> None:
    heard, link = _heard(), await _connected(dsn)
    ((pid,),) = await link.run("SELECT pg_backend_pid()", None, _PATIENCE_S)
    number = _watched(link)
    execute(dsn, f"SELECT pg_terminate_backend({pid})")
    await _lost(link)
    assert link.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    async with _watching_another(number, pair):
        link.close()
    assert heard == []


async def test_connection_is_lost_beside_a_statement_tells_what_the_server_said(dsn: str) -> None:
    link = await _connected(dsn)
    running = asyncio.create_task(link.run(_SLEEPS_LONG, None, _PATIENCE_S))
    execute(dsn, f"SELECT pg_terminate_backend({await backend(dsn, SLEEPS)})")
    with pytest.raises(psycopg2.OperationalError, match="terminating connection"):
        await running
    assert link.closed
    await _lost(link)
