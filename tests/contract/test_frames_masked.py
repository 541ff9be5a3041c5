"""A frame without a mask ends the connection with 1002; a handshake may be spelled in many ways."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.raw_http import Interim, Wire, frame, wired
from tests.harness.ws_device import put

pytestmark = ON_SHARED

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
}


async def shaken(wire: Wire, named: dict[str, str], *lines: str) -> Interim:
    """Send a handshake, with more lines of headers behind; gives its answer."""
    head = ["GET /v1/sync HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in named.items())]
    await wire.send("\r\n".join([*head, *lines, "", ""]).encode())
    return await wire.interim()


async def closed(wire: Wire) -> tuple[list[dict[str, Any]], int]:
    """Read frames until the server closes; gives its messages and the code."""
    messages: list[dict[str, Any]] = []
    while True:
        opcode, length = await wire.exactly(2)
        if length == 126:
            (length,) = struct.unpack("!H", await wire.exactly(2))
        payload = await wire.exactly(length)
        if opcode & 15 == CLOSE:
            return messages, int.from_bytes(payload[:2], "big")
        if opcode & 15 == PONG:
            continue
        messages.append(msgspec.json.decode(payload))


SYNC = msgspec.json.encode({"type": "sync", "id": "1", "key": "k", "items": [put("a1", None, n=1)]})
UNMASKED = {
    "text": frame(TEXT, b'{"type":"hello"}', masked=False),
    "nothing": frame(TEXT, b"", masked=False),
    "binary": frame(BINARY, b"\x80", masked=False),
    "long": frame(TEXT, b" " * 70_000, masked=False),
    "ping": frame(PING, b"", masked=False),
    "pong": frame(PONG, b"", masked=False),
    "close": frame(CLOSE, struct.pack("!H", 1000), masked=False),
}


@pytest.mark.parametrize("kind", UNMASKED)
async def test_frame_without_a_mask_closes_1002_after_earlier_answers(kind: str, shared: Running) -> None:
    async with wired(shared.url) as wire:
        assert (await shaken(wire, HANDSHAKE | shared.headers())).status == 101
        await wire.send(frame(TEXT, SYNC) + UNMASKED[kind] + frame(TEXT, SYNC.replace(b'"1"', b'"2"')))
        messages, code = await closed(wire)
    assert code == 1002
    assert messages[0]["type"] == "welcome"
    assert "2" not in [one.get("id") for one in messages]


SPELLED: dict[str, tuple[list[str], dict[str, str]]] = {
    "as it is": ([], {}),
    "any case": ([], {"Upgrade": "WebSocket", "Connection": "UPGRADE"}),
    "a list of what to keep": ([], {"Connection": "keep-alive, Upgrade"}),
    "lines of what to keep": (["Connection: keep-alive"], {}),
    "blanks": ([], {"Upgrade": "\t websocket ", "Connection": " keep-alive ,\tupgrade ,"}),
    "another protocol besides": ([], {"Upgrade": "h2c, websocket"}),
    "lines of protocols": (["Upgrade: h2c"], {}),
    "a version behind another protocol": ([], {"Upgrade": "websocket, foo/2"}),
    "subprotocols in one line": (["Sec-WebSocket-Protocol: x ,, tidemark.v1.json"], {}),
    "subprotocols in lines": (["Sec-WebSocket-Protocol: x", "Sec-WebSocket-Protocol: tidemark.v1.json"], {}),
    "extensions in lines": (
        ["Sec-WebSocket-Extensions: x-other", "Sec-WebSocket-Extensions: permessage-deflate"],
        {},
    ),
}


@pytest.mark.parametrize("name", SPELLED)
async def test_handshake_headers_in_any_form_are_read(name: str, shared: Running) -> None:
    lines, change = SPELLED[name]
    async with wired(shared.url) as wire:
        answer = await shaken(wire, HANDSHAKE | change | shared.headers(), *lines)
        assert answer.status == 101
        assert answer.headers.get("Sec-WebSocket-Protocol") == (
            "tidemark.v1.json" if name.startswith("subprotocols") else None
        )
        assert ("Sec-WebSocket-Extensions" in answer.headers) is name.startswith("extensions")


async def test_handshake_token_among_lines_of_subprotocols_is_found(shared: Running) -> None:
    lines = ["Sec-WebSocket-Protocol: tidemark.v1.json", f"Sec-WebSocket-Protocol: bearer.{shared.token()}"]
    async with wired(shared.url) as wire:
        answer = await shaken(wire, HANDSHAKE, *lines)
    assert answer.headers["Sec-WebSocket-Protocol"] == "tidemark.v1.json"


@pytest.mark.parametrize(
    "change",
    [
        {"Upgrade": "h2c"},
        {"Connection": "keep-alive"},
        {"Sec-WebSocket-Version": "12"},
        {"Sec-WebSocket-Key": "c2hvcnQ="},
        {"Sec-WebSocket-Key": "no base64"},
    ],
    ids=str,
)
async def test_handshake_of_another_version_is_refused_with_the_supported_one(
    change: dict[str, str], shared: Running
) -> None:
    async with wired(shared.url) as wire:
        answer = await wire.ask("GET", "/v1/sync", HANDSHAKE | shared.headers() | change)
    assert answer.verdict == (400, "malformed")
    assert answer.headers["Sec-WebSocket-Version"] == "13"
    assert "handshake" in answer.message["message"]
