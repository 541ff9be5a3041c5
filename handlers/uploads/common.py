"""What tus and the IETF draft share: the device, the upload's id, and headers of requests and answers."""

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
#: 18 digits are more than any size has.
_MOST_DIGITS: Final = 18


class UploadContext(msgspec.Struct, frozen=True):
    """What the handlers of uploads use. ``idle_s`` is how long a body may bring nothing."""

    gate: RequestGate
    traffic: Traffic
    service: UploadService
    types: FileTypes
    domains: Domains
    trusted: Networks
    idle_s: float

    @property
    def verifier(self) -> Verifier:
        """Checks tokens and origins."""
        return self.gate.authenticator.verifier

    async def session(self, request: web.Request) -> Session:
        """Authenticate a request. Raises SyncError, StoreError."""
        session, _ = await self.gate.authenticate_request(request, JSON, "upload")
        return session

    def body(self, request: web.Request, session: Session) -> RequestBody:
        """Return the body of a request. Raises SyncError for an encoding that is not supported."""
        if content_coding(request.headers):
            raise SyncError(
                "unsupported_type", "Content-Encoding: send an upload's bytes without an encoding"
            )
        if tokens(request.headers, "Transfer-Encoding") not in ([], ["chunked"]):
            raise SyncError("unsupported_type", "Transfer-Encoding: only chunked is supported")

        def check() -> None:
            self.gate.authenticator.check_valid(session)

        return RequestBody(request, self.idle_s, check)

    def root(self, request: web.Request) -> str:
        """Return the path of uploads as the client sees it, without scheme and host."""
        forwarded = request.headers.getall("X-Forwarded-Prefix", ())
        return stripped_prefix(request.remote, forwarded, self.trusted) + ROOT

    def describe(self, values: Mapping[str, str]) -> Described:
        """Check an upload's metadata. Raises SyncError ``invalid_message``, ``unsupported_type``."""

        def is_record_domain(name: str) -> bool:
            rules = self.domains.rules.get(name)
            return rules is not None and rules.is_record

        return describe(values, self.types, is_record_domain)


def upload_id(text: str) -> str:
    """Return the upload's id at the end of a URL, a path or an id. Raises SyncError ``not_found``."""
    last = text.rpartition("/")[2]
    if not _ID.fullmatch(last):
        raise SyncError("not_found", "there is no such upload")
    return last


def number(request: web.Request, name: str) -> int | None:
    """Read a header that is a number of bytes.

    Returns:
        The number, None if the header is missing.

    Raises:
        SyncError: ``invalid_message`` if it is no number, ``too_large`` past ``_MOST_DIGITS`` digits.
    """
    text = request.headers.get(name)
    if text is None:
        return None
    if not _DIGITS.fullmatch(text):
        raise SyncError("invalid_message", f"{name}: a number of bytes is required")
    digits = text.lstrip("0")  # int() refuses more than 4,300 digits, leading zeros included
    if len(digits) > _MOST_DIGITS:
        raise SyncError("too_large", f"{name}: nothing is that large")
    return int(digits or "0")


def content_length(request: web.Request) -> int | None:
    """Return the length of a request's body, None if it is chunked."""
    chunked = "chunked" in tokens(request.headers, "Transfer-Encoding")
    return None if chunked else request.content_length or 0


def answer_offset(request: web.Request, error: SyncError) -> None:
    """Add the upload's offset to the answer of a refused request, if the error has it."""
    if "offset" in error.details:
        add_headers(request, {"Upload-Offset": str(error.details["offset"])})


def expiry(upload: Upload) -> dict[str, str]:
    """Return the header that tells when an open upload expires; none for an upload that is not open."""
    if upload.state != "open":
        return {}
    return {"Upload-Expires": _http_date(upload.expires_at_us // 1_000_000)}


@lru_cache(maxsize=256)
def _http_date(at_s: int) -> str:
    """Format an instant. The cache works because many uploads expire in the same second."""
    return format_datetime(datetime.fromtimestamp(at_s, UTC), usegmt=True)
