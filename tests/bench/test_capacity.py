"""The capacity model: its sums, by hand."""

from __future__ import annotations

import pytest

from bench.load.workload import data_of
from bench.tools.capacity import Costs, Stored, Use, need, wire

STORED = Stored(record_bytes=500.0, key_bytes=250.0, wal_bytes=1000.0)


def test_need_of_a_million_devices_is_as_worked_out_by_hand() -> None:
    use = Use(syncs_a_day=36.0, day_h=10.0, peak=2.0, receivers=1.0, heartbeat_s=50.0, load=0.5)
    costs = Costs(server_ms=0.05, postgres_ms=0.04, delivery_ms=0.01, heartbeat_ms=0.01, primary_per_s=1500.0)
    one = need(1_000_000, use, costs, STORED)
    assert one.syncs_per_s == pytest.approx(2000)  # 36 million in 36,000 s, twice as often at the peak
    assert one.heartbeats_per_s == pytest.approx(20_000)
    assert one.server_cores == pytest.approx((100 + 20 + 200) / 1000 / 0.5)
    assert one.postgres_cores == pytest.approx(0.16)
    assert (one.processes, one.primaries) == (40, 2)
    assert one.redis_out_per_s == pytest.approx(1000 * 20)
    assert one.wal_gib_day == pytest.approx(36e9 / 2**30)
    assert one.disk_gib == pytest.approx((18e6 * 365 * 500 + 36e6 * 250) / 2**30)
    assert one.reconnect_s == pytest.approx(50)


def test_need_of_one_device_has_a_process_and_a_primary() -> None:
    one = need(1, Use(), wire(), STORED)
    assert (one.processes, one.primaries) == (1, 1)


def test_wire_messages_are_as_long_as_those_of_the_benchmark() -> None:
    assert wire().sync_bytes > len(data_of(600, 1200))
