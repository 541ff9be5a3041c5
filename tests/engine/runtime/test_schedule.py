"""Times of cron expressions, with clocks that go forward and back, against the definition by minutes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.runtime.schedule import Schedule, ScheduleError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)


def _us(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _times(schedule: Schedule, begin: datetime, end: datetime) -> list[str]:
    """Follow the next times of a schedule, and see that each is the latest one when it comes."""
    found = []
    at_us = _us(begin) - 1
    while (at_us := schedule.next(at_us)) < _us(end):
        at = _EPOCH + timedelta(microseconds=at_us)
        assert schedule.latest(at_us) == at_us
        found.append(f"{at:%d %H:%M}")
    return found


_SPRING = (
    "2026-03-28T12:00",
    "2026-03-30T12:00",
)  # in Berlin 02:00 to 03:00 of the 29th is left out, at 01:00 UTC
_AUTUMN = "2026-10-24T12:00", "2026-10-26T12:00"  # 02:00 to 03:00 of the 25th comes twice, until 01:00 UTC


@pytest.mark.parametrize(
    ("expression", "days", "times"),
    [
        pytest.param("0 2 * * *", _SPRING, ["29 01:00", "30 00:00"], id="skipped, so right after the gap"),
        pytest.param(
            "30 2 * * *", _SPRING, ["29 01:00", "30 00:30"], id="skipped, so right after the gap too"
        ),
        pytest.param("30 3 * * *", _SPRING, ["29 01:30", "30 01:30"], id="after the gap"),
        pytest.param("0 1 * * *", _SPRING, ["29 00:00", "29 23:00"], id="before the gap"),
        pytest.param("0 2,3 29 * *", _SPRING, ["29 01:00"], id="skipped and right after it, once"),
        pytest.param("*/20 2 29 * *", _SPRING, [], id="a step within the skipped hour"),
        pytest.param(
            "0 2 * * *", _AUTUMN, ["25 00:00", "26 01:00"], id="twice on the clock, the first time only"
        ),
        pytest.param(
            "30 2 * * *", _AUTUMN, ["25 00:30", "26 01:30"], id="twice on the clock, also the half hour"
        ),
        pytest.param("0 3 * * *", _AUTUMN, ["25 02:00", "26 02:00"], id="after the repeated hour"),
        pytest.param(
            "*/30 2 25 * *", _AUTUMN, ["25 00:00", "25 00:30", "25 01:00", "25 01:30"], id="steps go on"
        ),
    ],
)
def test_schedule_in_berlin_follows_daylight_saving(
    expression: str, days: tuple[str, str], times: list[str]
) -> None:
    assert _times(Schedule(expression, "Europe/Berlin"), *map(_utc, days)) == times


@pytest.mark.parametrize("days", [_SPRING, _AUTUMN], ids=["spring", "autumn"])
def test_schedule_every_hour_and_every_five_minutes_ignore_daylight_saving(days: tuple[str, str]) -> None:
    begin, end = map(_utc, days)
    for expression, count in (("0 * * * *", 48), ("*/5 * * * *", 48 * 12)):
        assert len(_times(Schedule(expression, "Europe/Berlin"), begin, end)) == count


def test_schedule_in_utc_is_the_same_all_year() -> None:
    assert _times(Schedule("0 2 * * *", "UTC"), *map(_utc, _SPRING)) == ["29 02:00", "30 02:00"]


def test_schedule_latest_reaches_back_years() -> None:
    leap_day = Schedule("0 0 29 2 *", "UTC")
    assert leap_day.latest(_us(_utc("2027-12-31T00:00"))) == _us(_utc("2024-02-29T00:00"))
    assert leap_day.next(_us(_utc("2024-02-29T00:00"))) == _us(_utc("2028-02-29T00:00"))


@pytest.mark.parametrize(
    ("expression", "timezone", "why"),
    [
        ("0 2 * *", "UTC", "must have 5 fields, such as 0 2 [*] [*] [*], and has 4"),
        ("0 0 2 * * *", "UTC", "must have 5 fields"),
        ("", "UTC", "must have 5 fields"),
        ("60 * * * *", "UTC", "is no cron expression: Bad minute"),
        ("0 0 30 2 *", "UTC", "is no cron expression: Bad day-of-month"),
        ("0 0 * * 5L/2", "UTC", "is no cron expression: Bad day-of-week"),
        ("9" * 5000 + " * * * *", "UTC", "is no cron expression$"),
        ("0 2 * * *", "Mars/Olympus", "there is no time zone Mars/Olympus on this host"),
        ("0 2 * * *", "../etc/passwd", "there is no time zone"),
        ("0 2 * * *", "", "there is no time zone"),
    ],
)
def test_schedule_wrong_is_refused_with_a_sentence(expression: str, timezone: str, why: str) -> None:
    with pytest.raises(ScheduleError, match=why):
        Schedule(expression, timezone)


# -- against the definition -------------------------------------------------------------------

_ZONES = {
    "UTC": ["2026-06-01T00:00"],
    "Europe/Berlin": ["2026-03-29T01:00", "2026-10-25T01:00"],
    "America/New_York": ["2026-03-08T07:00", "2026-11-01T06:00"],
    "Australia/Lord_Howe": ["2026-04-04T15:00", "2026-10-03T15:30"],  # half an hour
    "America/Santiago": ["2026-04-05T03:00", "2026-09-06T04:00"],  # at midnight
    "Asia/Kolkata": ["2026-06-01T00:00"],
}


class _Field(NamedTuple):
    text: str
    values: set[int]


def _field(first: int, last: int) -> st.SearchStrategy[_Field]:
    value = st.integers(first, last)
    return st.one_of(
        st.just(_Field("*", set(range(first, last + 1)))),
        st.integers(2, 40).map(lambda step: _Field(f"*/{step}", set(range(first, last + 1, step)))),
        value.map(lambda one: _Field(str(one), {one})),
        st.tuples(value, value).map(lambda two: _Field(f"{two[0]},{two[1]}", set(two))),
        st.tuples(value, value)
        .map(sorted)
        .map(lambda two: _Field(f"{two[0]}-{two[1]}", set(range(two[0], two[1] + 1)))),
    )


def _defined(
    minute: _Field, hour: _Field, weekday: _Field, zone: ZoneInfo, around: datetime
) -> Iterator[datetime]:
    """Yield all times of three days, by Debian's rules for daylight saving, looking at each minute."""

    def matches(wall: datetime) -> bool:
        return (
            wall.minute in minute.values
            and wall.hour in hour.values
            and (wall.isoweekday() % 7) in weekday.values
        )

    first = around - 2 * _DAY
    if minute.text.startswith("*") or hour.text.startswith("*"):
        yield from (at for n in range(4 * 1440) if matches((at := first + n * _MINUTE).astimezone(zone)))
        return
    wall = first.astimezone(zone).replace(tzinfo=None)
    for n in range(4 * 1440):
        if matches(shown := wall + n * _MINUTE):
            while (at := shown.replace(tzinfo=zone).astimezone(UTC)).astimezone(zone).replace(
                tzinfo=None
            ) != shown:
                shown += _MINUTE
            yield at


@settings(deadline=None)
@given(
    place=st.sampled_from([(zone, _utc(change)) for zone, changes in _ZONES.items() for change in changes]),
    minute=_field(0, 59),
    hour=_field(0, 23),
    weekday=_field(0, 6),
    minutes=st.integers(-1440, 1440),
    microseconds=st.sampled_from([-1, 0, 1]),
)
def test_schedule_times_are_those_of_the_definition(
    place: tuple[str, datetime],
    minute: _Field,
    hour: _Field,
    weekday: _Field,
    minutes: int,
    microseconds: int,
) -> None:
    zone, change = place
    # Where clocks move by half an hour, the library is half an hour off until the end of the hour.
    rhythm = minute.text.startswith("*") or hour.text.startswith("*")
    assume(not (rhythm and zone == "Australia/Lord_Howe"))
    now = change + timedelta(minutes=minutes, microseconds=microseconds)
    times = sorted(_defined(minute, hour, weekday, ZoneInfo(zone), change))
    schedule = Schedule(f"{minute.text} {hour.text} * * {weekday.text}", zone)
    for at in (now, now + timedelta(seconds=90)):  # twice, as what was found is remembered
        before = [time for time in times if time <= at]
        after = [time for time in times if time > at]
        if before:
            assert schedule.latest(_us(at)) == _us(before[-1])
        if after:
            assert schedule.next(_us(at)) == _us(after[0])
