"""``run.py verify``: what differs from what migrations make is found, and the named remedy mends it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bench.harness.clusters import migrate_for_roles
from storage.postgres.checkup import catalogue
from storage.postgres.partitions.maintenance import maintain
from storage.stores.plans import explained
from storage.stores.plans.hot_statements import hot_statements
from tests.harness.commands import Ended, Run, command
from tests.harness.services import execute
from tests.storage.expected import LIFETIME_H, tables

__all__ = ["command"]

_STATEMENT = re.compile(r"(?:as the owner|there is none, as the owner): (.*)")


def faults(ended: Ended) -> list[dict[str, Any]]:
    """The faults of a verification, and whether its status says that there are some."""
    found = [one for one in json.loads(ended.out) if one["level"] == "fault"]
    assert ended.status == bool(found)
    return found


#: What is broken, what is found by its subject, and whether the damage keeps statements from their index.
BROKEN: list[tuple[str, str, str]] = [
    ("DROP INDEX records_by_seq", "indexes", "records_by_seq of records is missing"),
    (
        "DROP INDEX quarantine_by_record; CREATE INDEX quarantine_by_record ON quarantine (device_id)",
        "indexes",
        "quarantine_by_record of quarantine is another one",
    ),
    (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'upload_session_begun'::regclass",
        "indexes",
        "upload_session_begun of upload_session is not valid",
    ),
    (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'events_later_pkey'::regclass",
        "indexes",
        "events_later_pkey of events_later is not valid",
    ),
    ("CREATE INDEX mine ON devices (os_version)", "indexes", "mine of devices is not valid, as one that was"),
    (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'mine'::regclass",
        "plans",
        "commit.reads.events reads all rows of events",
    ),
    (
        "ALTER TABLE devices DROP CONSTRAINT devices_pkey",
        "constraints",
        "devices_pkey of devices is missing",
    ),
    ("SELECT 1", "plans", "PostgreSQL refuses the statement devices.seen: "),
    (
        (
            "ALTER TABLE audit_log DROP CONSTRAINT audit_log_times_check;"
            "ALTER TABLE audit_log ADD CONSTRAINT audit_log_times_check CHECK (times > 5)"
        ),
        "constraints",
        "audit_log_times_check of audit_log is: CHECK ((times > 5))",
    ),
    (
        "ALTER TABLE audit_log ADD CONSTRAINT mine CHECK (times > 0) NOT VALID",
        "constraints",
        "mine of audit_log was not validated",
    ),
    (
        "ALTER TABLE devices ALTER COLUMN first_seen_at DROP NOT NULL",
        "constraints",
        "first_seen_at of devices may be null",
    ),
    ("DROP TRIGGER devices_are_counted ON devices", "triggers", "devices_are_counted of devices is missing"),
    (
        "ALTER TABLE devices DISABLE TRIGGER gone_devices_are_counted",
        "triggers",
        "gone_devices_are_counted of devices does not fire",
    ),
]


@pytest.fixture
def tomorrow(dsn: str) -> str:
    """The name of the partition of events of tomorrow, on a database that is ready to serve."""
    maintain(dsn, 24)
    return f"events_{datetime.now(UTC) + timedelta(days=1):%Y%m%d}"


@pytest.mark.usefixtures("tomorrow")
async def test_verify_each_damage_found_and_mended_by_its_remedy(command: Run, dsn: str) -> None:
    ended = await command("verify", "--json")
    assert faults(ended) == []
    assert {one["subject"] for one in json.loads(ended.out)} == {
        *("schema", "epoch", "indexes", "constraints", "triggers", "plans", "partitions"),
        *("access", "row security"),
    }
    execute(dsn, *(damage for damage, _, _ in BROKEN))
    found = faults(await command("verify", "--json"))
    for damage, subject, said in BROKEN:
        assert any(one["subject"] == subject and said in one["found"] for one in found), (damage, found)
    schema = [one for one in found if one["subject"] != "plans"]
    assert len(schema) == len([subject for _, subject, _ in BROKEN if subject != "plans"])
    for one in schema:
        statements = _STATEMENT.match(one["remedy"])
        assert statements is not None, one
        execute(dsn, *statements[1].split("; "))
    assert faults(await command("verify", "--json")) == []


async def test_verify_partitions_without_a_day_an_index_or_a_policy_found(
    command: Run, dsn: str, tomorrow: str
) -> None:
    execute(dsn, f"ALTER TABLE events DETACH PARTITION {tomorrow}")
    (gap,) = faults(await command("verify", "--json"))
    assert gap["subject"] == "partitions"
    assert "no partition of events takes rows from" in gap["found"]
    made = _STATEMENT.search(gap["remedy"])
    assert made is not None
    execute(dsn, made[1].partition("; then")[0])
    migrate_for_roles(dsn)
    assert faults(await command("verify", "--json")) == []
    execute(
        dsn,
        "CREATE INDEX events_by_device ON ONLY events (tenant_id, device_id)",
    )
    lacking = faults(await command("verify", "--json"))
    assert {one["subject"] for one in lacking} == {"indexes"}
    assert len(lacking) > len(("events_earlier", "events_later"))
    for one in lacking:
        statements = _STATEMENT.match(one["remedy"])
        assert statements is not None
        execute(dsn, *statements[1].split("; "))
    assert faults(await command("verify", "--json")) == []


async def test_verify_policy_restore_and_missing_migration_found(
    command: Run, dsn: str, empty_dsn: str
) -> None:
    execute(
        dsn,
        "ALTER POLICY tenants ON records USING (true)",
        "UPDATE cluster_state SET system_identifier = 1",
    )
    found = faults(await command("verify", "--json"))
    assert {one["subject"] for one in found} == {"epoch", "row security"}
    assert all("run.py" in one["remedy"] for one in found)
    ended = await command("verify", "--json", TIDEMARK__POSTGRES__DSN=empty_dsn)
    assert [one["subject"] for one in faults(ended)] == ["schema"]
    assert len(json.loads(ended.out)) == 1
    execute(dsn, "DROP TABLE voice_verification_log")
    found = faults(await command("verify", "--json"))
    assert "the table voice_verification_log is missing" in [one["found"] for one in found]


async def test_verify_database_away_is_one_sentence(command: Run) -> None:
    ended = await command("verify", TIDEMARK__POSTGRES__DSN="host=127.0.0.1 port=1 dbname=no")
    assert "connection to server" in ended.refusal()


def test_verify_expected_tables_are_those_of_migrations(dsn: str) -> None:
    assert catalogue.EXPECTED.read_bytes() == tables(dsn), "stale: run python -m tests.storage.expected"


def test_verify_expected_plans_are_of_all_hot_statements() -> None:
    names = [one.name for one in hot_statements(LIFETIME_H)]
    assert len(names) == len(set(names))
    assert explained.expected_accesses().keys() == set(names), "stale: run python -m tests.storage.expected"


@pytest.mark.parametrize(
    ("by", "columns", "finds_one", "right"),
    [
        ("records_pkey(tenant_id, domain, id)", 3, False, True),
        ("records_other(tenant_id, id)", 2, False, False),
        ("records_wide(tenant_id, domain, id, seq)", 4, False, True),
        ("records_unique(id)", 1, True, True),
        ("records_by_seq(tenant_id)", 1, False, False),
        (explained.ALL_ROWS, 0, False, False),
    ],
)
def test_access_reads_more_than_expected_does_not_suit(
    by: str, columns: int, finds_one: bool, right: bool
) -> None:
    access = explained.Access("records", False, by, columns, finds_one)
    assert explained.suits(access, ["records_pkey(tenant_id, domain, id)"]) is right
    small = access._replace(small=True)
    assert explained.suits(small, []) is (by != explained.ALL_ROWS)
