"""No answer names the versions of what serves, whatever was asked and however badly."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import urlsplit

import pytest

from engine.wire.messages import JSON_SUBPROTOCOL
from tests.harness.in_process_server import ON_SHARED, Running

pytestmark = ON_SHARED

UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
DEVICE = f"Authorization: Bearer TOKEN\r\nSec-WebSocket-Protocol: {JSON_SUBPROTOCOL}\r\n"

#: What is asked, TOKEN standing for a device's, and the status of the answer.
ASKED = {
    "served": ("GET /healthz HTTP/1.1\r\n", 200),
    "a device": ("GET /v1/changes HTTP/1.1\r\nAuthorization: Bearer TOKEN\r\n", 200),
    "a socket": (f"GET /v1/sync HTTP/1.1\r\n{UPGRADE}{KEY}{DEVICE}", 101),
    "a refused socket": (f"GET /v1/sync HTTP/1.1\r\n{UPGRADE}{KEY}", 401),
    "no key of a socket": (f"GET /v1/sync HTTP/1.1\r\n{UPGRADE}Authorization: Bearer TOKEN\r\n", 400),
    "no token": ("GET /v1/changes HTTP/1.1\r\n", 401),
    "no route": ("GET /nowhere HTTP/1.1\r\n", 404),
    "no method": ("POST /healthz HTTP/1.1\r\n", 405),
    "no expectation": ("GET /healthz HTTP/1.1\r\nExpect: tea\r\n", 417),
    "an upload": ("OPTIONS /v1/uploads HTTP/1.1\r\n", 204),
    "no HTTP": ("what is this?\r\n", 400),
    "no header": ("GET /healthz HTTP/1.1\r\na b: c\r\n", 400),
    "a long header": (f"GET /healthz HTTP/1.1\r\nX: {'x' * 40_000}\r\n", 400),
}


@pytest.mark.parametrize(("asked", "status"), ASKED.values(), ids=ASKED)
async def test_answer_any_names_no_version(shared: Running, asked: str, status: int) -> None:
    at = urlsplit(shared.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    try:
        writer.write(asked.replace("TOKEN", shared.token()).encode() + b"Host: x\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    finally:
        writer.close()
    assert int(head.split()[1]) == status, head
    assert re.findall(r"(?im)^server: *(.*?)\r$", head) in ([], ["Tidemark"])
    assert not re.search("(?i)aiohttp|python", head)
