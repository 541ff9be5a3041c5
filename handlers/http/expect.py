"""The header ``Expect`` (RFC 9110, 10.1.1): 100-continue is supported, anything else is refused with 417.

The library's own refusal fails on bytes that are not UTF-8, and it cannot be replaced for a request without a
route.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from handlers.http.headers import tokens


def refuse_other_expectations(server: web.Server, middlewares: Iterable[Middleware]) -> None:
    """Make a server refuse other expectations before it looks for a route."""
    handle = server.request_handler
    refuse: Handler = _refuse
    for middleware in reversed(tuple(middlewares)):  # the first of them is the outermost
        refuse = partial(middleware, handler=refuse)

    async def guarded(request: web.BaseRequest) -> web.StreamResponse:
        if isinstance(request, web.Request) and not _is_met(request):
            return await refuse(request)
        return await handle(request)

    server.request_handler = guarded


def _is_met(request: web.Request) -> bool:
    return request.version < (1, 1) or set(tokens(request.headers, "Expect")) <= {"100-continue"}


async def _refuse(_: web.Request) -> web.StreamResponse:
    raise web.HTTPExpectationFailed(reason="Expect: 100-continue is all that can be met")
