"""The printed site in a real nginx, in front of two real servers."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import pytest
from aiohttp import WSServerHandshakeError
from click.testing import CliRunner

from bench.harness.server import free_ports
from compose.deployment import open_deployment
from compose.doctor.edge import websocket_finding
from engine.operate.checklist import DeviceAddress
from handlers.http.tokens import MAX_TOKEN_CHARS
from handlers.sync.connections import PING_S
from run import cli
from tests.harness.fronted import Cluster, nginx_for, printed, sync
from tests.harness.services import rows
from tests.harness.uploads.tus_uploader import CHUNK, TUS, described, encoded, file_path, photo
from tests.harness.ws_device import SECRET, Closed, Device, put, token

DEVICES = 6


def refused(*arguments: str) -> str:
    """The sentence that ``run.py nginx`` refuses with."""
    return refused_with(*arguments)


def refused_with(*arguments: str, **environment: str) -> str:
    """The same, under an environment."""
    ended = CliRunner().invoke(cli, ["nginx", *arguments], obj=open_deployment, env=environment)
    assert (ended.exit_code != 0, ended.stdout) == (True, "")
    return ended.stderr.strip().splitlines()[-1]


# -- what is printed --------------------------------------------------------------------------


def test_nginx_site_each_worker_has_its_own_port() -> None:
    for workers, expected in ((1, [9000]), (2, [9001, 9002]), (8, list(range(9001, 9009)))):
        site = printed("--workers", str(workers), "--port", "9000")
        ports = re.findall(r"^    server 127\.0\.0\.1:(\d+) max_fails=0;$", site, re.MULTILINE)
        assert list(map(int, ports)) == expected
        assert "@{" not in site


@pytest.mark.parametrize("host", ["::1", "::"])
def test_nginx_site_follows_the_settings(host: str) -> None:
    site = printed(
        "--server-name",
        "*.example.org",
        TIDEMARK__SERVER__HOST=host,
        TIDEMARK__SERVER__WORKERS="3",
        TIDEMARK__LIMITS__FRAME_BYTES="700000",
    )
    assert re.findall(r"server (\[::1\]:\d+) ", site) == ["[::1]:8081", "[::1]:8082", "[::1]:8083"]
    assert "client_max_body_size 700000;" in site
    assert "server_name *.example.org;" in site
    assert "/etc/letsencrypt/live/example.org/privkey.pem" in site


def test_nginx_site_names_workers_of_all_hosts() -> None:
    site = printed("--host", "10.0.0.5", "--host", "fd00::6", "--workers", "2", "--port", "9000")
    servers = ["10.0.0.5:9001", "[fd00::6]:9001", "10.0.0.5:9002", "[fd00::6]:9002"]
    assert re.findall(r"^    server (\S+) max_fails=0;$", site, re.MULTILINE) == servers
    assert "least_conn;" not in site, "a host that vanished has the fewest connections of all"
    assert "proxy_connect_timeout 500ms;" in site, "a host that vanished refuses nothing"
    assert "least_conn;" in printed("--workers", "2")
    assert "4 workers on 10.0.0.5 and [fd00::6]" in site


def test_nginx_site_quiet_socket_kept_longer_than_one_ping() -> None:
    [timeout_s] = re.findall(r"^    proxy_read_timeout (\d+)s;$", printed(), re.MULTILINE)
    assert int(timeout_s) > 2 * PING_S


def test_nginx_command_unusable_options_refused_in_a_sentence() -> None:
    assert "set one, or give --port" in refused("--port", "0")
    assert "would listen on port 65537" in refused("--port", "65534", "--workers", "3")
    assert "a host's name" in refused("--server-name", "a; b")
    assert "an address or a name" in refused("--host", "a; b")
    assert "a path without" in refused("--key", "/a b;")
    assert "an address or a name" in refused("--address", "a; b")
    assert "two different ports" in refused("--redirect-port", "443")
    assert "is no origin" in refused_with(TIDEMARK__SERVER__ORIGINS='["https://a;b"]')


def test_nginx_site_listen_redirect_and_http2_follow_the_options() -> None:
    site = printed("--server-name", "sync.example.org")
    assert re.findall(r"^    listen (.*);$", site, re.MULTILINE) == ["443 ssl", "[::]:443 ssl"]
    assert ("http2" in site, "return 308" in site, "Host $host;" in site) == (False, False, True)
    asked = ("--address", "10.0.0.1", "--address", "fd00::1", "--https-port", "8443", "--redirect-port", "80")
    site = printed("--server-name", "sync.example.org", *asked, "--http2", "listen")
    assert re.findall(r"^    listen (.*);$", site, re.MULTILINE) == [
        *("10.0.0.1:8443 ssl http2", "[fd00::1]:8443 ssl http2"),
        *("10.0.0.1:80", "[fd00::1]:80"),
    ]
    assert "return 308 https://$host:8443$request_uri;" in site
    assert "proxy_set_header Host $host:8443;" in site
    assert site.count("server_name sync.example.org;") == 2
    site = printed("--http2", "on")
    assert "    listen [::]:443 ssl;\n    http2 on;\n" in site


# -- in nginx ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        ("--workers", "1"),
        ("--workers", "2", "--http2", "listen", "--redirect-port", "80"),
        ("--workers", "8", "--host", "127.0.0.1", "--host", "::1", "--address", "127.0.0.2"),
    ],
)
def test_nginx_site_accepted_by_nginx(tmp_path: Path, asked: tuple[str, ...]) -> None:
    said = nginx_for(
        tmp_path, free_ports(1), *asked, TIDEMARK__SERVER__ORIGINS='["https://a.example"]'
    ).tested()
    assert "test is successful" in said
    assert "[warn]" not in said


async def test_nginx_devices_sync_and_follow_over_tls(cluster: Cluster) -> None:
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
    status, answer = await cluster.post("over-http", sync("d", put("d", None, n=1)))
    assert (status, answer["results"][0]["status"]) == (200, "applied")
    page = await (await cluster.device("tablet")).pull()
    assert [change["id"] for change in page["changes"]] == ["a", "b", "c", "d"]


@pytest.mark.slow
async def test_doctor_handshake_through_nginx_is_told_from_one_that_is_not_passed_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    at = DeviceAddress(True, "127.0.0.1", cluster.nginx.port, "", str(tmp_path / "certificate.pem"))
    passed = await websocket_finding(at, lambda: token("acme", "doctor"))
    assert (passed.level, passed.found) == ("ok", "127.0.0.1 let a device in and welcomed it")
    without = await websocket_finding(at, None)
    assert (without.level, "leads to a server" in without.found) == ("not checked", True)
    site = cluster.nginx._site.read_text()
    await cluster.nginx.reload(re.sub(r"proxy_set_header (Upgrade|Connection) .*;", "", site))
    lost = await websocket_finding(at, lambda: token("acme", "doctor"))
    assert (lost.level, lost.found) == ("fault", "127.0.0.1 answered the handshake with 400")
    assert "pass Upgrade and Connection on" in lost.remedy


async def test_nginx_after_an_outage_every_device_connects_at_its_first_try(cluster: Cluster) -> None:
    for server in cluster.servers:
        await server.kill()
    for name in ("a", "b", "c"):
        status, answer = await cluster.post(name, sync(name, put(name, None, n=1)))
        assert (status, answer["code"]) == (503, "unavailable")
        with pytest.raises(WSServerHandshakeError) as error:
            await cluster.device(name)
        assert error.value.status == 503
        assert error.value.headers is not None
        assert 4 <= int(error.value.headers["Retry-After"]) <= 8
    await asyncio.gather(*(server.start() for server in cluster.servers))
    devices = await asyncio.gather(*(cluster.device(f"d{number}") for number in range(DEVICES)))
    for number, device in enumerate(devices):
        [result] = await device.sync(f"k{number}", put(f"r{number}", None, n=1))
        assert result["status"] == "applied"


async def _parts(cluster: Cluster, count: int) -> list[str]:
    """Upload a file in so many parts; gives their paths."""
    phone = await cluster.uploader("phone")
    content = photo(1000 * count)

    async def part(number: int) -> str:
        chunk = content[1000 * number : 1000 * (number + 1)]
        return await phone.begun(len(chunk), chunk, upload_concat="partial", upload_metadata=None)

    return [await part(number) for number in range(count)]


async def test_nginx_largest_headers_pass_and_cost_no_other_device(cluster: Cluster) -> None:
    phone = await cluster.uploader("phone")
    name = "\N{DESERT}" * 255
    metadata = encoded(described(filename=name))
    metadata += ",note " + "A" * (4096 - len(metadata) - len(",note "))
    parts = [cluster.nginx.url + path for path in await _parts(cluster, 100)]
    headers = TUS | {"Upload-Concat": "final;" + " ".join(parts), "Upload-Metadata": metadata}
    final = await phone.ask("POST", "/v1/uploads", headers)
    assert final.status == 201, final
    path = urlsplit(final.headers["Location"]).path
    for _ in range(4):  # both workers, and again
        head = await phone.head(path)
        assert (head.status, head.headers["Upload-Metadata"]) == (200, metadata)
        assert len(head.headers["Upload-Concat"].split()) == 100
        file = await phone.ask("GET", file_path(path), {})
        assert (file.status, file.body) == (200, photo(100_000))
        # Nobody else pays for it.
        status, _ = await cluster.post("other", {"type": "sync", "key": "k", "items": []})
        assert status == 200
    usual = jwt.decode(token("acme", "phone"), options={"verify_signature": False})
    longest, longer = (
        jwt.encode(usual | {"more": "x" * chars}, SECRET, algorithm="HS256") for chars in (5_950, 24_000)
    )
    assert MAX_TOKEN_CHARS - 200 < len(longest) <= MAX_TOKEN_CHARS
    session = await cluster.session()
    too_long = {"Authorization": f"Bearer {longer}"}
    async with session.get(f"{cluster.nginx.url}/v1/domains", headers=too_long) as response:
        assert (response.status, (await response.json())["code"]) == (401, "unauthenticated")
    authorization = {"Authorization": f"Bearer {longest}"}
    cursor = (await (await cluster.device("tablet")).pull(domains=None))["cursor"]
    domains = ",".join(f"{number:a>64}" for number in range(100))
    for query in (f"cursor={cursor}", f"domains={domains.replace(',', '%2C')}"):
        async with session.get(f"{cluster.nginx.url}/v1/changes?{query}", headers=authorization) as response:
            assert response.status == 200
    async with session.ws_connect(f"{cluster.nginx.url}/v1/sync", headers=authorization) as socket:
        assert (await socket.receive_json())["type"] == "welcome"


async def test_nginx_one_dead_worker_of_two_refuses_nothing(cluster: Cluster) -> None:
    await cluster.servers[0].kill()
    phone = await cluster.uploader("phone")
    content = photo(3000)
    for number in range(3):
        assert (await cluster.post(f"d{number}", sync("k", put(f"r{number}", None, n=1))))[0] == 200
        path = await phone.uploaded(content, record_id=f"r{number}")
        assert await phone.file(path) == content
        [result] = await (await cluster.device(f"s{number}")).sync("k", put(f"s{number}", None, n=1))
        assert result["status"] == "applied"


async def test_nginx_clients_claimed_address_ignored(cluster: Cluster) -> None:
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
            await device.send(sync(f"{self.name}-{number}", put(self.name, number or None, n=number)))
            while (message := await device.receive())["type"] == "goodbye":
                self.goodbyes += 1
            assert message["type"] == "synced", message
            [result] = message["results"]
            assert (result["status"], result["version"]) == ("applied", number + 1)
            self.answered += 1
            self._warm.release()


async def test_nginx_drained_server_devices_move_and_lose_nothing(cluster: Cluster, dsn: str) -> None:
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
    status, _ = await cluster.post("tablet", sync("on", put("tablet", None, n=1)))
    assert status == 200


async def test_nginx_upload_cut_keeps_the_bytes_that_arrived(cluster: Cluster) -> None:
    content = photo(3_000_000)
    phone = await cluster.uploader("phone")
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
    for empty in (b"0\r\n\r\n", b"4\r\nmore\r\n0\r\n\r\n"):  # behind the end
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", cluster.nginx.port, ssl=cluster.trusting, server_hostname="localhost"
        )
        chunked = head.replace(f"Content-Length: {len(content)}", "Transfer-Encoding: chunked")
        chunked = chunked.replace("Upload-Offset: 0", f"Upload-Offset: {len(content)}")
        writer.write(chunked.encode() + b"\r\n" + empty)
        status = await reader.readline()
        writer.transport.abort()
        assert status.split()[1] == (b"400" if b"more" in empty else b"204")
    tablet = await cluster.uploader("tablet")
    assert await tablet.file(path) == content
    assert (await tablet.head(path)).status == 404


async def test_nginx_draft_upload_gets_no_interim_answer(
    cluster: Cluster,
) -> None:
    content = photo(300_000)
    phone = await cluster.uploader("phone")
    draft = {
        "Upload-Draft-Interop-Version": "8",
        "Upload-Complete": "?1",
        "Upload-Metadata": encoded(described()),
        "Content-Type": "image/jpeg",
    }
    for _ in range(2):  # the second on connections to the servers that the first left open
        reply = await phone.ask("POST", "/v1/uploads", draft, content)
        assert (reply.status, reply.headers["Upload-Complete"]) == (201, "?1")
        assert reply.headers["Location"].startswith("/v1/uploads/")
        assert await phone.file(urlsplit(reply.headers["Location"]).path) == content


def test_nginx_site_without_a_name_says_which_to_give() -> None:
    ended = CliRunner().invoke(cli, ["nginx"], obj=open_deployment)
    assert "--server-name NAME" in ended.stderr
    assert CliRunner().invoke(cli, ["nginx", "--server-name", "localhost"], obj=open_deployment).stderr == ""
