"""The printed site in a real nginx, in front of two real servers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import io
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from aiohttp import ClientSession, TCPConnector, WSServerHandshakeError
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from compose.site import open_site
from handlers.connections import PING_S
from run import cli
from storage.embedded import Services
from storage.tenancy import PostgresTenancy
from tests.device import Closed, Device, Json, connected, put, token
from tests.processes import ServerProcess
from tests.services import rows
from tests.uploading import CHUNK, Uploader, described, encoded, photo

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy" / "nginx"
DEVICES = 6


@pytest.fixture(autouse=True)
def _own_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process here and leave its logs alone."""
    monkeypatch.setattr("handlers.commands.site.configure", lambda *_, **__: None)


def printed(*arguments: str, **environment: str) -> str:
    """What ``run.py nginx`` prints."""
    ended = CliRunner().invoke(cli, ["nginx", *arguments], obj=open_site, env=environment)
    assert (ended.exit_code, ended.stderr) == (0, "")
    return ended.stdout


def refused(*arguments: str) -> str:
    """The sentence that ``run.py nginx`` refuses with."""
    ended = CliRunner().invoke(cli, ["nginx", *arguments], obj=open_site)
    assert (ended.exit_code != 0, ended.stdout) == (True, "")
    return ended.stderr.strip().splitlines()[-1]


# -- what is printed --------------------------------------------------------------------------


def test_each_worker_has_its_own_port_above_the_shared_one() -> None:
    for workers, expected in ((1, [9000]), (2, [9001, 9002]), (8, list(range(9001, 9009)))):
        site = printed("--workers", str(workers), "--port", "9000")
        ports = re.findall(r"^    server 127\.0\.0\.1:(\d+);$", site, re.MULTILINE)
        assert list(map(int, ports)) == expected
        assert "@{" not in site


def test_the_settings_are_followed() -> None:
    site = printed(
        "--server-name",
        "*.example.org",
        TIDEMARK__SERVER__HOST="::1",
        TIDEMARK__SERVER__WORKERS="3",
        TIDEMARK__LIMITS__FRAME_BYTES="700000",
    )
    assert re.findall(r"server (\[::1\]:\d+);", site) == ["[::1]:8081", "[::1]:8082", "[::1]:8083"]
    assert "client_max_body_size 700000;" in site
    assert "server_name *.example.org;" in site
    assert "/etc/letsencrypt/live/example.org/privkey.pem" in site


def test_workers_on_several_hosts_are_all_named() -> None:
    site = printed("--host", "10.0.0.5", "--host", "fd00::6", "--workers", "2", "--port", "9000")
    servers = ["10.0.0.5:9001", "10.0.0.5:9002", "[fd00::6]:9001", "[fd00::6]:9002"]
    assert re.findall(r"^    server (\S+);$", site, re.MULTILINE) == servers
    assert "4 workers on 10.0.0.5 and [fd00::6]" in site


def test_a_quiet_socket_is_kept_for_more_than_one_ping() -> None:
    [timeout_s] = re.findall(r"^    proxy_read_timeout (\d+)s;$", printed(), re.MULTILINE)
    assert int(timeout_s) > 2 * PING_S


def test_what_would_not_work_is_refused_in_a_sentence() -> None:
    assert "set one, or give --port" in refused("--port", "0")
    assert "would listen on port 65537" in refused("--port", "65534", "--workers", "3")
    assert "a host's name" in refused("--server-name", "a; b")
    assert "an address or a name" in refused("--host", "a; b")
    assert "a path without" in refused("--key", "/a b;")


# -- in nginx ---------------------------------------------------------------------------------


def _certificate(home: Path) -> Path:
    """Make a certificate for localhost, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = home / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.with_name("key.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return path


def _free_ports(count: int) -> int:
    """Find the first of so many ports in a row that nobody listens on, below those the system hands out."""
    while True:
        first = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first


class Nginx:
    """nginx with the site for ``workers`` from ``port`` + 1 on; it listens on ``port``."""

    def __init__(self, home: Path, port: int, workers: int) -> None:
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            pytest.skip("nginx is not installed")
        self.port = port
        self.certificate = _certificate(home)
        key = self.certificate.with_name("key.pem")
        site = printed(
            *("--workers", str(workers), "--port", str(port), "--server-name", "localhost"),
            *("--certificate", str(self.certificate), "--key", str(key)),
        )
        listening = "    listen 443 ssl;\n    listen [::]:443 ssl;\n"
        assert site.count(listening) == 1
        (home / "site.conf").write_text(site.replace(listening, f"    listen 127.0.0.1:{port} ssl;\n"))
        temporary = "".join(
            f"    {kind}_temp_path {home}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;\n" if os.geteuid() == 0 else ""
        (home / "nginx.conf").write_text(
            f"{user}daemon off;\npid {home}/nginx.pid;\nerror_log {home}/error.log;\nworker_processes 2;\n"
            f"include {DEPLOY}/main.conf;\nevents {{ worker_connections 512; }}\n"
            f"http {{\n    access_log off;\n{temporary}    include {home}/site.conf;\n}}\n"
        )
        prefix, configuration, log = str(home), str(home / "nginx.conf"), str(home / "error.log")
        self._command = [program, "-p", prefix, "-c", configuration, "-e", log]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where devices go."""
        return f"https://localhost:{self.port}"

    def tested(self) -> str:
        """What nginx says of its configuration. Raises CalledProcessError when it would not start."""
        ended = subprocess.run([*self._command, "-t"], capture_output=True, text=True, check=True)
        return ended.stderr

    async def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = await asyncio.create_subprocess_exec(*self._command)
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                await writer.wait_closed()
                return
            assert self._process.returncode is None
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Stop it."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_nginx_takes_it(tmp_path: Path, workers: int) -> None:
    said = Nginx(tmp_path, _free_ports(1), workers).tested()
    assert "test is successful" in said
    assert "[warn]" not in said


class Cluster:
    """Two servers behind nginx, and clients from chosen addresses of this machine."""

    def __init__(self, nginx: Nginx, servers: list[ServerProcess], stack: AsyncExitStack) -> None:
        self.nginx = nginx
        self.servers = servers
        self._stack = stack
        self.trusting = ssl.create_default_context(cafile=str(nginx.certificate))
        self.trusting.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._sessions: dict[str, ClientSession] = {}

    async def session(self, address: str = "127.0.0.1") -> ClientSession:
        """A client that connects from an address."""
        if address not in self._sessions:
            connector = TCPConnector(ssl=self.trusting, local_addr=(address, 0), family=socket.AF_INET)
            session = ClientSession(connector=connector)
            self._sessions[address] = await self._stack.enter_async_context(session)
        return self._sessions[address]

    async def device(self, name: str, stack: AsyncExitStack | None = None) -> Device:
        """Connect a device through nginx."""
        device = connected(self.nginx.url, await self.session(), signed=token("acme", name))
        return await (stack or self._stack).enter_async_context(device)

    async def post(self, name: str, message: Json) -> tuple[int, Json]:
        """Sync over HTTPS; gives the status and the answer."""
        headers = {"Authorization": f"Bearer {token('acme', name)}", "Content-Type": "application/json"}
        body = io.BytesIO(msgspec.json.encode(message))
        session = await self.session()
        async with session.post(f"{self.nginx.url}/v1/sync", data=body, headers=headers) as response:
            return response.status, await response.json()


@pytest.fixture
async def cluster(dsn: str, services: Services, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two servers that nginx has just been started in front of."""
    PostgresTenancy(dsn).ensure("acme")
    port = _free_ports(3)
    nginx = Nginx(tmp_path, port, 2)
    async with AsyncExitStack() as stack:
        servers = [ServerProcess(dsn, services.redis_url, tmp_path) for _ in range(2)]
        for number, server in enumerate(servers, 1):
            server.port = port + number
            stack.push_async_callback(server.stop)
        await asyncio.gather(*(server.start() for server in servers))
        stack.push_async_callback(nginx.stop)
        await nginx.start()
        yield Cluster(nginx, servers, stack)


def _sync(key: str, *items: Json) -> Json:
    return {"type": "sync", "id": key, "key": key, "items": list(items)}


async def test_devices_sync_and_follow_through_tls(cluster: Cluster) -> None:
    devices = {name: await cluster.device(name) for name in ("a", "b", "c")}
    for device in devices.values():
        await device.told("changes", "subscribe", cursor=None)
    for name, device in devices.items():
        [result] = await device.sync(name, put(name, None, n=1))
        assert result["status"] == "applied"
    following = {asyncio.create_task(device.changes()): name for name, device in devices.items()}
    followed, waiting = await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
    for task in followed:  # of three devices on two servers two share one
        assert {change["id"] for change in task.result()["changes"]} - {following[task]}
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    status, answer = await cluster.post("over-http", _sync("d", put("d", None, n=1)))
    assert (status, answer["results"][0]["status"]) == (200, "applied")
    page = await (await cluster.device("tablet")).pull()
    assert [change["id"] for change in page["changes"]] == ["a", "b", "c", "d"]


async def test_what_is_too_large_and_what_cannot_be_reached_is_said_in_the_contracts_words(
    cluster: Cluster,
) -> None:
    status, answer = await cluster.post("phone", _sync("large", put("a", None, text="x" * 1_100_000)))
    assert (status, answer["type"], answer["code"]) == (413, "error", "too_large")
    assert answer["retryable"] is False
    for server in cluster.servers:
        await server.kill()
    status, answer = await cluster.post("phone", _sync("late", put("a", None, n=1)))
    assert (status, answer["code"], answer["retryable"]) == (503, "unavailable", True)
    assert 1000 <= answer["retry_after_ms"] <= 4000


async def test_where_a_client_comes_from_counts_and_not_what_it_says_of_that(cluster: Cluster) -> None:
    for address, expected in (("127.0.0.1", 200), ("127.0.0.2", 403)):
        session = await cluster.session(address)
        for path, status in (("/metrics", expected), ("/readyz", expected), ("/healthz", 200)):
            async with session.get(
                cluster.nginx.url + path, headers={"X-Forwarded-For": "127.0.0.1"}
            ) as response:
                assert response.status == status
        with pytest.raises(WSServerHandshakeError) as error:
            await session.ws_connect(
                f"{cluster.nginx.url}/v1/sync", headers={"X-Forwarded-For": "203.0.113.7"}
            )
        assert error.value.status == 401
    for server in cluster.servers:
        assert await server.terminate() == 0
    lines = [line for server in cluster.servers for line in server.lines]
    clients = [line["client"] for line in lines if line["event"] == "handshake_refused"]
    assert sorted(clients) == ["127.0.0.1", "127.0.0.2"]


class Pusher:
    """A device that numbers its edits of one record, and sends what was not answered again."""

    def __init__(self, cluster: Cluster, name: str, warm: asyncio.Semaphore) -> None:
        self.name = name
        self.connections = 0
        self.goodbyes = 0
        self.answered = 0
        self._cluster = cluster
        self._warm = warm

    async def run(self, gone: asyncio.Event, enough: int) -> None:
        """Push until sent away, come back when the server is gone, and push until ``enough`` are answered."""
        while True:
            try:
                async with AsyncExitStack() as stack:
                    await self._push(await self._cluster.device(self.name, stack), enough)
                    return
            except (Closed, ConnectionError):
                await gone.wait()

    async def _push(self, device: Device, enough: int) -> None:
        self.connections += 1
        while not (self.answered >= enough and self._cluster.servers[0].events[-1] == "stopped"):
            number = self.answered
            await device.send(_sync(f"{self.name}-{number}", put(self.name, number or None, n=number)))
            while (message := await device.receive())["type"] == "goodbye":
                self.goodbyes += 1
            assert message["type"] == "synced", message
            [result] = message["results"]
            assert (result["status"], result["version"]) == ("applied", number + 1)
            self.answered += 1
            self._warm.release()


async def test_when_one_server_drains_its_devices_go_to_the_other_and_nothing_is_lost(
    cluster: Cluster, dsn: str
) -> None:
    warm = asyncio.Semaphore(0)
    gone = asyncio.Event()
    pushers = [Pusher(cluster, f"d{number}", warm) for number in range(DEVICES)]
    running = [asyncio.create_task(pusher.run(gone, 20)) for pusher in pushers]
    for _ in range(DEVICES * 5):
        await warm.acquire()
    assert await cluster.servers[0].terminate() == 0
    gone.set()
    await asyncio.gather(*running)
    moved = [pusher for pusher in pushers if pusher.connections == 2]
    assert len(moved) == DEVICES // 2, "least_conn gives each server as many"
    assert {pusher.goodbyes for pusher in moved} == {1}
    assert {pusher.goodbyes for pusher in pushers if pusher not in moved} == {0}
    versions = {str(name): version for name, version in rows(dsn, "SELECT id, version FROM records")}
    assert versions == {pusher.name: pusher.answered for pusher in pushers}
    status, _ = await cluster.post("tablet", _sync("on", put("tablet", None, n=1)))
    assert status == 200


async def test_an_upload_goes_through_in_pieces_and_keeps_what_came_before_a_cut(cluster: Cluster) -> None:
    content = photo(3_000_000)
    phone = Uploader(await cluster.session(), cluster.nginx.url, token("acme", "phone"))
    path = await phone.begun(len(content))
    # A connection breaks in the middle of a piece; nginx has passed on by then what it had.
    _, writer = await asyncio.open_connection(
        "127.0.0.1", cluster.nginx.port, ssl=cluster.trusting, server_hostname="localhost"
    )
    head = f"PATCH {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    head += f"Upload-Offset: 0\r\nContent-Type: {CHUNK}\r\nTus-Resumable: 1.0.0\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in phone.authorization.items())
    writer.write(head.encode() + b"\r\n" + content[:100_000])
    await writer.drain()
    offset = 0
    while offset == 0:  # the question itself ends the request; before that it may not have begun
        offset = await phone.offset(path)
    writer.transport.abort()
    assert offset <= 100_000
    while offset < len(content):  # least_conn hands the pieces to both servers
        reply = await phone.append(path, offset, content[offset : offset + 400_000])
        assert reply.status == 204, reply
        offset = int(reply.headers["Upload-Offset"])
    tablet = Uploader(await cluster.session(), cluster.nginx.url, token("acme", "tablet"))
    assert await tablet.file(path) == content
    assert (await tablet.head(path)).status == 404


async def test_an_upload_by_the_draft_goes_through_without_the_interim_answer_that_nginx_mistakes(
    cluster: Cluster,
) -> None:
    content = photo(300_000)
    phone = Uploader(await cluster.session(), cluster.nginx.url, token("acme", "phone"))
    draft = {
        "Upload-Draft-Interop-Version": "8",
        "Upload-Complete": "?1",
        "Upload-Metadata": encoded(described()),
        "Content-Type": "image/jpeg",
    }
    for _ in range(2):  # the second on connections to the servers that the first left open
        reply = await phone.ask("POST", "/v1/uploads", draft, content)
        assert (reply.status, reply.headers["Upload-Complete"]) == (201, "?1")
        assert reply.headers["Location"].startswith("https://localhost")
        assert await phone.file(urlsplit(reply.headers["Location"]).path) == content
