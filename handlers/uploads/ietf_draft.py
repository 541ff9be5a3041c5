"""The IETF draft of resumable uploads (draft-ietf-httpbis-resumable-upload), which URLSession of iOS uses.

A client names the interop version of the draft that it was built for, 3 to 8, and is answered in it. A client
that names none is answered by the newest text, without the interim answer that only drafts may have.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final

import msgspec
from aiohttp import web

from engine.commit.validation import Session
from engine.model.uploads import Append, Upload
from engine.uploads.metadata import format_metadata, parse_metadata
from engine.uploads.service import Checksum, Creation
from engine.wire.errors import SyncError
from handlers.http.errors import http_status, shown
from handlers.http.headers import combined, file_name, media_type
from handlers.http.response_headers import add_headers
from handlers.http.unread_body import close_without_answer
from handlers.uploads.common import UploadContext, answer_offset, content_length, number, upload_id

VERSIONS: Final = range(3, 9)
_VERSION: Final = "Upload-Draft-Interop-Version"
_COMPLETE: Final = "Upload-Complete"
_INCOMPLETE: Final = "Upload-Incomplete"
_PARTIAL: Final = "application/partial-upload"
_SHA256: Final = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]+=*):")
_NEWEST: Final = 9
#: The draft's type of problem by error code, and the version that introduced it.
_PROBLEMS: Final = {
    "offset_mismatch": (6, "mismatching-upload-offset"),
    "upload_complete": (6, "completed-upload"),
    "inconsistent_length": (7, "inconsistent-upload-length"),
}
_PROBLEM_TYPES: Final = "https://iana.org/assignments/http-problem-types#"
#: Errors that end the whole upload: the client cannot resume it.
_FINAL: Final = ("checksum_mismatch", "unsupported_type")


def is_draft_request(request: web.Request) -> bool:
    """Return True if a request uses the draft."""
    return any(name in request.headers for name in (_VERSION, _COMPLETE, _INCOMPLETE))


class IetfDraft:
    """Handlers by method. Each raises SyncError for a refused request."""

    def __init__(self, context: UploadContext) -> None:
        self._context = context

    async def create(self, request: web.Request) -> web.Response:
        """Create an upload and append the bytes of the body."""
        version = _version(request)
        session = await self._context.session(request)
        if number(request, "Upload-Offset"):
            raise SyncError("malformed", "Upload-Offset: an upload begins at 0")
        completes = _completes(request, version)
        length_bytes = content_length(request)
        size_bytes = number(request, "Upload-Length")
        if completes and length_bytes is not None:
            if size_bytes not in (None, length_bytes):
                sentence = f"Upload-Length is {size_bytes}, but the body has {length_bytes} bytes"
                return _problem(version, SyncError("inconsistent_length", sentence))
            size_bytes = length_bytes
        values = _metadata(request)
        described = self._context.describe(values)
        body = self._context.body(request, session)
        upload = await self._context.service.create(
            session, Creation("single", size_bytes, described, format_metadata(values))
        )
        location = f"{self._context.root(request)}/{upload.ref.upload_id}"
        state_headers = self._state_headers(version, upload)
        del state_headers["Upload-Offset"]  # if the body is refused, the offset is another one
        add_headers(request, {"Location": location} | state_headers)
        if version in VERSIONS:
            limits = self._limits(version, upload)
            await _interim(request, {_VERSION: str(version), "Location": location} | limits)
        if completes or request.can_read_body or upload.ready_to_finish:
            append = Append(0, length_bytes, size_bytes, completes)
            appended = self._context.service.append(
                session, upload.ref.upload_id, append, body, _digest(request)
            )
            try:
                upload = await appended
            except SyncError as error:
                return self._refused(request, version, error)
        return web.Response(status=201, headers=self._state_headers(version, upload))

    async def head(self, request: web.Request) -> web.Response:
        """Tell an upload's offset."""
        version = _version(request)
        session = await self._session_unless_draining(request)
        if session is None:
            return self._close_to_be_resumed(request)
        _check_has_no_upload_headers(request, version)
        upload = await self._context.service.find(session, upload_id(request.match_info["upload_id"]))
        headers = self._state_headers(version, upload)
        if upload.size_bytes is not None:
            headers["Upload-Length"] = str(upload.size_bytes)
        return web.Response(status=204, headers=headers)

    async def patch(self, request: web.Request) -> web.Response:
        """Append bytes."""
        version = _version(request)
        session = await self._session_unless_draining(request)
        if session is None:
            return self._close_to_be_resumed(request)
        named = upload_id(request.match_info["upload_id"])
        if version >= 6 and media_type(request) != _PARTIAL:
            raise SyncError("unsupported_type", f"Content-Type: {_PARTIAL} is required")
        offset_bytes = number(request, "Upload-Offset")
        if offset_bytes is None:
            raise SyncError("malformed", "Upload-Offset: required")
        append = Append(
            offset_bytes,
            content_length(request),
            number(request, "Upload-Length"),
            _completes(request, version, absent=True),
        )
        body = self._context.body(request, session)
        try:
            upload = await self._context.service.append(session, named, append, body, _digest(request))
        except SyncError as error:
            return self._refused(request, version, error)
        finished = upload.state != "open"
        status = 201 if version < 7 else 200 if finished else 204
        return web.Response(status=status, headers=self._state_headers(version, upload))

    async def delete(self, request: web.Request) -> web.Response:
        """Cancel an upload, or delete its file."""
        version = _version(request)
        session = await self._context.session(request)
        _check_has_no_upload_headers(request, version)
        await self._context.service.cancel(session, upload_id(request.match_info["upload_id"]))
        return web.Response(status=204)

    def _state_headers(self, version: int, upload: Upload) -> dict[str, str]:
        finished = upload.state != "open"
        headers = {"Upload-Offset": str(upload.offset_bytes)} | self._limits(version, upload)
        return headers | _complete_header(version, complete=finished)

    def _limits(self, version: int, upload: Upload) -> dict[str, str]:
        if version < 6:
            return {}
        age = "expires" if version == 6 else "max-age"
        expire_s = int(self._context.service.expire_s)
        types = self._context.types
        content_type = upload.content_type
        max_bytes = types.largest_bytes if content_type is None else types.max_bytes(content_type)
        return {"Upload-Limit": f"max-size={max_bytes}, {age}={expire_s}"}

    def _refused(self, request: web.Request, version: int, error: SyncError) -> web.Response:
        """Answer an error of an existing upload. Raises it if the draft has no type of problem for it."""
        if error.code == "unavailable":
            return self._close_to_be_resumed(request)
        add_headers(request, _complete_header(version, complete=error.code in _FINAL))
        answer_offset(request, error)
        response = _problem(version, error, number(request, "Upload-Offset"))
        self._context.traffic.error(error.code)
        return response

    def _close_to_be_resumed(self, request: web.Request) -> web.Response:
        """Close the connection without an answer: a client resumes after that, and not after an error."""
        self._context.traffic.error("unavailable")
        return close_without_answer(request)

    async def _session_unless_draining(self, request: web.Request) -> Session | None:
        """Authenticate a request; None while this process drains. Raises SyncError, StoreError."""
        try:
            return await self._context.session(request)
        except SyncError as error:
            if error.code != "unavailable":
                raise
            return None


def _problem(version: int, error: SyncError, provided: int | None = None) -> web.Response:
    since, kind = _PROBLEMS.get(error.code, (_NEWEST + 1, ""))
    if version < since:
        raise error
    problem = {
        "type": _PROBLEM_TYPES + kind,
        "title": shown(error.message),
        "code": error.code,
        "message": shown(error.message),
        **error.details,
    }
    if error.code == "offset_mismatch":
        problem["expected-offset"] = error.details["offset"]
        problem["provided-offset"] = provided
    return web.Response(
        body=msgspec.json.encode(problem),
        status=http_status(error),
        content_type="application/problem+json",
    )


def _version(request: web.Request) -> int:
    """Return the client's version of the draft; an unknown one counts as the newest."""
    text = request.headers.get(_VERSION, "")
    version = int(text) if text.isascii() and text.isdigit() and len(text) < 3 else _NEWEST
    version = version if version in VERSIONS else _NEWEST
    if version in VERSIONS:
        add_headers(request, {_VERSION: str(version)})
    return version


def _complete_header(version: int, *, complete: bool) -> dict[str, str]:
    if version == 3:
        return {_INCOMPLETE: "?0" if complete else "?1"}
    return {_COMPLETE: "?1" if complete else "?0"}


def _check_has_no_upload_headers(request: web.Request, version: int) -> None:
    """Refuse headers that versions below 7 forbid in a request without bytes. Raises SyncError."""
    if version < 7:
        for name in ("Upload-Offset", _COMPLETE, _INCOMPLETE):
            if name in request.headers:
                raise SyncError("malformed", f"{name}: not in a request that brings no bytes")


def _completes(request: web.Request, version: int, *, absent: bool | None = None) -> bool:
    """Return True if the upload ends with this request.

    Args:
        request: The request.
        version: The client's version of the draft.
        absent: The result if the header is missing; None means that it is required.

    Raises:
        SyncError: ``malformed`` if the header is required and missing or not a boolean.
    """
    name = _INCOMPLETE if version == 3 else _COMPLETE
    said = {"?1": True, "?0": False}.get(request.headers.get(name, "").partition(";")[0].strip())
    if said is not None:
        return said is not (version == 3)
    if absent is None:
        raise SyncError("malformed", f"{name}: ?0 or ?1 is required")
    return absent


def _metadata(request: web.Request) -> dict[str, str]:
    """Collect an upload's metadata; ``Upload-Metadata`` wins over headers of other standards."""
    values: dict[str, str] = {}
    if "Content-Type" in request.headers:
        values["filetype"] = media_type(request)
    name = file_name(request.headers.get("Content-Disposition", ""))
    if name:
        values["filename"] = name
    digest = _sha256(request, "Repr-Digest")
    values |= parse_metadata(combined(request.headers, "Upload-Metadata"))
    if digest is not None:
        sha256 = digest.hex()
        if values.setdefault("sha256", sha256).lower() != sha256:
            raise SyncError("malformed", "Repr-Digest: another SHA-256 than that of Upload-Metadata")
    return values


def _digest(request: web.Request) -> Checksum | None:
    digest = _sha256(request, "Content-Digest")
    return None if digest is None else Checksum("sha256", digest)


def _sha256(request: web.Request, name: str) -> bytes | None:
    """Return the SHA-256 of a digest header; of two members the last counts (RFC 9651, 4.2.2)."""
    coded = _SHA256.findall(combined(request.headers, name))
    try:
        return base64.b64decode(coded[-1], validate=True) if coded else None
    except ValueError:
        raise SyncError("malformed", f"{name}: sha-256 in base64 is required") from None


async def _interim(request: web.Request, headers: Mapping[str, str]) -> None:
    """Send the upload's URL before its bytes are read. aiohttp has no interim answers.

    It is not sent through a proxy: nginx takes it for the final answer, and drops the other one.
    """
    if "X-Forwarded-For" in request.headers:
        return
    if request.transport is not None and request.version >= (1, 1):
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        request.transport.write(f"HTTP/1.1 104 Upload Resumption Supported\r\n{lines}\r\n".encode())
