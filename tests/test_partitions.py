"""Days of the tables that grow by time: added ahead without losing a row, dropped when past."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import psycopg2
import pytest

from engine.ports import StoreRetryError
from storage.partitions import drop_expired, ensure_partitions, maintain
from tests.services import execute, rows

_DAY = timedelta(days=1)


@pytest.fixture
def today(dsn: str) -> date:
    """The day the database was migrated on, which is where its last partitions begin."""
    found = rows(dsn, "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'events_later'")
    first_us = str(found[0][0]).split("'")[1]
    return datetime.fromtimestamp(int(first_us) / 1e6, UTC).date()


def _us(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * 1_000_000


def _event(dsn: str, day: date) -> None:
    execute(dsn, f"INSERT INTO events VALUES (1, 'metrics', '{day}', {_us(day)}, 0, 'phone', '{{}}')")


def _kept_answer(dsn: str, at: datetime) -> None:
    execute(
        dsn,
        f"INSERT INTO sync_idempotency_record VALUES (1, gen_random_uuid(), '{at.isoformat()}', '', '[]')",
    )


def _places(dsn: str, table: str) -> dict[str, int]:
    found = rows(dsn, f"SELECT tableoid::regclass::text, count(*)::int FROM {table} GROUP BY 1")
    return {str(name).removeprefix(f"{table}_"): int(str(count)) for name, count in found}


def test_each_day_ahead_has_a_partition_and_both_ends_take_the_rest(dsn: str, today: date) -> None:
    made = ensure_partitions(dsn, today, 3)
    days = [f"{today + n * _DAY:%Y%m%d}" for n in range(4)]
    assert made == [f"{table}_{day}" for table in ("events", "sync_idempotency_record") for day in days]
    for n in (-400, 0, 3, 4, 9999):
        _event(dsn, today + n * _DAY)
    assert _places(dsn, "events") == {"earlier": 1, days[0]: 1, days[3]: 1, "later": 2}
    assert ensure_partitions(dsn, today, 3) == []


def test_rows_that_came_too_early_move_to_their_day(dsn: str, today: date) -> None:
    days = [today + n * _DAY for n in (0, 1, 2, 50)]
    for day in days:
        _event(dsn, day)
        _kept_answer(dsn, datetime(day.year, day.month, day.day, 12, tzinfo=UTC))
    contents = "SELECT * FROM events ORDER BY id", "SELECT * FROM sync_idempotency_record ORDER BY created_at"
    before = [rows(dsn, content) for content in contents]
    ensure_partitions(dsn, today, 2)
    named = {f"{day:%Y%m%d}": 1 for day in days[:3]} | {"later": 1}
    assert _places(dsn, "events") == _places(dsn, "sync_idempotency_record") == named
    assert [rows(dsn, content) for content in contents] == before


def test_days_on_which_nobody_was_here_share_a_partition(dsn: str, today: date) -> None:
    ensure_partitions(dsn, today, 1)
    missed = today + 30 * _DAY
    _event(dsn, missed)
    made = ensure_partitions(dsn, today + 90 * _DAY, 0)
    shared, day = f"{today + 2 * _DAY:%Y%m%d}", f"{today + 90 * _DAY:%Y%m%d}"
    assert [name for name in made if name.startswith("events")] == [f"events_{shared}", f"events_{day}"]
    assert _places(dsn, "events") == {shared: 1}


def test_a_partition_has_what_its_table_has(dsn: str, today: date) -> None:
    ensure_partitions(dsn, today, 0)
    _event(dsn, today)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        _event(dsn, today)
    for table in ("events", "sync_idempotency_record"):
        standing = "SELECT count(*)::int FROM pg_index WHERE indisvalid AND indrelid = '{}'::regclass"
        assert rows(dsn, standing.format(f"{table}_{today:%Y%m%d}")) == rows(dsn, standing.format(table))
    assert rows(dsn, "SELECT FROM pg_partitioned_table WHERE partdefid <> 0") == []


def test_kept_answers_are_dropped_by_the_day_once_nobody_may_ask(dsn: str, today: date) -> None:
    ensure_partitions(dsn, today, 5)
    noon = datetime(today.year, today.month, today.day, 12, tzinfo=UTC)
    for n in range(4):
        _kept_answer(dsn, noon + n * _DAY)
        _event(dsn, today + n * _DAY)
    midnight = noon - timedelta(hours=12)
    assert drop_expired(dsn, midnight + _DAY) == [], "who began before midnight may still write"
    assert drop_expired(dsn, midnight + 2 * _DAY + timedelta(hours=3)) == [
        f"sync_idempotency_record_{today + n * _DAY:%Y%m%d}" for n in (0, 1)
    ]
    assert sum(_places(dsn, "sync_idempotency_record").values()) == 2
    assert sum(_places(dsn, "events").values()) == 4
    assert drop_expired(dsn, midnight + 9999 * _DAY), "all days"
    _kept_answer(dsn, midnight - _DAY)
    _kept_answer(dsn, noon + 9 * _DAY)
    assert set(_places(dsn, "sync_idempotency_record")) == {"earlier", "later"}


def test_maintain_goes_by_the_databases_clock(dsn: str) -> None:
    maintain(dsn, 24)
    found = rows(
        dsn,
        "SELECT to_regclass('events_' || to_char(day AT TIME ZONE 'UTC', 'YYYYMMDD')) IS NOT NULL"
        " FROM generate_series(now(), now() + interval '14 days', interval '1 day') AS day",
    )
    assert found == [(True,)] * 15
    maintain(dsn, 24)


def test_a_busy_table_is_left_for_later(dsn: str, today: date, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.partitions._LOCK_TIMEOUT_MS", 1)
    reader = psycopg2.connect(dsn)
    try:
        reader.cursor().execute("SELECT FROM events")
        with pytest.raises(StoreRetryError, match="too busy"):
            ensure_partitions(dsn, today, 1)
    finally:
        reader.close()
    _event(dsn, today)
    assert _places(dsn, "events") == {"later": 1}
    assert ensure_partitions(dsn, today, 1)
    assert _places(dsn, "events") == {f"{today:%Y%m%d}": 1}
