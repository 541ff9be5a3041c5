"""The latest changes of one tenant in memory, in the order of seq, each encoded once.

Changes may be published in any order and twice. The tail appends a change that follows the head, keeps a
change that came before its predecessors, and tells when one is missing. It does no I/O.
"""

from __future__ import annotations

from collections import deque

import msgspec

from engine.feed.pages import encode_change
from engine.model.rows import Record


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One change. ``body`` is its JSON; ``session_id`` pushed it, "" if it was read from the store."""

    seq: int
    domain: str
    session_id: str
    body: bytes


class Tail:
    """Every change after ``_floor`` up to ``head``; versions that were superseded before a read may lack.

    ``head`` is None until the first ``reset``.
    """

    def __init__(self, max_changes: int, max_bytes: int) -> None:
        self.head: int | None = None
        self._floor = 0
        self._entries: deque[Entry] = deque()
        self._out_of_order: dict[int, tuple[Record, str]] = {}
        self._newest_seq = 0
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._bytes = 0

    def reset(self, seq: int) -> None:
        """Empty the tail, with the head at ``seq`` or later. Subscriptions before that read the store.

        The head never moves back: the changes that it has passed would be missing without a gap.
        """
        self._entries.clear()
        self._bytes = 0
        self._floor = self.head = max(seq, self.head or 0)
        self._drop_passed()
        self._append_following()

    def publish(self, record: Record, session_id: str) -> None:
        """Add a committed change."""
        head = self.head
        if head is None or record.seq > head + 1:
            self._newest_seq = max(self._newest_seq, record.seq)
            if len(self._out_of_order) >= self._max_changes:
                self._out_of_order.clear()  # the gap remains until the store is read up to the newest of them
            self._out_of_order[record.seq] = (record, session_id)
        elif record.seq == head + 1:
            self._append(record, session_id)
            self.head = record.seq
            if self._out_of_order:
                self._append_following()

    @property
    def gap(self) -> bool:
        """True if a change is missing before one that was published out of order."""
        return self.head is not None and self.head < self._newest_seq

    def fill(self, records: list[Record], high_seq: int) -> None:
        """Close a gap with all records of the store after the head up to ``high_seq``."""
        assert self.head is not None
        for record in records:
            if record.seq > self.head:
                self._append(record, "")
        self.head = max(self.head, high_seq)
        self._drop_passed()
        self._append_following()

    def covers(self, position: int) -> bool:
        """Return True if the tail has every change after ``position``."""
        return self.head is not None and position >= self._floor

    def after(self, position: int) -> list[Entry]:
        """Return the entries after a position that the tail covers, ascending by seq."""
        found: list[Entry] = []
        for entry in reversed(self._entries):
            if entry.seq <= position:
                break
            found.append(entry)
        found.reverse()
        return found

    def _append_following(self) -> None:
        assert self.head is not None
        while (change := self._out_of_order.pop(self.head + 1, None)) is not None:
            self._append(*change)
            self.head += 1

    def _drop_passed(self) -> None:
        assert self.head is not None
        for seq in [seq for seq in self._out_of_order if seq <= self.head]:
            del self._out_of_order[seq]

    def _append(self, record: Record, session_id: str) -> None:
        body = encode_change(record)
        self._entries.append(Entry(record.seq, record.domain, session_id, body))
        self._bytes += len(body)
        while len(self._entries) > self._max_changes or self._bytes > self._max_bytes:
            oldest = self._entries.popleft()
            self._floor = oldest.seq
            self._bytes -= len(oldest.body)
