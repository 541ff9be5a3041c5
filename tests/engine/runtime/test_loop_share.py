"""The share of the loop that a device and a tenant may take, with a clock in hand."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime.loop_share import (
    DEVICE_BURST_S,
    DEVICE_LONGEST_WAIT_S,
    DEVICE_PART,
    LONGEST_WAIT_S,
    TENANT_BURST_S,
    TENANT_PART,
    WANTED_S,
    LoopShare,
    LoopShares,
)


class _Device(msgspec.Struct):
    share: LoopShare | None = None
    charged_s: float = 0.0


def _wanted() -> LoopShares:
    """Shares of a loop that tenants 1 and 2 want at the time 0."""
    shares = LoopShares()
    shares.note_active(2, 0.0)
    shares.note_active(1, 0.0)
    return shares


def _taken_s(
    shares: LoopShares, devices: int, portion_s: float, until_s: float, crew: list[_Device] | None = None
) -> float:
    """Have devices of tenant 1 work as much as they may; gives the seconds of work, in ``crew`` of each."""
    crew = [] if crew is None else crew
    crew += [_Device() for _ in range(devices)]
    due_s = [0.0] * devices
    now_s = taken_s = 0.0
    while now_s < until_s:
        index = min(range(devices), key=due_s.__getitem__)
        now_s = max(now_s, due_s[index]) + portion_s
        taken_s += portion_s
        crew[index].charged_s += portion_s
        shares.note_active(2, now_s)
        shares.note_active(1, now_s)
        due_s[index] = now_s + shares.spend(1, crew[index], portion_s, now_s)
    return taken_s


@pytest.mark.parametrize("portion_s", [0.001, 0.005, 0.04, 0.3])
def test_loop_shares_of_one_greedy_device_is_a_tenth(portion_s: float) -> None:
    assert _taken_s(_wanted(), 1, portion_s, 100) <= 100 * DEVICE_PART + DEVICE_BURST_S + 2 * portion_s


@pytest.mark.parametrize("portion_s", [0.001, 0.005, 0.04, 0.3])
def test_loop_shares_of_ten_greedy_devices_of_one_tenant_is_three_tenths(portion_s: float) -> None:
    assert _taken_s(_wanted(), 10, portion_s, 60) <= 60 * TENANT_PART + TENANT_BURST_S + 20 * portion_s


def test_loop_shares_of_ten_greedy_devices_are_equal() -> None:
    crew: list[_Device] = []
    _taken_s(_wanted(), 10, 0.04, 60, crew)
    charged = [device.charged_s for device in crew]
    assert min(charged) >= 0.8 * max(charged)


def test_loop_shares_give_each_part_back_in_time() -> None:
    shares, device = _wanted(), _Device()
    shares.spend(1, device, 30.0, 30.0)
    assert shares.rest(1, device, 30.0) == pytest.approx((DEVICE_LONGEST_WAIT_S, LONGEST_WAIT_S))
    assert sum(shares.rest(1, device, 30.0 + LONGEST_WAIT_S)) == pytest.approx(0.0)


def test_loop_shares_of_one_tenant_alone_is_everything() -> None:
    shares = LoopShares()
    shares.note_active(1, 0.0)
    device = _Device()
    assert {shares.spend(1, device, 0.01, 0.01 * turn) for turn in range(1, 500)} == {0.0}


def test_loop_shares_of_a_device_that_sends_no_message_is_bounded_beside_others() -> None:
    shares, pongs = LoopShares(), _Device()
    for now_s in (0.0, 0.1, 0.2):
        if shares.tenant_id != 2:  # as the hot path does
            shares.note_active(2, now_s)
        waits_s = shares.spend(1, pongs, 0.5, now_s)
    assert waits_s > 0.0


def test_loop_shares_once_others_are_silent_is_everything_again() -> None:
    shares = _wanted()
    device = _Device()
    assert shares.spend(1, device, DEVICE_BURST_S + 0.01, 0.1) > 0
    assert shares.spend(1, device, 0.01, WANTED_S) == 0


def test_loop_shares_of_a_weekend_of_edits_is_not_held_up() -> None:
    shares = _wanted()
    device = _Device()
    assert {shares.spend(1, device, 0.005, 0.005 * sync) for sync in range(1, 21)} == {0.0}


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), max_size=20))
def test_loop_share_waits_no_longer_than_it_may(said: list[tuple[float, float]]) -> None:
    share, now_s = LoopShare(0.0, 0.0), 0.0
    for silence_s, spent_s in said:
        now_s += silence_s + spent_s
        wait_s = share.spend(spent_s, now_s, DEVICE_PART, DEVICE_BURST_S)
        assert 0 <= wait_s <= LONGEST_WAIT_S + 1e-9
        assert share.spend(0.0, now_s + wait_s, DEVICE_PART, DEVICE_BURST_S) == pytest.approx(0, abs=1e-6)
        now_s += wait_s


def test_shares_all_work_is_added_up_whoever_is_charged() -> None:
    shares = LoopShares()
    for tenant_id in (1, 2):
        shares.spend(tenant_id, _Device(), 0.25, 0.0)
    assert shares.charged_s == 0.5
