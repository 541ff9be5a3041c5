"""The roles of serving and of jobs: what they may do and see, and how a way past the policies is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from psycopg2.errors import InsufficientPrivilege
from psycopg2.extensions import make_dsn, parse_dsn

from bench.harness.clusters import as_role
from engine.model.audit import Actor
from engine.operate.ports import RefusedError
from engine.runtime.ports import StoreError, StorePoisonError
from storage.embedded.servers import Services
from storage.postgres.blocking import connected, schema_change
from storage.postgres.cell.dsn import owner_prefix
from storage.postgres.checkup.database import database_findings
from storage.postgres.connection import Statement
from storage.postgres.migrate import PostgresSchemaAdmin
from storage.postgres.partitions.maintenance import maintain
from storage.postgres.roles.grants import grant_roles
from storage.postgres.roles.guard import access_findings, check_roles, ways_past
from storage.postgres.roles.named_tenants import EVERYONE
from storage.postgres.roles.rights import foreign_findings
from storage.postgres.roles.tables import GROWING_TABLES, REFERENCE
from tests.harness.services import Serving, execute, named, rows, without_cells

_TABLES = (
    "SELECT c.relname::text, c.relispartition AND c.relname <> 'events_later', c.relname <> 'tenants'"
    " AND EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id')"
    " FROM pg_class AS c WHERE c.relkind IN ('r', 'p')"
    " AND c.relnamespace = current_schema()::regnamespace AND c.relname !~ 'yoyo'"
)
_POLICIES = (
    "SELECT polrelid::regclass::text, polname::text, polpermissive, polcmd::text,"
    " pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) FROM pg_policy"
    " JOIN pg_class AS c ON c.oid = polrelid AND c.relrowsecurity"
    " AND c.relnamespace = current_schema()::regnamespace"
)
_RECORD = (
    "INSERT INTO records (tenant_id, domain, id, version, seq, at_us, chain_from, data)"
    " VALUES ({0}, 'task', 'r{0}', 1, 1, 0, 1, '{{}}')"
)
_SEEN = "SELECT tenant_id FROM records ORDER BY 1"


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Serving]:
    """Two tenants, with a record each."""
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
        *(_RECORD.format(tenant) for tenant in (1, 2)),
    )
    opened = Serving(dsn, 1)
    yield opened
    await opened.close()


def refused(dsn: str, statement: str) -> bool:
    """Whether PostgreSQL says that a right is missing."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        try:
            cursor.execute(statement)
        except InsufficientPrivilege:
            return True
    return False


def jobs_of(dsn: str, table: str) -> list[str]:
    """The roles of the policy of jobs."""
    listed = (
        "SELECT pg_get_userbyid(r)::text FROM pg_policy AS p, unnest(p.polroles) AS r"
        f" WHERE p.polrelid = '{table}'::regclass AND p.polname = 'jobs' ORDER BY 1"
    )
    return [str(name) for (name,) in rows(dsn, listed)]


# -- the schema -------------------------------------------------------------------------------


def test_growing_tables_have_one_policy_and_all_others_are_listed(dsn: str) -> None:
    maintain(dsn, 24)
    tables = rows(dsn, _TABLES)
    growing = {name for name, _, grows in tables if grows}
    assert {name for name, _, grows in tables if not grows} == set(REFERENCE)
    assert {name for name, is_part, grows in tables if grows and not is_part} == set(GROWING_TABLES)
    policies = rows(dsn, _POLICIES)
    of_tenants = {one[0]: one[2:] for one in policies if one[1] == "tenants"}
    assert of_tenants.keys() == growing, "partitions too"
    ((permissive, command, visible, written),) = set(of_tenants.values())
    assert (permissive, command) == (True, "*")
    assert visible == written
    of_jobs = {one[0]: one[2:] for one in policies if one[1] == "jobs"}
    assert of_jobs.keys() == {name for name, is_part, grows in tables if grows and not is_part}
    assert set(of_jobs.values()) == {(True, "*", "true", "true")}


def test_table_of_an_operator_is_a_warning_and_gets_no_grant_and_no_policy(dsn: str) -> None:
    roles = as_role(dsn, "serving"), as_role(dsn, "jobs")
    execute(dsn, "CREATE TABLE bak2 AS SELECT * FROM records")
    assert grant_roles(dsn, *roles) == 0
    assert refused(roles[0], "SELECT FROM bak2")
    assert refused(roles[1], "SELECT FROM bak2")
    findings = [*database_findings(roles[0], dsn, roles[1], 1, {}, migrates_itself=False)]
    assert [one.found for one in findings if one.level == "fault"] == []
    (found,) = (one for one in findings if one.subject == "tables")
    assert (found.level, found.found.split(",")[0]) == ("warning", "the table bak2 is none of the server's")
    execute(dsn, "GRANT SELECT ON bak2 TO tidemark_serving")
    with connected(dsn) as connection:
        (found,) = foreign_findings(connection)
    assert found.remedy.endswith("until then, revoke all that is granted on it to tidemark_serving")


def test_functions_have_a_search_path_of_their_own(dsn: str) -> None:
    functions = "SELECT proname::text, proconfig::text FROM pg_proc"
    functions += " WHERE pronamespace = current_schema()::regnamespace"
    found = rows(dsn, functions)
    assert found
    assert [name for name, settings in found if "search_path" not in str(settings)] == []


# -- what a role may do -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT FROM events_earlier",
        "SELECT FROM sync_idempotency_record_later",
        "INSERT INTO events_later (tenant_id) VALUES (1)",
        "TRUNCATE records",
        "ALTER TABLE records DISABLE ROW LEVEL SECURITY",
        "DROP POLICY tenants ON records",
        "CREATE TABLE records_of_ours ()",
        "CREATE TEMPORARY TABLE records ()",
        "CREATE SCHEMA tidemark_serving",
        "DELETE FROM audit_log",
        "UPDATE audit_log SET actor = ''",
        "DELETE FROM sealed_domains",
        "UPDATE sealed_domains SET domain = 'other'",
        "INSERT INTO sealed_domains (domain) VALUES ('task')",
        "DELETE FROM master_keys",
        "DELETE FROM cluster_state",
        "INSERT INTO cluster_state DEFAULT VALUES",
        "DELETE FROM removed_tenants",
        "SET ROLE tidemark",
        "SET ROLE tidemark_jobs",
        "SELECT FROM _yoyo_log",
    ],
)
def test_serving_is_refused(dsn: str, statement: str) -> None:
    assert refused(as_role(dsn, "serving"), statement)


def test_jobs_is_refused_what_only_the_owner_may(dsn: str) -> None:
    for statement in (
        *("SELECT FROM events_earlier", "TRUNCATE records", "CREATE TABLE more ()"),
        *("DELETE FROM sealed_domains", "DELETE FROM master_keys", "DELETE FROM cluster_state"),
    ):
        assert refused(as_role(dsn, "jobs"), statement)


def test_grants_too_many_are_taken_back_and_missing_ones_given(dsn: str) -> None:
    roles = dsn, as_role(dsn, "serving"), as_role(dsn, "jobs")
    assert grant_roles(*roles) == 0
    execute(
        dsn,
        "GRANT ALL ON records TO tidemark_serving",
        "GRANT SELECT ON events_earlier TO tidemark_serving",
        "REVOKE ALL ON devices FROM tidemark_serving, tidemark_jobs",
        "DROP POLICY jobs ON records",
        "ALTER POLICY jobs ON devices TO PUBLIC",
    )
    assert grant_roles(*roles) > 0
    assert grant_roles(*roles) == 0
    assert refused(roles[1], "TRUNCATE records")
    assert refused(roles[1], "SELECT FROM events_earlier")
    assert not refused(roles[1], "SELECT FROM devices")
    assert check_roles(roles[1], roles[0], roles[2]) == []


@pytest.fixture
def serving_dsn(
    dsn: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> str:
    """A DSN of which not the text tells the role of serving, but what the parameter names."""
    parts = parse_dsn(as_role(dsn, "serving"))
    service = "\n".join(["[tidemark]", *(f"{name}={value}" for name, value in parts.items())])
    (tmp_path / "services").write_text(service)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    at = f"{parts['host']}:{parts['port']}/{parts['dbname']}"
    monkeypatch.setenv("PGUSER", "tidemark_serving" if request.param == "variable" else "nobody")
    return {
        "service": "service=tidemark",
        "variable": str(make_dsn(**{name: value for name, value in parts.items() if name != "user"})),
        "uri": f"postgresql://tidemark%5Fserving:{parts['password']}@{at}",
        "session": make_dsn(dsn, options="-c role=tidemark_serving"),
    }[request.param]


@pytest.mark.parametrize("serving_dsn", ["service", "variable", "uri", "session"], indirect=True)
def test_grants_go_to_the_role_that_a_dsn_connects_as(dsn: str, serving_dsn: str) -> None:
    execute(
        dsn, "REVOKE ALL ON devices FROM tidemark_serving", "GRANT TRUNCATE ON records TO tidemark_serving"
    )
    assert grant_roles(dsn, serving_dsn, as_role(dsn, "jobs")) == 2
    assert not refused(as_role(dsn, "serving"), "SELECT FROM devices")


@pytest.mark.parametrize("serving_dsn", ["service", "variable", "uri"], indirect=True)
def test_grants_let_a_role_in_that_may_not_connect_yet(dsn: str, serving_dsn: str) -> None:
    ((database,),) = rows(dsn, "SELECT current_database()::text")
    execute(dsn, f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC, tidemark_serving')
    assert grant_roles(dsn, serving_dsn, as_role(dsn, "jobs")) == 2, "to both roles"
    assert not refused(as_role(dsn, "serving"), "SELECT FROM devices")


async def test_grants_of_two_processes_at_once_wait_for_each_other(dsn: str) -> None:
    """A command that is run while a server starts for the first time."""
    roles = dsn, as_role(dsn, "serving"), as_role(dsn, "jobs")
    ((database,),) = rows(dsn, "SELECT current_database()::text")
    execute(dsn, f'GRANT CONNECT ON DATABASE "{database}" TO PUBLIC')
    with connected(dsn) as connection, schema_change(connection, 1000) as cursor:
        cursor.execute(f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC')
        granting = asyncio.create_task(asyncio.to_thread(grant_roles, *roles, make=True))
        waiting = (
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        while not await asyncio.to_thread(rows, dsn, waiting):
            assert not granting.done()
    assert await granting == 2, "each role may connect again"


def test_grants_to_a_role_that_does_not_exist_name_it(dsn: str) -> None:
    with pytest.raises(RefusedError, match=r"no role nobody_of_ours, .*: CREATE ROLE nobody_of_ours LOGIN"):
        grant_roles(dsn, dsn.replace("user=tidemark", "user=nobody_of_ours"), dsn)


def test_grants_while_servers_run_leave_the_policy_to_the_jobs_role_of_before(dsn: str) -> None:
    serving, jobs = as_role(dsn, "serving"), as_role(dsn, "jobs")
    execute(dsn, "INSERT INTO server_processes (process, place) VALUES (gen_random_uuid(), 'host')")
    for next_jobs, then in ((serving, ["tidemark_jobs", "tidemark_serving"]), (dsn, ["tidemark_jobs"])):
        execute(dsn, "UPDATE server_processes SET seen_at = now()")
        schema = PostgresSchemaAdmin(dsn, serving, next_jobs, (), Actor("account", "tests"))
        schema.migrate(None, down=False)
        assert grant_roles(dsn, serving, next_jobs, in_use=True) == 0
        assert jobs_of(dsn, "devices") == then
        execute(dsn, "UPDATE server_processes SET seen_at = now() - interval '1 hour'")
        schema.migrate(None, down=False)
        assert jobs_of(dsn, "devices") == (["tidemark_serving"] if next_jobs == serving else [])
        grant_roles(dsn, serving, jobs)


# -- what a role sees -------------------------------------------------------------------------


async def test_transaction_sees_the_tenants_that_it_names(database: Serving) -> None:
    assert await database.query(_SEEN) == []
    for tenants, seen in (([1], [1]), ([1, 2], [1, 2]), ([3], []), ("globex", [2]), ("nobody", [])):
        assert [one for (one,) in await database.query(_SEEN, {}, tenants)] == seen
        async with database.transaction(tenants=tenants) as transaction:
            assert [one for (one,) in await transaction.query(_SEEN)] == seen
        assert await database.query(_SEEN) == [], "a name ends with its transaction"
    assert await database.query(_SEEN, tenants=EVERYONE) == [(1,), (2,)]


async def test_transaction_setting_of_the_session_names_nobody(database: Serving) -> None:
    """Behind a pooler in transaction mode, somebody else's SET stays on the connection."""
    async with database.connection() as connection:
        await connection.run("SET tidemark.tenants = '1'", None)
        assert await connection.run(_SEEN, None) == [(1,)], "the setting holds"
    nobody: list[int] = []
    assert await database.query(_SEEN) == await database.query(_SEEN, {}, nobody) == []
    assert await database.execute(_SEEN) == []
    async with database.transaction() as transaction:
        assert await transaction.query(_SEEN) == []
    async with database.transaction() as transaction:
        assert await transaction.run([Statement(_SEEN)], {}) == []
    async with database.transaction(tenants=[2]) as transaction:
        assert await transaction.query(_SEEN) == [(2,)]
        assert await transaction.query(_SEEN) == [(2,)], "without tenants it stays as it was"


async def test_transaction_that_failed_leaves_no_name_behind(database: Serving) -> None:
    with pytest.raises(StorePoisonError):
        await database.query("SELECT 1 / 0", tenants=[1])
    assert await database.query(_SEEN) == []


async def test_transaction_writes_for_the_tenants_that_it_names_alone(database: Serving) -> None:
    with pytest.raises(StoreError, match="row-level security"):
        await database.execute(_RECORD.format(3), tenants=[1])
    assert await database.execute("DELETE FROM records RETURNING tenant_id", tenants=[2]) == [(2,)]
    assert await database.query(_SEEN, tenants=EVERYONE) == [(1,)]


async def test_later_events_are_guarded_while_they_are_detached(database: Serving, dsn: str) -> None:
    event = (
        "INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)"
        " SELECT n, 'voice', 'e', 9000000000000000, 0, 'phone', '{}' FROM generate_series(1, 2) AS n"
    )
    execute(dsn, event, "ALTER TABLE events DETACH PARTITION events_later")
    assert await database.query("SELECT tenant_id FROM events_later", tenants=[1]) == [(1,)]


# -- ways past --------------------------------------------------------------------------------

WAYS = {
    "CREATE ROLE {other} BYPASSRLS; GRANT {other} TO {role}": "become, {other}, whom no policy holds",
    "CREATE ROLE {other} CREATEROLE; GRANT {other} TO {role}": "who may make roles",
    "CREATE ROLE {other}; GRANT {other} TO {role}; ALTER TABLE records OWNER TO {other}": "owns the table",
    "ALTER TABLE events_earlier DISABLE ROW LEVEL SECURITY": "the partition events_earlier has no policy",
    "ALTER POLICY tenants ON events_earlier USING (true)": "or not the one that migrations make",
    "ALTER POLICY jobs ON devices TO PUBLIC": "the policy jobs of the table devices lets the role {role}",
    "GRANT DELETE ON sealed_domains TO {role}": "the role {role} may delete from the table sealed_domains",
    "GRANT SELECT ON events_earlier TO {role}": "the partition events_earlier by its name",
    "GRANT TRUNCATE ON records TO {role}": "may truncate the table records",
    "GRANT TEMPORARY ON DATABASE {database} TO {role}": "may create in the database (temporary tables)",
    "GRANT CREATE ON SCHEMA public TO {role}": "may create in the schema public",
    (
        "CREATE SCHEMA more AUTHORIZATION {role};"
        " ALTER ROLE {role} IN DATABASE {database} SET search_path = public, more"
    ): "may create in the schema more",
    "ALTER DATABASE {database} SET tidemark.tenants = '1'": "tidemark.tenants is set for every session",
}


@without_cells("tables in public, and a search_path")
@pytest.mark.parametrize(("opening", "said"), WAYS.items(), ids=range(len(WAYS)))
def test_doctor_names_each_way_past_the_policies(dsn: str, opening: str, said: str) -> None:
    ((name,),) = rows(dsn, "SELECT current_database()")
    other = f"other_{name}"
    names = {"role": "tidemark_serving", "other": other, "database": str(name)}
    try:
        execute(dsn, *opening.format(**names).split("; "))
        with connected(as_role(dsn, "serving")) as connection:
            (found, remedy), *more = ways_past(connection, "public")
        assert said.format(**names) in found
        assert "§" not in remedy
        assert more == []
    finally:
        if other in opening.format(**names):
            execute(dsn, f"DROP OWNED BY {other} CASCADE", f"DROP ROLE {other}")


def test_access_policy_beside_those_of_migrations_is_a_fault_if_it_opens_the_table_to_serving(
    dsn: str,
) -> None:
    roles = as_role(dsn, "serving"), dsn, as_role(dsn, "jobs")
    execute(dsn, "CREATE POLICY reports ON devices TO tidemark_jobs USING (true)")
    assert {one.level for one in access_findings(*roles)} == {"ok"}
    execute(dsn, 'CREATE POLICY "More" ON devices FOR SELECT USING (true)')
    (fault,) = (one for one in access_findings(*roles) if one.level == "fault")
    assert fault.found == (
        "the policy More of the table devices shows the role tidemark_serving rows of tenants that a"
        " transaction does not name"
    )
    assert fault.remedy == owner_prefix(dsn) + 'DROP POLICY "More" ON devices'
    execute(dsn, fault.remedy.removeprefix("as the owner: "))
    assert check_roles(*roles) == []
    assert {one.level for one in access_findings(*roles)} == {"ok"}


def test_doctor_jobs_without_a_role_of_its_own_is_one_way(dsn: str) -> None:
    serving = as_role(dsn, "serving")
    assert grant_roles(dsn, serving, serving) > 0
    ((found, _),) = check_roles(serving, dsn, serving)
    assert found.endswith("lets the role tidemark_serving read all tenants")
    assert grant_roles(dsn, serving, as_role(dsn, "jobs")) > 0
    assert check_roles(serving, dsn, as_role(dsn, "jobs")) == []


def test_access_jobs_without_its_policy_is_a_fault_as_one_role_with_serving_too(dsn: str) -> None:
    serving, jobs = as_role(dsn, "serving"), as_role(dsn, "jobs")
    assert [one.level for one in access_findings(serving, dsn, jobs)] == ["ok", "ok"]
    assert [one.level for one in access_findings(dsn, dsn, dsn)] == []
    assert {one.level for one in access_findings(serving, dsn, serving)} == {"fault"}
    execute(dsn, "ALTER POLICY jobs ON devices TO tidemark_serving")
    assert [one.level for one in access_findings(serving, dsn, jobs)] == ["ok", "fault"]


def test_doctor_one_role_for_all_is_one_way(dsn: str) -> None:
    ((found, remedy),) = check_roles(dsn, dsn, dsn)
    assert found == "the role tidemark is, or can become, tidemark, whom no policy holds"
    assert "postgres.owner_dsn" in remedy


def test_roles_of_several_databases_are_refused(dsn: str, services: Services) -> None:
    serving = as_role(dsn, "serving")
    for owner, jobs, setting in (
        (named(services.dsn, "postgres"), as_role(dsn, "jobs"), "owner_dsn"),
        (dsn, as_role(named(services.dsn, "tidemark"), "jobs"), "jobs_dsn"),
    ):
        with pytest.raises(RefusedError, match=f"postgres.{setting} leads to another database"):
            check_roles(serving, owner, jobs)
