"""Policies of tables and partitions: they are as they were made, and roles find the tables that have them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from bench.harness.clusters import as_role, migrate_for_roles
from compose.start import check_database_roles
from engine.model.audit import Actor
from engine.operate.ports import RefusedError
from engine.runtime.ports import StoreError, StoreRetryError
from handlers.commands.deployment import DeploymentError
from storage.embedded.servers import Services
from storage.postgres import blocking
from storage.postgres.blocking import connected
from storage.postgres.migrate import PostgresSchemaAdmin, migrate
from storage.postgres.partitions.maintenance import maintain
from storage.postgres.roles.grants import grant_roles
from storage.postgres.roles.guard import access_findings, check_roles
from storage.postgres.roles.rights import rights_finding
from storage.postgres.roles.tables import NAMED
from tests.harness.in_process_server import Running
from tests.harness.services import Serving, execute, rows, without_cells
from tests.harness.ws_device import put
from tests.storage.postgres.test_roles import refused

_PARTITIONS = (
    "SELECT relname::text FROM pg_class WHERE relispartition AND relkind = 'r'"
    " AND relnamespace = current_schema()::regnamespace ORDER BY 1"
)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Serving]:
    """As servers have it, without a tenant."""
    opened = Serving(dsn, 1)
    yield opened
    await opened.close()


# -- partitions -------------------------------------------------------------------------------

_OPENED = (
    "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO tidemark_serving, PUBLIC",
    (
        "DO $$ BEGIN EXECUTE 'GRANT ALL ON ALL TABLES IN SCHEMA ' || current_schema ||"
        " ' TO tidemark_serving'; END $$"
    ),
)
_EVENTS = (
    "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)"
    " SELECT n, 'voice', 'e', 0, 0, 'phone', '{}' FROM generate_series(1, 2) AS n"
)


async def test_partition_that_was_opened_by_a_grant_shows_named_tenants_alone(
    database: Serving, dsn: str
) -> None:
    execute(dsn, _EVENTS, *_OPENED)
    read = "SELECT tenant_id FROM events_earlier"
    assert await database.query(read) == []
    assert await database.query(read, tenants=[1]) == [(1,)]
    with pytest.raises(StoreError, match="row-level security"):
        await database.execute(_EVENTS.replace("INTO events", "INTO events_earlier"), tenants=[3])


def test_partitions_of_later_days_are_closed_whatever_default_privileges_say(dsn: str) -> None:
    serving, jobs = as_role(dsn, "serving"), as_role(dsn, "jobs")
    execute(dsn, *_OPENED)
    maintain(dsn, 24)
    made = [str(name) for (name,) in rows(dsn, _PARTITIONS) if str(name)[-1].isdigit()]
    assert made
    for role in (serving, jobs):
        assert [name for name in made if not refused(role, f"TRUNCATE {name}")] == []
    assert grant_roles(dsn, serving, jobs) > 0
    assert check_roles(serving, dsn, jobs) == [], "those of before are closed, too"


def test_partitions_without_a_policy_get_it_from_a_server_that_runs(dsn: str) -> None:
    execute(
        dsn, "DROP POLICY tenants ON events_earlier", "ALTER TABLE events_later DISABLE ROW LEVEL SECURITY"
    )
    maintain(dsn, 24)
    assert check_roles(as_role(dsn, "serving"), dsn, as_role(dsn, "jobs")) == []


async def test_partition_policies_change_no_plan_of_their_table(database: Serving, dsn: str) -> None:
    maintain(dsn, 24)
    statements = (
        "EXPLAIN (VERBOSE) SELECT * FROM events WHERE tenant_id = 1 AND id = 'e' AND sent_at_us = 0",
        f"EXPLAIN (VERBOSE) {_EVENTS}",
        "EXPLAIN (VERBOSE) DELETE FROM sync_idempotency_record WHERE tenant_id = 1",
    )
    plans = [await database.query(statement, tenants=[1]) for statement in statements]
    for (name,) in rows(dsn, _PARTITIONS):
        execute(dsn, f"ALTER TABLE {name} DISABLE ROW LEVEL SECURITY")
    assert [await database.query(statement, tenants=[1]) for statement in statements] == plans


# -- policies as they were made ---------------------------------------------------------------

_LIKE_OURS = (
    "CREATE FUNCTION current_setting(text, boolean) RETURNS text LANGUAGE sql RETURN '1,2'",
    "ALTER DATABASE {database} SET search_path = public, pg_catalog",
    f"ALTER POLICY tenants ON records USING ({NAMED.replace('current_', 'public.current_')})",
)


@pytest.mark.parametrize(
    "altering",
    [
        ("ALTER POLICY tenants ON records USING (true)",),
        ("ALTER POLICY tenants ON records WITH CHECK (true)",),
        ("ALTER POLICY tenants ON records TO tidemark_serving",),
        ("ALTER POLICY tenants ON records USING (tenant_id IS NOT NULL)",),
        ("DROP POLICY tenants ON records", "CREATE POLICY tenants ON records FOR SELECT USING (true)"),
        ("DROP POLICY tenants ON records",),
        ("ALTER TABLE records DISABLE ROW LEVEL SECURITY",),
        ("ALTER POLICY jobs ON records USING (false)",),
        pytest.param(_LIKE_OURS, marks=without_cells("a function in public")),
    ],
    ids=range(9),
)
def test_policy_that_was_altered_is_a_fault_until_it_is_made_anew(
    dsn: str, altering: tuple[str, ...]
) -> None:
    ((name,),) = rows(dsn, "SELECT current_database()::text")
    roles = as_role(dsn, "serving"), dsn, as_role(dsn, "jobs")
    execute(dsn, *(one.format(database=name) for one in altering))
    faults = [one.found for one in access_findings(*roles) if one.level == "fault"]
    assert faults
    assert "table records" in faults[0]
    with pytest.raises(DeploymentError, match="the table records"):
        check_database_roles(Services(roles[0], "", dsn, roles[2]))
    if altering is _LIKE_OURS:
        execute(dsn, f"ALTER DATABASE {name} RESET search_path")
    migrate(dsn)
    grant_roles(dsn, roles[0], roles[2])
    check_database_roles(Services(roles[0], "", dsn, roles[2]))


# -- schemas ----------------------------------------------------------------------------------


@without_cells("tables in public, and a search_path")
def test_tables_that_serving_finds_elsewhere_are_a_fault(dsn: str) -> None:
    ((name,),) = rows(dsn, "SELECT current_database()::text")
    roles = as_role(dsn, "serving"), dsn, as_role(dsn, "jobs")
    execute(
        dsn,
        "CREATE SCHEMA other",
        "CREATE TABLE other.records (LIKE records)",
        "GRANT USAGE ON SCHEMA other TO tidemark_serving",
        "GRANT ALL ON other.records TO tidemark_serving",
    )
    for path, said in (
        ("other, public", "finds, in the schema other, another table records"),
        ("other", "finds"),
    ):
        execute(dsn, f"ALTER ROLE tidemark_serving IN DATABASE {name} SET search_path = {path}")
        serving, jobs = access_findings(*roles)
        assert (serving.level, jobs.level) == ("fault", "ok")
        assert said in serving.found
        with pytest.raises(DeploymentError, match="SET search_path = public"):
            check_database_roles(Services(roles[0], "", dsn, roles[2]))


@pytest.mark.parametrize("schema", ["tidemark", "Field work"])
def test_tables_are_those_of_the_owner_in_a_schema_that_others_do_not_look_into(
    empty_dsn: str, schema: str
) -> None:
    """As where the owner's search_path begins with a schema of its own."""
    ((name,),) = rows(empty_dsn, "SELECT current_database()::text")
    execute(
        empty_dsn,
        f'CREATE SCHEMA "{schema}"',
        f'ALTER ROLE tidemark IN DATABASE {name} SET search_path = "{schema}"',
    )
    roles = as_role(empty_dsn, "serving"), empty_dsn, as_role(empty_dsn, "jobs")
    migrate_for_roles(empty_dsn)
    execute(empty_dsn, "GRANT ALL ON events_earlier TO tidemark_serving")
    faults = list(access_findings(*roles))
    assert {one.level for one in faults} == {"fault"}
    execute(empty_dsn, *(one.remedy for one in faults))
    assert {one.level for one in access_findings(*roles)} == {"ok"}
    ((found, _),) = check_roles(*roles)
    assert "the partition events_earlier" in found


@without_cells("tables in public, and a search_path")
def test_schema_of_the_owner_that_is_made_later_is_a_fault_and_no_place_for_tables(dsn: str) -> None:
    execute(dsn, "CREATE SCHEMA tidemark")
    with connected(dsn) as connection:
        finding = rights_finding(connection)
    assert finding.level == "fault"
    assert "would make tables in the schema tidemark, and the server's are in public" in finding.found
    with pytest.raises(RefusedError, match="SET search_path = public"):
        migrate(dsn)
    serving, jobs = as_role(dsn, "serving"), as_role(dsn, "jobs")
    execute(dsn, "GRANT TRUNCATE ON records TO tidemark_serving")
    assert grant_roles(dsn, serving, jobs) == 1


# -- while servers run ------------------------------------------------------------------------

_LOCKED = (
    "SELECT DISTINCT c.relname::text FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation"
    " WHERE l.mode = 'AccessExclusiveLock' AND l.granted AND l.database ="
    " (SELECT oid FROM pg_database WHERE datname = current_database())"
)
_WAITS = (
    "SELECT FROM pg_locks AS l WHERE l.relation = 'records'::regclass AND NOT l.granted"
    " AND l.mode = 'AccessExclusiveLock'"
)
_WITHOUT = (
    "SELECT count(*) FROM pg_class AS c WHERE relkind IN ('r', 'p') AND relrowsecurity"
    " AND relnamespace = current_schema()::regnamespace"
    " AND (NOT relispartition OR relname = 'events_later') AND NOT EXISTS"
    " (SELECT FROM pg_policy WHERE polrelid = c.oid AND polname = '{0}')"
)


_HERE = "relnamespace = current_schema()::regnamespace"


@pytest.mark.parametrize("policy", ["tenants", "jobs"])
async def test_policies_a_long_reader_of_one_table_holds_up_that_table_alone(dsn: str, policy: str) -> None:
    """The first migration of an installation with one role to three, while it serves."""
    serving, jobs = as_role(dsn, "serving"), as_role(dsn, "jobs")
    listed = "SELECT c.relname::text FROM pg_policy JOIN pg_class AS c ON c.oid = polrelid"
    growing = rows(dsn, f"{listed} WHERE polname = 'jobs' AND {_HERE}")
    execute(dsn, *(f"DROP POLICY {policy} ON {name}" for (name,) in growing))

    def change() -> None:
        migrate(dsn)
        grant_roles(dsn, serving, jobs)

    with closing(psycopg2.connect(dsn)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT FROM records")
        changing = asyncio.create_task(asyncio.to_thread(change))
        while await asyncio.to_thread(rows, dsn, _WITHOUT.format(policy)) != [(1,)]:
            assert not changing.done()
        while not await asyncio.to_thread(rows, dsn, _WAITS):
            assert not changing.done()
        assert rows(dsn, _LOCKED) == [], "no table is held while it waits"
        cursor.execute("COMMIT")
        await changing
    assert rows(dsn, _WITHOUT.format(policy)) == [(0,)]


async def test_policies_syncs_go_on_while_a_table_that_is_read_gets_its_policy(server: Running) -> None:
    phone = await server.device()
    execute(server.dsn, "DROP POLICY jobs ON records", "DROP POLICY jobs ON sync_analytics_day")
    roles = server.dsn, as_role(server.dsn, "serving"), as_role(server.dsn, "jobs")
    with closing(psycopg2.connect(server.dsn)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT FROM sync_analytics_day")
        changing = asyncio.create_task(asyncio.to_thread(grant_roles, *roles))
        waits = _WAITS.replace("records", "sync_analytics_day")
        while not await asyncio.to_thread(rows, server.dsn, waits):
            assert not changing.done()
        await phone.push(put("a1", None, n=1))
        assert not changing.done()
        cursor.execute("COMMIT")
        assert await changing == 2


def test_policies_a_reader_that_does_not_end_is_named_and_the_others_have_theirs(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "_GIVE_UP_S", 0.0)
    execute(
        dsn, "DROP POLICY jobs ON devices", "DROP POLICY jobs ON records", "DROP POLICY jobs ON quarantine"
    )
    with closing(psycopg2.connect(dsn)) as reader, reader.cursor() as cursor:
        cursor.execute("SELECT FROM records")
        with pytest.raises(StoreRetryError, match=f"process {reader.info.backend_pid} holds it"):
            grant_roles(dsn, as_role(dsn, "serving"), as_role(dsn, "jobs"))
    assert rows(dsn, _WITHOUT.format("jobs")) == [(1,)]


# -- the way back -----------------------------------------------------------------------------

_GRANTED = (
    "SELECT g.grantee::regrole::text FROM pg_class AS c, aclexplode(c.relacl) AS g"
    f" WHERE g.grantee::regrole::text ~ '_serving|_jobs' AND {_HERE}"
    " UNION SELECT g.grantee::regrole::text FROM pg_namespace AS n, aclexplode(n.nspacl) AS g"
    " WHERE g.grantee::regrole::text ~ '_serving|_jobs' AND n.nspname = current_schema()"
    " UNION SELECT g.grantee::regrole::text FROM pg_database AS d, aclexplode(d.datacl) AS g"
    " WHERE d.datname = current_database() AND g.grantee::regrole::text ~ '_serving|_jobs'"
)
_OTHERS_RIGHTS = (
    "SELECT c.relname::text, grantee::regrole::text FROM pg_class AS c, aclexplode(c.relacl)"
    " WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND grantee <> relowner"
)
_MIGRATIONS = Path(__file__).parents[3] / "storage/migrations"
_BEFORE = len([file for file in _MIGRATIONS.glob("*.rollback.sql") if file.name < "0041"])


@without_cells("the other cell has the same roles, which keep the right to connect")
async def test_way_back_leaves_one_role_and_the_way_up_again_three(database: Serving, dsn: str) -> None:
    ((name,),) = rows(dsn, "SELECT current_database()::text")
    serving, jobs = as_role(dsn, "serving"), as_role(dsn, "jobs")
    execute(dsn, _EVENTS, f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC')
    schema = PostgresSchemaAdmin(dsn, serving, jobs, (), Actor("account", "tests"))
    schema.migrate(None, down=False)
    assert rows(dsn, _GRANTED) != []
    assert "0041.row_security" in schema.migrate(_BEFORE, down=True)
    assert rows(dsn, _GRANTED) == []
    assert rows(dsn, f"SELECT FROM pg_policy JOIN pg_class AS c ON c.oid = polrelid WHERE {_HERE}") == []
    assert rows(dsn, f"SELECT FROM pg_class WHERE relrowsecurity AND {_HERE}") == []
    assert rows(dsn, "SELECT tenant_id FROM events ORDER BY 1") == [(1,), (2,)]
    execute(dsn, _EVENTS.replace("'e'", "'later'"), "DELETE FROM events WHERE id = 'later'")
    schema.migrate(None, down=False)
    assert await database.query("SELECT tenant_id FROM events", tenants=[2]) == [(2,)]
    check_database_roles(Services(serving, "", dsn, jobs))


def test_way_back_that_is_killed_behind_the_policies_leaves_rights_to_the_owner_alone(dsn: str) -> None:
    execute(
        dsn,
        "CREATE TABLE own (tenant_id integer)",
        "GRANT SELECT ON own TO PUBLIC",
        "GRANT SELECT ON records TO PUBLIC",
    )
    guarded = {str(table) for (table,) in rows(dsn, "SELECT polrelid::regclass::text FROM pg_policy")}
    migrate(dsn, _BEFORE, down=True)  # the command takes rights from roles of its settings behind it
    left = [table for table, _ in rows(dsn, _OTHERS_RIGHTS)]
    assert [table for table in left if table in guarded] == []
    assert "own" in left


def test_schema_from_before_policies_is_granted_to_nobody(empty_dsn: str) -> None:
    roles = as_role(empty_dsn, "serving"), as_role(empty_dsn, "jobs")
    PostgresSchemaAdmin(empty_dsn, *roles, (), Actor("account", "tests")).migrate(_BEFORE, down=False)
    assert rows(empty_dsn, _GRANTED) == []
