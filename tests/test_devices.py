"""Devices in memory: health that decays, rates, and a bound on how many are remembered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.admission import TokenBucket
from engine.devices import Device, Devices, health_score

HOUR_US = 3_600_000_000


def device() -> Device:
    """Make a device that has not synced yet."""
    return Device(bucket=TokenBucket(1.0, 0.0))


@pytest.mark.parametrize(
    ("total", "failed", "conflicts", "silent_hours", "score"),
    [
        (0, 0, 0, 0.0, 100),
        (0, 0, 0, 1000.0, 100),
        (10, 0, 0, 0.0, 100),
        (10, 5, 0, 0.0, 70),
        (10, 10, 0, 0.0, 40),
        (10, 0, 0, 12.0, 90),
        (10, 0, 0, 24.0, 80),
        (10, 0, 0, 1000.0, 80),
        (10, 0, 5, 0.0, 90),
        (10, 0, 10, 0.0, 80),
        (10, 0, 500, 0.0, 80),
        (10, 10, 10, 24.0, 0),
        (4, 1, 1, 6.0, 75),
    ],
)
def test_the_score_is_made_of_success_silence_and_conflicts(
    total: int, failed: int, conflicts: int, silent_hours: float, score: int
) -> None:
    assert health_score(total, failed, conflicts, silent_hours) == score


@given(
    total=st.integers(0, 10**9),
    share=st.floats(0, 1),
    conflicts=st.integers(0, 10**9),
    silent_hours=st.floats(0, 1e6),
)
def test_the_score_is_from_0_to_100(
    total: int, share: float, conflicts: int, silent_hours: float
) -> None:
    assert 0 <= health_score(total, int(total * share), conflicts, silent_hours) <= 100


def test_a_device_decays_while_it_is_silent() -> None:
    one = device()
    assert one.health_score(0) == 100
    one.synced(HOUR_US, 1000, 0)
    scores = [one.health_score(HOUR_US + hours * HOUR_US) for hours in range(0, 30, 6)]
    assert scores == [100, 95, 90, 85, 80]
    assert one.health_score(0) == 100, "a clock that was set back"


def test_only_an_answer_with_results_is_a_sync_that_counts_as_recent() -> None:
    one = device()
    one.failed(5_000)
    assert (one.total_syncs, one.failed_syncs, one.last_sync_at_us) == (1, 1, None)
    assert one.health_score(0) == 20
    one.synced(HOUR_US, 15_000, 1)
    assert (one.total_syncs, one.failed_syncs, one.last_sync_at_us) == (2, 1, HOUR_US)
    assert one.conflicts == 1
    assert one.avg_sync_duration_ms == 10.0
    assert device().avg_sync_duration_ms == 0.0


def test_what_a_device_leaves_out_stays_as_known() -> None:
    one = device()
    one.introduce(network_type="4g", app_version="1.0", os_version="14")
    one.introduce(network_type=None, app_version="1.1", os_version=None)
    assert (one.network_type, one.app_version, one.os_version) == ("4g", "1.1", "14")


def test_the_same_device_is_the_same_entry_and_tenants_do_not_share() -> None:
    devices = Devices(10, 60)
    assert devices.seen(1, "a", 0.0) is devices.seen(1, "a", 5.0)
    assert devices.seen(1, "a", 0.0) is not devices.seen(2, "a", 0.0)
    assert len(devices) == 2


def test_who_was_not_seen_for_longest_is_forgotten_first() -> None:
    devices = Devices(3, 60)
    first = {name: devices.seen(1, name, 0.0) for name in "abc"}
    devices.seen(1, "a", 1.0)
    devices.seen(1, "d", 2.0)
    assert len(devices) == 3
    assert devices.seen(1, "a", 3.0) is first["a"]
    assert devices.seen(1, "c", 3.0) is first["c"]
    assert devices.seen(1, "b", 3.0) is not first["b"]


def test_a_new_device_may_send_a_minutes_worth_at_once() -> None:
    bucket = Devices(1, 60).seen(1, "a", 100.0).bucket
    assert [bucket.take(60, 100.0) for _ in range(60)] == [0] * 60
    assert bucket.take(60, 100.0) == 1000
    assert bucket.take(60, 100.5) == 500
    assert bucket.take(60, 101.0) == 0
    assert bucket.take(60, 1_000_000.0) == 0
    assert bucket.tokens == 59.0, "a full bucket holds one minute's worth"


@given(
    per_minute=st.integers(1, 6000),
    steps_s=st.lists(st.floats(0, 100), min_size=1, max_size=200),
)
def test_no_more_pass_than_the_rate_allows_and_waiting_as_told_helps(
    per_minute: int, steps_s: list[float]
) -> None:
    bucket = TokenBucket(float(per_minute), 0.0)
    now_s, passed = 0.0, 0
    for step_s in steps_s:
        now_s += step_s
        wait_ms = bucket.take(per_minute, now_s)
        assert wait_ms >= 0
        passed += wait_ms == 0
        if wait_ms:
            assert bucket.take(per_minute, now_s + wait_ms / 1000 + 1e-6) == 0
            now_s += wait_ms / 1000 + 1e-6
            passed += 1
    assert passed <= per_minute * (1 + now_s / 60) + 1
