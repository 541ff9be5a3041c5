"""What a device says and hears, as text: messages are built and read here and nowhere else.

Payloads pass through as the bytes that came; an empty ``data`` is one that was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast, get_args

import msgspec
from msgspec import Raw

from engine.wire.floats import json_decoder
from engine.wire.messages import (
    Goodbye,
    HeartbeatAck,
    ItemError,
    PoliciesChanged,
    Resolved,
    Status,
    TelemetryAck,
    Unsubscribed,
    Welcome,
    Winner,
)
from engine.wire.nesting import json_nesting_fault
from engine.wire.values import value_fault

_MISSING: Final = Raw()
_NULL: Final = b"null"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one item."""

    status: Status
    domain: str | None = None
    id: str | None = None
    winner: Winner | None = None
    conflict_id: str | None = None
    version: int | None = None
    seq: int | None = None
    data: Raw = _MISSING
    error: ItemError | None = None


class Synced(msgspec.Struct, frozen=True, tag_field="type", tag="synced"):
    """Answer to ``sync``."""

    id: str
    replayed: bool
    results: list[Result]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a record in the feed, with the record's files at that ``seq``."""

    domain: str
    id: str
    version: int
    seq: int
    deleted: bool
    data: Raw
    attachments: Raw = _MISSING


class Changes(msgspec.Struct, frozen=True, tag_field="type", tag="changes"):
    """A page of the feed: answer to ``pull``, and again and again to ``subscribe``."""

    cursor: str
    more: bool
    changes: list[Change]
    id: str


class _ServerSide(msgspec.Struct, frozen=True):
    version: int
    data: Raw


class _ClientSide(msgspec.Struct, frozen=True):
    data: Raw
    changes: int = 1


class OpenConflict(msgspec.Struct, frozen=True):
    """A conflict that waits for a person: the record as it stands, and as the device wants it."""

    conflict_id: str
    domain: str
    record_id: str
    server: _ServerSide
    client: _ClientSide


class ConflictList(msgspec.Struct, frozen=True, tag_field="type", tag="conflicts"):
    """Answer to ``conflicts``; ``after`` continues the list."""

    id: str
    conflicts: list[OpenConflict]
    after: str | None


class Failed(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """A message was refused; ``retryable`` says whether the very same one may succeed later."""

    code: str
    message: str
    retryable: bool
    id: str | None = None
    retry_after_ms: int = 0


_Answer = Synced | Changes | HeartbeatAck | ConflictList | Resolved | Unsubscribed | TelemetryAck | Failed
Heard = Welcome | PoliciesChanged | Goodbye | _Answer


class _Kind(msgspec.Struct):
    type: str


_decode = msgspec.json.Decoder(Heard).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_any = json_decoder().decode
_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="sorted").encode
_KNOWN: Final = frozenset(kind.__struct_config__.tag for kind in get_args(Heard))


def read(text: bytes | str) -> Heard | None:
    """Read a message of the server, None for a type that this version does not know, which is skipped.

    Raises msgspec.DecodeError.
    """
    try:
        return cast(Heard, _decode(text))
    except msgspec.ValidationError:
        if _decode_kind(text).type in _KNOWN:
            raise
        return None


def payload(data: Raw) -> bytes | None:
    """Return a record's data as bytes, None for a tombstone."""
    text = bytes(data)
    return None if text == _NULL else text


def hello(clock: str, server_time: str) -> bytes:
    """Introduce the device; ``clock`` is its own time, by which the server corrects every ``at``.

    ``server_time`` is the latest that the server told on this connection: so long at most was this under way.
    """
    return _encode({"type": "hello", "app_version": "reference", "clock": clock, "server_time": server_time})


def sync(request_id: str, key: str, items: Sequence[bytes]) -> bytes:
    """Push items, byte for byte as they were written down."""
    message = b'{"type":"sync","id":%b,"key":%b,"items":[%b]}'
    return message % (_encode(request_id), _encode(key), b",".join(items))


def asked(kind: str, request_id: str, **fields: Any) -> bytes:
    """Write any other request."""
    return _encode({"type": kind, "id": request_id, **fields})


#: Of the messages that an item stands in, its own bytes apart, with room for the longest key and id.
ENVELOPE_BYTES: Final = 512


def item(domain: str, record_id: str, op: str, base: int | None, at: str, more: dict[str, Any]) -> bytes:
    """Write one item. ``more`` holds ``data`` and ``changed`` where there are any.

    Raises ValueError for data that would make the whole message malformed or come out as other data.
    """
    fault, text = value_fault([more.get("data")]), b""
    if fault is None:
        text = _encode({"domain": domain, "id": record_id, "op": op, "base": base, "at": at, **more})
        fault = json_nesting_fault(b'{"items":[%b]}' % text)
    if fault is not None:
        raise ValueError(f"data holds what no message carries: {fault}")
    return text


def canonical(data: bytes | None) -> bytes:
    """Write a record's data so that equal contents are equal bytes."""
    return _NULL if data is None else _encode_sorted(_decode_any(data))
