"""What both spellings of uploads share: who asks, for which upload, and what every answer carries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from typing import Final

import msgspec
from aiohttp import web

from engine.commit.validation import Session
from engine.filetypes.types import FileTypes
from engine.model.domains import Domains
from engine.model.uploads import Upload
from engine.uploads.metadata import Described, describe
from engine.uploads.service import UploadService
from engine.wire.codec import JSON
from engine.wire.errors import SyncError
from handlers.http.authenticate import RequestGate
from handlers.http.client_address import Networks, stripped_prefix
from handlers.http.counters import Traffic
from handlers.http.headers import content_coding, tokens
from handlers.http.response_headers import add_headers
from handlers.http.tokens import Verifier
from handlers.uploads.body import RequestBody

ROOT: Final = "/v1/uploads"

_ID: Final = re.compile(r"[0-9a-f]{32}")
_DIGITS: Final = re.compile(r"[0-9]+")
#: More digits than any size that could be.
_MOST_DIGITS: Final = 18


class UploadContext(msgspec.Struct, frozen=True):
    """The parts that handlers of uploads work with."""

    gate: RequestGate
    traffic: Traffic
    receiving: UploadService
    types: FileTypes
    domains: Domains
    trusted: Networks
    idle_s: float

    @property
    def verifier(self) -> Verifier:
        """Checks tokens and origins."""
        return self.gate.authenticator.verifier

    async def session(self, request: web.Request) -> Session:
        """Say who asks. Raises SyncError, StoreError."""
        session, _ = await self.gate.authenticate_request(request, JSON, "upload")
        return session

    def body(self, request: web.Request, session: Session) -> RequestBody:
        """Open the body of a request."""
        if content_coding(request.headers):
            raise SyncError("unsupported_type", "Content-Encoding: uploads are taken as they are")
        if tokens(request.headers, "Transfer-Encoding") not in ([], ["chunked"]):
            raise SyncError("unsupported_type", "Transfer-Encoding: chunked is all that is taken")

        def check() -> None:
            self.gate.authenticator.check_valid(session)

        return RequestBody(request, self.idle_s, check)

    def root(self, request: web.Request) -> str:
        """Return the path of uploads as the client sees it: host and scheme are its own affair."""
        forwarded = request.headers.getall("X-Forwarded-Prefix", ())
        return stripped_prefix(request.remote, forwarded, self.trusted) + ROOT

    def describe(self, values: Mapping[str, str]) -> Described:
        """Check what an upload says of itself. Raises SyncError."""

        def is_record_domain(name: str) -> bool:
            rules = self.domains.rules.get(name)
            return rules is not None and rules.is_record

        return describe(values, self.types, is_record_domain)


def upload_id(text: str) -> str:
    """Take the id of an upload out of a URL, or its path, or itself. Raises SyncError ``not_found``."""
    last = text.rpartition("/")[2]
    if not _ID.fullmatch(last):
        raise SyncError("not_found", "there is no such upload")
    return last


def number(request: web.Request, name: str) -> int | None:
    """Read a header that is a number of bytes, None if it is missing. Raises SyncError."""
    text = request.headers.get(name)
    if text is None:
        return None
    if not _DIGITS.fullmatch(text):
        raise SyncError("invalid_message", f"{name}: a number of bytes is required")
    digits = text.lstrip("0")  # Python reads no number of more than 4,300 digits, zeros among them
    if len(digits) > _MOST_DIGITS:
        raise SyncError("too_large", f"{name}: nothing is that large")
    return int(digits or "0")


def content_length(request: web.Request) -> int | None:
    """Tell how many bytes a body has, None where only its end tells."""
    chunked = "chunked" in tokens(request.headers, "Transfer-Encoding")
    return None if chunked else request.content_length or 0


def answer_offset(request: web.Request, error: SyncError) -> None:
    """Have a refusal say where the upload stands, if that is known."""
    if "offset" in error.details:
        add_headers(request, {"Upload-Offset": str(error.details["offset"])})


def expiry(upload: Upload) -> dict[str, str]:
    """Say until when an open upload is kept."""
    if upload.state != "open":
        return {}
    return {"Upload-Expires": _http_date(upload.expires_at_us // 1_000_000)}


@lru_cache(maxsize=256)
def _http_date(at_s: int) -> str:
    """Write an instant; uploads that get a chunk in the same second expire in the same second."""
    return format_datetime(datetime.fromtimestamp(at_s, UTC), usegmt=True)
