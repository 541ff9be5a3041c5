"""The last changes of one tenant in memory, in seq order, encoded once.

Pure: what is published may come in any order and twice; the tail takes it in where it follows the
head, keeps what came early, and says when something is missing.
"""

from __future__ import annotations

from collections import deque

import msgspec

from engine.feed.pages import encode_change
from engine.model.rows import Record


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One change: ``body`` is its JSON, ``session_id`` who pushed it ("" when read from the store)."""

    seq: int
    domain: str
    session_id: str
    body: bytes


class Tail:
    """Everything between ``floor`` (exclusive) and ``head`` (inclusive), superseded versions aside.

    ``head`` is None until the tail was begun with what the store holds.
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
        """Start, or start anew, at ``seq`` or beyond: whoever is behind that reads the store.

        The head never goes back: what it has passed would be missing, and nothing would tell.
        """
        self._entries.clear()
        self._bytes = 0
        self._floor = self.head = max(seq, self.head or 0)
        self._drop_passed()
        self._append_following()

    def publish(self, record: Record, session_id: str) -> None:
        """Take in a committed change."""
        head = self.head
        if head is None or record.seq > head + 1:
            self._newest_seq = max(self._newest_seq, record.seq)
            if len(self._out_of_order) >= self._max_changes:
                self._out_of_order.clear()  # the gap stays until the store was read up to the newest of them
            self._out_of_order[record.seq] = (record, session_id)
        elif record.seq == head + 1:
            self._append(record, session_id)
            self.head = record.seq
            if self._out_of_order:
                self._append_following()

    @property
    def gap(self) -> bool:
        """Whether something up to the newest of what came early is missing."""
        return self.head is not None and self.head < self._newest_seq

    def fill(self, records: list[Record], high_seq: int) -> None:
        """Close a gap with all records that the store holds between the head and ``high_seq``."""
        assert self.head is not None
        for record in records:
            if record.seq > self.head:
                self._append(record, "")
        self.head = max(self.head, high_seq)
        self._drop_passed()
        self._append_following()

    def covers(self, position: int) -> bool:
        """Whether the tail holds everything behind ``position``."""
        return self.head is not None and position >= self._floor

    def after(self, position: int) -> list[Entry]:
        """Give the entries behind a position that is covered, ascending."""
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
