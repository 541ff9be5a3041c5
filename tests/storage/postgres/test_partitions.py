"""Days of the tables that grow by time: added ahead without losing a row, dropped when past."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg2
import pytest

from engine.model.rows import EventKey, ReadSet
from engine.runtime.ports import StoreRetryError
from storage.postgres.partitions import maintenance
from storage.postgres.partitions.maintenance import drop_expired, ensure_partitions, maintain
from storage.stores.commit.store import PostgresStore
from storage.stores.sealed.sealing import Sealing
from tests.harness.services import Serving, execute, rows

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

_DAY = timedelta(days=1)


@pytest.fixture
def today(dsn: str) -> date:
    """The day the database was migrated on, which is where its last partitions begin."""
    found = rows(dsn, "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'events_later'")
    first_us = str(found[0][0]).split("'")[1]
    return datetime.fromtimestamp(int(first_us) / 1e6, UTC).date()


def _us_of_day(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * 1_000_000


def _event(dsn: str, day: date) -> None:
    execute(dsn, f"INSERT INTO events VALUES (1, 'metrics', '{day}', {_us_of_day(day)}, 0, 'phone', '{{}}')")


def _kept_answer(dsn: str, at: datetime) -> None:
    execute(
        dsn,
        f"INSERT INTO sync_idempotency_record VALUES (1, gen_random_uuid(), '{at.isoformat()}', '', '[]')",
    )


def _places(dsn: str, table: str) -> dict[str, int]:
    found = rows(dsn, f"SELECT tableoid::regclass::text, count(*)::int FROM {table} GROUP BY 1")
    return {str(name).removeprefix(f"{table}_"): int(str(count)) for name, count in found}


def test_ensure_partitions_gives_each_day_one_and_both_ends_the_rest(dsn: str, today: date) -> None:
    made = ensure_partitions(dsn, today, 3)
    days = [f"{today + n * _DAY:%Y%m%d}" for n in range(4)]
    assert made == [f"{table}_{day}" for table in ("events", "sync_idempotency_record") for day in days]
    for n in (-400, 0, 3, 4, 9999):
        _event(dsn, today + n * _DAY)
    assert _places(dsn, "events") == {"earlier": 1, days[0]: 1, days[3]: 1, "later": 2}
    assert ensure_partitions(dsn, today, 3) == []


def test_ensure_partitions_rows_ahead_move_to_their_day(dsn: str, today: date) -> None:
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


def test_ensure_partitions_days_without_a_run_share_one(dsn: str, today: date) -> None:
    ensure_partitions(dsn, today, 1)
    missed = today + 30 * _DAY
    _event(dsn, missed)
    made = ensure_partitions(dsn, today + 90 * _DAY, 0)
    shared, day = f"{today + 2 * _DAY:%Y%m%d}", f"{today + 90 * _DAY:%Y%m%d}"
    assert [name for name in made if name.startswith("events")] == [f"events_{shared}", f"events_{day}"]
    assert _places(dsn, "events") == {shared: 1}


@pytest.fixture
def many(dsn: str, today: date, monkeypatch: pytest.MonkeyPatch) -> list[EventKey]:
    """Events of the next days and of years ahead, which are many."""
    monkeypatch.setattr(maintenance, "_FEW_ROWS", 10)
    monkeypatch.setattr(maintenance, "_MOVED_BLOCKS", 1)
    ensure_partitions(dsn, today, 7)
    ahead = [8 + n % 9 if n % 2 else 1000 + n for n in range(300)]
    keys = [EventKey(1, "metrics", str(n), _us_of_day(today + days * _DAY)) for n, days in enumerate(ahead)]
    values = ", ".join(f"(1, 'metrics', '{key.id}', {key.sent_at_us}, 0, 'phone', '{{}}')" for key in keys)
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme')",
        "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
        f"INSERT INTO events VALUES {values}",
    )
    return keys


async def _found(dsn: str, keys: list[EventKey]) -> set[EventKey]:
    """Look for events as a batch does."""
    database = Serving(dsn, 1)
    try:
        transaction = await PostgresStore(database, 24, Sealing()).begin(ReadSet([1], [], [], keys, [], []))
        await transaction.rollback()
        return set(transaction.snapshot.events)
    finally:
        await database.close()


def _once_each(dsn: str, keys: list[EventKey], today: date, days: int) -> None:
    assert rows(dsn, "SELECT count(*)::int FROM events") == [(len(keys),)]
    places = Counter((datetime.fromtimestamp(key.sent_at_us / 1e6, UTC).date() - today).days for key in keys)
    named = {f"{today + n * _DAY:%Y%m%d}": count for n, count in places.items() if n <= days}
    later = sum(count for n, count in places.items() if n > days)
    assert _places(dsn, "events") == named | {"later": later}
    assert rows(dsn, "SELECT FROM pg_constraint WHERE conname = 'events_later_bound'") == []


async def test_ensure_partitions_many_rows_ahead_move_in_small_transactions(
    dsn: str, today: date, many: list[EventKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    late = EventKey(1, "metrics", "late", _us_of_day(today + 2000 * _DAY))
    soon = EventKey(1, "metrics", "soon", _us_of_day(today + 10 * _DAY))

    def move(cursor: Cursor, first: int, until: str) -> None:
        assert asyncio.run(_found(dsn, many)) == set(many)
        move_rows_really(cursor, first, until)
        moved.append(cursor.rowcount)
        if len(moved) == 2:
            for key in (late, soon):
                row = f"(1, 'metrics', '{key.id}', {key.sent_at_us}, 0, 'phone', '{{}}')"
                execute(dsn, f"INSERT INTO events VALUES {row}")

    move_rows_really = maintenance._move_rows
    monkeypatch.setattr(maintenance, "_move_rows", move)
    made = await asyncio.to_thread(ensure_partitions, dsn, today, 12)
    assert [name for name in made if name.startswith("events")] == [
        f"events_{today + n * _DAY:%Y%m%d}" for n in range(8, 13)
    ]
    assert len(moved) > 2
    assert max(moved) < 100
    everything = [*many, late, soon]
    _once_each(dsn, everything, today, 12)
    assert await _found(dsn, everything) == set(everything)


async def test_ensure_partitions_killed_cut_is_finished_by_the_next_run(
    dsn: str, today: date, many: list[EventKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    for step in ("_move_rows", "_add_bound", "_reattach_later"):
        with monkeypatch.context() as patched:
            patched.setattr(maintenance, step, killed)
            with pytest.raises(KilledError):
                ensure_partitions(dsn, today, 12)
        assert await _found(dsn, many) == set(many)
    ensure_partitions(dsn, today, 12)
    _once_each(dsn, many, today, 12)
    ensure_partitions(dsn, today + _DAY, 12)
    _once_each(dsn, many, today, 13)


async def test_ensure_partitions_partition_with_current_days_is_not_set_apart(
    dsn: str, today: date, many: list[EventKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_detach_later", None)
    ensure_partitions(dsn, today + 2 * _DAY, 8)
    _once_each(dsn, many, today, 10)
    assert await _found(dsn, many) == set(many)


@pytest.mark.usefixtures("many")
def test_ensure_partitions_bound_is_validated_before_attaching(
    dsn: str, today: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def reattach(cursor: Cursor, until: str) -> list[str]:
        cursor.execute("SELECT convalidated FROM pg_constraint WHERE conname = 'events_later_bound'")
        seen.extend(cursor.fetchall())
        cursor.execute("SET LOCAL client_min_messages = debug1")
        reattach_really(cursor, until)
        seen.extend(notice for notice in cursor.connection.notices if "implied by existing" in notice)
        return []

    reattach_really = maintenance._reattach_later
    monkeypatch.setattr(maintenance, "_reattach_later", reattach)
    ensure_partitions(dsn, today, 12)
    assert seen[0] == (True,)
    assert any("events_later" in str(notice) for notice in seen[1:]), seen


def test_ensure_partitions_new_one_has_columns_and_indexes_of_its_table(dsn: str, today: date) -> None:
    ensure_partitions(dsn, today, 0)
    _event(dsn, today)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        _event(dsn, today)
    for table in ("events", "sync_idempotency_record"):
        standing = "SELECT count(*)::int FROM pg_index WHERE indisvalid AND indrelid = '{}'::regclass"
        assert rows(dsn, standing.format(f"{table}_{today:%Y%m%d}")) == rows(dsn, standing.format(table))
    assert rows(dsn, "SELECT FROM pg_partitioned_table WHERE partdefid <> 0") == []


def test_drop_expired_answers_go_by_the_day_after_their_lifetime(dsn: str, today: date) -> None:
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


def test_ensure_partitions_busy_table_is_left_for_later(
    dsn: str, today: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.partitions.maintenance._LOCK_TIMEOUT_MS", 1)
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
