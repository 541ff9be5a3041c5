"""Pages of other origins: what a browser lets them send and read of what is no socket."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from handlers.http.response_headers import add_headers
from handlers.http.tokens import Verifier

_DAY_S = 86_400


class CorsPolicy(NamedTuple):
    """What pages of origins on the allow list may do with a resource: lists with commas between."""

    methods: str
    sent: str
    read: str

    def let_read(self, request: web.Request, verifier: Verifier) -> None:
        """Let a page read the answer, whatever it is. Raises SyncError for an origin that is not listed."""
        origin = request.headers.get("Origin")
        if origin is not None:
            verifier.check_origin(origin)
            add_headers(
                request,
                {
                    "Access-Control-Allow-Origin": origin,
                    "Access-Control-Expose-Headers": self.read,
                },
            )

    def preflight(self, request: web.Request) -> dict[str, str]:
        """Give the headers that a browser wants to see before it sends a page's request."""
        if "Access-Control-Request-Method" not in request.headers:
            return {}
        return {
            "Access-Control-Allow-Methods": self.methods,
            "Access-Control-Allow-Headers": self.sent,
            "Access-Control-Max-Age": str(_DAY_S),
        }
