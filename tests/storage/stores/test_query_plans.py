"""How PostgreSQL finds what a batch reads: one probe of an index a row, whatever it knows of the tables.

A plan that was made while a table was empty serves a connection for as long as that lives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bench.harness.clusters import as_role
from engine.model.rows import (
    ConflictRef,
    DeviceRecordKey,
    EventKey,
    IdempotencyKey,
    OpenConflictRef,
    QuarantineRef,
    ReadSet,
    RecordKey,
)
from engine.model.uploads import UploadRef
from storage.postgres.connection import PooledConnection
from storage.postgres.driver import Values
from storage.postgres.transactions import READ_PREPARED, SETTINGS
from storage.stores.commit import reads as commit_reads
from storage.stores.commit.reads import LOCK, kinds_of
from storage.stores.feed import _ALL, _BY_INDEX, _NEWS, _SOME
from storage.stores.plans.explained import plan_findings
from tests.harness.services import Serving, execute, without_cells

ROWS = 100_000

_READ = ReadSet(
    [1, 2],
    [IdempotencyKey(1, f"{number:032x}") for number in range(20)],
    [RecordKey(1, "task", f"r{number}") for number in range(20)],
    [EventKey(1, "voice", f"e{number}", number) for number in range(20)],
    [OpenConflictRef(1, "phone", "task", f"r{number}") for number in range(20)],
    [ConflictRef(1, f"c{number}") for number in range(20)],
    [UploadRef(1, f"{number:032x}") for number in range(20)],
    [UploadRef(1, f"{number:032x}") for number in range(20)],
    [],
    [DeviceRecordKey(1, "phone", "task", f"r{number}") for number in range(20)],
    [QuarantineRef(1, f"q{number}") for number in range(20)],
)

#: What identifies a row of each table, one of these sets of columns.
_IDENTITIES: dict[str, list[set[str]]] = {
    "tenant_counters": [{"tenant_id"}],
    "sync_idempotency_record": [{"tenant_id", "key_hash"}],
    "records": [{"tenant_id", "domain", "id"}],
    "events": [{"tenant_id", "domain", "id", "sent_at_us"}],
    "conflict_resolution_log": [
        {"tenant_id", "conflict_id"},
        {"tenant_id", "device_id", "domain", "record_id"},
    ],
    "quarantine": [{"tenant_id", "quarantine_id"}, {"tenant_id", "device_id", "domain", "record_id"}],
    "upload_session": [{"tenant_id", "upload_id"}, {"tenant_id", "domain", "record_id"}],
    "sealed_domains": [set()],
}
#: All of it is of one tenant and domain, the worst case for whoever reads by their prefix.
GROWTH = f"""
    INSERT INTO records (tenant_id, domain, id, version, seq, at_us, chain_from, data)
    SELECT 1, 'task', 'r' || n, 1, n, 0, 1, '{{}}' FROM generate_series(1, {ROWS}) AS n;

    INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)
    SELECT 1, 'voice', 'e' || n, n, 0, 'phone', '{{}}' FROM generate_series(1, {ROWS // 10}) AS n;

    INSERT INTO sync_idempotency_record (tenant_id, key_hash, request_sha256, results)
    SELECT 1, md5(n::text)::uuid, '', '[]' FROM generate_series(1, {ROWS // 10}) AS n;

    INSERT INTO conflict_resolution_log (tenant_id, conflict_id, domain, record_id, device_id, policy,
        outcome, server_version, client_op, client_at_us, opened_at_us)
    SELECT 1, 'c' || n, 'task', 'r' || n, 'phone', 'manual', 'open', 1, 'put', 0, n
    FROM generate_series(1, {ROWS // 10}) AS n;

    INSERT INTO upload_session (tenant_id, upload_id, device_id, kind, file_name, domain, record_id, metadata,
        reserved_bytes, sha256, state, expires_at)
    SELECT 1, lpad(to_hex(n), 32, '0')::uuid, 'phone', 'whole', 'a.jpg', 'task', 'r' || n / 4, '', 1, 'aa',
        'attached', now() FROM generate_series(1, {ROWS // 10}) AS n;

    INSERT INTO quarantine (tenant_id, quarantine_id, device_id, domain, record_id, item, code, message,
        at_us)
    SELECT 1, 'q' || n, 'phone', 'task', 'r' || n, '', '', '', n FROM generate_series(1, {ROWS // 10}) AS n;

    UPDATE tenant_counters SET seq = {ROWS} WHERE tenant_id = 1;
"""
TENANTS = (
    "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
    "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
)
_UNWATCHED = (
    "records",
    "events_earlier",
    "events_later",
    "sync_idempotency_record_earlier",
    "sync_idempotency_record_later",
    "conflict_resolution_log",
    "quarantine",
    "upload_session",
)

Node = dict[str, Any]


@pytest.fixture
def tenants(dsn: str) -> str:
    """A database that nobody analyses but the test."""
    execute(
        dsn,
        *TENANTS,
        *(f"ALTER TABLE {table} SET (autovacuum_enabled = off)" for table in _UNWATCHED),
    )
    return dsn


async def _explained(session: PooledConnection, statement: str, values: Values) -> list[Node]:
    """The nodes of a plan that read a table."""
    ((explained,),) = await session.run(statement, values)
    await session.run("ROLLBACK")
    return list(_scans(explained[0]["Plan"]))


def _scans(node: Node) -> Iterator[Node]:
    if "Relation Name" in node:
        yield node
    for part in node.get("Plans", []):
        yield from _scans(part)


async def _batch_is_read_by_identity(session: PooledConnection) -> None:
    kinds = kinds_of(_READ, 24, sealing=True)
    reading, values = commit_reads.reading(kinds, 24, None), commit_reads.values_of(_READ, kinds)
    await session.run_prepared("BEGIN; ", (SETTINGS, LOCK, reading), "", values)
    await session.run("ROLLBACK")
    explained = f"BEGIN; {SETTINGS.call}; EXPLAIN (FORMAT JSON) "
    scans = await _explained(session, explained + reading.call, values)
    scans += await _explained(session, explained + LOCK.call, values)
    found: set[str] = set()
    for scan in scans:
        table = next(name for name in _IDENTITIES if scan["Relation Name"].startswith(name))
        found.add(table)
        condition = scan.get("Index Cond") or scan.get("Recheck Cond") or ""
        names = set().union(*_IDENTITIES[table])
        compared = {name for name in names if re.search(rf"\({name} >?= ", condition)}
        assert compared in _IDENTITIES[table], scan
    assert found == set(_IDENTITIES)


async def _pages_are_read_in_order(session: PooledConnection) -> None:
    every: Values = {"tenant": 1, "limit": 500, "bytes": 1 << 20}
    for after in (0, ROWS // 2):
        some: Values = {**every, "domains": "{task,ticket}", "rows": 5000}
        for statement, asked in ((_ALL, every), (_SOME, some)):
            values = {**asked, "after": after}
            scans = await _explained(session, f"BEGIN; {_BY_INDEX}EXPLAIN (FORMAT JSON) {statement}", values)
            # Of several domains also where the piece ends, which the index tells by itself.
            read = [scan for scan in scans if scan["Relation Name"] == "records"]
            assert len(read) == (1 if statement is _ALL else 2)
            for scan in read:
                assert scan["Node Type"] in ("Index Scan", "Index Only Scan"), scan
                assert scan["Index Name"] == "records_by_seq", scan
                assert after == 0 or f"(seq > {after})" in scan["Index Cond"], scan
    news: Values = {"tenants": "{1,2}", "afters": "{0,0}", "limit": "100", "bytes": "100000"}
    opening = "BEGIN; " + READ_PREPARED
    await session.run_prepared(opening, (_NEWS,), "", news)
    await session.run("ROLLBACK")
    scans = await _explained(session, f"{opening}EXPLAIN (FORMAT JSON) {_NEWS.call}", news)
    (scan,) = [scan for scan in scans if scan["Relation Name"] == "records"]
    assert (scan["Node Type"], scan["Index Name"]) == ("Index Scan", "records_by_seq"), scan
    assert "seq > t.after_seq" in scan["Index Cond"], scan


def _unsuitable(dsn: str) -> list[str]:
    """What ``run.py verify`` says of plans, and should not."""
    return [one.found for one in plan_findings(as_role(dsn, "serving"), 720) if one.level != "ok"]


@without_cells("names prepared statements as a database alone has them")
@pytest.mark.parametrize("analysed_while_empty", [False, True], ids=["never analysed", "analysed when empty"])
async def test_batch_plans_use_indexes_on_empty_and_grown_tables(
    tenants: str, analysed_while_empty: bool
) -> None:
    async with AsyncExitStack() as stack:
        database = Serving(tenants, 3)
        stack.push_async_callback(database.close)
        early, grown, analysed = [await stack.enter_async_context(database.connection()) for _ in range(3)]
        if analysed_while_empty:
            execute(tenants, "ANALYZE")
        await _batch_is_read_by_identity(early)
        assert _unsuitable(tenants) == []
        execute(tenants, GROWTH)
        for session in (early, grown):
            await _batch_is_read_by_identity(session)
            await _pages_are_read_in_order(session)
        execute(tenants, "ANALYZE")
        assert _unsuitable(tenants) == []
        for session in (early, grown, analysed):
            await _batch_is_read_by_identity(session)
            await _pages_are_read_in_order(session)
    execute(tenants, "DROP INDEX records_by_seq")
    assert "the statement feed.page reads records by records_pkey(tenant_id)" in _unsuitable(tenants)
