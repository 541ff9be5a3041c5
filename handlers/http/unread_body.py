"""Requests whose body is not read to its end: ``Expect: 100-continue``, and how their connection ends."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from handlers.http.headers import tokens

#: Whether a client waits for ``100 Continue`` before it sends its body.
AWAITS_CONTINUE: Final = web.RequestKey[bool]("waits_to_be_invited")
#: Whether a body broke off, so that no request can follow on its connection.
BODY_BROKEN: Final = web.RequestKey[bool]("body_broke_off")


async def delay_continue(request: web.Request) -> None:
    """Delay ``100 Continue`` until the handler wants the body."""
    expects = "100-continue" in tokens(request.headers, "Expect")
    request[AWAITS_CONTINUE] = expects and request.version >= (1, 1)


async def close_if_body_unread(request: web.Request, response: web.StreamResponse) -> None:
    """Close the connection with an answer that is sent before the end of the request."""
    waits = request.get(AWAITS_CONTINUE, False) and not request.content.is_eof()
    if waits or request.get(BODY_BROKEN):
        response.force_close()
        response.headers["Connection"] = "close"
    if waits:
        # The client may send the body, or another request in its place: the server waits for neither.
        request.protocol.close()
        request.content.feed_eof()


def give_up(request: web.Request) -> None:
    """Stop waiting for the rest of a body: the connection ends with the answer."""
    request[BODY_BROKEN] = True
    request.protocol.close()
    request.content.feed_eof()


def close_without_answer(request: web.Request) -> web.Response:
    """Close a connection without an answer. The response that is returned is never sent."""
    request.protocol.force_close()
    return web.Response(status=503)
