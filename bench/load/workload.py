"""What one device does in a run: one item a sync, a new task or an update of one of its own.

Messages are made by filling in templates, so that making one costs a microsecond.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

DOMAIN: Final = "task"
#: Every second sync of a device updates a task that it made earlier; the others make a new one.
MIX: Final = "half new records, half updates of the device's own"

#: 200 bytes of data once filled in; no update repeats its record's content, which would be ``unchanged``.
_DATA: Final = (
    b'{"title":"Check pump %d at gate B","status":"ASSIGNED","priority":"HIGH","site":"plant-042",'
    b'"assignee":"guard-0137","due":"2026-03-01T16:00:00Z","lat":48.13743,"lon":11.57549,"note":"round %d"}'
)
_SYNC: Final = (
    b'{"type":"sync","id":"%d","key":"%b-%d","items":[{"domain":"task","id":"%b-%d","op":"put",'
    b'"base":%b,"at":"%b.%03dZ","data":' + _DATA + b"}]}"
)


class Sent(NamedTuple):
    """One sync under way. ``number`` is its key's and its id's, ``record`` its record's; ``base`` from 0."""

    number: int
    record: int
    base: int
    due_s: float


class Worker:
    """The device's own knowledge: which tasks it made and at which version they stand.

    ``unit`` draws from [0, 1).
    """

    __slots__ = ("_free", "_made", "_name", "_sent", "_unit")

    def __init__(self, name: str, unit: Callable[[], float]) -> None:
        self._name = name.encode()
        self._unit = unit
        self._free: list[tuple[int, int]] = []
        self._made = 0
        self._sent = 0

    def next(self, due_s: float) -> Sent:
        """Choose the next sync. A record under way is left alone, so that no device conflicts with itself."""
        number = self._sent
        self._sent += 1
        free = self._free
        if number % 2 and free:
            chosen = int(self._unit() * len(free))
            free[chosen], free[-1] = free[-1], free[chosen]
            record, base = free.pop()
        else:
            record, base = self._made, 0
            self._made += 1
        return Sent(number, record, base, due_s)

    def message(self, sent: Sent) -> bytes:
        """Write a sync as it goes out now."""
        number, record, base, _ = sent
        name = self._name
        known = b"%d" % base if base else b"null"
        now_ms = time.time_ns() // 1_000_000
        second, millis = _second(now_ms // 1000), now_ms % 1000
        return _SYNC % (number, name, number, name, record, known, second, millis, record, number)

    def acknowledged(self, record: int, version: int) -> None:
        """Know a record at its new version."""
        self._free.append((record, version))


def data_of(record: int, number: int) -> bytes:
    """Write the data that a sync puts."""
    return _DATA % (record, number)


def note_of(number: int) -> str:
    """Give what the data of a device's sync says in ``note``."""
    return f"round {number}"


@lru_cache(maxsize=2)
def _second(now_s: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)).encode()


def key_of(device: str, number: int) -> str:
    """Name the idempotency key of a device's sync."""
    return f"{device}-{number}"


def record_id(device: str, record: int) -> str:
    """Name a device's record."""
    return f"{device}-{record}"
