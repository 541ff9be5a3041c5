"""Pages of the feed as JSON: each change is encoded once, a page body is shared by all who want it.

A body has neither ``id`` nor its closing brace, so one body serves every subscription.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET

from engine.feed.cursor import Scope
from engine.model.rows import Record
from engine.plan.attachments import NO_FILES
from engine.wire.messages import Change
from engine.wire.timestamps import to_text

_encode = msgspec.json.encode


def encode_change(record: Record) -> bytes:
    """Encode one version as the feed shows it."""
    files = record.attachments
    if record.data is None or files is None or files == NO_FILES:
        attachments: msgspec.Raw | msgspec.UnsetType = UNSET
    else:
        attachments = msgspec.Raw(files)
    return _encode(
        Change(
            domain=record.domain,
            id=record.id,
            version=record.version,
            seq=record.seq,
            deleted=record.data is None,
            at=to_text(record.at_us),
            device_id=record.device_id,
            data=None if record.data is None else msgspec.Raw(record.data),
            attachments=attachments,
        )
    )


def page_body(scope: Scope, seq: int, changes: Sequence[bytes], *, more: bool) -> bytes:
    """Put a page together; ``seq`` is where its cursor stands."""
    flag = b"true" if more else b"false"
    return b'{"type":"changes","cursor":"%s","more":%s,%s"changes":[%s]' % (
        scope.cursor(seq).encode(),
        flag,
        unknown_domains(scope),
        b",".join(changes),
    )


def unknown_domains(scope: Scope) -> bytes:
    """Return the member that names the domains which hold no records, with its comma; mostly nothing."""
    return b'"unknown_domains":%s,' % _encode(scope.unknown) if scope.unknown else b""


def with_id(body: bytes, request_id: str | None) -> bytes:
    """Close a body, with the request's id where there is one."""
    return body + tail(request_id)


def tail(request_id: str | None) -> bytes:
    """What closes a body."""
    return b"}" if request_id is None else b',"id":' + _encode(request_id) + b"}"
