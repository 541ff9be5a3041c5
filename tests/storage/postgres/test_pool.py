"""Connections to PostgreSQL where the driver is of no help."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
import uvloop
from psycopg2.extensions import make_dsn, parse_dsn

from engine.runtime.ports import StoreRetryError, StoreUnavailableError
from storage.postgres.connection import ConnectionLostError, NoAnswerError, Statement
from storage.postgres.pool import Database
from tests.harness.services import execute

_TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


async def test_pool_lost_connection_is_noticed_beside_a_thousand_sockets(dsn: str) -> None:
    """By its own ways aiopg asks ``select``, which knows no descriptor from 1024 on."""
    held = [os.dup(0) for _ in range(1100)]
    database = Database(dsn, 1)
    try:
        with pytest.raises(ConnectionLostError):
            async with database.connection() as session:
                await session.run(f"{_TERMINATE.replace('pid <> pg_backend_pid()', 'true')}")
        async with database.connection() as session:
            await session.run("SELECT 1")
        execute(dsn, _TERMINATE)
        assert await database.query("SELECT 1") == [(1,)]
    finally:
        await database.close()
        for descriptor in held:
            os.close(descriptor)


async def test_pool_standby_is_not_used_as_primary(dsn: str) -> None:
    execute(
        dsn,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',"
        " current_database()); END $$",
    )
    database = Database(dsn, 1)
    with pytest.raises(StoreUnavailableError, match="not the primary"):
        await database.acquire()


class _Relay(threading.Thread):
    """Passes one connection on until told to end it as a server that goes down: last words, then a reset."""

    def __init__(self, dsn: str) -> None:
        super().__init__()
        own = parse_dsn(dsn)
        self._address = (own["host"], int(own["port"]))
        self._front = socket.create_server(("127.0.0.1", 0))
        self._told, self._tell = socket.socketpair()
        port = self._front.getsockname()[1]
        self.dsn = str(make_dsn(dsn, host="127.0.0.1", port=port, sslmode="disable"))

    def run(self) -> None:
        with (
            self._front,
            self._told,
            self._front.accept()[0] as client,
            socket.create_connection(self._address) as server,
        ):
            other = {client: server, server: client}
            while self._told not in (ready := select.select([*other, self._told], [], [])[0]):
                for end in ready:
                    other[end].sendall(end.recv(1 << 16))
            fields = b"SFATAL\0VFATAL\0C57P01\0Mgoing down\0\0"
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)

    def end(self) -> None:
        """Say the last words and reset the connection, both at once."""
        self._tell.close()
        self.join()


async def _ended(dsn: str) -> None:
    relay = _Relay(dsn)
    relay.start()
    database = Database(relay.dsn, 1)
    try:
        session = await database.acquire()
        waiting = asyncio.ensure_future(session.run("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.1)
        relay.end()  # while the loop stands still, so that it meets both at once
        with pytest.raises(ConnectionLostError) as caught:
            await waiting
        assert not isinstance(caught.value, NoAnswerError)
        await database.release(session, clean=False)
    finally:
        await database.close()


def test_pool_end_without_loop_event_is_noticed(dsn: str) -> None:
    """It is the server's own loop that does not."""
    uvloop.run(_ended(dsn))


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A host that takes connections and says nothing, as one that has stopped."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


def _with_another_first(dsn: str, host: str, port: int) -> str:
    own = parse_dsn(dsn)
    return str(make_dsn(dsn, host=f"{host},{own['host']}", port=f"{port},{own['port']}"))


def _came_to(server: socket.socket) -> int:
    count = 0
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


async def test_pool_silent_host_is_skipped_and_then_tried_last(
    dsn: str, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.hosts.CONNECT_ONE_OF_SEVERAL_S", 0.3)
    database = Database(_with_another_first(dsn, "127.0.0.1", silent.getsockname()[1]), 2)
    async with database.connection() as first, database.connection() as second:
        assert await first.run("SELECT 1") == await second.run("SELECT 1") == [(1,)]
    assert _came_to(silent) == 1
    await database.close()


async def test_pool_failed_host_is_tried_last_and_loses_its_connections(
    dsn: str, silent: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.hosts.CONNECT_ONE_OF_SEVERAL_S", 0.3)
    database = Database(_with_another_first(dsn, "127.0.0.1", silent.getsockname()[1]), 2)
    async with database.connection() as first, database.connection():
        pass
    assert _came_to(silent) == 1
    with pytest.raises(StoreRetryError, match="read-only"):
        async with database.connection() as session:
            await session.run("SET LOCAL transaction_read_only = on; CREATE TABLE t ()")
    assert first.closed
    assert await database.query("SELECT 1") == [(1,)]
    assert _came_to(silent) == 1
    await database.close()


async def test_pool_all_hosts_away_names_the_error_of_each() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    database = Database(f"host=127.0.0.1,/nowhere,nowhere.invalid port={port}", 1)
    with pytest.raises(
        StoreUnavailableError, match=r"(?s)refused.*No such file.*no address is known for nowhere"
    ):
        await database.acquire()


async def test_pool_connections_that_meet_a_pooler_are_retried(dsn: str) -> None:
    """Several may be at it at once: the second is no more to blame than the first."""
    database = Database(dsn, 2)
    statement = Statement("SELECT %(word)s")
    async with database.connection() as first, database.connection() as second:
        for session in (first, second):
            await session.run(statement.preparation)  # as another client of the pooler would have
        pids = [(await session.run("SELECT pg_backend_pid()"))[0][0] for session in (first, second)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            calls = [
                asyncio.create_task(session.run_prepared("", [statement], "", {"word": "yes"}))
                for session in (first, second)
            ]
            await asyncio.sleep(0)  # both have asked
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        refusals = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(refusal, StoreRetryError) for refusal in refusals] == [True, True]
    async with database.connection() as session:
        assert await session.run_prepared("", [statement], "", {"word": "yes"}) == [("yes",)]
    await database.close()


async def test_pool_read_server_timeout_fires_before_the_clients(dsn: str) -> None:
    database = Database(dsn, 1)
    asked = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"
    assert await database.query(asked) == [("9000",)]
    async with database.connection() as session:
        assert await session.run("SHOW statement_timeout") == [("0",)]
    await database.close()
