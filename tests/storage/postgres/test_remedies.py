"""What PostgreSQL refuses, as people are told of it: every error here is one of a real PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg2
import pytest

from engine.operate.rows import CheckResult
from engine.runtime.ports import StoreError, StoreRetryError
from storage.embedded.servers import Services
from storage.postgres import remedies
from storage.postgres.blocking import connected
from storage.postgres.checkup.database import database_findings
from storage.postgres.commands import command_database
from storage.postgres.migrate import migrate
from storage.postgres.partitions.maintenance import maintain
from storage.postgres.pool import Database
from storage.postgres.remedies import DatabaseFaultError
from storage.postgres.roles.grants import grant_roles
from storage.stores.tenants import PostgresTenants
from tests.harness.commands import Run, command
from tests.harness.services import execute, named, without_cells

__all__ = ["command"]

_PASSWORD = "right"
_PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
_STEPS = _PAGE.with_name("deployment.md")


@pytest.fixture
def role(services: Services) -> Iterator[str]:
    """A role that may log in and owns nothing."""
    name = f"role_{uuid.uuid4().hex}"
    execute(services.dsn, f"CREATE ROLE {name} LOGIN PASSWORD 'right'")
    yield name
    execute(services.dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def _as(dsn: str, role: str, password: str = _PASSWORD) -> str:
    return f"{dsn} user={role} password='{password}'"


def _run(dsn: str, statements: Sequence[str]) -> None:
    with connected(dsn) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _fault(dsn: str, *statements: str) -> DatabaseFaultError:
    with pytest.raises(DatabaseFaultError) as refused:
        _run(dsn, statements)
    assert str(refused.value) == f"{refused.value.found}: {refused.value.remedy}"
    return refused.value


async def test_command_on_a_database_without_schema_names_migrate(command: Run, empty_dsn: str) -> None:
    refused = (await command("tenant", "list", TIDEMARK__POSTGRES__DSN=empty_dsn)).refusal()
    assert 'relation "tenants" does not exist: ' in refused
    assert "run `run.py migrate`" in refused


@without_cells("names a DSN of its own")
async def test_command_of_a_role_without_rights_names_the_recipe(command: Run, dsn: str, role: str) -> None:
    refused = (await command("tenant", "add", "acme", TIDEMARK__POSTGRES__DSN=_as(dsn, role))).refusal()
    assert "permission denied for table tenants: run `run.py migrate`" in refused
    assert "docs/operations.md, Roles and a database" in refused
    assert "### Roles and a database\n" in _PAGE.read_text("utf-8")


def test_remedies_lock_timeout_names_the_holder(dsn: str) -> None:
    holder = psycopg2.connect(dsn, application_name="a report")
    try:
        holder.cursor().execute("LOCK TABLE tenants")
        with pytest.raises(StoreRetryError) as refused, connected(dsn) as connection, connection:
            connection.cursor().execute("SET LOCAL lock_timeout = 1; LOCK TABLE tenants")
        said = str(refused.value)
        pid = holder.info.backend_pid
        assert f"process {pid} holds it (a report, role tidemark, for 0 s)" in said
        assert f"SELECT pg_terminate_backend({pid})" in said
    finally:
        holder.close()
    with pytest.raises(StoreRetryError, match="try again"), connected(dsn) as connection:
        connection.cursor().execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '55P03'; END $$")


@pytest.mark.parametrize("state", [state for state in remedies._REMEDIES if state != "55P03"])
def test_remedies_each_sqlstate_gives_its_remedy(services: Services, state: str) -> None:
    raised = f"DO $$ BEGIN RAISE EXCEPTION 'words' USING ERRCODE = '{state}'; END $$"
    fault = _fault(services.dsn, raised)
    assert (fault.found, fault.remedy) == ("words", remedies._REMEDIES[state])


def test_remedies_unknown_sqlstate_gives_its_number(services: Services) -> None:
    with (
        pytest.raises(StoreError, match=r"division by zero \(SQLSTATE 22012\)"),
        connected(services.dsn) as connection,
    ):
        connection.cursor().execute("SELECT 1 / 0")


def test_remedies_statement_timeout_gives_its_remedy(services: Services) -> None:
    fault = _fault(services.dsn, "SET statement_timeout = 1", "SELECT pg_sleep(10)")
    assert "raise that of the role" in fault.remedy


def test_remedies_refused_connection_names_the_correction(
    services: Services, embedded_services: Services, role: str
) -> None:
    theirs = _as(services.dsn, role)
    assert "correct its name in postgres.dsn" in _fault(named(services.dsn, "nowhere")).remedy
    assert "let the role in" in _fault(_as(embedded_services.dsn, "nobody_here")).remedy
    execute(services.dsn, f"ALTER ROLE {role} CONNECTION LIMIT 0")
    assert "raise max_connections" in _fault(theirs).remedy
    execute(services.dsn, f"ALTER ROLE {role} CONNECTION LIMIT -1 NOLOGIN")
    assert "let the role in" in _fault(theirs).remedy
    read_only = f"ALTER ROLE {role} SET default_transaction_read_only = on"
    execute(services.dsn, f"ALTER ROLE {role} LOGIN", read_only)
    assert "this is a standby, or" in _fault(theirs).remedy


def test_remedies_wrong_password_names_its_setting_and_is_not_shown(services: Services, role: str) -> None:
    for password in ("wrong", ""):
        fault = _fault(_as(services.dsn, role, password))
        assert "correct the password in postgres.dsn" in fault.remedy
        assert "wrong" not in str(fault)


def _findings(dsn: str) -> list[CheckResult]:
    return list(database_findings(dsn, dsn, dsn, 1, {}, migrates_itself=False))


def test_doctor_refused_connection_gives_its_remedy(services: Services) -> None:
    (finding,) = _findings(named(services.dsn, "nowhere"))
    assert (finding.level, finding.subject) == ("fault", "database")
    assert finding.found.endswith('database "nowhere" does not exist')
    assert finding.remedy.startswith("create it")


async def test_query_missing_schema_gives_its_remedy(empty_dsn: str) -> None:
    database = Database(empty_dsn, 1)
    try:
        with pytest.raises(StoreError, match=r'"tenants" does not exist: .* run `run.py migrate`'):
            await database.query("SELECT FROM tenants")
    finally:
        await database.close()


def test_docs_recipe_role_can_migrate_and_others_cannot_connect(services: Services, role: str) -> None:
    recipe = _STEPS.read_text("utf-8").split("<<'SQL'\n")[1].split("SQL\n")[0]
    name = f"made_{uuid.uuid4().hex}"
    lines = [line.replace("tidemark", name) for line in recipe.strip().splitlines()]
    try:
        for of in ("", "_serving", "_jobs"):
            execute(services.dsn, f"CREATE ROLE {name}{of} LOGIN PASSWORD 'right'")
        execute(services.dsn, *lines)
        owner = _as(named(services.dsn, name), name)
        serving, jobs = _as(owner, f"{name}_serving"), _as(owner, f"{name}_jobs")
        migrate(owner)
        assert grant_roles(owner, serving, jobs) > 0
        assert grant_roles(owner, serving, jobs) == 0, "all is as it should be"
        asyncio.run(_add_tenant(serving, jobs))
        maintain(owner, 24)
        found = list(database_findings(serving, owner, jobs, 1, {}, migrates_itself=False))
        assert [one for one in found if one.level != "ok"] == []
        assert "which grants what roles need" in _fault(_as(named(services.dsn, name), role)).remedy
    finally:
        execute(services.dsn, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        execute(services.dsn, *(f"DROP ROLE IF EXISTS {name}{of}" for of in ("", "_serving", "_jobs")))


async def _add_tenant(serving: str, jobs: str) -> None:
    async with command_database(serving, jobs) as database:
        await PostgresTenants(database).add("acme")
        assert [one.name for one in await PostgresTenants(database).tenants()] == ["acme"]
