"""What nginx says and passes on by itself: no server is behind it here, but what a test listens with."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession, TCPConnector
from multidict import CIMultiDict

from bench.client.device import Device
from bench.client.store import Store
from bench.harness.nginx import Nginx, trusting
from bench.harness.server import free_ports
from engine.wire.errors import ERRORS
from tests.harness.fronted import nginx_for, printed
from tests.harness.raw_http import Answer, wired

PAGE = "https://app.example.org"
ENVIRONMENT = {
    "TIDEMARK__SERVER__ORIGINS": f'["{PAGE}"]',
    "TIDEMARK__LIMITS__FRAME_BYTES": "300000",
}


class Front:
    """nginx, and what its workers' ports are listened on with."""

    def __init__(self, nginx: Nginx, home: Path) -> None:
        self.nginx = nginx
        self.tls = trusting(home / "certificate.pem")

    async def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        """Send one request on a connection of its own."""
        async with wired(self.nginx.url, self.tls) as wire:
            return await wire.ask(method, path, headers, body)

    async def raw(self, head: bytes, *, plain: bool = False) -> Answer:
        """Send bytes as they are."""
        url = f"http://127.0.0.1:{self.nginx.port}" if plain else self.nginx.url
        async with wired(url, None if plain else self.tls) as wire:
            await wire.send(head)
            return await wire.answer()


@asynccontextmanager
async def fronted(home: Path, *arguments: str, first_port: int = 0) -> AsyncIterator[Front]:
    port = first_port or free_ports(4)
    nginx = nginx_for(home, port, *arguments, **ENVIRONMENT)
    await nginx.start()
    try:
        yield Front(nginx, home)
    finally:
        await nginx.stop()


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """Nginx in front of two workers that are away."""
    async with fronted(tmp_path, "--workers", "2") as made:
        yield made


class Listener:
    """Listens at a worker's port. ``heads`` are the requests; ``silent`` has it close without a word."""

    def __init__(self) -> None:
        self.heads: list[tuple[str, CIMultiDict[str]]] = []
        self.bodies: list[bytes] = []
        self.silent = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one request in and answer it."""
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().rstrip().split("\r\n")
        named = [line.partition(": ") for line in lines]
        headers = CIMultiDict([(name, value) for name, _, value in named])
        self.heads.append((first.rpartition(" ")[0], headers))
        if not self.silent:
            self.bodies.append(await reader.readexactly(int(headers.get("Content-Length", "0"))))
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()


async def listening(stack: AsyncExitStack, port: int, address: str = "127.0.0.1") -> Listener:
    """Listen at a worker's port."""
    listener = Listener()
    server = await asyncio.start_server(listener.serve, address, port, limit=1 << 20)
    stack.push_async_callback(server.wait_closed)
    stack.callback(server.close)
    return listener


# -- what it refuses --------------------------------------------------------------------------


def _head(first: str, *lines: str) -> bytes:
    return "\r\n".join([first, "Host: localhost", *lines, "", ""]).encode()


REFUSED = {
    "no HTTP": (b"\x16\x03 what is this\r\n\r\n", 400, "malformed"),
    "no host": (b"GET /v1/changes HTTP/1.1\r\n\r\n", 400, "malformed"),
    "another version": (_head("GET / HTTP/9.1"), 400, "malformed"),
    "an unknown coding": (_head("POST /v1/sync HTTP/1.1", "Transfer-Encoding: x"), 400, "malformed"),
    "a line too long": (_head("GET / HTTP/1.1", f"X: {'x' * 40_000}"), 413, "too_large"),
    "a URL too long": (_head(f"GET /{'x' * 40_000} HTTP/1.1"), 413, "too_large"),
    "a body too long": (_head("POST /v1/sync HTTP/1.1", "Content-Length: 300001"), 413, "too_large"),
    "no method": (_head("TRACE / HTTP/1.1"), 405, "method_not_allowed"),
    "the place of refusals": (_head("GET /.tidemark/refusal HTTP/1.1"), 404, "not_found"),
    "no worker": (_head("POST /v1/sync HTTP/1.1", "Content-Length: 0"), 503, "unavailable"),
    "no worker for an upload": (_head("POST /v1/uploads HTTP/1.1", "Content-Length: 0"), 503, "unavailable"),
}


async def test_own_refusals_are_errors_of_the_contract(front: Front) -> None:
    answers = {case: await front.raw(sent) for case, (sent, _, _) in REFUSED.items()}
    answers["plain HTTP"] = await front.raw(_head("GET / HTTP/1.1"), plain=True)
    wanted = {case: (status, code) for case, (_, status, code) in REFUSED.items()}
    assert {case: answer.verdict for case, answer in answers.items()} == {
        **wanted,
        "plain HTTP": (400, "malformed"),
    }
    for answer in answers.values():
        kind = ERRORS[answer.message["code"]]
        assert (answer.message["type"], answer.message["retryable"]) == ("error", kind.retryable)
        assert answer.status == kind.http
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Server"] == "nginx"  # without its version
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-ID"])
        assert ("Retry-After" in answer.headers) is kind.retryable
        assert ("Allow" in answer.headers) is (answer.status == 405)
    away = answers["no worker"]
    assert away.message["retry_after_ms"] == 1000 * int(away.headers["Retry-After"])
    assert 4 <= int(away.headers["Retry-After"]) <= 8


def test_own_refusals_agree_with_the_table_of_errors() -> None:
    texts = re.findall(r"'(\{\"type\":\"error\".*\})'", printed())
    assert len(texts) >= 6
    for text in texts:
        error = msgspec.json.decode(text.replace("${tidemark_later_s}", "4"))
        assert error["retryable"] is ERRORS[error["code"]].retryable


async def test_own_refusals_listed_origin_may_read_them(front: Front) -> None:
    for origin, allowed in ((PAGE, PAGE), ("https://evil.example", None)):
        sent = {"Origin": origin, "X-Request-ID": "of-the-client", "Tus-Resumable": "1.0.0"}
        answer = await front.ask("HEAD", "/v1/uploads/1", sent)
        assert answer.status == 503
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed
        exposed = answer.headers.get("Access-Control-Expose-Headers", "")
        assert ("Retry-After" in exposed) is (allowed is not None)
        assert (answer.headers["X-Request-ID"], answer.headers["Vary"]) == ("of-the-client", "Origin")
        assert answer.headers["Tus-Resumable"] == "1.0.0"


async def test_reference_device_waits_as_long_as_the_refused_handshake_says(
    front: Front, tmp_path: Path
) -> None:
    store = Store(tmp_path / "phone.sqlite", "phone", durability="NORMAL")
    async with ClientSession(connector=TCPConnector(ssl=front.tls)) as session:
        device = Device(store, front.nginx.url, lambda: "", session, unit=lambda: 0.0)
        ended = await device._once("a token")
    store.close()
    assert ended.remedy == "again"
    assert 4000 <= ended.retry_after_ms <= 8000


# -- what it passes on ------------------------------------------------------------------------

#: What nginx alone may say to a server.
CLAIMED = (
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Prefix",
    "Forwarded",
    "X-Tidemark-Request-Seconds",
)


async def test_forwarded_headers_tell_the_bodys_time_and_drop_claims(front: Front) -> None:
    held_back_s = 0.05
    async with AsyncExitStack() as stack:
        listener = await listening(stack, front.nginx.port + 1)
        wire = await stack.enter_async_context(wired(front.nginx.url, front.tls))
        claims = dict.fromkeys(CLAIMED, "31337")
        await wire.begin("POST", "/v1/sync", {**claims, "Content-Length": "2"})
        await wire.send(b"{")
        await asyncio.sleep(held_back_s)  # the time itself is the subject
        await wire.send(b"}")
        assert (await wire.answer()).status == 204
    [(_, headers)] = listener.heads
    assert listener.bodies == [b"{}"]
    assert re.fullmatch(r"\d+\.\d{3}", headers["X-Tidemark-Request-Seconds"])
    assert float(headers["X-Tidemark-Request-Seconds"]) >= held_back_s / 2
    assert (headers["X-Forwarded-For"], headers["X-Forwarded-Proto"]) == ("127.0.0.1", "https")
    assert ("X-Forwarded-Prefix" in headers, "Forwarded" in headers) == (False, False)
    assert "31337" not in headers.values()


REQUESTS = [
    ("GET", "/v1/sync", {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": "x"}),
    ("POST", "/v1/sync", {}),
    ("POST", "/v1/uploads", {}),
    ("PATCH", "/v1/uploads/1", {}),
    ("DELETE", "/v1/uploads/1", {}),
    ("GET", "/v1/changes", {}),
]


@pytest.mark.parametrize("hosts", [("127.0.0.1",), ("127.0.0.1", "127.0.0.2")])
async def test_request_that_reached_no_worker_goes_to_the_next(
    hosts: tuple[str, ...], tmp_path: Path
) -> None:
    named = [part for host in hosts for part in ("--host", host)]
    async with AsyncExitStack() as stack:
        front = await stack.enter_async_context(fronted(tmp_path, "--workers", "2", *named))
        listener = await listening(stack, front.nginx.port + 2, hosts[-1])
        for method, path, headers in REQUESTS * 3:
            answer = await front.ask(method, path, headers, b"12345" if method in ("POST", "PATCH") else b"")
            assert answer.status == 204, (method, path)
    assert [first for first, _ in listener.heads] == [f"{method} {path}" for method, path, _ in REQUESTS * 3]


async def test_worker_that_broke_off_an_answer_asked_again_at_once(front: Front) -> None:
    async with AsyncExitStack() as stack:
        workers = [await listening(stack, front.nginx.port + number) for number in (1, 2)]
        for worker in workers:
            worker.silent = True
        answer = await front.ask("GET", "/v1/changes", {})
        assert answer.verdict == (503, "unavailable")
        assert [len(worker.heads) for worker in workers] == [1, 1]
        answer = await front.ask("POST", "/v1/sync", {}, b"{}")
        assert answer.verdict == (503, "unavailable")
        assert sum(len(worker.heads) for worker in workers) == 3, "a POST that was sent stays with its worker"
        for worker in workers:
            worker.silent = False
        for method in ("GET", "POST"):
            assert (await front.ask(method, "/v1/sync", {})).status == 204


async def test_redirect_port_sends_plain_http_to_https(tmp_path: Path) -> None:
    port = free_ports(2)
    async with (
        fronted(tmp_path, "--redirect-port", str(port + 1), first_port=port) as front,
        wired(f"http://127.0.0.1:{port + 1}") as wire,
    ):
        answer = await wire.ask("POST", "/v1/sync?a=1", {"Host": "localhost"}, b"{}")
    assert (answer.status, answer.headers["Location"]) == (308, f"{front.nginx.url}/v1/sync?a=1")
    assert answer.headers["Server"] == "nginx"


async def test_http2_is_spoken_only_if_asked_for(tmp_path: Path) -> None:
    asked: dict[str, tuple[str, ...]] = {"1.1": (), "2": ("--http2", "listen")}
    async with AsyncExitStack() as stack:
        for version, arguments in asked.items():
            home = tmp_path / version
            home.mkdir()
            front = await stack.enter_async_context(fronted(home, "--workers", "2", *arguments))
            listener = await listening(stack, front.nginx.port + 1)
            for method, path, status in (("POST", "/v1/sync", "204"), ("PATCH", "/v1/uploads/1", "204")):
                assert await _curled(front, method, path, "x" * 1000) == [status, version]
            assert listener.bodies == [b"x" * 1000] * 2
            assert await _curled(front, "POST", "/v1/sync", "x" * 300_001) == ["413", version]


async def _curled(front: Front, method: str, path: str, body: str) -> list[str]:
    """The status and the version of HTTP that curl, which knows both, is answered with."""
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sSk", "--http2", "-X", method, "--data-binary", "@-", "-o", "-"),
        *("-w", "\n%{http_code} %{http_version}", front.nginx.url + path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await curl.communicate(body.encode())
    return said.decode().splitlines()[-1].split()
