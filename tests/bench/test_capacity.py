"""The capacity model: its sums, by hand; and what a device takes."""

from __future__ import annotations

import pytest

from bench.load.workload import data_of
from bench.tools.capacity import Costs, Stored, Use, need

STORED = Stored(record_bytes=500.0, key_bytes=250.0, wal_bytes=1000.0)


def test_need_of_a_million_devices_is_as_worked_out_by_hand() -> None:
    use = Use(syncs_a_day=36.0, day_h=10.0, peak=2.0, receivers=1.0, heartbeat_s=50.0, load=0.5)
    costs = Costs(server_ms=0.05, postgres_ms=0.04, delivery_ms=0.01, heartbeat_ms=0.01, primary_per_s=1500.0)
    one = need(1_000_000, use, costs, STORED)
    assert one["syncs a second at the peak"] == pytest.approx(
        2000
    )  # 36 million in 36,000 s, twice as often at the peak
    assert one["heartbeats a second"] == pytest.approx(20_000)
    assert one["cores for servers"] == pytest.approx((100 + 20 + 200) / 1000 / 0.5)
    assert one["cores for PostgreSQL"] == pytest.approx(0.16)
    assert (one["server processes"], one["primaries (cells), each with its own Redis"]) == (40, 2)
    assert one["messages out of each Redis a second, at most"] == pytest.approx(1000 * 20)
    assert one["WAL a day, GiB"] == pytest.approx(36e9 / 2**30)
    assert one["disk after a year, GiB"] == pytest.approx((18e6 * 365 * 500 + 36e6 * 250) / 2**30)
    assert one["all devices back after an outage, s"] == pytest.approx(50)


def test_need_of_one_device_has_a_process_and_a_primary() -> None:
    one = need(1, Use(), Costs(), STORED)
    assert (one["server processes"], one["primaries (cells), each with its own Redis"]) == (1, 1)


def test_wire_messages_are_as_long_as_those_of_the_benchmark() -> None:
    assert Costs().sync_bytes > len(data_of(600, 1200))
