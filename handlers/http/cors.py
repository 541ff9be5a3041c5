"""CORS: what a browser lets pages of other origins send to HTTP routes, and read of their answers."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from handlers.http.response_headers import add_headers
from handlers.http.tokens import Verifier

_DAY_S = 86_400


class CorsPolicy(NamedTuple):
    """What pages of the listed origins may do with a resource.

    Attributes:
        methods: The methods, separated by commas.
        sent: The request headers, separated by commas.
        read: The response headers, separated by commas.
    """

    methods: str
    sent: str
    read: str

    def let_read(self, request: web.Request, verifier: Verifier) -> None:
        """Let a page read the answer or the refusal. Raises SyncError ``forbidden`` for another origin."""
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
        """Return the headers of the answer to a preflight request; none if it is not one."""
        if "Access-Control-Request-Method" not in request.headers:
            return {}
        return {
            "Access-Control-Allow-Methods": self.methods,
            "Access-Control-Allow-Headers": self.sent,
            "Access-Control-Max-Age": str(_DAY_S),
        }
