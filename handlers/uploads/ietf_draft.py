"""Uploads as the IETF draft spells them (draft-ietf-httpbis-resumable-upload): URLSession of iOS speaks it.

A client names the interop version of the draft that it was built for, and is answered in it: 3 to 8. One that
names none is answered as by the newest text, without the interim answer that only drafts may have.
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
#: Refusals that the draft has a type of problem for, from which version on.
_PROBLEMS: Final = {
    "offset_mismatch": (6, "mismatching-upload-offset"),
    "upload_complete": (6, "completed-upload"),
    "inconsistent_length": (7, "inconsistent-upload-length"),
}
_PROBLEM_TYPES: Final = "https://iana.org/assignments/http-problem-types#"
#: Refusals of the whole file: there is nothing to go on with.
_FINAL: Final = ("checksum_mismatch", "unsupported_type")


def is_draft_request(request: web.Request) -> bool:
    """Whether a request is one of these."""
    return any(name in request.headers for name in (_VERSION, _COMPLETE, _INCOMPLETE))


class IetfDraft:
    """The verbs; each raises SyncError where a request is refused."""

    def __init__(self, edge: UploadContext) -> None:
        self._edge = edge

    async def create(self, request: web.Request) -> web.Response:
        """Begin an upload and take in the bytes that come along."""
        version = _version(request)
        session = await self._edge.session(request)
        if number(request, "Upload-Offset"):
            raise SyncError("malformed", "Upload-Offset: an upload begins at 0")
        completes = _completes(request, version)
        length_bytes = content_length(request)
        size_bytes = number(request, "Upload-Length")
        if completes and length_bytes is not None:
            if size_bytes not in (None, length_bytes):
                sentence = f"{size_bytes} bytes are said, {length_bytes} are sent"
                return _problem(version, SyncError("inconsistent_length", sentence))
            size_bytes = length_bytes
        values = _values(request)
        described = self._edge.describe(values)
        body = self._edge.body(request, session)
        upload = await self._edge.receiving.create(
            session, Creation("single", size_bytes, described, format_metadata(values))
        )
        location = f"{self._edge.root(request)}/{upload.ref.upload_id}"
        standing = self._standing(version, upload)
        del standing["Upload-Offset"]  # that of a refusal is another by then
        add_headers(request, {"Location": location} | standing)
        if version in VERSIONS:
            limits = self._limits(version, upload)
            await _interim(request, {_VERSION: str(version), "Location": location} | limits)
        if completes or request.can_read_body or upload.ready_to_finish:
            append = Append(0, length_bytes, size_bytes, completes)
            appended = self._edge.receiving.append(
                session, upload.ref.upload_id, append, body, _digest(request)
            )
            try:
                upload = await appended
            except SyncError as error:
                return self._refused(request, version, error)
        return web.Response(status=201, headers=self._standing(version, upload))

    async def head(self, request: web.Request) -> web.Response:
        """Say where an upload stands."""
        version = _version(request)
        session = await self._resuming(request)
        if session is None:
            return self._later(request)
        _check_brings_nothing(request, version)
        upload = await self._edge.receiving.find(session, upload_id(request.match_info["upload_id"]))
        headers = self._standing(version, upload)
        if upload.size_bytes is not None:
            headers["Upload-Length"] = str(upload.size_bytes)
        return web.Response(status=204, headers=headers)

    async def patch(self, request: web.Request) -> web.Response:
        """Take bytes in."""
        version = _version(request)
        session = await self._resuming(request)
        if session is None:
            return self._later(request)
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
        body = self._edge.body(request, session)
        try:
            upload = await self._edge.receiving.append(session, named, append, body, _digest(request))
        except SyncError as error:
            return self._refused(request, version, error)
        finished = upload.state != "open"
        status = 201 if version < 7 else 200 if finished else 204
        return web.Response(status=status, headers=self._standing(version, upload))

    async def delete(self, request: web.Request) -> web.Response:
        """Give an upload up, or take its file away."""
        version = _version(request)
        session = await self._edge.session(request)
        _check_brings_nothing(request, version)
        await self._edge.receiving.cancel(session, upload_id(request.match_info["upload_id"]))
        return web.Response(status=204)

    def _standing(self, version: int, upload: Upload) -> dict[str, str]:
        finished = upload.state != "open"
        headers = {"Upload-Offset": str(upload.offset_bytes)} | self._limits(version, upload)
        return headers | _told(version, complete=finished)

    def _limits(self, version: int, upload: Upload) -> dict[str, str]:
        if version < 6:
            return {}
        age = "expires" if version == 6 else "max-age"
        expire_s = int(self._edge.receiving.expire_s)
        types = self._edge.types
        content_type = upload.content_type
        max_bytes = types.largest_bytes if content_type is None else types.max_bytes(content_type)
        return {"Upload-Limit": f"max-size={max_bytes}, {age}={expire_s}"}

    def _refused(self, request: web.Request, version: int, error: SyncError) -> web.Response:
        """Answer a refusal of an upload that is there. Raises it where the draft has no words of its own."""
        if error.code == "unavailable":
            return self._later(request)
        add_headers(request, _told(version, complete=error.code in _FINAL))
        answer_offset(request, error)
        response = _problem(version, error, number(request, "Upload-Offset"))
        self._edge.traffic.error(error.code)
        return response

    def _later(self, request: web.Request) -> web.Response:
        """Have a client go on later: after a lost connection it does, after an answer it would not."""
        self._edge.traffic.error("unavailable")
        return close_without_answer(request)

    async def _resuming(self, request: web.Request) -> Session | None:
        """Say who goes on with an upload, None while this process drains. Raises SyncError, StoreError."""
        try:
            return await self._edge.session(request)
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
    """Read the version that a client was built for; one that is not known is answered as by the newest."""
    text = request.headers.get(_VERSION, "")
    version = int(text) if text.isascii() and text.isdigit() and len(text) < 3 else _NEWEST
    version = version if version in VERSIONS else _NEWEST
    if version in VERSIONS:
        add_headers(request, {_VERSION: str(version)})
    return version


def _told(version: int, *, complete: bool) -> dict[str, str]:
    if version == 3:
        return {_INCOMPLETE: "?0" if complete else "?1"}
    return {_COMPLETE: "?1" if complete else "?0"}


def _check_brings_nothing(request: web.Request, version: int) -> None:
    """Refuse what older drafts do not let a request say that brings no bytes. Raises SyncError."""
    if version < 7:
        for name in ("Upload-Offset", _COMPLETE, _INCOMPLETE):
            if name in request.headers:
                raise SyncError("malformed", f"{name}: not in a request that brings no bytes")


def _completes(request: web.Request, version: int, *, absent: bool | None = None) -> bool:
    """Whether the upload ends with this request. Raises SyncError where nothing says so that must."""
    name = _INCOMPLETE if version == 3 else _COMPLETE
    said = {"?1": True, "?0": False}.get(request.headers.get(name, "").partition(";")[0].strip())
    if said is not None:
        return said is not (version == 3)
    if absent is None:
        raise SyncError("malformed", f"{name}: ?0 or ?1 is required")
    return absent


def _values(request: web.Request) -> dict[str, str]:
    """Gather what an upload says of itself; its own metadata win over headers of other standards."""
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
    """Read a digest out of a dictionary; of two members of one name the last counts (RFC 9651, 4.2.2)."""
    coded = _SHA256.findall(combined(request.headers, name))
    try:
        return base64.b64decode(coded[-1], validate=True) if coded else None
    except ValueError:
        raise SyncError("malformed", f"{name}: sha-256 in base64 is required") from None


async def _interim(request: web.Request, headers: Mapping[str, str]) -> None:
    """Tell where the upload is before its bytes come; the library knows no interim answers.

    Not through a proxy: nginx takes it for the whole answer, and the device is never told the other.
    """
    if "X-Forwarded-For" in request.headers:
        return
    if request.transport is not None and request.version >= (1, 1):
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        request.transport.write(f"HTTP/1.1 104 Upload Resumption Supported\r\n{lines}\r\n".encode())
