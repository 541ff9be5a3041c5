"""The answer to bytes that are no request: the contract's error, without a word of them."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from engine.wire.errors import SyncError
from handlers.http.errors import error_body

_MALFORMED: Final = SyncError(
    "malformed", "this is no request of HTTP/1.1: check its first line and its headers"
)


class TypedRefusals(RequestHandler):
    """aiohttp's protocol, which would answer in plain text and repeat what it could not parse."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer, and close the connection. Raises ConnectionError if an answer was begun."""
        response = super().handle_error(request, status, exc, message)
        if status == 400:
            headers = {"Cache-Control": "no-store"}
            body = error_body(_MALFORMED, None)
            response = web.Response(status=400, body=body, content_type="application/json", headers=headers)
            response.force_close()
        return response
