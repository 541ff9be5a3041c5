"""The routes of uploads: each request goes to its protocol, tus or the IETF draft."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from handlers.http.cors import CorsPolicy
from handlers.http.unread_body import delay_continue
from handlers.uploads.common import ROOT, UploadContext
from handlers.uploads.ietf_draft import IetfDraft, is_draft_request
from handlers.uploads.tus import ALGORITHMS, EXTENSIONS, VERSION, Tus

Verb = Callable[[web.Request], Awaitable[web.Response]]

_ONE: Final = ROOT + "/{upload_id}"
_CORS: Final = CorsPolicy(
    "POST, HEAD, PATCH, DELETE, OPTIONS",
    "Authorization, Content-Digest, Content-Disposition, Content-Type, Repr-Digest, Tus-Resumable,"
    " Upload-Checksum, Upload-Complete, Upload-Concat, Upload-Defer-Length, Upload-Draft-Interop-Version,"
    " Upload-Incomplete, Upload-Length, Upload-Metadata, Upload-Offset, X-HTTP-Method-Override,"
    " X-Request-ID, X-Requested-With",
    "Allow, Location, Retry-After, Tus-Checksum-Algorithm, Tus-Extension, Tus-Max-Size, Tus-Resumable,"
    " Tus-Version, Upload-Complete, Upload-Concat, Upload-Defer-Length, Upload-Draft-Interop-Version,"
    " Upload-Expires, Upload-Incomplete, Upload-Length, Upload-Limit, Upload-Metadata, Upload-Offset",
)


class UploadRoutes:
    """Handlers of the routes."""

    def __init__(self, context: UploadContext) -> None:
        self._context = context
        tus, ietf_draft = Tus(context), IetfDraft(context)
        self._tus: dict[str, Verb] = {"HEAD": tus.head, "PATCH": tus.patch, "DELETE": tus.delete}
        self._ietf_draft: dict[str, Verb] = {
            "HEAD": ietf_draft.head,
            "PATCH": ietf_draft.patch,
            "DELETE": ietf_draft.delete,
        }
        self._create = (tus.create, ietf_draft.create)

    def routes(self) -> list[web.RouteDef]:
        """List the routes. ``100 Continue`` is sent by the handlers, once a body would be accepted."""
        return [
            web.options(ROOT, self.options),
            web.options(_ONE, self.options),
            web.post(ROOT, self.create, expect_handler=delay_continue),
            web.post(_ONE, self.one, expect_handler=delay_continue),
            web.head(_ONE, self.one),
            web.patch(_ONE, self.one, expect_handler=delay_continue),
            web.delete(_ONE, self.one),
            web.route("*", ROOT, self.other, expect_handler=delay_continue),
            web.route("*", _ONE, self.other, expect_handler=delay_continue),
        ]

    async def options(self, request: web.Request) -> web.Response:
        """Tell which protocols and limits there are. No token is needed: nothing of it is a tenant's."""
        _CORS.let_read(request, self._context.verifier)
        max_bytes = self._context.types.largest_bytes
        headers = {
            "Tus-Resumable": VERSION,
            "Tus-Version": VERSION,
            "Tus-Extension": EXTENSIONS,
            "Tus-Max-Size": str(max_bytes),
            "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
            "Upload-Limit": f"max-size={max_bytes}",
        }
        return web.Response(status=204, headers=headers | _CORS.preflight(request))

    async def create(self, request: web.Request) -> web.Response:
        """Create an upload."""
        _CORS.let_read(request, self._context.verifier)
        by_tus, by_draft = self._create
        return await (by_draft if _is_draft(request) else by_tus)(request)

    async def one(self, request: web.Request) -> web.Response:
        """Ask for an upload's offset, append to it, or cancel it."""
        _CORS.let_read(request, self._context.verifier)
        method = request.headers.get("X-HTTP-Method-Override", request.method).upper()
        verb = (self._ietf_draft if _is_draft(request) else self._tus).get(method)
        if request.method == "HEAD" and method != "HEAD":
            verb = None  # proxies may repeat HEAD, so it must change nothing
        return await (verb or self.other)(request)

    async def other(self, request: web.Request) -> web.Response:
        """Refuse any other method with 405 and ``Allow``."""
        taken = ["OPTIONS", "POST"] if request.path == ROOT else ["OPTIONS", *self._tus]
        raise web.HTTPMethodNotAllowed(request.method, taken)


def _is_draft(request: web.Request) -> bool:
    return "Tus-Resumable" not in request.headers and is_draft_request(request)
