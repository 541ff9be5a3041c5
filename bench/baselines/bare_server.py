"""What limits share: the least server that takes the product's messages and answers like it.

No authentication, no checks beyond decoding, no limits, no compression.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
from aiohttp import web

from engine.wire.messages import JSON_SUBPROTOCOL

_BACKLOG = 4096


class Item(msgspec.Struct, frozen=True, gc=False):
    """A put; its data is checked to be JSON and kept as it came."""

    domain: str
    id: str
    op: str
    base: int | None
    at: str
    data: msgspec.Raw


class Sync(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="sync"):
    """One sync of one item."""

    id: str
    key: str
    items: list[Item]


Socket = web.WebSocketResponse[Literal[False]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

decode = msgspec.json.Decoder(Sync).decode


def acknowledgement(sync: Sync, version: int, seq: int) -> bytes:
    """Encode the answer; ids of the load generator need no escape."""
    item = sync.items[0]
    return (
        f'{{"type":"synced","id":"{sync.id}","replayed":false,"results":[{{"domain":"{item.domain}",'
        f'"id":"{item.id}","status":"applied","version":{version},"seq":{seq}}}]}}'
    ).encode()


async def upgraded(request: web.Request) -> Socket:
    """Accept a WebSocket and greet."""
    socket: Socket = web.WebSocketResponse(protocols=(JSON_SUBPROTOCOL,), compress=False, decode_text=False)
    await socket.prepare(request)
    await socket.send_str('{"type":"welcome"}')
    return socket


async def serve(handler: Handler) -> None:
    """Serve the route of a sync until killed."""
    app = web.Application()
    app.router.add_get("/v1/sync", handler)
    await listen(app)


async def listen(app: web.Application) -> None:
    """Listen on a free port of loopback, say it on stdout as the product does, and serve until killed."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG).start()
    sys.stdout.write(json.dumps({"event": "listening", "port": runner.addresses[0][1]}) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()
