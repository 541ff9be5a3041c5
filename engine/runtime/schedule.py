"""Times of a cron expression in a time zone, as microseconds since 1970 in UTC.

The fields are those of Debian's cron, and so is daylight saving. If both minute and hour are given, a time
that the clocks skip comes right after the gap, and a time that they show twice comes the first time only. If
one of them begins with ``*``, the times follow each other as if no clock had been changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: How far back the latest time is looked for, the shortest first: the library takes some microseconds a time.
_SPANS: Final = tuple(timedelta(days=days) for days in (0.125, 2, 40, 400, 4000, 20_000))
_FIELDS: Final = 5


class ScheduleError(ValueError):
    """The expression or the time zone cannot be used; the text says why."""


class Schedule:
    """A cron expression: minute, hour, day of the month, month, day of the week.

    Args:
        expression: The five fields.
        timezone: ``UTC`` or a name of the time zone database, such as ``Europe/Berlin``.

    Raises:
        ScheduleError: One of them is wrong, or the expression has no time at all.
    """

    def __init__(self, expression: str, timezone: str) -> None:
        self.expression = expression
        self._timezone = time_zone(timezone)
        # The times around the last instant that was asked for: some expressions take milliseconds to follow.
        self._around: tuple[int | None, int] | None = None
        fields = len(expression.split())
        if fields != _FIELDS:
            raise ScheduleError(f"must have {_FIELDS} fields, such as 0 2 * * *, and has {fields}")
        try:
            self.next(0)
        except CronSimError as error:
            raise ScheduleError(f"is no cron expression: {error}") from None
        except Exception:  # the library asserts some of what it parses
            raise ScheduleError("is no cron expression") from None

    def next(self, now_us: int) -> int:
        """Return the first time after an instant."""
        return self._find(now_us)[1]

    def latest(self, now_us: int) -> int | None:
        """Return the last time that is not after an instant; None if there was none for 50 years."""
        return self._find(now_us)[0]

    def _find(self, now_us: int) -> tuple[int | None, int]:
        if self._around is not None:
            latest_us, next_us = self._around
            if latest_us is not None and latest_us <= now_us < next_us:
                return self._around
        now = _EPOCH + timedelta(microseconds=now_us)
        latest = self._latest(now)
        following = next(time for time in self._from(now) if time > now)
        self._around = None if latest is None else _us(latest), _us(following)
        return self._around

    def _latest(self, now: datetime) -> datetime | None:
        """Find it forwards: backwards the library passes over times that the clocks showed twice."""
        for span in _SPANS:
            begin = now - span
            latest = begin
            for time in self._from(begin):
                if time > now:
                    break
                latest = max(latest, time)
            if latest > begin:
                return latest
        return None

    def _from(self, begin: datetime) -> Iterator[datetime]:
        """Yield the times from an instant on, in UTC: in their zone they would compare by the wall clock."""
        for time in CronSim(self.expression, begin.astimezone(self._timezone)):
            yield time.astimezone(UTC)


def time_zone(name: str) -> tzinfo:
    """Return a time zone by its name. Raises ScheduleError."""
    if name == "UTC":  # it needs no time zone database
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise ScheduleError(
            f"there is no time zone {name} on this host: name one such as Europe/Berlin, or install tzdata"
        ) from None


def _us(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
