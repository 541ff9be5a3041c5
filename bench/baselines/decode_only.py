"""Limit (a): a WebSocket that decodes a sync and acknowledges it at once; nothing is stored.

A server process of its own: ``python -m bench.baselines.decode_only``.
"""

from __future__ import annotations

from itertools import count

import uvloop
from aiohttp import WSMsgType, web

from bench.baselines.bare_server import acknowledgement, decode, serve, upgraded

_seq = count(1)


async def _sync(request: web.Request) -> web.StreamResponse:
    socket = await upgraded(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            sync = decode(message.data)
            version = (sync.items[0].base or 0) + 1
            await socket.send_frame(acknowledgement(sync, version, next(_seq)), WSMsgType.TEXT)
    return socket


if __name__ == "__main__":
    uvloop.run(serve(_sync))
