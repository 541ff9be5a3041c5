"""Statements of a cell name each table with its schema, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.postgres.cell.names import Names, names_in, qualified
from storage.postgres.roles.tables import GROWING_TABLES, REFERENCE
from tests.storage.stores.test_tenant_keys import STORAGE, UNKNOWN, references, texts

#: A table stands as ``@name`` in these statements, so that what is expected is made by a replacement.
STATEMENTS = (
    "SELECT data FROM @records WHERE id = 1",
    "LOCK TABLE @server_processes IN SHARE ROW EXCLUSIVE MODE",
    "SELECT FROM @tenant_counters WHERE tenant_id = ANY(%(tenants)s::int[]) ORDER BY 1 FOR UPDATE",
    "SELECT 1 FROM @tenants AS t, @records AS r, unnest(%(records)s) AS events, @devices WHERE t.a = r.b",
    "SELECT 1 FROM @tenants AS t LEFT JOIN @records AS r ON r.a = t.a, @events",
    "SELECT 1 FROM @tenants JOIN @records USING (tenant_id, events) WHERE devices = 1",
    (
        "SELECT records.data, events FROM unnest(%(events)s) AS events(records) CROSS JOIN LATERAL"
        " (SELECT * FROM @records WHERE seq > 1 LIMIT 1) AS f"
    ),
    (
        "INSERT INTO @records AS r (tenant_id, events) SELECT 1, devices FROM @devices ON CONFLICT (events)"
        " DO UPDATE SET events = excluded.events, devices = records.devices WHERE r.seq < 1 RETURNING devices"
    ),
    "UPDATE @records AS r SET seq = 1, devices = events FROM @events, @devices WHERE r.a = events.a",
    "DELETE FROM @quarantine AS q USING unnest(%(t)s) AS w(t), @devices WHERE q.t = w.t",
    (
        "WITH events AS (SELECT 1 FROM @records), moved AS MATERIALIZED (DELETE FROM @devices RETURNING *)"
        " SELECT count(*) FROM moved, events"
    ),
    "SELECT extract(epoch FROM events)::bigint, substring(devices FROM records) FROM @records",
    "SELECT extract(epoch FROM (SELECT max(since) FROM @sealed_domains))",
    "SELECT 1 FROM @records WHERE a IS DISTINCT FROM devices AND b IS NOT DISTINCT FROM events",
    "SELECT 1 FROM @records AS r FOR NO KEY UPDATE OF r SKIP LOCKED",
    "SELECT 1 FROM pg_class AS records, pg_stat_activity WHERE relname = 'FROM records'",
    "SELECT 'it''s FROM records', \"FROM\" FROM ONLY @records",
    "SELECT 1 FROM (SELECT 1 FROM @records UNION ALL SELECT 2 FROM @events) AS w, @devices",
    "SELECT set_config('a', (SELECT id::text FROM @tenants WHERE name = %(FROM)s)); SELECT 1 FROM @records",
)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_names_of_tables_alone_are_in_full(statement: str) -> None:
    assert qualified(statement.replace("@", ""), "cell") == statement.replace("@", "cell.")


@given(st.lists(st.sampled_from(STATEMENTS), max_size=4).map("; ".join))
def test_names_several_statements_are_qualified_as_each_alone(statements: str) -> None:
    plain = statements.replace("@", "")
    each = "; ".join(qualified(one, "cell") for one in plain.split("; "))
    assert qualified(plain, "cell") == each


def test_names_of_classes_of_the_schema_and_of_locks_are_the_cells() -> None:
    names, other = Names("cell_a"), Names("cell_b")
    assert names.text("SELECT 'devices'::regclass, 'pg_class'::regclass, to_regclass('records')") == (
        "SELECT 'cell_a.devices'::regclass, 'pg_class'::regclass, to_regclass('cell_a.records')"
    )
    assert names.text("SELECT current_schema()::text") == "SELECT 'cell_a'::text"
    locks = [one.text("SELECT pg_try_advisory_xact_lock_shared(7)") for one in (names, other)]
    assert locks[0] != locks[1]
    assert all(lock.endswith(", 7)") for lock in locks)


def test_names_without_a_schema_are_none() -> None:
    assert names_in("") is None


def test_names_are_made_once_for_a_text() -> None:
    names = Names("cell")
    text = "SELECT 1 FROM records"
    assert names.text(text) is names.text(text)
    for number in range(3000):
        names.text(f"SELECT {number} FROM records")
    assert len(names._texts) <= 1000
    assert names.text(text) == "SELECT 1 FROM cell.records"


@pytest.mark.parametrize("path", sorted(STORAGE.rglob("*.py")), ids=lambda path: path.name)
def test_names_in_every_statement_of_the_stores_are_in_full(path: Path) -> None:
    """An independent way to find tables, that of the test of tenants, finds none that was left out."""
    for text in texts(path):
        if re.match(r"(SELECT|INSERT|UPDATE|DELETE|WITH)\b", text):
            left = {one.table for one in references(qualified(text.replace(UNKNOWN, "x"), "cell"))}
            assert left.isdisjoint({*REFERENCE, *GROWING_TABLES, "events_earlier"}), text
