"""The header ``Upload-Metadata`` of tus: parsing, formatting, and checks of what it says of a file."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from engine.filetypes.types import FileTypes
from engine.wire.errors import SyncError
from engine.wire.values import id_fault

MAX_NAME_CHARS: Final = 255
#: The header is stored as it was sent, and counts against no quota.
MAX_CHARS: Final = 4096
_HEADER: Final = "Upload-Metadata"
#: Control characters, and lone surrogates, which stand for header bytes that are not UTF-8.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Described(msgspec.Struct, frozen=True):
    """A file's name and type, and the record that it belongs to.

    ``content_type`` is ``UNDECLARED`` (engine.filetypes.types) if the client did not declare one. ``sha256``
    is in lower-case hex digits, None if the client did not declare it.
    """

    file_name: str
    content_type: str
    domain: str
    record_id: str
    sha256: str | None


def parse_metadata(header: str) -> dict[str, str]:
    """Parse an ``Upload-Metadata``: pairs of a key and its value in base64, separated by commas.

    Raises:
        SyncError: ``invalid_message``.
    """
    if len(header) > MAX_CHARS:
        raise SyncError("invalid_message", f"{_HEADER}: {MAX_CHARS} characters at most")
    values: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else ():
        key, _, coded = pair.strip(" \t").partition(" ")
        shown = ascii(key[:64])
        if not key or not key.isascii() or not key.isprintable():
            raise _refused(shown, "a key is one printable ASCII character or more")
        if key in values:
            raise _refused(shown, "the key stands there twice")
        try:
            values[key] = base64.b64decode(coded, validate=True).decode()
        except UnicodeDecodeError:
            raise _refused(shown, "the value in base64 must be UTF-8") from None
        except ValueError:
            raise _refused(shown, "a value in base64, padded, is required") from None
    return values


def format_metadata(values: Mapping[str, str]) -> str:
    """Format an ``Upload-Metadata``. Raises SyncError ``invalid_message`` for a value that is not UTF-8."""
    pairs: list[str] = []
    for key, value in values.items():
        try:
            coded = binascii.b2a_base64(value.encode(), newline=False).decode()
        except UnicodeEncodeError:
            raise _refused(key, "UTF-8 is required") from None
        pairs.append(f"{key} {coded}" if coded else key)
    return ",".join(pairs)


def describe(
    values: Mapping[str, str], types: FileTypes, is_record_domain: Callable[[str], bool]
) -> Described:
    """Check the metadata of a file; unknown keys are ignored.

    Args:
        values: The parsed ``Upload-Metadata``.
        types: The file types that the settings list.
        is_record_domain: Returns True for a domain whose items are records.

    Raises:
        SyncError: ``invalid_message``, ``unsupported_type``.
    """
    file_name = _required(values, "filename")
    if not 1 <= len(file_name) <= MAX_NAME_CHARS:
        raise _refused("filename", f"1 to {MAX_NAME_CHARS} characters are required")
    if _FORBIDDEN.search(file_name):
        raise _refused("filename", "control characters and lone surrogates are not allowed")
    media_type = values.get("filetype", "").partition(";")[0].strip().lower()
    try:
        content_type = types.listed(media_type)
    except SyncError as error:
        raise SyncError(error.code, f"{_HEADER}: filetype: {error.message}") from None
    domain = _required(values, "domain")
    if not is_record_domain(domain):
        raise _refused("domain", f"no domain of records {domain[:64]!r} is configured")
    record_id = _required(values, "record_id")
    fault = id_fault(record_id)
    if fault is None and _FORBIDDEN.search(record_id):
        fault = "lone surrogates are not allowed"
    if fault is not None:
        raise _refused("record_id", fault)
    sha256 = values.get("sha256")
    if sha256 is not None:
        sha256 = sha256.lower()
        if not _SHA256.fullmatch(sha256):
            raise _refused("sha256", "64 hex digits are required")
    return Described(file_name, content_type, domain, record_id, sha256)


def _required(values: Mapping[str, str], key: str) -> str:
    if key not in values:
        raise _refused(key, "required")
    return values[key]


def _refused(key: str, why: str) -> SyncError:
    return SyncError("invalid_message", f"{_HEADER}: {key}: {why}")
