"""What a device sends: one task in a sync, or all that it did offline.

Messages are templates that are filled in, since a generator shares its machine with the server: a task costs
a microsecond, and a backlog is only stamped with the number of its sync.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, cast

import msgspec

DOMAIN: Final = "task"
#: Every second sync of a device updates a task that it made before; the others make a new one.
MIX: Final = "one item a sync, a task of about 200 bytes, half new records, half updates of the device's own"

#: 200 bytes of data once filled in; no update repeats its record's content, which would be ``unchanged``.
_DATA: Final = (
    b'{"title":"Check pump %d at gate B","status":"ASSIGNED","priority":"HIGH","site":"plant-042",'
    b'"assignee":"guard-0137","due":"2026-03-01T16:00:00Z","lat":48.13743,"lon":11.57549,"note":"round %d"}'
)
_SYNC: Final = (
    b'{"type":"sync","id":"%d","key":"%b%08d","items":[{"domain":"task","id":"%b-%d","op":"put",'
    b'"base":%b,"at":"%b.%03dZ","data":' + _DATA + b"}]}"
)


class Result(msgspec.Struct, gc=False):
    """What became of one item."""

    status: str
    version: int | None = None
    seq: int | None = None


class _TaskResult(Result, gc=False):
    domain: str | None = None
    id: str | None = None


class Answer(msgspec.Struct, gc=False):
    """Any message of the server, as far as a generator reads it."""

    type: str
    id: str | None = None
    code: str = ""
    reason: str = ""
    retry_after_ms: int | None = None
    replayed: bool = False
    results: tuple[Result, ...] = ()


class _TaskAnswer(Answer, gc=False):
    results: tuple[_TaskResult, ...] = ()


# -- one task in a sync ------------------------------------------------------------------------


class Worker:
    """The tasks that one device made, with their versions. ``unit`` draws from [0, 1)."""

    __slots__ = ("_free", "_made", "_sent", "_unit")

    def __init__(self, unit: Callable[[], float]) -> None:
        self._unit = unit
        self._free: list[tuple[int, int]] = []
        self._made = 0
        self._sent = 0

    def next(self) -> tuple[int, int]:
        """Choose the next task. One under way is left alone, so that no device conflicts with itself.

        Returns:
            The number of the task, and the version that the device knows of it: 0 for a new one.
        """
        number = self._sent
        self._sent += 1
        free = self._free
        if number % 2 and free:
            place = int(self._unit() * len(free))
            free[place], free[-1] = free[-1], free[place]
            return free.pop()
        self._made += 1
        return self._made - 1, 0

    def acknowledged(self, record: int, version: int) -> None:
        """Know a task at its new version."""
        self._free.append((record, version))


class Tasks:
    """The work of a run in which each sync has one task; ``record`` and ``base`` are those of each sync."""

    decode = staticmethod(msgspec.json.Decoder(_TaskAnswer).decode)

    def __init__(self, prefix: str, devices: Sequence[str], unit: Callable[[], float]) -> None:
        self._prefix = prefix.encode()
        self._devices = devices
        self._names = [name.encode() for name in devices]
        self._workers = [Worker(unit) for _ in devices]
        self.record: list[int] = []
        self.base: list[int] = []

    def sync(self, device: int, number: int) -> bytes:
        """Write the next task of a device, as sync ``number`` of the run."""
        return message(self._names[device], self._prefix, number, *self.choose(device))

    def choose(self, device: int) -> tuple[int, int]:
        """Note the next task of a device, and the version that is known of it. Returns both."""
        record, base = self._workers[device].next()
        self.record.append(record)
        self.base.append(base)
        return record, base

    def verdict(self, device: int, number: int, results: Sequence[Result]) -> str:
        """Return ``synced`` for a result that is as asked for, else what it is counted as."""
        result = cast(_TaskResult, results[0] if len(results) == 1 else _TaskResult("missing"))
        if result.status != "applied":
            return f"item_{result.status}"
        record, version = self.record[number], self.base[number] + 1
        if (
            result.id != f"{self._devices[device]}-{record}"
            or result.version != version
            or result.domain != DOMAIN
            or result.seq is None
        ):
            return "wrong_result"
        self._workers[device].acknowledged(record, version)
        return "synced"


def message(device: bytes, prefix: bytes, number: int, record: int, base: int) -> bytes:
    """Write the sync of one task as it goes out now."""
    known = b"%d" % base if base else b"null"
    now_ms = time.time_ns() // 1_000_000
    at, millis = _second(now_ms // 1000), now_ms % 1000
    return _SYNC % (number, prefix, number, device, record, known, at, millis, record, number)


@lru_cache(maxsize=2)
def _second(now_s: int) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)).encode()


def data_of(record: int, number: int) -> bytes:
    """Write the data that a sync puts into a task."""
    return _DATA % (record, number)


def note_of(number: int) -> str:
    """Return the ``note`` in the data of sync ``number``."""
    return f"round {number}"


def key_of(prefix: str, number: int) -> str:
    """Return the idempotency key of a sync."""
    return f"{prefix}{number:08}"


def record_id(device: str, record: int) -> str:
    """Return the id of a device's task."""
    return f"{device}-{record}"


# -- all that a device did offline in one sync --------------------------------------------------

#: Stands where a sync is stamped with its number, eight digits.
_MARK: Final = "########"


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

    def final_seqs(self, seqs: Sequence[int]) -> list[int]:
        """Return the seq of each record after the sync, of the seqs of its items."""
        return [*seqs[self.new_records :], *seqs[self.changes : self.new_records]]


#: A device that was away for an hour or two.
OFFLINE: Final = Backlog(24, 6)
#: A device that is online.
ONLINE: Final = Backlog(1, 0)


class Backlogs:
    """The work of a run in which each sync has a backlog of its own records; all devices send the same."""

    decode = staticmethod(msgspec.json.Decoder(Answer).decode)

    def __init__(self, prefix: str, backlog: Backlog) -> None:
        self._versions = backlog.versions
        items = [_item(prefix, record, "null", "ASSIGNED", "made") for record in range(backlog.new_records)]
        items += [_item(prefix, record, "1", "INPROGRESS", "changed") for record in range(backlog.changes)]
        text = f'{{"type":"sync","id":"{_MARK}","key":"{prefix}{_MARK}","items":[{",".join(items)}]}}'
        self._text = text.encode()
        self.record: list[int] = []
        self.base: list[int] = []

    def sync(self, _: int, number: int) -> bytes:
        """Stamp the sync with its number."""
        return self._text.replace(_MARK.encode(), b"%08d" % number)

    def verdict(self, _: int, __: int, results: Sequence[Result]) -> str:
        """Compare versions and statuses with those of a backlog that was stored whole."""
        whole = [result.version for result in results] == self._versions and all(
            result.status == "applied" and result.seq is not None for result in results
        )
        return "synced" if whole else "answered_otherwise"


def _item(prefix: str, record: int, base: str, status: str, what: str) -> str:
    minute = record % 30 + 30 * (what == "changed")
    return (
        f'{{"domain":"task","id":"{prefix}{_MARK}-{record:02}","op":"put","base":{base},'
        f'"at":"2026-03-01T08:{minute:02}:00Z","data":{{"title":"Check pump {record}","status":"{status}",'
        f'"site":"plant-042","assignee":"guard-0137","lat":48.13743,"lon":11.57549,'
        f'"note":"{_MARK}-{record:02} {what}"}}}}'
    )
