"""The operator of one cell against another in the same database, with a role that may make schemas."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from psycopg2.extensions import make_dsn

from engine.operate.ports import RefusedError
from engine.runtime.settings import SettingsError
from storage.postgres.cell.dsn import with_schema
from storage.postgres.migrate import migrate
from tests.harness.in_process_server import settings_with
from tests.harness.services import execute, rows
from tests.security.catalogue import against

pytestmark = against("A01:2025", "V8.3")

#: A function that stands nearer than PostgreSQL's own: it takes the very type, and theirs has to convert it.
_TRAP = "CREATE FUNCTION {0}.lower(name) RETURNS text LANGUAGE sql AS 'SELECT current_user::text'"


@contextmanager
def owner(dsn: str, name: str) -> Iterator[str]:
    """Give the DSN of a role that may make schemas, as the owner of a cell may."""
    role, password = f"{name}_{secrets.token_hex(4)}", secrets.token_hex(16)
    ((database,),) = rows(dsn, "SELECT current_database()::text")
    execute(
        dsn,
        f"CREATE ROLE {role} LOGIN PASSWORD '{password}'",
        f'GRANT CREATE, CONNECT ON DATABASE "{database}" TO {role}',
    )
    try:
        yield str(make_dsn(dsn, user=role, password=password))
    finally:
        execute(dsn, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


def test_cells_schema_that_another_role_made_is_refused(empty_dsn: str) -> None:
    """Its owner could drop the tables there, and put functions and tables in their place."""
    with owner(empty_dsn, "north") as north, owner(empty_dsn, "south") as south:
        execute(south, "CREATE SCHEMA north", "GRANT ALL ON SCHEMA north TO PUBLIC", _TRAP.format("north"))
        for dsn in (north, empty_dsn):  # the latter as a superuser
            with pytest.raises(RefusedError, match="the schema north belongs to the role south_"):
                migrate(with_schema(dsn, "north"))
        assert rows(north, "SELECT FROM pg_class WHERE relnamespace = 'north'::regnamespace") == []


def test_cells_schema_that_a_superuser_made_for_its_owner_is_taken(empty_dsn: str) -> None:
    with owner(empty_dsn, "north") as north:
        execute(empty_dsn, "CREATE SCHEMA north", "GRANT ALL ON SCHEMA north TO PUBLIC")
        assert migrate(with_schema(north, "north"), 1) != []


def test_cells_owner_that_may_make_no_more_schemas_migrates(empty_dsn: str) -> None:
    with owner(empty_dsn, "north") as north:
        migrate(with_schema(north, "north"), 1)
        ((role,),) = rows(north, "SELECT current_user::text")
        ((database,),) = rows(north, "SELECT current_database()::text")
        execute(empty_dsn, f'REVOKE CREATE ON DATABASE "{database}" FROM {role}')
        assert migrate(with_schema(north, "north"), 2) != []


def test_cells_owner_that_may_make_no_schema_is_told_the_grant(empty_dsn: str) -> None:
    with owner(empty_dsn, "north") as north:
        ((role, database),) = rows(north, "SELECT current_user::text, quote_ident(current_database())")
        execute(empty_dsn, f"REVOKE CREATE ON DATABASE {database} FROM {role}")
        with pytest.raises(
            RefusedError, match="may not make the schema north: as a superuser: GRANT"
        ) as refused:
            migrate(with_schema(north, "north"))
        execute(empty_dsn, str(refused.value).rpartition(": ")[2])
        assert migrate(with_schema(north, "north"), 1) != []


@pytest.mark.parametrize(
    "name",
    [
        *("default", "public", "pg_temp", "pg_catalog", "information_schema"),
        *("north;", 'no"rth', "north ", "north\n", "nórth", "north.south", "../south", "n\uff4frth"),
    ],
)
def test_cells_name_that_leads_elsewhere_is_refused(name: str) -> None:
    """``SET search_path = default`` leads to the tables of the deployment without a cell."""
    with pytest.raises(SettingsError, match="schema"):
        settings_with(postgres={"schema": name})


@pytest.mark.parametrize("name", ["select", "user", "order", "left"])
def test_cells_name_that_is_a_word_of_sql_is_refused(empty_dsn: str, name: str) -> None:
    with pytest.raises(RefusedError, match="word of SQL"):
        migrate(with_schema(empty_dsn, name))


def test_cells_tables_are_closed_to_the_owner_of_another(empty_dsn: str) -> None:
    with owner(empty_dsn, "north") as north, owner(empty_dsn, "south") as south:
        migrate(with_schema(north, "north"))
        opened = (
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'north'::regnamespace"
            " AND relkind IN ('r', 'p', 'S')"
            " AND (relkind <> 'S' AND has_any_column_privilege(oid, 'SELECT, INSERT, UPDATE')"
            " OR has_table_privilege(oid, 'SELECT, UPDATE, DELETE, TRUNCATE, TRIGGER'))"
            " UNION ALL SELECT 'the schema' WHERE has_schema_privilege('north', 'USAGE, CREATE')"
        )
        assert len(rows(north, opened)) > 20
        assert rows(south, opened) == []
