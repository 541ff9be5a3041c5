"""Caching headers: a cache may store files, for the client that fetched them, and nothing else.

Without such headers a cache may store any 200, 404, 405 and 410 for as long as it likes (RFC 9111, 4.2.2): a
page of the feed, the 404 of a file that is uploaded later, an upload that has ended.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

_CONTRACT: Final = "/v1/"
#: The request headers that choose the answer of every resource of the contract. Handlers add theirs.
VARY: Final = "Authorization, Origin"


@web.middleware
async def no_store(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Forbid caches to store an answer or a refusal, unless the answer has a ``Cache-Control`` of its own."""
    response = await handler(request)
    if not response.prepared:  # a socket, or a file, which says so
        response.headers.setdefault("Cache-Control", "no-store")
        if request.path.startswith(_CONTRACT):
            response.headers.setdefault("Vary", VARY)
    return response
