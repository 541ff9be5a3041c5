"""The handshake: who is let in, in which encoding, compressed or not, and how they are greeted."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import jwt
import msgspec
import pytest

from tests.harness.in_process_server import ON_SHARED, Reply, Running, Serve
from tests.harness.raw_http import wired
from tests.harness.ws_device import SECRET, Json, item, token
from tests.security.catalogue import against

pytestmark = ON_SHARED

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
}


async def upgrade(running: Running, headers: dict[str, str], **options: Any) -> Reply:
    """Try a handshake that is to be refused."""
    async with running.http.get(f"{running.url}/v1/sync", headers=UPGRADE | headers, **options) as response:
        assert response.content_type == "application/json"
        return Reply(response.status, response.headers, await response.read())


def bearer(signed: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {signed}"}


# -- who is let in ----------------------------------------------------------------------------

GOOD = jwt.decode(token(), SECRET, ["HS256"], audience="tidemark")

UNAUTHENTICATED: dict[str, dict[str, str]] = {
    "no token": {},
    "another scheme": {"Authorization": f"Basic {token()}"},
    "a token alone": {"Authorization": token()},
    "an empty token": {"Authorization": "Bearer "},
    "garbage": bearer("a.b.c"),
    "no signature": bearer(token().rpartition(".")[0] + "."),
    "a changed signature": bearer(token()[:-6] + "AAAAAA"),
    "another secret": bearer(jwt.encode(GOOD, b"x" * 32, "HS256")),
    "no algorithm": bearer(jwt.encode(GOOD, "", "none")),
    "another algorithm": bearer(jwt.encode(GOOD, SECRET * 2, "HS512")),
    "expired": bearer(token(exp=int(time.time()) - 31)),
    "no exp": bearer(token(exp=None)),
    "no aud": bearer(token(aud=None)),
    "another aud": bearer(token(aud="elsewhere")),
    "no jti": bearer(token(jti=None)),
    "no tenant": bearer(token(tenant=None)),
    "no device": bearer(token(device=None)),
    "a device's name with a space": bearer(token(device="my phone")),
    "a device's name of 256": bearer(token(device="x" * 256)),
    "an unknown role": bearer(token(role="root")),
}
FORBIDDEN: dict[str, dict[str, str]] = {
    "an operator": bearer(token(device=None, role="operator")),
    "a viewer": bearer(token(role="viewer")),
    "an unknown tenant": bearer(token(tenant="nobody")),
    "an unknown origin": bearer(token()) | {"Origin": "https://elsewhere.example"},
}


@pytest.mark.parametrize("headers", UNAUTHENTICATED.values(), ids=UNAUTHENTICATED)
@against("API2:2023", "V9.1")
async def test_handshake_without_a_valid_token_is_401(shared: Running, headers: dict[str, str]) -> None:
    refused(await upgrade(shared, headers), 401, "unauthenticated")


@pytest.mark.parametrize("headers", FORBIDDEN.values(), ids=FORBIDDEN)
@against("API5:2023", "V8.3")
async def test_handshake_of_a_wrong_role_or_tenant_is_403(shared: Running, headers: dict[str, str]) -> None:
    refused(await upgrade(shared, headers), 403, "forbidden")


def refused(reply: Reply, status: int, code: str) -> None:
    assert reply.verdict == (status, code)
    assert (reply.message["type"], reply.message["retryable"]) == ("error", False)
    assert reply.message["message"]


@pytest.mark.parametrize("name", ["token", "access_token", "bearer", "authorization", "Authorization"])
@against("API2:2023", "V14.2")
async def test_handshake_token_in_the_url_is_ignored(shared: Running, name: str) -> None:
    for value in (shared.token(), f"Bearer {shared.token()}"):
        refused(await upgrade(shared, {}, params={name: value}), 401, "unauthenticated")


async def test_handshake_scheme_is_read_in_any_case(shared: Running) -> None:
    async with shared.http.ws_connect(
        f"{shared.url}/v1/sync", headers={"Authorization": f"bEaReR {shared.token()}"}
    ) as socket:
        assert (await socket.receive_json())["type"] == "welcome"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_handshake_client_without_headers_offers_its_token_as_a_subprotocol(
    shared: Running, encoding: str, first: bool
) -> None:
    offered = [f"tidemark.v1.{encoding}", f"bearer.{shared.token()}"]
    async with shared.http.ws_connect(
        f"{shared.url}/v1/sync", protocols=offered[::-1] if first else offered
    ) as socket:
        assert socket.protocol == f"tidemark.v1.{encoding}"
        assert (await socket.receive()).data


async def test_handshake_wrong_token_as_a_subprotocol_is_refused(shared: Running) -> None:
    offered = {"Sec-WebSocket-Protocol": f"tidemark.v1.json, bearer.{token(aud='elsewhere')}"}
    refused(await upgrade(shared, offered), 401, "unauthenticated")


@pytest.mark.asyncio(loop_scope="function")
async def test_handshake_only_origins_on_the_list_may_connect(serve: Serve) -> None:
    server = await serve(server={"origins": ["https://app.example.org"]})
    phone = await server.device(origin="https://app.example.org")
    assert phone.welcome["type"] == "welcome"
    await server.device("native")
    for origin in ("https://app.example.org.evil.example", "http://app.example.org", "null", ""):
        headers = bearer(server.token()) | {"Origin": origin}
        refused(await upgrade(server, headers), 403, "forbidden")
        reply = await server.get("/v1/changes", headers={"Origin": origin})
        assert reply.verdict == (403, "forbidden")
    reply = await server.get("/v1/changes", headers={"Origin": "https://app.example.org"})
    assert reply.status == 200


# -- in which encoding ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["tidemark.v1.json"], "tidemark.v1.json"),
        (["tidemark.v1.msgpack"], "tidemark.v1.msgpack"),
        (["tidemark.v1.msgpack", "tidemark.v1.json"], "tidemark.v1.msgpack"),
        (["tidemark.v1.json", "tidemark.v1.msgpack"], "tidemark.v1.json"),
        (["tidemark.v2.json", "tidemark.v1.msgpack"], "tidemark.v1.msgpack"),
    ],
)
async def test_handshake_first_known_subprotocol_is_taken(
    shared: Running, offered: list[str], chosen: str | None
) -> None:
    async with shared.http.ws_connect(
        f"{shared.url}/v1/sync", protocols=offered, headers=shared.headers()
    ) as socket:
        assert socket.protocol == chosen
        frame = (await socket.receive()).data
        decode = msgspec.msgpack.decode if isinstance(frame, bytes) else msgspec.json.decode
        assert isinstance(frame, bytes) is (chosen == "tidemark.v1.msgpack")
        assert decode(frame)["type"] == "welcome"


async def test_handshake_unknown_subprotocols_alone_are_refused(shared: Running) -> None:
    reply = await upgrade(shared, shared.headers() | {"Sec-WebSocket-Protocol": "tidemark.v2.json, soap"})
    refused(reply, 422, "invalid_message")
    assert "tidemark.v1.json" in reply.message["message"]


async def test_handshake_request_that_is_no_handshake_is_answered_with_an_error_body(shared: Running) -> None:
    reply = await shared.get("/v1/sync")
    assert 400 <= reply.status < 500
    assert reply.message["type"] == "error"


@pytest.mark.parametrize("name", ["Upgrade", "Connection", "Sec-WebSocket-Version", "Sec-WebSocket-Key"])
async def test_handshake_header_that_is_not_utf8_is_malformed(shared: Running, name: str) -> None:
    headers = UPGRADE | bearer(shared.token()) | {name: "\udcff"}
    async with wired(shared.url) as raw:
        answer = await raw.ask("GET", "/v1/sync", headers)
    assert answer.verdict == (400, "malformed")
    assert answer.message["message"].startswith("no handshake of a WebSocket: ")


# -- how they are greeted ---------------------------------------------------------------------


async def test_handshake_welcome_has_all_fields(shared: Running) -> None:
    earliest = datetime.now(UTC)
    one, other = await shared.device("one"), await shared.device("other")
    welcome = dict(one.welcome)
    assert earliest <= datetime.fromisoformat(welcome.pop("server_time")) <= datetime.now(UTC)
    assert welcome.pop("session") != other.welcome["session"]
    assert welcome.pop("epoch") == other.welcome["epoch"] != ""
    policies = welcome.pop("policies")
    assert sorted(welcome.pop("events")) == ["behavioral", "metrics", "session", "voice"]
    assert welcome == {
        "type": "welcome",
        "heartbeat_s": 30,
        "limits": {
            "frame_bytes": 1_048_576,
            "items": 500,
            "record_bytes": 262_144,
            "messages_per_minute": 6000,
        },
    }
    assert {name: policies[name] for name in ("task", "work_order", "attendance", "ticket", "journal")} == {
        "task": "field_merge",
        "work_order": "field_merge",
        "attendance": "server_wins",
        "ticket": "preserve_escalation",
        "journal": "client_wins",
    }
    assert policies["note"] == "manual"


async def test_heartbeat_is_acknowledged(shared: Running) -> None:
    phone = await shared.device()
    earliest = datetime.now(UTC)
    ack = await phone.ask(
        "heartbeat",
        queue_depth=4,
        battery=0.8,
        network="4g",
        storage_free_mb=900,
        app_version="1.2",
        os_version="14",
    )
    assert earliest <= datetime.fromisoformat(ack.pop("server_time")) <= datetime.now(UTC)
    assert ack == {"type": "heartbeat_ack", "id": "1", "health_score": 100}


async def test_heartbeat_health_score_falls_with_conflicts(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(*(item("put", "attendance", f"r{number}", data={"n": 1}) for number in range(2)))
    await tablet.push(item("put", "attendance", "r0", data={"n": 2}))
    await tablet.push(item("put", "attendance", "r9", data={"n": 2}))
    assert (await tablet.ask("heartbeat"))["health_score"] == 90
    assert (await phone.ask("heartbeat"))["health_score"] == 100


# -- compressed or not ------------------------------------------------------------------------


class Wire:
    """A client that shows frames as they travel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.headers: dict[str, str] = {}

    async def open(self, running: Running, extensions: str | None) -> None:
        """Shake hands."""
        headers = (
            UPGRADE | running.headers() | {"Host": "localhost", "Sec-WebSocket-Protocol": "tidemark.v1.json"}
        )
        if extensions is not None:
            headers["Sec-WebSocket-Extensions"] = extensions
        lines = ["GET /v1/sync HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        status, *rest = head.strip().split("\r\n")
        assert status.split()[1] == "101"
        self.headers = dict(line.split(": ", 1) for line in rest)

    def send(self, payload: bytes, *, compressed: bool = False) -> None:
        """Send a text frame."""
        first = 0xC1 if compressed else 0x81
        size = len(payload)
        head = bytes([first, 0x80 | size]) if size < 126 else struct.pack("!BBH", first, 0x80 | 126, size)
        self._writer.write(head + bytes(4) + payload)

    async def receive(self) -> tuple[bool, bytes]:
        """Give whether the next frame is compressed, and its payload."""
        first, size = await self._reader.readexactly(2)
        if size == 126:
            (size,) = struct.unpack("!H", await self._reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
        assert first & 0x8F == 0x81
        return bool(first & 0x40), await self._reader.readexactly(size)


@asynccontextmanager
async def wire(running: Running, extensions: str | None) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    try:
        client = Wire(reader, writer)
        await client.open(running, extensions)
        yield client
    finally:
        writer.close()
        await writer.wait_closed()


def inflate(payload: bytes, bits: int = 15) -> Json:
    """Unpack one message without knowing any before it."""
    return msgspec.json.decode(zlib.decompressobj(-bits).decompress(payload + b"\x00\x00\xff\xff"), type=Json)


def deflate(payload: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


PULL = b'{"type":"pull","id":"1"}'


@pytest.mark.parametrize(
    ("offered", "bits"),
    [
        ("permessage-deflate", 15),
        ("permessage-deflate; client_max_window_bits", 15),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", 15),
        ("permessage-deflate; server_max_window_bits=10", 10),
        ("x-unknown, permessage-deflate", 15),
    ],
)
async def test_compression_has_no_context_takeover_and_begins_at_1_kib(
    shared: Running, offered: str, bits: int
) -> None:
    phone = await shared.device("other")
    async with wire(shared, offered) as client:
        name, *parameters = client.headers["Sec-WebSocket-Extensions"].split("; ")
        assert name == "permessage-deflate"
        assert parameters.count("server_no_context_takeover") == 1
        assert parameters.count("client_no_context_takeover") == 1
        compressed, welcome = await client.receive()
        assert compressed is (len(welcome) > 1024)
        client.send(PULL)
        compressed, small = await client.receive()
        assert (compressed, msgspec.json.decode(small)["changes"]) == (False, [])
        text = "".join(f"{number:x}" for number in range(2_000))
        await phone.push(item("put", "task", "a1", data={"text": text}))
        packed = []
        for _ in range(3):
            client.send(PULL)
            compressed, payload = await client.receive()
            assert compressed is True
            assert len(payload) < len(text)
            assert inflate(payload, bits)["changes"][0]["data"]["text"] == text
            packed.append(payload)
        assert packed[0] == packed[1] == packed[2]


@pytest.mark.parametrize("offered", [None, "x-unknown", "permessage-deflate; server_max_window_bits=99"])
async def test_compression_without_an_agreement_is_not_used(shared: Running, offered: str | None) -> None:
    phone = await shared.device("other")
    await phone.push(item("put", "task", "a1", data={"text": "x" * 10_000}))
    async with wire(shared, offered) as client:
        assert "Sec-WebSocket-Extensions" not in client.headers
        assert (await client.receive())[0] is False
        client.send(PULL)
        compressed, payload = await client.receive()
        assert compressed is False
        assert msgspec.json.decode(payload)["changes"][0]["data"] == {"text": "x" * 10_000}


async def test_compression_of_received_messages_is_per_message(shared: Running) -> None:
    async with wire(shared, "permessage-deflate") as client:
        await client.receive()
        for _ in range(3):
            client.send(deflate(PULL), compressed=True)
            assert (await client.receive())[0] is False
        client.send(PULL)
        assert msgspec.json.decode((await client.receive())[1])["type"] == "changes"


@pytest.mark.asyncio(loop_scope="function")
async def test_compression_switched_off_is_not_offered(serve: Serve) -> None:
    server = await serve(server={"compress": False})
    async with wire(server, "permessage-deflate") as client:
        assert "Sec-WebSocket-Extensions" not in client.headers
        assert (await client.receive())[0] is False
