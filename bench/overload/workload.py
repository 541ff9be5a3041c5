"""What an offline device sends when it is back: one message with all that it did meanwhile.

A frame is made once and then only stamped with its sync's number, eight digits wherever they belong: a
generator that has to offer ten times what the server can take has no time to write messages.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bench.load.websocket_client import frame

#: Stands where a frame is stamped.
_MARK: Final = b"########"
_AT: Final = "2026-03-01T08:%02d:00Z"


class Backlog(msgspec.Struct, frozen=True):
    """New tasks and then changes of the first of them, all in one sync, about 220 bytes an item."""

    new_records: int
    changes: int

    @property
    def items(self) -> int:
        """How many items a sync has."""
        return self.new_records + self.changes

    @property
    def versions(self) -> list[int]:
        """The versions that its items are acknowledged at."""
        return [1] * self.new_records + [2] * self.changes

    def standing(self, seqs: list[int]) -> list[int]:
        """Give the seqs of its records as they then stand, of those of its items."""
        return [*seqs[self.new_records :], *seqs[self.changes : self.new_records]]


#: A device that was away for an hour or two.
OFFLINE: Final = Backlog(24, 6)
#: A device that is online.
ONLINE: Final = Backlog(1, 0)


class Frames:
    """The frames of a run. ``prefix``, eight characters, tells its records and keys from other runs'."""

    def __init__(self, prefix: str, backlog: Backlog) -> None:
        mark = _MARK.decode()
        items = [_item(prefix, mark, record, base=None) for record in range(backlog.new_records)]
        items += [_item(prefix, mark, record, base=1) for record in range(backlog.changes)]
        sync = f'{{"type":"sync","id":"{mark}","key":"{prefix}{mark}","items":[{",".join(items)}]}}'
        self._frame = frame(sync.encode())

    def stamped(self, number: int) -> bytes:
        """Give the frame of a sync."""
        return self._frame.replace(_MARK, b"%08d" % number)


def _item(prefix: str, mark: str, record: int, base: int | None) -> str:
    made = base is None
    status = "ASSIGNED" if made else "INPROGRESS"
    data = (
        f'{{"title":"Check pump {record}","status":"{status}","site":"plant-042",'
        f'"assignee":"guard-0137","lat":48.13743,"lon":11.57549,"note":"{note_of(mark, record, made=made)}"}}'
    )
    return (
        f'{{"domain":"task","id":"{record_id(prefix, mark, record)}","op":"put",'
        f'"base":{"null" if made else base},"at":"{_AT % (record if made else 30 + record)}","data":{data}}}'
    )


def record_id(prefix: str, number: str, record: int) -> str:
    """Name a record of a sync, whose number is given as it is stamped."""
    return f"{prefix}{number}-{record:02}"


def note_of(number: str, record: int, *, made: bool) -> str:
    """Give what the data of a record says in ``note``, when it was made and when it was changed."""
    return f"{number}-{record:02} {'made' if made else 'changed'}"


def key_of(prefix: str, number: int) -> str:
    """Name the idempotency key of a sync."""
    return f"{prefix}{number:08}"
