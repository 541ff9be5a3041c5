"""Every statement in a cell: on plain PostgreSQL, and on Citus where ``TIDEMARK_TEST_CITUS`` names one.

No ``search_path`` leads to the tables of a cell: a name without its schema would be an error. Citus refuses
some statements (``storage/postgres/cell/citus.py``), which these tests see only there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs
from yoyo import read_migrations

from bench.harness.clusters import as_role
from engine.model.audit import Actor, AuditRow
from engine.model.rows import ReadSet, WriteSet
from engine.operate.monitor.alerts import Alert, AlertKey, AlertState
from engine.operate.monitor.report import Finding
from engine.operate.monitor.statuses import HealthStatus, LastHealth
from engine.operate.ports import RefusedError
from engine.runtime.ports import StoreError
from storage.postgres import migrate as migrations
from storage.postgres.checkup.database import database_findings
from storage.postgres.connection import PoolerDetection
from storage.postgres.disk import Disk
from storage.postgres.migrate import PostgresSchemaAdmin, migrate, newest_migration, status
from storage.postgres.partitions import maintenance
from storage.postgres.partitions.maintenance import ensure_partitions, maintain
from storage.postgres.pool import Database
from storage.postgres.readiness import faults
from storage.postgres.roles.guard import _NO_POLICIES, check_roles
from storage.postgres.server_processes import ServerProcess
from storage.postgres.transactions import Transaction
from storage.stores import devices
from storage.stores.audit import PostgresAudit
from storage.stores.commit.store import PostgresStore
from storage.stores.epoch import PostgresEpoch
from storage.stores.jobs.runs import PostgresJobs
from storage.stores.keys import reseal
from storage.stores.keys.reseal import PostgresReseal
from storage.stores.monitoring.alerts import PostgresAlerts
from storage.stores.monitoring.health import PostgresHealth
from storage.stores.sealed.sealing import Sealing
from storage.stores.tenants import PostgresTenants
from storage.stores.usage import recount
from tests.harness.every_method import DAY_US, EveryMethod
from tests.harness.key_ring import sealing_of
from tests.harness.services import CELLS, PLACES, Databases, Serving, citus_cell, execute, in_cell, rows

CELL_PLACES: Final = PLACES[1:]
in_each_cell = pytest.mark.parametrize(
    "dsn", CELL_PLACES, ids=("plain", "citus")[: len(CELL_PLACES)], indirect=True
)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Serving]:
    opened = Serving(dsn, 2)
    yield opened
    await opened.close()


@in_each_cell
async def test_cell_takes_every_statement_of_the_stores(dsn: str, database: Serving) -> None:
    ((now_us,),) = rows(dsn, "SELECT (extract(epoch FROM now()) * 1000000)::bigint")
    hour_ends = partial(execute, dsn, "UPDATE tenant_counters SET sync_hour = sync_hour - 1")
    await EveryMethod(database, int(str(now_us)), hour_ends).run()
    assert await asyncio.to_thread(recount, dsn) == 1


def _alert() -> AlertState:
    found = Finding("success_rate", "acme", "warning", 0.5, 0.95, "half failed")
    alert = Alert(
        id="a1",
        kind="fired",
        metric="success_rate",
        tenant="acme",
        severity="warning",
        current_value=0.5,
        threshold=0.95,
        message="half failed",
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return AlertState(found, None, alert)


async def _run_jobs(database: Database) -> None:
    jobs = PostgresJobs(database)
    killed = await jobs.begin("aggregate", None)
    assert killed is not None
    assert await jobs.hold(killed, {})
    await database.execute("UPDATE job_runs SET held_until = now()", {})
    begun = await jobs.begin("aggregate", None)
    assert begun is not None
    assert begun.killed
    await jobs.end(begun, "succeeded", None, {})
    assert (await jobs.look(["aggregate"])).runs["aggregate"].outcome == "succeeded"
    assert set((await jobs.last_runs(["aggregate"]))[1]) == {"aggregate"}
    assert await jobs.forget() == 0


async def _alert_somebody(database: Database) -> None:
    alerts = PostgresAlerts(database)
    for _ in range(2):
        await alerts.change("webhook:1", lambda _: {AlertKey("acme", "success_rate"): _alert()})
    (due,) = await alerts.take("webhook:1", 10)
    await alerts.put_off(due, 60)
    assert await alerts.waiting(["webhook:1"]) == 1
    await alerts.taken_in(due, lambda _: AlertState())
    assert await alerts.waiting(["webhook:1"]) == 0


async def _seal(database: Database) -> None:
    await database.execute("UPDATE tenants SET created_at = now() - interval '1 day'", {})
    await database.execute("INSERT INTO sealed_domains VALUES ('task', now() - interval '1 hour')", {})


def _reseal(database: Database) -> PostgresReseal:
    async def refresh() -> None: ...

    return PostgresReseal(database, sealing_of("task"), refresh)


async def _seal_again(database: Database) -> None:
    await _seal(database)
    again = _reseal(database)
    await again.wait_s()
    assert await again.next_tenant(0) == 1
    await again.begin(1)
    while await again.step(1) is not None:
        pass
    assert await again.next_tenant(0) is None
    await again.dead_rows()


@in_each_cell
async def test_cell_takes_every_statement_of_jobs_and_processes(dsn: str) -> None:
    everyone = Database(dsn, 1)
    try:
        await PostgresTenants(everyone).add("acme")
        await _run_jobs(everyone)
        await _alert_somebody(everyone)
        await _seal_again(everyone)
        health = PostgresHealth(everyone)
        await health.replace(LastHealth(1, HealthStatus("unknown", None), {}))
        assert await health.last() is not None
        audit = PostgresAudit(everyone)
        await audit.append([AuditRow("token_revoked", Actor("user", "ann"), "t1", None, 1)])
        assert await audit.forget(1, 10) == 0
        process = ServerProcess(everyone, 8080)
        await process.record()
        await process.leave()
        assert await faults(everyone, newest_migration()) == []
        assert (await Disk(everyone, 1, 1).check()).full is not None
    finally:
        await everyone.close()
    assert not PostgresEpoch(dsn).restored()
    PostgresEpoch(dsn).renew()
    await asyncio.to_thread(maintain, dsn, 720.0, 30)


@in_each_cell
def test_many_events_ahead_move_to_their_days(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_FEW_ROWS", 10)
    monkeypatch.setattr(maintenance, "_MOVED_BLOCKS", 1)
    today = datetime.now(UTC).date()
    ensure_partitions(dsn, today, 7)
    midnight_us = int(datetime(today.year, today.month, today.day, tzinfo=UTC).timestamp()) * 1_000_000
    days = [8 + n % 9 if n % 2 else 1000 + n for n in range(300)]
    values = ", ".join(
        f"(1, 'metrics', '{n}', {midnight_us + day * DAY_US}, 0, 'phone', '{{}}')"
        for n, day in enumerate(days)
    )
    execute(dsn, f"INSERT INTO events VALUES {values}")
    ensure_partitions(dsn, today, 14)
    assert rows(dsn, "SELECT count(DISTINCT id)::int, count(*)::int FROM events") == [(300, 300)]
    later = sum(day > 14 for day in days)
    assert rows(dsn, "SELECT count(*)::int FROM events_later") == [(later,)]
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme')",
        "INSERT INTO tenant_counters (tenant_id, event_rows) VALUES (1, 301)",
        "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data, received_at)"
        " VALUES (1, 'metrics', 'old', 1, 0, 'phone', '{}', now() - interval '400 days')",
    )
    maintain(dsn, 720.0, 30)
    assert rows(dsn, "SELECT event_rows::int FROM tenant_counters") == [(300,)]
    assert rows(dsn, "SELECT count(*)::int FROM events") == [(300,)]


@in_each_cell
async def test_pass_that_seals_again_waits_for_an_open_batch(
    dsn: str, database: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch may have missed the domain. Its number is of the node where it holds its locks."""
    monkeypatch.setattr(reseal, "_OLDER_S", 0.2)
    everyone = Database(dsn, 2)
    try:
        await PostgresTenants(everyone).add("acme")
        batch = await PostgresStore(database, 720, Sealing()).begin(ReadSet([1], [], [], [], [], []))
        await _seal(everyone)
        with pytest.raises(StoreError, match="still open after"):
            await _reseal(everyone).begin(1)
        await batch.rollback()
        await _reseal(everyone).begin(1)
    finally:
        await everyone.close()


@in_each_cell
async def test_receipt_tells_whether_its_transaction_was_committed(database: Serving) -> None:
    await PostgresTenants(database).add("acme")
    receipts = []
    for ending in (Transaction.commit, Transaction.rollback):
        transaction = await database.begin(tenants=[1])
        ((receipt,),) = await transaction.run((devices._RECEIPT,), {})
        await transaction.query("UPDATE tenant_counters SET seq = seq + 1", {})
        await ending(transaction)
        receipts.append(receipt)
    stored = [await devices.PostgresDevices(database).stored(receipt) for receipt in receipts]
    assert stored == [True, False]


@pytest.fixture(params=CELL_PLACES, ids=("plain", "citus")[: len(CELL_PLACES)])
def pair(request: pytest.FixtureRequest, databases: Databases) -> Iterator[list[str]]:
    """The DSNs of two cells of one database."""
    with ExitStack() as stack:
        if request.param == "citus":
            yield [stack.enter_context(citus_cell()) for _ in CELLS]
        else:
            made = stack.enter_context(databases.copy(request.getfixturevalue("cells_template")))
            yield [in_cell(made, schema) for schema in CELLS]


async def test_two_cells_share_no_row_and_no_lock(pair: list[str]) -> None:
    read_set = ReadSet([1], [], [], [], [], [])
    async with AsyncExitStack() as stack:
        stores = []
        for dsn in pair:
            database = Serving(dsn, 2)
            stack.push_async_callback(database.close)
            await PostgresTenants(database).add("acme")
            stores.append(PostgresStore(database, 720, Sealing()))
        held = await stores[0].begin(read_set)
        other = await stores[1].begin(read_set)
        await other.commit(WriteSet({1: 7}, [], [], [], [], []))
        await held.rollback()
    seqs = [rows(dsn, "SELECT seq::int FROM tenant_counters") for dsn in pair]
    assert seqs == [[(0,)], [(7,)]]


@in_each_cell
async def test_citus_is_noted_once_by_all_databases_of_a_process(dsn: str) -> None:
    found = PoolerDetection()
    with capture_logs() as logged:
        for database in (Database(dsn, 2, pooler=found), Database(dsn, 1, pooler=found)):
            await database.query("SELECT 1")
            await database.close()
    noted = [one["event"] for one in logged if one["event"] == "citus_found"]
    assert noted == ["citus_found"] * _is_citus(dsn)
    assert found.found is _is_citus(dsn)


@in_each_cell
def test_doctor_asks_every_node_of_citus(dsn: str) -> None:
    found = list(database_findings(dsn, dsn, dsn, 1, {}, migrates_itself=False))
    of_citus = [one for one in found if one.subject == "citus"]
    assert bool(of_citus) is _is_citus(dsn)
    assert {one.level for one in of_citus} <= {"ok", "warning"}, of_citus


def _is_citus(dsn: str) -> bool:
    return bool(rows(dsn, "SELECT 1 FROM pg_extension WHERE extname = 'citus'"))


@in_each_cell
def test_roles_beside_the_owner_are_refused_on_citus(dsn: str) -> None:
    another = f"{dsn} user=somebody_else host=/nowhere"
    if not _is_citus(dsn):
        assert check_roles(as_role(dsn, "serving"), dsn, as_role(dsn, "jobs")) == []
        return
    with pytest.raises(RefusedError, match=r"one role: leave postgres\.owner_dsn"):
        check_roles(another, dsn, dsn)
    with pytest.raises(RefusedError, match="so a cell on it has one role"):
        PostgresSchemaAdmin(dsn, dsn, another, (), Actor("account", "ann")).migrate(None, down=False)
    assert [found for found, _ in check_roles(dsn, dsn, dsn)] == [_NO_POLICIES[0]]


@in_each_cell
def test_migrations_since_cells_are_distributed_run_both_ways_there(dsn: str) -> None:
    execute(dsn, "INSERT INTO tenants (name) VALUES ('acme')", "INSERT INTO devices VALUES (1, 'phone')")
    last_before = [one.name for one in status(dsn)].index("0055.tenant_devices") + 1
    if _is_citus(dsn):
        with pytest.raises(RefusedError, match=r"Citus does not take 0055\.tenant_devices and those before"):
            migrate(dsn, last_before - 1, down=True)
    taken = migrate(dsn, last_before, down=True)
    assert taken[-1] == "0059.uploads_begun"
    assert migrate(dsn) == taken[::-1]
    execute(dsn, "INSERT INTO devices VALUES (1, 'watch')")
    assert rows(dsn, "SELECT device_rows::int FROM tenant_storage") == [(2,)]


@in_each_cell
def test_migration_that_citus_refuses_is_undone_and_says_so(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = status(dsn)
    (tmp_path / "9999.other.sql").write_text(
        "CREATE TABLE other (n int); ALTER TABLE tenants ADD COLUMN other int CHECK (other > 0);"
    )
    (tmp_path / "9999.other.rollback.sql").write_text(
        "ALTER TABLE tenants DROP COLUMN other; DROP TABLE other;"
    )
    known = (*migrations._known(), *read_migrations(str(tmp_path)))
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "_known", lambda: known)
        if not _is_citus(dsn):
            assert migrate(dsn) == ["9999.other"]
            return
        with pytest.raises(RefusedError, match=r"was undone .cannot execute ADD COLUMN.* report it"):
            migrate(dsn)
    assert rows(dsn, "SELECT to_regclass('other')::text") == [(None,)]
    assert status(dsn) == before
    assert migrate(dsn) == []
