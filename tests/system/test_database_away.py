"""A database on TCP that is away, in each way that a host has of being away; on uvloop, as servers run.

Whatever connecting meets is a ``StoreUnavailableError`` with a sentence, and leaves what connects next alone.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from psycopg2.extensions import make_dsn

from bench.harness.clusters import Cluster, migrate_for_roles
from engine.runtime.ports import StoreError, StoreUnavailableError
from storage.embedded.servers import Services
from storage.postgres.blocking import connected
from storage.postgres.connection import NoAnswerError
from storage.postgres.hosts import CONNECT_S
from storage.postgres.pool import Database
from tests.harness.in_process_server import Serve
from tests.harness.server_process import ServerProcess
from tests.harness.servers.network_hosts import network
from tests.harness.services import cluster, execute
from tests.harness.supervised import Supervise
from tests.harness.ws_device import put

ATTEMPTS = 4

Does = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def _own() -> Iterator[Cluster]:
    with cluster("own") as made:
        migrate_for_roles(made.dsn)
        yield made


@pytest.fixture
def own(_own: Cluster) -> Cluster:
    """A PostgreSQL that no other module uses, to be stopped."""
    execute(_own.dsn, "TRUNCATE tenants CASCADE")
    return _own


@pytest.fixture
def dsn(own: Cluster) -> str:
    """Its database, with our schema."""
    return own.dsn


class _Host(threading.Thread):
    """A host that takes connections and does one thing to each; ``came`` counts them."""

    def __init__(self, does: Does, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__()
        self._does = does
        self._front = socket.create_server((address, port))
        self.port: int = self._front.getsockname()[1]
        self.came = 0

    def run(self) -> None:
        held = []
        while True:
            try:
                client = self._front.accept()[0]
            except OSError:
                break
            self.came += 1
            held.append(client)
            self._does(client)
        for client in held:
            client.close()

    def end(self) -> None:
        self._front.shutdown(socket.SHUT_RDWR)
        self.join()
        self._front.close()


@contextmanager
def _host(does: Does, address: str = "127.0.0.1", port: int = 0) -> Iterator[_Host]:
    made = _Host(does, address, port)
    made.start()
    try:
        yield made
    finally:
        made.end()


def _nobody() -> int:
    """Find a port that refuses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _says_nothing(_: socket.socket) -> None:
    pass


def _resets(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def _resets_later(client: socket.socket) -> None:
    client.recv(1)
    _resets(client)


def _hangs_up(client: socket.socket) -> None:
    client.close()


def _is_no_database(client: socket.socket) -> None:
    client.recv(100)
    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def _starts_up(client: socket.socket) -> None:
    client.recv(100)
    fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
    client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
    client.close()


async def _refusals(dsn: str, good: str, within_s: float = CONNECT_S) -> list[str]:
    """Connect in vain again and again, each time followed by one who may get the same descriptor.

    Only the first is given ``within_s``: a good host may be slow on a busy machine.
    """
    away, there = Database(dsn, 1), Database(good, 1)
    found = []
    for _ in range(ATTEMPTS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("storage.postgres.hosts.CONNECT_S", within_s)
            with pytest.raises(StoreUnavailableError) as refused:
                await away.query("SELECT 1")
        found.append(str(refused.value))
        assert await there.query("SELECT 1") == [(1,)]
        await there.close()
    return found


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
async def test_connect_host_that_refuses_is_unavailable(dsn: str, sslmode: str) -> None:
    port = _nobody()
    refused = make_dsn(dsn, host="127.0.0.1", port=port, sslmode=sslmode)
    for sentence in await _refusals(refused, dsn):
        assert sentence.startswith(f"cannot connect to 127.0.0.1:{port}: Connection refused")


_ENDED = "closed the connection|reset by peer"


@pytest.mark.parametrize(
    ("does", "plain", "encrypted"),
    [
        (_says_nothing, r"no answer from 127.0.0.1:\d+ within 0.2 s: see that", "no answer from"),
        (_resets, _ENDED, _ENDED),
        (_resets_later, _ENDED, _ENDED),
        (_hangs_up, _ENDED, _ENDED),
        (_is_no_database, "expected authentication request", "invalid response to SSL"),
        (_starts_up, "the database system is starting up", "error response during SSL exchange"),
    ],
)
async def test_connect_host_that_fails_is_unavailable(
    does: Does, plain: str, encrypted: str, dsn: str
) -> None:
    within_s = 0.2 if does is _says_nothing else CONNECT_S
    for sslmode, words in (("disable", plain), ("prefer", encrypted), ("require", encrypted)):
        with _host(does) as bad:
            failing = make_dsn(dsn, host="127.0.0.1", port=bad.port, sslmode=sslmode)
            for sentence in await _refusals(failing, dsn, within_s):
                assert re.search(words, sentence)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"user": "nobody"}, "password authentication failed"),
        ({"dbname": "nothing"}, 'database "nothing" does not exist'),
        ({"sslmode": "require"}, "server does not support SSL"),
        ({"host": "nowhere.invalid"}, "no address is known for nowhere.invalid"),
        ({"host": "a" * 64 + ".example"}, "no address is known for a"),
        ({"host": "a..example"}, "no address is known for a..example"),
        ({"host": "/nowhere"}, "No such file"),
    ],
)
async def test_connect_dsn_that_is_refused_is_unavailable(
    dsn: str, wrong: dict[str, Any], words: str
) -> None:
    for sentence in await _refusals(make_dsn(dsn, **wrong), dsn):
        assert re.search(words, sentence)
    with pytest.raises(StoreError, match=words), connected(make_dsn(dsn, **wrong)):
        pass


@pytest.mark.parametrize("does", [_says_nothing, _hangs_up])
async def test_connect_first_of_several_addresses_is_dead_the_next_serves(
    own: Cluster, does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found once is remembered: each later connection begins at the address that served."""
    monkeypatch.setattr("storage.postgres.hosts.CONNECT_ONE_OF_SEVERAL_S", 1.0)
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, 0)) for at in ("127.0.0.2", "127.0.0.1")]

    async def addresses(*_: object, **__: object) -> list[Any]:
        return found

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    named = make_dsn(own.dsn, host=f"{does.__name__.strip('_')}.example")
    with _host(does, "127.0.0.2", own.port) as dead:
        for _ in range(ATTEMPTS):
            database = Database(named, 1)
            assert await database.query("SELECT 1") == [(1,)]
            await database.close()
    assert dead.came == 1


@pytest.mark.parametrize("does", [_says_nothing, _hangs_up])
def test_command_first_host_is_dead_is_asked_once(
    own: Cluster, does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command connects again and again: each would wait for a silent host."""
    monkeypatch.setattr("storage.postgres.hosts.CONNECT_ONE_OF_SEVERAL_S", 1.0)
    with _host(does) as dead:
        two = make_dsn(own.dsn, host="127.0.0.1,127.0.0.1", port=f"{dead.port},{own.port}")
        for _ in range(ATTEMPTS):
            with connected(two) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        assert dead.came == 1


async def test_server_database_restarted_on_tcp_goes_on(own: Cluster, serve: Serve) -> None:
    server = await serve()
    phone = await server.device()
    await phone.sync("k1", put("a1", None, n=1))
    await asyncio.to_thread(own.stop, signal.SIGINT)
    try:
        for _ in range(3 * ATTEMPTS):
            assert (await server.get("/readyz")).status == 503
        pushing = asyncio.create_task(phone.sync("k2", put("a2", None, n=2)))
    finally:
        await asyncio.to_thread(own.start)
    assert [result["seq"] for result in await pushing] == [2]
    tablet = await server.device("tablet")
    assert [one["id"] for one in (await tablet.pull())["changes"]] == ["a1", "a2"]
    assert (await server.get("/readyz")).status == 200
    assert not server.task.done()


@pytest.mark.slow
async def test_workers_database_restarted_on_tcp_live_on(own: Cluster, supervise: Supervise) -> None:
    workers = await supervise(2)
    async with ClientSession() as session:

        async def ready(worker: int) -> int:
            async with session.get(f"{workers.url_of(worker)}/readyz") as response:
                return response.status

        for _ in range(2):
            await asyncio.to_thread(own.stop, signal.SIGINT)
            try:
                for _ in range(3 * ATTEMPTS):
                    assert (await ready(1), await ready(2)) == (503, 503)
            finally:
                await asyncio.to_thread(own.start)
            assert (await ready(1), await ready(2)) == (200, 200)
    assert workers.told("worker_died") == []
    assert workers.told("service_failed") == []


@pytest.mark.slow
@pytest.mark.parametrize("does", [None, _says_nothing], ids=["refuses", "is silent"])
async def test_serve_first_host_is_dead_comes_up(
    own: Cluster, services: Services, tmp_path: Path, does: Does | None
) -> None:
    with _host(does or _hangs_up) as dead:
        port = dead.port if does else _nobody()
        two = make_dsn(own.dsn, host="127.0.0.1,127.0.0.1", port=f"{port},{own.port}")
        process = ServerProcess(two, services.redis_url, tmp_path)
        try:
            await process.start()
            async with ClientSession() as session, session.get(f"{process.url}/readyz") as response:
                assert response.status == 200
            assert await process.terminate() == 0
        finally:
            await process.stop()


def _nft(*rule: str) -> None:
    program = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip("nft is not installed: install it (apt-get install nftables)")
    subprocess.run([program, *rule], check=True, capture_output=True)


@pytest.mark.slow
async def test_connection_packets_are_dropped_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that drops what comes: no answer and no refusal, on old connections and on new ones."""
    monkeypatch.setattr("storage.postgres.connection.STATEMENT_S", 0.5)
    monkeypatch.setattr("storage.postgres.hosts.CONNECT_S", 0.5)
    with (
        network(1) as net,
        net.inside(),
        cluster("far", net.address, net.everybody) as far,
        net.inside("host1"),
    ):
        database = Database(far.dsn, 1)
        assert await database.query("SELECT 1") == [(1,)]
        with net.inside():
            _nft("add", "table", "inet", "t")
            _nft("add", "chain", "inet", "t", "c", "{ type filter hook input priority 0; }")
            _nft("add", "rule", "inet", "t", "c", "tcp", "dport", str(far.port), "drop")
        with pytest.raises(NoAnswerError):
            await database.query("SELECT 1")
        for _ in range(ATTEMPTS):
            with pytest.raises(StoreUnavailableError, match="no firewall is between"):
                await database.query("SELECT 1")
        with net.inside():
            _nft("delete", "table", "inet", "t")
        monkeypatch.undo()
        assert await database.query("SELECT 1") == [(1,)]
        await database.close()
