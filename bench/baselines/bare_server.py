"""Limit (a): a WebSocket that decodes a sync and acknowledges it at once; nothing is stored.

A server process of its own: ``python -m bench.baselines.bare_server``. Other limits share how it takes the
product's messages and answers like it: no authentication, no checks beyond decoding, no compression.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Literal

import msgspec
import uvloop
from aiohttp import WSMsgType, web

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
#: Takes a sync of a device that sent a token.
OnSync = Callable[[Sync, Socket, str], Awaitable[None]]

_decode = msgspec.json.Decoder(Sync).decode


async def acknowledge(sync: Sync, socket: Socket, version: int, seq: int) -> None:
    """Answer; ids of the load generator need no escape."""
    item = sync.items[0]
    text = (
        f'{{"type":"synced","id":"{sync.id}","replayed":false,"results":[{{"domain":"{item.domain}",'
        f'"id":"{item.id}","status":"applied","version":{version},"seq":{seq}}}]}}'
    )
    await socket.send_frame(text.encode(), WSMsgType.TEXT)


async def serve(on_sync: OnSync) -> None:
    """Serve sockets until killed."""

    async def handle(request: web.Request) -> web.StreamResponse:
        socket: Socket = web.WebSocketResponse(
            protocols=(JSON_SUBPROTOCOL,), compress=False, decode_text=False
        )
        await socket.prepare(request)
        await socket.send_str('{"type":"welcome"}')
        token = request.headers["Authorization"]
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await on_sync(_decode(message.data), socket, token)
        return socket

    await listen(web.get("/v1/sync", handle))


async def listen(*routes: web.RouteDef) -> None:
    """Listen on a free port of loopback, say it on stdout as the product does, and serve until killed."""
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=_BACKLOG).start()
    sys.stdout.write(json.dumps({"event": "listening", "port": runner.addresses[0][1]}) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


_seq = count(1)


async def _answer(sync: Sync, socket: Socket, _: str) -> None:
    await acknowledge(sync, socket, (sync.items[0].base or 0) + 1, next(_seq))


if __name__ == "__main__":
    uvloop.run(serve(_answer))
