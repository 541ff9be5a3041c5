"""Changes cut into pages, at the limits of changes and of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from engine.feed.cursor import Scope
from engine.feed.pages import encode_change, page_body, unknown_domains
from engine.feed.ports import Page
from engine.feed.subscription import Subscription
from engine.feed.tail import Entry

#: What a page has besides its changes: names, the cursor, an id of 64 characters however they are escaped.
_ENVELOPE_BYTES: Final = 640


def live_pages(
    subscription: Subscription, head: int, entries: Iterable[Entry], max_bytes: int
) -> list[tuple[bytes, int]]:
    """Make page bodies of what a subscription wants of the tail; each with the seq of its cursor."""
    scope, own = subscription.scope, subscription.session_id
    chunk: list[bytes] = []
    pages: list[tuple[bytes, int]] = []
    envelope_bytes = _ENVELOPE_BYTES + len(unknown_domains(scope))
    size_bytes, last = envelope_bytes, 0
    for entry in entries:
        if entry.session_id == own:
            continue
        if scope.domains is not None and entry.domain not in scope.domains:
            continue
        over = size_bytes + len(entry.body) + 1 > max_bytes
        if chunk and (over or len(chunk) == subscription.limit):
            pages.append((page_body(scope, last, chunk, more=True), last))
            chunk, size_bytes = [], envelope_bytes
        chunk.append(entry.body)
        size_bytes += len(entry.body) + 1
        last = entry.seq
    if chunk:
        pages.append((page_body(scope, head, chunk, more=False), head))
    return pages


def stored_page(scope: Scope, page: Page, max_bytes: int) -> tuple[bytes, int]:
    """Put together a page read from the store, and say where its cursor stands.

    The store measures data alone, and in steps of a record; here the page is cut to size.
    """
    changes: list[bytes] = []
    size_bytes = _ENVELOPE_BYTES + len(unknown_domains(scope))
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
