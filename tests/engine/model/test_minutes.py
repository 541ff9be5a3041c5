"""Minutes against a model that keeps every raw duration."""

from __future__ import annotations

from itertools import pairwise
from math import ceil

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.minutes import DURATION_BOUNDS_US, Durations, Minute

durations_us = st.lists(st.integers(0, 120_000_000), max_size=50)
in_range_us = st.lists(st.integers(100, 60_000_000), min_size=1, max_size=200)


def counted(values_us: list[int]) -> Durations:
    durations = Durations()
    for value_us in values_us:
        durations.add(value_us)
    return durations


def test_durations_bounds_grow_by_two_percent_from_a_tenth_of_a_millisecond_to_a_minute() -> None:
    assert DURATION_BOUNDS_US[0] == 100
    assert DURATION_BOUNDS_US[-1] > 60_000_000
    for below, above in pairwise(DURATION_BOUNDS_US):
        assert abs(above / below - 1.02) < 0.01


@given(in_range_us, st.floats(0, 1))
def test_durations_percentile_of_any_values_is_the_raw_one_to_a_percent(
    values_us: list[int], fraction: float
) -> None:
    raw_us = sorted(values_us)[max(1, ceil(fraction * len(values_us))) - 1]
    percentile_ms = counted(values_us).percentile_ms(fraction)
    assert percentile_ms is not None
    # Bounds are whole microseconds, so buckets near 0.1 ms are up to 3 % wide.
    assert percentile_ms * 1000 == pytest.approx(raw_us, rel=0.015)


@given(durations_us, durations_us)
def test_durations_sum_of_parts_equals_all_counted_at_once(one_us: list[int], other_us: list[int]) -> None:
    both = counted(one_us).plus(counted(other_us))
    assert both == counted(one_us + other_us)
    assert both.count == len(one_us + other_us)
    assert both.sum_us == sum(one_us + other_us)


@given(durations_us)
def test_durations_filled_buckets_make_the_same_durations(values_us: list[int]) -> None:
    durations = counted(values_us)
    buckets, counts = durations.filled()
    assert all(counts)
    assert Durations.of(buckets, counts, durations.sum_us).plus(Durations()) == durations.plus(
        Durations.of([], [], 0)
    )


def test_durations_without_values_have_no_mean_and_no_percentile() -> None:
    assert Durations().mean_ms() is None
    assert Durations().percentile_ms(0.95) is None


@pytest.mark.parametrize(("value_us", "shown_ms"), [(0, 0.1), (100, 0.1), (3_600_000_000, 60_161.1)])
def test_durations_percentile_beyond_the_bounds_is_the_outermost_bound(
    value_us: int, shown_ms: float
) -> None:
    assert counted([value_us]).percentile_ms(0.5) == pytest.approx(shown_ms, rel=1e-5)


@given(st.data())
def test_minute_sum_adds_every_field(data: st.DataObject) -> None:
    names = [field.name for field in msgspec.structs.fields(Minute) if field.name != "durations"]
    counts = st.fixed_dictionaries(dict.fromkeys(names, st.integers(0, 1000)))
    one, other = data.draw(counts), data.draw(counts)
    total = Minute(**one, durations=counted([5000])).plus(Minute(**other, durations=counted([7000])))
    assert total == Minute(
        **{name: one[name] + other[name] for name in names}, durations=counted([5000, 7000])
    )
    assert total.succeeded == total.syncs - total.failed - total.refused
