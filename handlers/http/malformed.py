"""The answer to bytes that are no request: the contract's error, without a word of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.http import HttpVersion10
from aiohttp.web_protocol import RequestHandler

from engine.wire.errors import SyncError
from handlers.http.errors import as_sync_error, error_body, http_status
from handlers.http.response_headers import FOR_BROWSERS

_SENTENCE: Final = "this is no request of HTTP/1.1: check its first line and its headers"


class TypedRefusals(RequestHandler):
    """aiohttp's protocol, which would answer in plain text and repeat what it could not parse."""

    __slots__ = ()

    def on_malformed(self, error: SyncError) -> None:
        """Count bytes that are no request."""

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        if request.version < HttpVersion10:  # the parser takes a line without a version for HTTP/0.9
            request_handler = self._refuse_version
        return await super()._handle_request(request, start_time, request_handler)

    async def _refuse_version(self, request: web.BaseRequest) -> web.StreamResponse:
        return self.handle_error(request, 400)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it repeats bytes of the request
    ) -> web.StreamResponse:
        """Answer, and close the connection. Raises ConnectionError if an answer was begun."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun: another one cannot be sent")
        if status < 500:
            error, status = SyncError("malformed", _SENTENCE), 400
            self.on_malformed(error)
        else:
            failure = exc if isinstance(exc, Exception) else TimeoutError()
            error = as_sync_error(failure, path=request.path).with_traceback(None)
            status = http_status(error)
        headers = {"Cache-Control": "no-store"} | FOR_BROWSERS
        body = error_body(error, None)
        answer = web.Response(status=status, body=body, content_type="application/json", headers=headers)
        answer.force_close()
        return answer
