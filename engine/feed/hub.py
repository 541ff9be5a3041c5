"""One tenant's tail and subscriptions, as data. Nothing here waits or reads: ``Feed`` does the I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal

import msgspec

from engine.feed.cursor import Scope
from engine.feed.pages import ENVELOPE_BYTES, page_body, unknown_domains
from engine.feed.ports import Page
from engine.feed.subscription import Subscription
from engine.feed.tail import Entry, Tail

HubState = Literal["fresh", "complete", "incomplete", "rereading"]


class FeedLimits(msgspec.Struct, frozen=True):
    """Bounds of a page and of a tenant's tail in memory, and the pause between busy pages."""

    page_bytes: int
    tail_changes: int
    tail_bytes: int
    page_interval_s: float


class Hub:
    """One tenant's tail and subscriptions.

    States, and what leads from one to the next:

    - ``fresh``: no page was read yet. ``start`` makes it complete, or incomplete if a change may be missing.
    - ``complete``: the tail holds every change that this process knows of. A gap in what is published,
      ``note_missed`` and ``note_remote_commit`` make it incomplete.
    - ``incomplete``: a change is missing, or may be. What is published next may close the gap. Otherwise the
      store has to be asked as soon as somebody is subscribed: ``begin_reread``.
    - ``rereading``: one task reads from the store what is missing. ``end_reread`` makes it complete, or
      incomplete if a change is still missing.

    The state is not stored: it follows from the tail and the two flags, so that publishing a change, which
    is the hot path, costs no transition.
    """

    __slots__ = (
        "_is_rereading",
        "_may_have_missed",
        "due_since_s",
        "is_scheduled",
        "remote_commit",
        "sent_at_s",
        "subscriptions",
        "tail",
        "tenant_id",
    )

    def __init__(self, tenant_id: int, limits: FeedLimits) -> None:
        self.tenant_id = tenant_id
        self.tail = Tail(limits.tail_changes, limits.tail_bytes)
        self.subscriptions: set[Subscription] = set()
        self.is_scheduled = False
        self.sent_at_s = 0.0
        self.due_since_s = 0.0
        #: Set when another process told of a commit: its change is in the store, so nobody need wait for it.
        self.remote_commit = asyncio.Event()
        self._is_rereading = False
        self._may_have_missed = False

    @property
    def state(self) -> HubState:
        """The state, as the class describes it."""
        if self.tail.head is None:
            return "fresh"
        if self._is_rereading:
            return "rereading"
        return "incomplete" if self._is_missing_something else "complete"

    @property
    def needs_reread(self) -> bool:
        """True if a change is missing, or may be, that somebody is subscribed to."""
        return self.tail.head is not None and self._is_missing_something and bool(self.subscriptions)

    @property
    def _is_missing_something(self) -> bool:
        return self._may_have_missed or self.tail.gap

    def start(self, high_seq: int) -> None:
        """Begin the tail at the first page that was read; later pages change nothing."""
        if self.tail.head is None:
            self.tail.reset(high_seq)

    def note_missed(self) -> None:
        """Note that a change may be in the store that is never published here."""
        self._may_have_missed = True

    def note_remote_commit(self, seq: int) -> bool:
        """Note that another process committed ``seq``. Returns False if the tail has it already."""
        head = self.tail.head
        if head is not None and head >= seq:
            return False
        self._may_have_missed = True
        self.remote_commit.set()
        return True

    def begin_reread(self) -> bool:
        """Go from incomplete to rereading. Returns False if no read is needed, or one is under way."""
        if self._is_rereading or not self.needs_reread:
            return False
        self._is_rereading = True
        return True

    def begin_read(self) -> int | None:
        """Begin one read of a reread. Anything that is noted during the read needs another one.

        Returns:
            The seq after which to read; None if nothing is missing or nobody is subscribed.
        """
        if not self.needs_reread:
            return None
        self._may_have_missed = False
        self.remote_commit.clear()
        return self.tail.head

    def end_read(self, page: Page) -> None:
        """Take in a read. A gap wider than the page empties the tail: subscriptions read the store then."""
        if page.more:
            self.tail.reset(page.high_seq)
        else:
            self.tail.fill(page.records, page.high_seq)

    def end_reread(self) -> None:
        """Leave the state rereading."""
        self._is_rereading = False


def live_pages(
    scope: Scope, limit: int, session_id: str, head: int, entries: Iterable[Entry], max_bytes: int
) -> list[tuple[bytes, int]]:
    """Make page bodies of entries of the tail.

    Args:
        scope: The domains to show.
        limit: The most changes of a page.
        session_id: The session that subscribes; its own changes are left out.
        head: The seq up to which the entries were taken from the tail.
        entries: The entries after the subscription's position, ascending by seq.
        max_bytes: The most bytes of a page; a single change may be larger.

    Returns:
        Each body with the seq where its cursor stands; an empty list if there is nothing to show.
    """
    chunk: list[bytes] = []
    pages: list[tuple[bytes, int]] = []
    envelope_bytes = ENVELOPE_BYTES + len(unknown_domains(scope))
    size_bytes, last = envelope_bytes, 0
    for entry in entries:
        if entry.session_id == session_id:
            continue
        if scope.domains is not None and entry.domain not in scope.domains:
            continue
        over = size_bytes + len(entry.body) + 1 > max_bytes
        if chunk and (over or len(chunk) == limit):
            pages.append((page_body(scope, last, chunk, more=True), last))
            chunk, size_bytes = [], envelope_bytes
        chunk.append(entry.body)
        size_bytes += len(entry.body) + 1
        last = entry.seq
    if chunk:
        pages.append((page_body(scope, head, chunk, more=False), head))
    return pages
