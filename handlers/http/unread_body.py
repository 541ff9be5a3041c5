"""A request whose body is not read to its end: who is invited to send it, and how its connection ends."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from handlers.http.headers import tokens

#: Whether a client waits for the word that its body would be taken.
WAITS: Final = web.RequestKey[bool]("waits_to_be_invited")
#: Whether a body ended before its end, so that nothing can follow it.
BROKE_OFF: Final = web.RequestKey[bool]("body_broke_off")


async def uninvited(request: web.Request) -> None:
    """Say nothing yet to a client that wants to know whether its body would be taken."""
    request[WAITS] = request.version >= (1, 1) and "100-continue" in tokens(request.headers, "Expect")


async def with_end(request: web.Request, response: web.StreamResponse) -> None:
    """Let the connection end with an answer that comes before the end of the request."""
    waits = request.get(WAITS, False) and not request.content.is_eof()
    if waits or request.get(BROKE_OFF):
        response.force_close()
        response.headers["Connection"] = "close"
    if waits:
        # Whether the body comes, or another request in its place, nobody knows: neither is waited for.
        request.protocol.close()
        request.content.feed_eof()


def give_up(request: web.Request) -> None:
    """Wait no longer for the rest of a body: the connection ends with the answer, which comes at once."""
    request[BROKE_OFF] = True
    request.protocol.close()
    request.content.feed_eof()


def close_without_answer(request: web.Request) -> web.Response:
    """Close a connection without an answer: the one that is returned goes nowhere."""
    request.protocol.force_close()
    return web.Response(status=503)
