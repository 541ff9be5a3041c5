"""What happened in a run with faults, as the devices saw it: all that the checker judges on.

Times are seconds since the run began.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

#: A record's data or an event's; None for a tombstone.
Data = dict[str, Any] | None


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """One item as it was sent; ``data`` is None for a delete."""

    domain: str
    id: str
    op: str
    at: str
    base: int | None = None
    data: Data = None


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device was told of one item."""

    status: str
    domain: str | None = None
    id: str | None = None
    winner: str | None = None
    conflict_id: str | None = None
    version: int | None = None
    seq: int | None = None
    data: Data | msgspec.UnsetType = msgspec.UNSET
    error: dict[str, str] | None = None


class Change(msgspec.Struct, frozen=True):
    """One version of a record as a page had it."""

    domain: str
    id: str
    version: int
    seq: int
    deleted: bool
    data: Data


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    at_s: float


class _OfDevice(_Event, frozen=True, kw_only=True):
    device: str


class Joined(_OfDevice, frozen=True, kw_only=True):
    """A device and whose it is; comes before all else of it."""

    tenant: str


class Sent(_OfDevice, frozen=True, kw_only=True):
    """A sync left under its key, for the ``attempt``-th time; only the first names its items."""

    key: str
    attempt: int
    items: list[Item]


class Answered(_OfDevice, frozen=True, kw_only=True):
    """A sync was acknowledged."""

    key: str
    replayed: bool
    results: list[Result]


class Paged(_OfDevice, frozen=True, kw_only=True):
    """A page came: ``live`` of what the device follows, ``whole`` of the pull from null at the end."""

    feed: Literal["live", "whole"]
    changes: list[Change]


class Rewound(_OfDevice, frozen=True, kw_only=True):
    """The device reads its feed again from an earlier cursor, since it could not tell an outcome."""


class SettledByHand(_OfDevice, frozen=True, kw_only=True):
    """A person settled a conflict on the device, which wrote a version."""

    conflict_id: str
    version: int
    seq: int


class Refused(_OfDevice, frozen=True, kw_only=True):
    """The server answered with an error; ``key`` is the sync's, None for any other message."""

    key: str | None
    code: str
    retryable: bool


class Closed(_OfDevice, frozen=True, kw_only=True):
    """A connection ended or did not come about: with a close code, 1006 without one."""

    code: int


class Fault(_Event, frozen=True, kw_only=True):
    """Where a round stands."""

    round: int
    name: str
    phase: Literal["begins", "over", "answered", "abandoned"]


class Logged(_Event, frozen=True, kw_only=True):
    """A warning of the server, or worse."""

    entry: dict[str, Any]


Event = Joined | Sent | Answered | Paged | Rewound | SettledByHand | Refused | Closed | Fault | Logged
OneEvent = TypeVar("OneEvent", bound=_Event)
_decode_change = msgspec.json.Decoder(Change).decode


def only(kind: type[OneEvent], events: Sequence[Event]) -> list[OneEvent]:
    """Return the events of a kind."""
    return [event for event in events if isinstance(event, kind)]


class History:
    """All events of a run in the order in which they came."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        #: How many syncs each thing happened to before they left.
        self.harms: Counter[str] = Counter()
        self._changes: dict[bytes, Change] = {}
        self._began_s = time.monotonic()

    def now_s(self) -> float:
        """Return the time of an event that happens now."""
        return round(time.monotonic() - self._began_s, 4)

    def note(self, kind: Callable[..., Event], **fields: Any) -> None:
        """Add an event that happens now."""
        self.events.append(kind(at_s=self.now_s(), **fields))

    def change(self, text: msgspec.Raw) -> Change:
        """Decode a change, once for all: most of a tenant's devices get the same ones."""
        raw = bytes(text)
        if raw not in self._changes:
            self._changes[raw] = _decode_change(raw)
        return self._changes[raw]

    def write(self, path: Path) -> None:
        """Write it as lines of JSON. Raises OSError."""
        path.write_bytes(msgspec.json.Encoder().encode_lines(self.events))
