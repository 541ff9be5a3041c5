"""What an aggregation sums: which hours of which tenants together, and which figures of an hour."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.model.commit_counts import PLACES, CommitCounts
from engine.model.minutes import NO_TENANT, Minute
from engine.operate.figures.aggregation import HoursDue, LateHour, Snapshot, parts, snapshot

HOUR_US = 3_600_000_000
NOW_H = 1000


def summed(due: HoursDue) -> list[tuple[int, int]]:
    """Return each tenant and hour that is summed, as often as it is."""
    found = []
    for tenant_ids, since_us, until_us in parts(due):
        assert 0 < len(tenant_ids) * (until_us - since_us) / HOUR_US <= 24
        found += [
            (tenant_id, hour_us // HOUR_US)
            for tenant_id in tenant_ids
            for hour_us in range(since_us, until_us, HOUR_US)
        ]
    return found


@given(
    st.integers(-10, 200),
    st.lists(st.integers(1, 500), unique=True, max_size=60),
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 500)), unique=True, max_size=60),
)
def test_aggregation_parts_sum_each_hour_of_each_tenant_once(
    behind_h: int, tenant_ids: list[int], late: list[tuple[int, int]]
) -> None:
    marked = [LateHour(hour * HOUR_US, tenant_id) for hour, tenant_id in late]
    due = HoursDue((NOW_H - behind_h) * HOUR_US, NOW_H * HOUR_US, tenant_ids, marked)
    wanted = [
        (tenant_id, hour)
        for tenant_id in (NO_TENANT, *tenant_ids)
        for hour in range(NOW_H - min(behind_h, 72), NOW_H)
    ]
    wanted += [(tenant_id, hour) for hour, tenant_id in late]
    assert sorted(summed(due)) == sorted(wanted)


def test_aggregation_parts_of_the_first_run_are_of_three_days() -> None:
    hours = {hour for _, hour in summed(HoursDue(0, NOW_H * HOUR_US, [], []))}
    assert hours == set(range(NOW_H - 72, NOW_H))


def test_snapshot_figures_are_those_of_the_sum() -> None:
    hour = Minute(syncs=20, failed=3, refused=7, items=40, conflicts=6, conflicts_open=2, bytes_in=9)
    hour.uploads_finished, hour.uploads_abandoned = 8, 5
    for _ in range(9):
        hour.durations.add(10_000)
    hour.durations.add(500_000)
    found = snapshot(hour, None)
    assert found.p95_duration_ms is not None
    assert 495 < found.p95_duration_ms < 505
    assert found == Snapshot(
        *(
            20,
            10,
            3,
            7,
            0,
            59.0,
            found.p95_duration_ms,
            4.0,
            6,
            4,
            2,
            0.15,
            9,
            9,
            0,
            0,
            40,
            8,
            5,
            590_000,
            "{}",
        )
    )


def test_snapshot_figures_of_commits_are_not_those_of_minutes() -> None:
    commits = CommitCounts(syncs=30, sent_bytes=5000, saved_bytes=70)
    for domain, status, count in (
        ("task", "applied", 50),
        ("task", "resolved", 4),
        ("ticket", "conflict", 6),
    ):
        commits.items_of(domain)[PLACES[status]] += count
    hour = Minute(syncs=20, failed=3, refused=7, items=40, conflicts=6, bytes_in=9000, replayed=2)
    found = snapshot(hour, commits)
    assert (found.sync_requests, found.succeeded, found.replayed) == (42, 30, 2)
    assert (found.items, found.items_per_sync) == (60, 2.0)
    assert (found.conflicts_total, found.conflicts_auto, found.conflicts_manual) == (10, 4, 6)
    assert found.conflict_rate == 10 / 60
    assert (found.bytes_synced, found.bytes_in, found.bytes_saved_patch) == (5000, 9000, 70)
    assert msgspec.json.decode(found.domains)["task"] == {
        "applied": 50,
        "unchanged": 0,
        "resolved": 4,
        "conflict": 0,
        "rejected": 0,
    }


def test_snapshot_figures_without_data_are_none_not_zero() -> None:
    found = snapshot(Minute(syncs=5, refused=5), None)
    assert (found.sync_requests, found.succeeded, found.refused) == (5, 0, 5)
    assert (found.avg_duration_ms, found.p95_duration_ms) == (None, None)
    assert (found.items_per_sync, found.conflict_rate) == (None, None)
