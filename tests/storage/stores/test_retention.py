"""What is kept for so long and no longer: the log of conflicts, rejected items, days of events."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from engine.operate import retention
from engine.operate.retention import KeptFor, Retention
from engine.runtime.settings import SettingsError
from storage.postgres.blocking import connected
from storage.postgres.partitions.maintenance import drop_events, ensure_partitions, maintain
from storage.postgres.pool import Database
from storage.stores.jobs.retention import _CONFLICTS, _QUARANTINED, _SETTINGS, PostgresRetention
from storage.stores.usage import recount
from tests.harness.admin import add_tenants
from tests.harness.in_process_server import settings_with
from tests.harness.services import Serving, execute, rows
from tests.harness.uploads.upload_stack import job_run

_DAY_S = 86_400
_DAY_US = _DAY_S * 1_000_000
#: The time of these tests: later than all that they write.
_NOW_US = 20_000 * _DAY_US


_USUAL = KeptFor(0, 90.0 * _DAY_S, 30.0 * _DAY_S)


class Kept:
    """A database with two tenants, and its clean-up: conflicts for 90 days, rejected items for 30."""

    def __init__(self, dsn: str, database: Database) -> None:
        self.dsn = dsn
        self._store = PostgresRetention(database)

    async def run(self, kept_for: KeptFor = _USUAL) -> tuple[float, float]:
        """Clean up, and count conflicts and rejected items that went."""
        run = job_run(_NOW_US)
        await Retention(self._store, kept_for)(run)
        return run.counts.get("conflicts") or 0, run.counts.get("quarantined") or 0

    def conflict(
        self,
        name: str,
        days_ago: float,
        outcome: str = "server",
        *,
        settled: float | None = None,
        held_in: str | None = None,
        tenant: int = 1,
    ) -> None:
        """Write a row of the log."""
        opened_us = _NOW_US - int(days_ago * _DAY_US)
        settled_us = "NULL" if settled is None else str(_NOW_US - int(settled * _DAY_US))
        inside = "NULL" if held_in is None else f"'{held_in}'"
        execute(
            self.dsn,
            "INSERT INTO conflict_resolution_log (tenant_id, conflict_id, domain, record_id, device_id,"
            " policy, outcome, server_version, client_op, client_at_us, opened_at_us, settled_at_us, held_in)"
            f" VALUES ({tenant}, '{name}', 'task', '{name}', 'phone', 'manual', '{outcome}', 1, 'put', 0,"
            f" {opened_us}, {settled_us}, {inside})",
        )

    def rejected(self, name: str, days_ago: float, tenant: int = 1) -> None:
        """Write a rejected item."""
        execute(
            self.dsn,
            "INSERT INTO quarantine (tenant_id, quarantine_id, device_id, item, code, message, at_us)"
            f" VALUES ({tenant}, '{name}', 'phone', '', 'invalid', '', {_NOW_US - int(days_ago * _DAY_US)})",
        )

    def check_counted(self) -> None:
        """Hold what tenants are said to hold against the rows."""
        said = "SELECT sum(conflict_rows)::int, sum(conflict_bytes)::int, sum(quarantine_rows)::int"
        before = rows(self.dsn, f"{said} FROM tenant_counters")
        execute(self.dsn, "UPDATE tenant_counters SET counted_at = NULL")
        recount(self.dsn)
        assert rows(self.dsn, f"{said} FROM tenant_counters") == before

    def left(self) -> set[object]:
        """The names that are there still."""
        found = rows(
            self.dsn,
            "SELECT conflict_id FROM conflict_resolution_log UNION ALL SELECT quarantine_id FROM quarantine",
        )
        return {name for (name,) in found}


@pytest.fixture
async def kept(dsn: str) -> AsyncIterator[Kept]:
    for name in ("acme", "globex"):
        add_tenants(dsn, name)
    database = Serving(dsn, 1)
    try:
        yield Kept(dsn, database)
    finally:
        await database.close()


async def test_retention_conflicts_go_in_time_and_open_ones_stay(kept: Kept) -> None:
    kept.conflict("old", 91)
    kept.conflict("of another tenant", 91, tenant=2)
    kept.conflict("young", 89)
    kept.conflict("open", 400, "open")
    kept.conflict("held in open", 399, "held", held_in="open")
    kept.conflict("settled of late", 400, "client", settled=89)
    kept.conflict("held in settled of late", 399, "held", held_in="settled of late")
    kept.conflict("settled long ago", 400, "client", settled=91)
    kept.conflict("held in settled long ago", 399, "held", held_in="settled long ago")
    kept.rejected("waits", 3000)
    changes = '[{"data": 1}]'
    execute(
        kept.dsn,
        f"UPDATE conflict_resolution_log SET client_data = '{{}}', client_changes = '{changes}'",
    )
    recount(kept.dsn)
    assert await kept.run(KeptFor(0, 90.0 * _DAY_S, 0)) == (4, 0)
    kept.check_counted()
    assert kept.left() == {
        "young",
        "open",
        "held in open",
        "settled of late",
        "held in settled of late",
        "waits",
    }
    assert await kept.run(KeptFor(0, 90.0 * _DAY_S, 0)) == (0, 0)
    assert await kept.run(KeptFor(0, 0, 0)) == (0, 0)


async def test_retention_rejected_items_go_only_if_set_page_by_page(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_PAGE", 2)
    for number in range(5):
        kept.rejected(f"r{number}", 31, tenant=1 + number % 2)
        kept.conflict(f"c{number}", 91, tenant=1 + number % 2)
    kept.rejected("young", 29)
    recount(kept.dsn)
    assert await kept.run() == (5, 5)
    kept.check_counted()
    assert kept.left() == {"young"}


def test_retention_page_is_read_by_the_index_alone(kept: Kept) -> None:
    """With statistics the planner would rather read and sort all that a tenant has."""
    execute(
        kept.dsn,
        "INSERT INTO conflict_resolution_log (tenant_id, conflict_id, domain, record_id, device_id, policy,"
        " outcome, server_version, client_op, client_at_us, opened_at_us)"
        " SELECT 1 + n % 2, n, 'task', n, 'd', 'manual', 'server', 1, 'put', 0, n"
        " FROM generate_series(1, 4000) AS n",
        "INSERT INTO quarantine (tenant_id, quarantine_id, device_id, item, code, message, at_us)"
        " SELECT 1 + n % 2, n, 'd', '', '', '', n FROM generate_series(1, 4000) AS n",
        "ANALYZE conflict_resolution_log, quarantine, tenants",
    )
    values = {"now": "9000", "tenant": "2", "at": "1000", "limit": "10"}
    by_time = {_CONFLICTS: "conflict_resolution_log_settled", _QUARANTINED: "quarantine_by_time"}
    for statement, index in by_time.items():
        with connected(kept.dsn) as connection, connection, connection.cursor() as cursor:
            cursor.execute(f"{_SETTINGS.text}; EXPLAIN {statement}", values)
            plan = "\n".join(line for (line,) in cursor.fetchall()).split("CTE held")[0]
        assert f"Index Scan using {index}" in plan
        assert "Bitmap" not in plan
        assert "-> Sort" not in plan.replace("  ", "")


def test_retention_default_is_90_days_for_conflicts_and_no_limit_else() -> None:
    kept_for = settings_with().retention
    assert (kept_for.conflict_log_d, kept_for.quarantine_d, kept_for.events_d) == (90, 0, 0)
    assert kept_for.audit_d == 400


def test_retention_security_events_shorter_than_their_trigger_allows_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"retention.audit_d: must be 0, or 30 or more"):
        settings_with(retention={"audit_d": 29})
    assert [settings_with(retention={"audit_d": days}).retention.audit_d for days in (0, 30)] == [0, 30]


def test_retention_events_shorter_than_idempotency_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"retention.events_d: must be 0, or more days than the 720"):
        settings_with(retention={"events_d": 30})
    assert settings_with(retention={"events_d": 31}).retention.events_d == 31


# -- days of events ---------------------------------------------------------------------------


def _event(dsn: str, sent: datetime, received_days_ago: int = 0) -> None:
    execute(
        dsn,
        "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data, received_at)"
        f" VALUES (1, 'metrics', '{uuid.uuid4().hex}', {int(sent.timestamp() * 1_000_000)}, 0, 'phone',"
        f" '{{}}', now() - interval '{received_days_ago} days')",
    )


def _partitions(dsn: str) -> list[object]:
    found = rows(dsn, "SELECT relid::regclass::text FROM pg_partition_tree('events') WHERE isleaf ORDER BY 1")
    return [name for (name,) in found]


def test_retention_events_go_by_days_and_late_ones_are_stored(dsn: str) -> None:
    add_tenants(dsn, "acme")
    now = datetime.now(UTC)
    days = [now - timedelta(days=ago) for ago in (45, 44, 41, 39, 1)]
    # As of a database that was made 45 days ago.
    first_us = int(days[0].replace(hour=0, minute=0, second=0, microsecond=0).timestamp()) * 1_000_000
    execute(
        dsn,
        "ALTER TABLE events DETACH PARTITION events_earlier;"
        " ALTER TABLE events DETACH PARTITION events_later;"
        f" ALTER TABLE events ATTACH PARTITION events_earlier FOR VALUES FROM (MINVALUE) TO ({first_us});"
        f" ALTER TABLE events ATTACH PARTITION events_later FOR VALUES FROM ({first_us}) TO (MAXVALUE)",
    )
    for ago in range(45, -1, -1):  # a day at a time, as time went by
        ensure_partitions(dsn, (now - timedelta(days=ago)).date(), 0)
    for sent in days:
        _event(dsn, sent)
    before = _partitions(dsn)
    recount(dsn)
    assert drop_events(dsn, 0) == 0
    maintain(dsn, 720)
    assert set(before) <= set(_partitions(dsn))
    assert drop_events(dsn, 40) == 5  # of 45 to 41 days ago: that of 40 days ago has not ended for as long
    assert rows(dsn, "SELECT count(*)::int FROM events") == [(2,)]
    assert f"events_{now - timedelta(days=41):%Y%m%d}" not in _partitions(dsn)
    _event(dsn, days[0])  # of a device that was away for long
    _event(dsn, days[0] - timedelta(days=9999), received_days_ago=41)
    assert rows(dsn, "SELECT count(*)::int FROM events_earlier") == [(2,)]
    execute(dsn, "UPDATE tenant_counters SET event_rows = event_rows + 2, event_bytes = event_bytes + 4")
    assert drop_events(dsn, 40) == 0
    assert rows(dsn, "SELECT count(*)::int FROM events_earlier") == [(1,)]
    assert rows(dsn, "SELECT event_rows::int, event_bytes::int FROM tenant_counters") == [(3, 6)]
    maintain(dsn, 720, 40)
    assert rows(dsn, "SELECT count(*)::int FROM events") == [(3,)]
