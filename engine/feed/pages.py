"""Pages of the feed as JSON: each change is encoded once, a page body is shared by all who want it.

A body has neither ``id`` nor its closing brace, so one body serves every subscription.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET

from engine.feed.cursor import Scope
from engine.feed.ports import Page
from engine.model.rows import NO_FILES, Record
from engine.wire.messages import Change
from engine.wire.timestamps import to_text

_encode = msgspec.json.encode
#: What a page has besides its changes: names, the cursor, an id of 64 characters however they are escaped.
ENVELOPE_BYTES: Final = 640


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
    return body + page_suffix(request_id)


def page_suffix(request_id: str | None) -> bytes:
    """Return the end of a page, which follows its body: the request's id and the closing brace."""
    return b"}" if request_id is None else b',"id":' + _encode(request_id) + b"}"


def stored_page(scope: Scope, page: Page, max_bytes: int) -> tuple[bytes, int]:
    """Put together a page read from the store, and say where its cursor stands.

    The store measures data alone, and in steps of a record; here the page is cut to size.
    """
    changes: list[bytes] = []
    size_bytes = ENVELOPE_BYTES + len(unknown_domains(scope))
    for record in page.records:
        change = encode_change(record)
        size_bytes += len(change) + 1
        if changes and size_bytes > max_bytes:
            seq = page.records[len(changes) - 1].seq
            return page_body(scope, seq, changes, more=True), seq
        changes.append(change)
    if page.more:
        seq = page.records[-1].seq
    else:
        seq = page.high_seq if page.read_to is None else page.read_to
    return page_body(scope, seq, changes, more=page.more or page.read_to is not None), seq
