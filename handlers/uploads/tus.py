"""The protocol tus 1.0.0 (https://tus.io/protocols/resumable-upload)."""

from __future__ import annotations

import base64
from typing import Final

from aiohttp import web

from engine.commit.validation import Session
from engine.model.uploads import Append
from engine.uploads.metadata import parse_metadata
from engine.uploads.service import Checksum, Creation
from engine.wire.errors import SyncError
from handlers.http.headers import combined, media_type
from handlers.http.response_headers import add_headers
from handlers.uploads.common import UploadContext, answer_offset, content_length, expiry, number, upload_id

VERSION: Final = "1.0.0"
EXTENSIONS: Final = (
    "creation,creation-defer-length,creation-with-upload,expiration,checksum,termination,concatenation"
)
#: tus and hashlib call these algorithms by the same names.
ALGORITHMS: Final = ("sha1", "sha256", "md5")
_BYTES: Final = "application/offset+octet-stream"


class Tus:
    """Handlers by method. Each raises SyncError for a refused request."""

    def __init__(self, context: UploadContext) -> None:
        self._context = context

    async def create(self, request: web.Request) -> web.Response:
        """Create an upload, with the bytes of the body if there are any, or concatenate partial uploads."""
        session = await self._session(request)
        metadata = combined(request.headers, "Upload-Metadata")
        kind, _, urls = request.headers.get("Upload-Concat", "").partition(";")
        if kind == "final":
            return await self._concatenate(request, session, metadata, urls)
        if kind not in ("", "partial"):
            raise SyncError("invalid_message", "Upload-Concat: partial, or final; and the URLs of the parts")
        length_bytes, brings = content_length(request), request.can_read_body
        if brings and media_type(request) != _BYTES:
            raise _wrong_type()
        checksum = _checksum(request) if brings else None
        size_bytes = _size_bytes(request)
        if size_bytes is not None and length_bytes is not None and length_bytes > size_bytes:
            raise SyncError("too_large", f"a body of {length_bytes} bytes, for an upload of {size_bytes}")
        values = parse_metadata(metadata)
        described = None if kind == "partial" else self._context.describe(values)
        creation = Creation("partial" if kind == "partial" else "single", size_bytes, described, metadata)
        body = self._context.body(request, session)
        upload = await self._context.service.create(session, creation)
        location = f"{self._context.root(request)}/{upload.ref.upload_id}"
        headers = {"Location": location, "Upload-Offset": str(upload.offset_bytes)}
        add_headers(request, headers | expiry(upload))
        if brings or upload.ready_to_finish:  # an empty file is complete when it is created
            append = Append(0, length_bytes, size_bytes)
            try:
                upload = await self._context.service.append(
                    session, upload.ref.upload_id, append, body, checksum
                )
            except SyncError as error:
                answer_offset(request, error)
                raise
            add_headers(request, {"Upload-Offset": str(upload.offset_bytes)} | expiry(upload))
        return web.Response(status=201)

    async def _concatenate(
        self, request: web.Request, session: Session, metadata: str, urls: str
    ) -> web.Response:
        if "Upload-Length" in request.headers:
            raise SyncError("invalid_message", "Upload-Length: that of a final upload is that of its parts")
        described = self._context.describe(parse_metadata(metadata))
        parts = [upload_id(url) for url in urls.split()]
        upload = await self._context.service.concatenate(session, described, metadata, parts)
        location = f"{self._context.root(request)}/{upload.ref.upload_id}"
        return web.Response(status=201, headers={"Location": location})

    async def head(self, request: web.Request) -> web.Response:
        """Tell an upload's offset."""
        session = await self._session(request)
        upload = await self._context.service.find(session, upload_id(request.match_info["upload_id"]))
        headers = {"Upload-Offset": str(upload.offset_bytes)} | expiry(upload)
        if upload.size_bytes is None:
            headers["Upload-Defer-Length"] = "1"
        else:
            headers["Upload-Length"] = str(upload.size_bytes)
        if upload.metadata:
            headers["Upload-Metadata"] = upload.metadata
        if upload.kind == "partial":
            headers["Upload-Concat"] = "partial"
        elif upload.kind == "final":
            root = self._context.root(request)
            headers["Upload-Concat"] = "final;" + " ".join([f"{root}/{part}" for part in upload.parts])
        return web.Response(status=200, headers=headers)

    async def patch(self, request: web.Request) -> web.Response:
        """Append bytes."""
        session = await self._session(request)
        named = upload_id(request.match_info["upload_id"])
        if media_type(request) != _BYTES:
            raise _wrong_type()
        offset_bytes = number(request, "Upload-Offset")
        if offset_bytes is None:
            raise SyncError("invalid_message", "Upload-Offset: required")
        append = Append(offset_bytes, content_length(request), number(request, "Upload-Length"))
        body = self._context.body(request, session)
        try:
            upload = await self._context.service.append(session, named, append, body, _checksum(request))
        except SyncError as error:
            answer_offset(request, error)
            raise
        return web.Response(status=204, headers={"Upload-Offset": str(upload.offset_bytes)} | expiry(upload))

    async def delete(self, request: web.Request) -> web.Response:
        """Cancel an upload, or delete its file."""
        session = await self._session(request)
        await self._context.service.cancel(session, upload_id(request.match_info["upload_id"]))
        return web.Response(status=204)

    async def _session(self, request: web.Request) -> Session:
        add_headers(request, {"Tus-Resumable": VERSION})
        if request.headers.get("Tus-Resumable") != VERSION:
            add_headers(request, {"Tus-Version": VERSION})
            raise SyncError("unsupported_version", f"Tus-Resumable: {VERSION} is required")
        return await self._context.session(request)


def _size_bytes(request: web.Request) -> int | None:
    """Return the size of a new upload, None if it comes later. Raises SyncError ``invalid_message``."""
    size_bytes = number(request, "Upload-Length")
    deferred = request.headers.get("Upload-Defer-Length")
    if deferred not in (None, "1") or (size_bytes is None) is (deferred is None):
        raise SyncError("invalid_message", "Upload-Length, or Upload-Defer-Length: 1, is required")
    return size_bytes


def _checksum(request: web.Request) -> Checksum | None:
    text = request.headers.get("Upload-Checksum")
    if text is None:
        return None
    algorithm, _, coded = text.partition(" ")
    if algorithm not in ALGORITHMS:
        raise SyncError("unsupported_checksum", f"Upload-Checksum: use one of {', '.join(ALGORITHMS)}")
    try:
        return Checksum(algorithm, base64.b64decode(coded, validate=True))
    except ValueError:
        raise SyncError("invalid_message", "Upload-Checksum: the digest in base64 is required") from None


def _wrong_type() -> SyncError:
    return SyncError("unsupported_type", f"Content-Type: {_BYTES} is required")
