"""Stalled devices: their queues grow though their syncs succeed."""

from __future__ import annotations

import pytest

from engine.operate.monitor.stalled import DeviceHour, is_stalled


@pytest.mark.parametrize(
    ("depths", "stalled"),
    [
        ((0, 5, 10), True),
        ((200, 0, 5, 10), True),  # what was before the last hours is over
        ((0, 5, 9), False),  # too little
        ((0, 10, 10), False),
        ((10, 0, 20), False),
        ((20, 10, 0), False),
        ((0, 100), False),  # two hours are one step
        ((), False),
    ],
)
def test_stalled_queue_grows_hour_by_hour_with_successes(depths: tuple[int, ...], stalled: bool) -> None:
    assert is_stalled([DeviceHour(3, depth) for depth in depths]) is stalled


@pytest.mark.parametrize("offline", [0, 1, 2])
def test_stalled_device_without_success_in_an_hour_is_not(offline: int) -> None:
    hours = [DeviceHour(0 if hour == offline else 3, 100 * hour) for hour in range(3)]
    assert not is_stalled(hours)
