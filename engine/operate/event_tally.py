"""Bounds the events of one minute: the first of each kind are kept whole, and the rest are counted. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from engine.model.audit import Actor, AuditRow, EventName

WINDOW_S: Final = 60.0


class TallyLimits(msgspec.Struct, frozen=True):
    """Rows of one minute: ``each`` whole rows of a kind, ``rows`` whole rows of all, ``kinds`` kinds."""

    each: int = 5
    rows: int = 60
    kinds: int = 60


#: Of devices past their rates, as happens without an attack.
RATES: Final = TallyLimits(each=1, rows=20, kinds=20)


class _Kind(msgspec.Struct):
    last: AuditRow
    whole: int = 0
    left_out: int = 0


#: What two events have in common: event, actor, tenant and cause.
_Key = tuple[EventName, Actor, str | None, str]


class EventTally:
    """Events of a minute by event, actor, tenant and cause. The minute begins with its first event.

    Of more kinds than ``TallyLimits.kinds`` only the number is kept, by event. So a minute makes at most
    ``rows`` + ``kinds`` rows, and one for each event.
    """

    def __init__(self, limits: TallyLimits) -> None:
        self._limits = limits
        self._ready: list[AuditRow] = []
        self._whole = 0
        self._kinds: dict[_Key, _Kind] = {}
        self._others: dict[EventName, _Kind] = {}
        self._ends_s: float | None = None

    @property
    def open(self) -> bool:
        """Whether a minute has begun and was not ended yet."""
        return self._ends_s is not None

    def note(self, row: AuditRow, cause: str, now_s: float) -> None:
        """Note one event; ``cause`` is why it happened."""
        self._end_by(now_s)
        if self._ends_s is None:
            self._ends_s = now_s + WINDOW_S
        key = row.event, row.actor, row.tenant, cause
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) == self._limits.kinds:
                others = self._others.setdefault(row.event, _Kind(row))
                others.left_out += 1
                return
            kind = self._kinds[key] = _Kind(row)
        kind.last = row
        if kind.whole < self._limits.each and self._whole < self._limits.rows:
            kind.whole += 1
            self._whole += 1
            self._ready.append(row)
        else:
            kind.left_out += 1

    def take(self, now_s: float) -> list[AuditRow]:
        """Return the rows that are ready: whole ones at once, the others when their minute has ended."""
        self._end_by(now_s)
        ready, self._ready = self._ready, []
        return ready

    def end(self) -> None:
        """End the minute before its time."""
        for kind in self._kinds.values():
            if kind.left_out:
                self._ready.append(kind.last._replace(times=kind.left_out))
        for kind in self._others.values():
            self._ready.append(
                kind.last._replace(
                    actor=Actor("address", ""), target="", tenant=None, details=None, times=kind.left_out
                )
            )
        self._whole, self._kinds, self._others, self._ends_s = 0, {}, {}, None

    def _end_by(self, now_s: float) -> None:
        if self._ends_s is not None and now_s >= self._ends_s:
            self.end()
