"""PostgreSQL and Redis over TLS, with passwords and certificates that are checked: what people run.

The PostgreSQL of the wheel knows no TLS: PgBouncer stands before it, and speaks it as PostgreSQL does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg2.extensions import make_dsn, parse_dsn
from structlog.testing import capture_logs

from bench.harness.clusters import PASSWORD, USER, free_port
from engine.runtime.ports import StoreError, StoreUnavailableError
from storage.bus.checkup import bus_findings
from storage.embedded.account import Account, account_for
from storage.embedded.process import wait_until
from storage.postgres.blocking import connected
from storage.postgres.pool import Database
from tests.harness.in_process_server import Serve
from tests.harness.servers.certificates import Certificates, certificates
from tests.harness.servers.redis_nodes import RedisNode
from tests.harness.ws_device import put
from tests.storage.bus.test_bus import BusProcess, changes

_PATHS = f"{os.environ['PATH']}:/usr/sbin"
_BOUNCER = shutil.which("pgbouncer", path=_PATHS)
_REDIS = shutil.which("redis-server", path=_PATHS)
_PATIENCE_S = 30.0
_SECRET = "a password, with / and @"

_needs_bouncer = pytest.mark.skipif(
    _BOUNCER is None, reason="there is no pgbouncer here: install it (apt-get install pgbouncer)"
)
_needs_redis = pytest.mark.skipif(
    _REDIS is None, reason="there is no redis-server here: install it (apt-get install redis-server)"
)


@pytest.fixture(scope="module")
def account() -> Account:
    """Whom the servers run as."""
    return account_for(Path(tempfile.gettempdir()) / "tidemark-tls")


@pytest.fixture(scope="module")
def home(account: Account) -> Iterator[Path]:
    """A directory of that account."""
    place = Path(tempfile.mkdtemp(prefix="tidemark-tls-"))
    place.chmod(0o711)
    try:
        yield account.directory(place / "own")
    finally:
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def certified(home: Path, account: Account) -> Certificates:
    """The certificates of 127.0.0.1."""
    return certificates(home, account)


class Bouncer:
    """A PgBouncer that asks for TLS, and can be stopped; ``dsn`` checks its certificate."""

    def __init__(self, to: str, home: Path, account: Account, made: Certificates, sslmode: str) -> None:
        own = parse_dsn(to)
        self.port = free_port()
        self.dsn = make_dsn(to, port=self.port, sslmode="verify-full", sslrootcert=str(made.authority))
        users = (f'"{USER}{role}" "{PASSWORD}"\n' for role in ("", "_serving", "_jobs"))
        (home / "users").write_text("".join(users))
        database = f"host={own['host']} port={own['port']} dbname={own['dbname']}"
        (home / "pgbouncer.ini").write_text(
            f"[databases]\n{own['dbname']} = {database}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\nunix_socket_dir =\nauth_type = scram-sha-256\n"
            f"auth_file = {home / 'users'}\nlogfile = {home / 'log'}\nclient_tls_sslmode = {sslmode}\n"
            f"client_tls_cert_file = {made.server}\nclient_tls_key_file = {made.key}\n"
            f"ignore_startup_parameters = extra_float_digits\n"
        )
        self._home = home
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        assert _BOUNCER is not None
        self._process = subprocess.Popen(
            [_BOUNCER, "--quiet", self._home / "pgbouncer.ini"],
            stderr=subprocess.DEVNULL,
            **self._account.spawning,
        )
        assert wait_until(self._listens, _PATIENCE_S)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._home / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """Kill it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def bouncer(dsn: str, home: Path, account: Account, certified: Certificates) -> Iterator[Bouncer]:
    """Before the test's database; it lets nobody in without TLS."""
    made = Bouncer(dsn, home, account, certified, "require")
    made.start()
    try:
        yield made
    finally:
        made.kill()


@_needs_bouncer
async def test_server_database_over_tls_restarted_goes_on(bouncer: Bouncer, serve: Serve) -> None:
    server = await serve(at=bouncer.dsn)
    phone = await server.device()
    await phone.sync("k1", put("a1", None, n=1))
    await asyncio.to_thread(bouncer.kill)
    for _ in range(6):
        assert (await server.get("/readyz")).status == 503
    pushing = asyncio.create_task(phone.sync("k2", put("a2", None, n=2)))
    await asyncio.to_thread(bouncer.start)
    assert [result["seq"] for result in await pushing] == [2]
    assert (await server.get("/readyz")).status == 200


@_needs_bouncer
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sslrootcert": "/dev/null"}, "certificate|root"),
        ({"hostaddr": "127.0.0.1", "host": "elsewhere.example"}, "elsewhere.example"),
        ({"sslmode": "disable"}, "SSL required|TLS required|SSL"),
        ({"password": "wrong"}, "authentication failed"),
        ({"password": "wrong", "sslmode": "prefer"}, "authentication failed|SSL"),
    ],
)
async def test_connect_over_tls_refused_is_unavailable_at_once(
    bouncer: Bouncer, wrong: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``prefer`` begins anew without TLS, on another socket, which is not to be waited for in vain."""
    monkeypatch.setattr("storage.postgres.hosts.CONNECT_S", _PATIENCE_S)
    monkeypatch.setattr("storage.postgres.driver._LOOK_S", 3600.0)
    refused, good = Database(make_dsn(bouncer.dsn, **wrong), 1), Database(bouncer.dsn, 1)
    for _ in range(3):
        with pytest.raises(StoreUnavailableError, match=words):
            await refused.query("SELECT 1")
        assert await good.query("SELECT 1") == [(1,)]
        await good.close()
    with pytest.raises(StoreError), connected(make_dsn(bouncer.dsn, **wrong)):
        pass


@_needs_bouncer
async def test_statement_over_tls_large_and_in_many_pieces_comes_whole(bouncer: Bouncer) -> None:
    database = Database(bouncer.dsn, 1)
    text = "0123456789abcdef" * 500_000
    assert await database.query("SELECT %(text)s", {"text": text}) == [(text,)]
    await database.close()


@pytest.fixture
def node(home: Path, account: Account, certified: Certificates) -> Iterator[RedisNode]:
    """A Redis with TLS alone, that asks for a password."""
    assert _REDIS is not None
    port = free_port()
    made = RedisNode(
        Path(_REDIS),
        account,
        home / "redis",
        "127.0.0.1",
        port,
        tls_port=str(port),
        tls_cert_file=str(certified.server),
        tls_key_file=str(certified.key),
        tls_ca_cert_file=str(certified.authority),
        tls_auth_clients="no",
        requirepass=_SECRET,
    )
    made.start()
    try:
        yield made
    finally:
        made.kill()


def _url(node: RedisNode, certified: Certificates, secret: str = _SECRET, **options: str) -> str:
    options = {"ssl_ca_certs": str(certified.authority)} | options
    asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    return f"rediss://:{quote(secret, safe='')}@{node.address}/0?{asked}"


@_needs_redis
async def test_bus_over_tls_killed_comes_back(node: RedisNode, certified: Certificates, dsn: str) -> None:
    url = _url(node, certified)
    one, two = BusProcess(url, dsn), BusProcess(url, dsn)
    try:
        for _ in range(2):
            for place in (one, two):
                await place.is_on()
            one.bus.committed(changes(7, 3))
            await two.hears("feed_advanced", 7, 3)
            await asyncio.to_thread(node.kill)
            for place in (one, two):
                await place.is_off()
            await asyncio.to_thread(node.start)
        for place in (one, two):
            await place.is_on()
    finally:
        for place in (one, two):
            await place.close()
    assert [finding.level for finding in bus_findings(url, alone=False)] == ["ok"]


@_needs_redis
@pytest.mark.parametrize(
    ("secret", "options", "words"),
    [
        ("wrong", {}, "invalid username-password pair"),
        (_SECRET, {"ssl_ca_certs": "/dev/null"}, "CERTIFICATE|certificate|cert"),
        (_SECRET, {"ssl_ca_certs": "/nowhere"}, "No such file|does not exist|not found|Invalid"),
    ],
)
async def test_bus_over_tls_refused_says_why_and_goes_on_trying(
    node: RedisNode,
    certified: Certificates,
    dsn: str,
    secret: str,
    options: dict[str, str],
    words: str,
) -> None:
    with capture_logs() as logs:
        place = BusProcess(_url(node, certified, secret, **options), dsn)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not logs:  # noqa: ASYNC110  # a log is no event
                    await asyncio.sleep(0.01)
            assert not place.bus.state.up
            assert not place.bus.state.connecting
            assert not place.ended
        finally:
            await place.close()
    (lost,) = logs
    assert lost["event"] == "bus_lost"
    assert secret not in lost["reason"]
    assert any(word in lost["reason"] for word in words.split("|")), lost["reason"]
