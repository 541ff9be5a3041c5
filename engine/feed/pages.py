"""Pages of the feed as JSON. Each change is encoded once, and subscriptions share page bodies.

A body has neither the request's ``id`` nor the closing brace, so that one body serves every subscription.
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
#: An upper bound of a page's bytes besides its changes: member names, the cursor, and an id of 64 characters,
#: each escaped in the longest way.
ENVELOPE_BYTES: Final = 640


def encode_change(record: Record) -> bytes:
    """Return the JSON of one version of a record, as the feed shows it."""
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
    """Join encoded changes to a page body, whose cursor is the position after ``seq``."""
    flag = b"true" if more else b"false"
    return b'{"type":"changes","cursor":"%s","more":%s,%s"changes":[%s]' % (
        scope.cursor(seq).encode(),
        flag,
        unknown_domains(scope),
        b",".join(changes),
    )


def unknown_domains(scope: Scope) -> bytes:
    """Return the member ``unknown_domains`` with its comma; empty if the scope has no unknown domains."""
    return b'"unknown_domains":%s,' % _encode(scope.unknown) if scope.unknown else b""


def with_id(body: bytes, request_id: str | None) -> bytes:
    """Complete a body, with the request's id if it has one."""
    return body + page_suffix(request_id)


def page_suffix(request_id: str | None) -> bytes:
    """Return the end of a page, which follows its body: the request's id and the closing brace."""
    return b"}" if request_id is None else b',"id":' + _encode(request_id) + b"}"


def stored_page(scope: Scope, page: Page, max_bytes: int) -> tuple[bytes, int]:
    """Make the body of a page that was read from the store.

    The store bounds only the bytes of data, so the page is cut here to ``max_bytes``. It has at least one
    change if the store returned one.

    Returns:
        The body, and the seq of its cursor.
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
