"""What is learned of a device's clock, against the definition: intervals of the last hour, cut together."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache.device_clock import QUARTER_US, DeviceClock

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
NOW_US = 1_767_323_045_000_000 // QUARTER_US * QUARTER_US


def offset_s(
    clock: DeviceClock, off_s: float, *, after_s: float = 0, took_s: float = 0, way_s: float = 0
) -> float:
    """Have a device whose clock is behind by ``off_s`` send a message; gives the offset in seconds."""
    now_us = NOW_US + round(after_s * SECOND_US)
    device_us = now_us - round((off_s + took_s) * SECOND_US) - 1
    return clock.observe(device_us, now_us, round(way_s * SECOND_US) + 1) / SECOND_US


def test_device_clock_right_on_a_slow_line_stays_right() -> None:
    clock = DeviceClock()
    assert offset_s(clock, 0, took_s=6, way_s=6) == 0
    assert offset_s(clock, 0, after_s=10, took_s=0.1, way_s=5) == 0
    assert offset_s(clock, 0, after_s=20, took_s=119, way_s=120) == 0


@pytest.mark.parametrize("off_s", [7200, -7200, 3, -3])
def test_device_clock_wrong_on_a_fast_line_is_corrected(off_s: float) -> None:
    assert offset_s(DeviceClock(), off_s, took_s=0.1, way_s=0.2) == pytest.approx(off_s, abs=0.11)


def test_device_clock_wrong_slow_messages_keep_the_offset_of_a_fast_one() -> None:
    clock = DeviceClock()
    offset_s(clock, 100, way_s=0.1)
    assert offset_s(clock, 100, after_s=60, took_s=50, way_s=60) == pytest.approx(100, abs=0.11)
    assert offset_s(clock, 100, after_s=2700, took_s=0, way_s=60) == pytest.approx(100, abs=0.11)


@pytest.mark.parametrize(("off_s", "then_s"), [(0, 7200), (7200, 0), (-100, 100), (7200, 7100)])
def test_device_clock_set_drops_older_intervals(off_s: float, then_s: float) -> None:
    clock = DeviceClock()
    offset_s(clock, off_s, way_s=5)
    assert offset_s(clock, then_s, after_s=1, way_s=5) == pytest.approx(then_s, abs=5.1)
    assert offset_s(clock, then_s, after_s=2, way_s=0.1) == pytest.approx(then_s, abs=0.11)


def test_device_clock_right_in_whole_seconds_stays_right() -> None:
    clock = DeviceClock()
    for tenth in range(30):
        now_us = NOW_US + tenth * SECOND_US // 10
        assert clock.observe(now_us // SECOND_US * SECOND_US, now_us + 1000, 2000) == 0


def test_device_clock_silent_for_a_day_keeps_only_the_new_message() -> None:
    clock = DeviceClock()
    offset_s(clock, 30, way_s=0.1)
    assert offset_s(clock, 10, after_s=86_400, way_s=60) == 0
    assert len(clock.quarters) == 1


def test_device_clock_server_clock_set_back_drops_later_intervals() -> None:
    clock = DeviceClock()
    offset_s(clock, 30, after_s=7200, way_s=60)
    assert offset_s(clock, 10, way_s=60) == 0
    assert [one.number for one in clock.quarters] == [NOW_US // QUARTER_US]


@dataclass(frozen=True)
class Message:
    """When a message came, since the one before; how far behind the clock is, and the message's way."""

    after_us: int
    off_us: int
    took_us: int
    spare_us: int


SMALL = st.sampled_from([0, 1, 100_000, 6 * SECOND_US, 90 * SECOND_US]) | st.integers(0, 10 * SECOND_US)
MESSAGES = st.builds(
    Message,
    after_us=SMALL | st.integers(0, 2 * HOUR_US) | st.just(24 * HOUR_US),
    off_us=st.sampled_from([0, 0, 0, HOUR_US, -HOUR_US, 5 * SECOND_US]) | st.integers(-HOUR_US, HOUR_US),
    took_us=SMALL,
    spare_us=SMALL,
)


class Definition:
    """The definition, word by word: every interval is kept, and the answer is looked for among all bounds."""

    def __init__(self) -> None:
        self._all: list[tuple[int, range]] = []

    def observe(self, device_us: int, now_us: int, delay_us: int) -> int:
        """Give the smallest difference that all intervals of the last hour hold."""
        slack_us = SECOND_US if device_us % SECOND_US == 0 else 0
        new = range(now_us - delay_us - slack_us - device_us, now_us - device_us + 1)
        quarter = now_us // QUARTER_US
        self._all = [(one, held) for one, held in self._all if one in range(quarter - 3, quarter + 1)]
        if any(new.stop <= held.start or held.stop <= new.start for _, held in self._all):
            self._all = []
        self._all.append((quarter, new))
        bounds = {0} | {bound for _, held in self._all for bound in (held.start, held.stop - 1)}
        return min((at for at in bounds if all(at in held for _, held in self._all)), key=abs)


@given(messages=st.lists(MESSAGES, max_size=12))
def test_device_clock_any_messages_give_the_offset_of_the_definition(messages: list[Message]) -> None:
    clock, definition = DeviceClock(), Definition()
    now_us = NOW_US
    for one in messages:
        now_us += one.after_us
        device_us = now_us - one.took_us - one.off_us
        asked = (device_us, now_us, one.took_us + one.spare_us)
        assert clock.observe(*asked) == definition.observe(*asked)
        assert len(clock.quarters) <= 4


@given(messages=st.lists(MESSAGES, max_size=12), off_us=st.just(0) | st.integers(-HOUR_US, HOUR_US))
def test_device_clock_never_set_is_not_corrected_past_the_true_offset(
    messages: list[Message], off_us: int
) -> None:
    """So a clock that is right is never corrected, whatever the lines."""
    clock = DeviceClock()
    now_us = NOW_US
    for one in messages:
        now_us += one.after_us
        offset_us = clock.observe(now_us - one.took_us - off_us, now_us, one.took_us + one.spare_us)
        assert min(0, off_us) <= offset_us <= max(0, off_us)
