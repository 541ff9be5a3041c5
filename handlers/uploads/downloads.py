"""Downloads: ``GET /v1/files/{id}``, whole or by range, for every device of the tenant.

The content under an id never changes, so a client that has the file need not ask again.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Final
from urllib.parse import quote

import structlog
from aiohttp import web

from engine.model.uploads import Upload
from engine.runtime.rate_limit import retry_soon_ms
from engine.runtime.read_limiter import ReadLimiter
from engine.uploads.blobs import BlobMissingError, Blobs, BlobsError, FileStore
from engine.wire.codec import JSON
from engine.wire.errors import SyncError
from handlers.http.authenticate import RequestGate, reader_of
from handlers.http.caching import VARY
from handlers.http.cors import CorsPolicy
from handlers.http.errors import error_body
from handlers.http.headers import combined, is_known
from handlers.uploads.ranges import Part, wanted_part

#: A reader that takes less than this many bytes in this time is cut off, so that none keeps a file open.
_WRITTEN_BYTES: Final = 65_536
_WRITE_WITHIN_S: Final = 60.0
#: Characters that RFC 8187 does not encode.
_PLAIN: Final = "!#$&+-.^_`|~"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9 ()+,.=@_-]")
_YEAR_S: Final = 31_536_000
_ONE: Final = "/v1/files/{file_id:[0-9a-f]{32}}"
_CORS: Final = CorsPolicy(
    "GET, HEAD, OPTIONS",
    "Authorization, If-None-Match, If-Range, Range, X-Request-ID, X-Requested-With",
    "Accept-Ranges, Allow, Content-Disposition, Content-Length, Content-Range, ETag, Repr-Digest,"
    " Retry-After",
)
_log = structlog.get_logger()


class Downloads:
    """Handlers of the route. They raise SyncError for a refused request."""

    def __init__(self, gate: RequestGate, read_limiter: ReadLimiter, files: FileStore, blobs: Blobs) -> None:
        self._gate = gate
        self._authenticator = gate.authenticator
        self._read_limiter = read_limiter
        self._files = files
        self._blobs = blobs

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        return [web.get(_ONE, self.give), web.options(_ONE, self.options)]

    async def options(self, request: web.Request) -> web.Response:
        """Answer a CORS preflight. No token is needed: nothing of it is a tenant's."""
        _CORS.let_read(request, self._authenticator.verifier)
        return web.Response(status=204, headers={"Allow": _CORS.methods} | _CORS.preflight(request))

    async def give(self, request: web.Request) -> web.StreamResponse:
        """Answer with a file, a part of it, or for HEAD its headers."""
        _CORS.let_read(request, self._authenticator.verifier)
        session, _ = await self._gate.authenticate_request(request, JSON, "upload")
        async with self._read_limiter.slot(reader_of(session)):
            file = await self._files.file(session.tenant.tenant_id, request.match_info["file_id"])
        if file is None:
            raise _not_found()
        assert file.sha256 is not None
        tag, size_bytes = f'"{file.sha256}"', file.offset_bytes
        headers = _headers(file, tag)
        if is_known(combined(request.headers, "If-None-Match"), tag):
            return web.Response(status=304, headers=headers)
        if request.method == "HEAD":  # HEAD has no ranges
            return web.Response(headers=headers | _described(file) | {"Content-Length": str(size_bytes)})
        wanted = combined(request.headers, "Range")
        part = wanted_part(wanted, request.headers.get("If-Range"), tag, size_bytes)
        if part == "unsatisfiable":
            error = SyncError("invalid_message", f"Range: this file has {size_bytes} bytes")
            return web.Response(
                status=416,
                body=error_body(error, None),
                content_type="application/json",
                headers={"Content-Range": f"bytes */{size_bytes}"},
            )
        response = web.StreamResponse(headers=headers | _described(file))
        if part == "whole":
            part = Part(0, size_bytes)
        else:
            response.set_status(206)
            response.headers["Content-Range"] = part.content_range(size_bytes)
        response.content_length = part.count_bytes
        with suppress(ConnectionError):  # the client is gone
            await self._stream(
                request, response, file, part, partial(self._authenticator.check_valid, session)
            )
        return response

    async def _stream(
        self,
        request: web.Request,
        response: web.StreamResponse,
        file: Upload,
        part: Part,
        check: Callable[[], None],
    ) -> None:
        blocks = self._blobs.read(file.ref, *part)
        try:
            # The first block is read before the status is sent, so that an error can still be answered.
            first = await _first(blocks, file)
            await response.prepare(request)
            left_bytes = part.count_bytes
            while first:
                left_bytes -= len(first)
                await _write(request, response, first, check)
                first = await anext(blocks, b"")
            if left_bytes:
                raise BlobsError(f"{left_bytes} bytes are missing at its end")
            await response.write_eof()
        except BlobsError as error:
            _log.error("file_broken_off", **_named(file), reason=str(error) or type(error).__name__)
            raise _cut(request) from error
        finally:
            if isinstance(blocks, AsyncGenerator):
                await blocks.aclose()


async def _first(blocks: AsyncIterator[bytes], file: Upload) -> bytes:
    try:
        return await anext(blocks, b"")
    except BlobMissingError:
        _log.error("file_missing", **_named(file))
        raise _not_found() from None
    except BlobsError as error:
        _log.warning("file_unread", **_named(file), reason=str(error) or type(error).__name__)
        raise SyncError("unavailable", "files cannot be read", retry_after_ms=retry_soon_ms()) from None


async def _write(
    request: web.Request, response: web.StreamResponse, block: bytes, check: Callable[[], None]
) -> None:
    """Write a block at the reader's pace while its token is valid; the rest comes by Range with a new one."""
    view = memoryview(block)
    for start in range(0, len(view), _WRITTEN_BYTES):
        try:
            check()
        except SyncError:
            raise _cut(request) from None
        try:
            async with asyncio.timeout(_WRITE_WITHIN_S):
                await response.write(view[start : start + _WRITTEN_BYTES])
        except TimeoutError:
            raise _cut(request) from None


def _cut(request: web.Request) -> ConnectionError:
    """Abort the connection: after the status, nothing else tells the client of an error."""
    if request.transport is not None:
        request.transport.abort()
    return ConnectionResetError("cut off")


def _not_found() -> SyncError:
    return SyncError("not_found", "there is no such file")


def _named(file: Upload) -> dict[str, object]:
    return {"tenant_id": file.ref.tenant_id, "file_id": file.ref.upload_id}


def _headers(file: Upload, tag: str) -> dict[str, str]:
    assert file.sha256 is not None
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{digest}:",
        # private: a browser of several people must not show one of them what another one fetched.
        "Cache-Control": f"private, max-age={_YEAR_S}, immutable",
        "Vary": VARY,
    }


def _described(file: Upload) -> dict[str, str]:
    assert file.file_name is not None
    assert file.content_type is not None
    return {
        "Content-Type": file.content_type,
        "Content-Disposition": disposition(file.file_name),
    }


def disposition(name: str) -> str:
    """Format ``Content-Disposition``; a name may hold any character (RFC 6266, 8187)."""
    plain = _UNSAFE.sub("_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe=_PLAIN)}"
