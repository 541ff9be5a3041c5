"""What a cache between a device and this server may keep: files, for who fetched them, and nothing else.

Unless it is told otherwise, a cache may keep any 200, 404, 405 and 410 for as long as it likes (RFC 9111,
4.2.2): a page of a feed, a file that was not there yet, an upload that was.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

_CONTRACT: Final = "/v1/"
#: Headers of a request that choose the answer of each resource of the contract. What else chooses one is
#: said where it does.
VARY: Final = "Authorization, Origin"


@web.middleware
async def uncached(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Have no answer kept, refusals included, but one that says itself for how long it may be."""
    response = await handler(request)
    if not response.prepared:  # a socket, or a file, which says so
        response.headers.setdefault("Cache-Control", "no-store")
        if request.path.startswith(_CONTRACT):
            response.headers.setdefault("Vary", VARY)
    return response
