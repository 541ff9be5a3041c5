"""The routes of uploads: each request goes to the protocol that it is spelled in."""

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


class Uploads:
    """The routes' handlers."""

    def __init__(self, edge: UploadContext) -> None:
        self._edge = edge
        tus, resumable = Tus(edge), IetfDraft(edge)
        self._tus: dict[str, Verb] = {"HEAD": tus.head, "PATCH": tus.patch, "DELETE": tus.delete}
        self._resumable: dict[str, Verb] = {
            "HEAD": resumable.head,
            "PATCH": resumable.patch,
            "DELETE": resumable.delete,
        }
        self._create = (tus.create, resumable.create)

    def routes(self) -> list[web.RouteDef]:
        """List the routes. A body that a client asks about first is invited once it would be taken."""
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
        """Say what is is_draft_request here; to whoever asks, as nothing of it is of a tenant."""
        _CORS.let_read(request, self._edge.verifier)
        max_bytes = self._edge.types.largest_bytes
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
        """Begin an upload."""
        _CORS.let_read(request, self._edge.verifier)
        by_tus, by_draft = self._create
        return await (by_draft if _is_draft(request) else by_tus)(request)

    async def one(self, request: web.Request) -> web.Response:
        """Ask for an upload's offset, bring bytes to it, or give it up."""
        _CORS.let_read(request, self._edge.verifier)
        method = request.headers.get("X-HTTP-Method-Override", request.method).upper()
        verb = (self._resumable if _is_draft(request) else self._tus).get(method)
        if request.method == "HEAD" and method != "HEAD":
            verb = None  # HEAD changes nothing, and whoever is between may repeat it
        return await (verb or self.other)(request)

    async def other(self, request: web.Request) -> web.Response:
        """Refuse every other method."""
        taken = ["OPTIONS", "POST"] if request.path == ROOT else ["OPTIONS", *self._tus]
        raise web.HTTPMethodNotAllowed(request.method, taken)


def _is_draft(request: web.Request) -> bool:
    return "Tus-Resumable" not in request.headers and is_draft_request(request)
