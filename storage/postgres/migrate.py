"""The schema's migrations, read and kept by yoyo, in order, each with a way back.

Each step is one transaction: take the lock, read which migrations are applied, apply the next one and note
it. So hosts that start together apply each migration once, and a process that is killed leaves a migration
whole or not begun. (yoyo's own loop notes a migration after it has
committed, and its lock is a row that a killed process leaves behind.)
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg2.errors
from yoyo import internalmigrations, read_migrations
from yoyo.backends.core.postgresql import PostgresqlBackend
from yoyo.connections import parse_uri
from yoyo.migrations import Migration, default_migration_table

from engine.model.audit import Actor, AuditRow
from engine.operate.ports import RefusedError
from engine.operate.rows import MigrationState
from storage.postgres.blocking import connected, schema_change
from storage.postgres.cell.citus import distribute, is_distributed, is_on_citus
from storage.postgres.cell.dsn import schema_of
from storage.postgres.cell.identity import system_identifier
from storage.postgres.cell.schema import make_schema
from storage.postgres.remedies import said
from storage.postgres.roles.grants import grant_roles
from storage.postgres.roles.guard import refuse_other_roles
from storage.postgres.roles.policies import secure_growing_tables
from storage.postgres.roles.tables import made_elsewhere, schema_of_tables
from storage.postgres.server_processes import GONE_S, running_processes
from storage.postgres.transactions import AUDIT, audit_values

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

_FILES: Final = Path(__file__).parent.parent / "migrations"
#: If a table is locked for longer, the migration fails, so that devices do not wait behind it.
_LOCK_TIMEOUT_MS: Final = 5000
#: The migration that notes of which PostgreSQL the database is.
_FIRST: Final = "0001.tenants"
#: The migration that brings the sealing of domains. The tables of keys are older.
_SEALED: Final = "0048.sealed_domains"
#: The last migration that does not run in a distributed schema: it is applied before Citus distributes it.
_BEFORE_CITUS: Final = "0055.tenant_devices"
#: From this migration on growing tables have policies.
_ROW_SECURITY: Final = "0041.row_security"


class _Backend(PostgresqlBackend):  # type: ignore[misc]  # yoyo has no type hints
    """yoyo's bookkeeping in an open transaction on a connection of ours: any DSN that libpq takes will do."""

    def __init__(self, connection: Connection) -> None:
        self._ours = connection
        super().__init__(parse_uri("postgresql://"), default_migration_table)
        self._in_transaction = True  # what yoyo opens becomes a savepoint of the open transaction
        if internalmigrations.needs_upgrading(self):
            internalmigrations.upgrade(self)
        self._internal_schema_updated = True

    def connect(self, _: object) -> Connection:
        return self._ours

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, Any]:
        # yoyo asks for the account's name and the host's domain: neither need exist in a container.
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": "tidemark",
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }


@cache
def _known() -> tuple[Migration, ...]:
    return tuple(sorted(read_migrations(str(_FILES)), key=lambda migration: str(migration.id)))


def newest_migration() -> str:
    """Return the id of the last migration that this version knows."""
    return str(_known()[-1].id)


def migrate(
    dsn: str,
    to: int | None = None,
    *,
    down: bool = False,
    chosen_domains: Collection[str] = (),
    actor: Actor | None = None,
) -> list[str]:
    """Bring the schema up to migration ``to`` (the newest with None), or down to it.

    Args:
        dsn: The database.
        to: The last migration that is to stand. None is the newest, with ``down`` the one before the newest.
        down: Take back all that came after ``to``.
        chosen_domains: Domains whose policy the operator's settings name; a migration that follows a change
            of the delivered policies leaves them alone.
        actor: Who is named by the events of the audit log; None writes none.

    Returns:
        The ids of the migrations that were applied or taken back, in order.

    Raises:
        RefusedError: There is no such migration, or the schema holds one that this version does not know; it
            stands past ``to`` without ``down``, servers use what is to be taken back, or the role would make
            tables in another schema, or Citus does not take a migration in a distributed schema. The schema
            of the cell belongs to another role, has no name that SQL takes, or is one that the role may not
            make.
        StoreError: The database is away, or refused a statement.
    """
    _refuse_number(to)
    done: list[str] = []
    with connected(dsn) as connection:
        if (schema := schema_of(dsn)) and not down:
            with schema_change(connection, _LOCK_TIMEOUT_MS) as cursor:
                make_schema(cursor, schema)
        _refuse_other_schema(connection)
        applied = _applied(connection)
        standing = _standing(applied)
        if down:
            to = _lowest(connection, applied, to)
        elif to is not None and standing > to:
            raise RefusedError(
                f"the schema stands at {standing}, past {to}: `run.py migrate --to {to} --down` takes back"
                " what came after it, data and all"
            )
        number = len(_known()) if to is None else to
        try:
            while (migration := _step(connection, number, chosen_domains, actor, down=down)) is not None:
                done.append(migration)
        except (psycopg2.errors.FeatureNotSupported, psycopg2.errors.InternalError_) as error:
            _name_remedy(connection, schema_of(dsn), error)
            raise
        if not down and _ROW_SECURITY in _applied(connection):
            _finish(connection, schema)
    return done


def taken_back(dsn: str, to: int | None) -> list[str]:
    """Return the ids that ``migrate`` would take back, in order.

    Raises:
        RefusedError: It would refuse.
        StoreError: The database is away.
    """
    _refuse_number(to)
    with connected(dsn) as connection:
        _refuse_other_schema(connection)
        applied = _applied(connection)
        lowest = _lowest(connection, applied, to)
    return [str(one.id) for number, one in _numbered() if number > lowest and one.id in applied][::-1]


def status(dsn: str) -> list[MigrationState]:
    """List every known migration, and then those applied that this version does not know (number 0)."""
    with connected(dsn) as connection:
        applied = _applied(connection)
    states = [MigrationState(number, str(one.id), applied.pop(one.id, None)) for number, one in _numbered()]
    return states + [MigrationState(0, name, at) for name, at in sorted(applied.items())]


class PostgresSchemaAdmin:
    """``engine.operate.ports.SchemaAdmin``.

    Args:
        dsn: The DSN of the owner.
        serving_dsn: The DSN of the role of serving.
        jobs_dsn: The DSN of the role of jobs.
        chosen_domains: As for ``migrate``.
        actor: As for ``migrate``.
        embedded: Whether the PostgreSQL is the server's own, so that roles are made.
    """

    def __init__(
        self,
        dsn: str,
        serving_dsn: str,
        jobs_dsn: str,
        chosen_domains: Collection[str],
        actor: Actor,
        *,
        embedded: bool = False,
    ) -> None:
        self._dsn = dsn
        self._others = serving_dsn, jobs_dsn
        self._chosen_domains = chosen_domains
        self._actor = actor
        self._embedded = embedded

    def migrate(self, to: int | None, *, down: bool) -> list[str]:
        """Apply migrations or take them back, and grant to the roles what they need."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            if is_on_citus(cursor, schema_of(self._dsn)):
                refuse_other_roles(self._dsn, *self._others)
        done = migrate(self._dsn, to, down=down, chosen_domains=self._chosen_domains, actor=self._actor)
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            in_use = bool(running_processes(cursor))
        grant_roles(self._dsn, *self._others, make=self._embedded, in_use=in_use)
        return done

    def taken_back(self, to: int | None) -> list[str]:
        """Return the names of the migrations that would be taken back, in order."""
        return taken_back(self._dsn, to)

    def status(self) -> list[MigrationState]:
        """List the migrations in order."""
        return status(self._dsn)


def _finish(connection: Connection, schema: str) -> None:
    """Give growing tables their policies. Citus takes none: there the schema of a cell is distributed."""
    with schema_change(connection, _LOCK_TIMEOUT_MS) as cursor:
        on_citus = is_on_citus(cursor, schema)
        if on_citus and not is_distributed(cursor, schema):
            distribute(cursor, schema)
    if not on_citus:
        secure_growing_tables(connection)


def _name_remedy(connection: Connection, schema: str, error: psycopg2.Error) -> None:
    """Say what to do if a migration is not for a distributed schema. Raises RefusedError."""
    with connection.cursor() as cursor:
        if schema and is_distributed(cursor, schema):
            raise RefusedError(
                "Citus does not take the next migration in a distributed schema, and it was undone"
                f" ({said(error)}): servers of the version before go on; report it"
            ) from error


def _numbered() -> Iterator[tuple[int, Migration]]:
    return enumerate(_known(), 1)


def _applied(connection: Connection) -> dict[str, datetime]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (default_migration_table,))
        if cursor.fetchall() == [(False,)]:
            return {}
        cursor.execute(f"SELECT migration_id, applied_at_utc FROM {default_migration_table}")
        return {name: at.replace(tzinfo=UTC) for name, at in cursor.fetchall()}


def _standing(applied: Collection[str]) -> int:
    return max((number for number, one in _numbered() if one.id in applied), default=0)


def _lowest(connection: Connection, applied: dict[str, datetime], to: int | None) -> int:
    """Return the number of the last migration that stays. Raises RefusedError if none may be taken back."""
    _refuse_in_use(connection)
    _refuse_unknown(applied)
    lowest = max(_standing(applied) - 1, 0) if to is None else to
    _refuse_sealed(connection, lowest)
    _refuse_on_citus(connection, lowest)
    return lowest


def _step(
    connection: Connection, to: int, chosen_domains: Collection[str], actor: Actor | None, *, down: bool
) -> str | None:
    """Apply or take back one migration; None when ``to`` is reached."""
    with schema_change(connection, _LOCK_TIMEOUT_MS) as cursor:
        cursor.execute("SELECT set_config('tidemark.chosen_domains', %s, true)", (",".join(chosen_domains),))
        # Citus takes triggers so: they write to tables of their schema, which are on one node.
        cursor.execute("SET LOCAL citus.enable_unsafe_triggers = on")
        backend = _Backend(connection)
        applied = _applied(connection)
        if down:
            _refuse_unknown(applied)
            due = [one for number, one in _numbered() if number > to and one.id in applied]
            if not due:
                return None
            migration, mark, direction = due[-1], backend.unmark_one, "rollback"
        else:
            due = [one for number, one in _numbered() if number <= to and one.id not in applied]
            if not due:
                return None
            migration, mark, direction = due[0], backend.mark_one, "apply"
        migration.process_steps(backend, direction)
        if migration.id == _FIRST and not down:  # on Citus the node of the tables had its own put in
            cursor.execute("UPDATE cluster_state SET system_identifier = %s", (system_identifier(cursor),))
        backend.log_migration(migration, direction)
        mark(migration, log=False)
        if actor is not None:
            _note(
                cursor, AuditRow("migration_taken_back" if down else "migration_applied", actor, migration.id)
            )
        return str(migration.id)


def _note(cursor: Cursor, row: AuditRow) -> None:
    """Append an event, if this schema has the audit log."""
    cursor.execute("SELECT to_regclass('audit_log') IS NOT NULL")
    if cursor.fetchall() == [(True,)]:
        cursor.execute(AUDIT.text, audit_values([row]))


def _refuse_number(to: int | None) -> None:
    count = len(_known())
    if to is not None and not 0 <= to <= count:
        raise RefusedError(f"there is no migration {to}: they are numbered 1 to {count}")


def _refuse_other_schema(connection: Connection) -> None:
    """Refuse a search_path by which some tables would be made in another schema than the others."""
    with connection.cursor() as cursor:
        tables = schema_of_tables(cursor)
        cursor.execute("SELECT current_user::text, current_database()::text, current_schema()::text")
        role, database, schema = cursor.fetchall()[0]
    if schema is not None and schema != tables:
        raise RefusedError(": ".join(made_elsewhere(role, database, schema, tables)))


def _refuse_in_use(connection: Connection) -> None:
    with connection.cursor() as cursor:
        found = running_processes(cursor)
    if found:
        place, silent_s = found[0]
        raise RefusedError(
            f"{len(found)} server processes use this database, such as {place}, seen {silent_s:.0f} s ago:"
            f" stop them first (one that was killed counts for {GONE_S:.0f} s)"
        )


def _refuse_on_citus(connection: Connection, to: int) -> None:
    """Refuse to take back, in a distributed schema, a migration that could not be applied there again."""
    if to >= next(number for number, one in _numbered() if str(one.id) == _BEFORE_CITUS):
        return
    with connection.cursor() as cursor:
        if is_distributed(cursor, schema_of_tables(cursor)):
            raise RefusedError(
                f"Citus does not take {_BEFORE_CITUS} and those before it in a distributed schema, so they"
                " stay: to remove the cell, drop its schema (docs/scaling.md, Cells)"
            )


def _refuse_sealed(connection: Connection, to: int) -> None:
    """Refuse to take the keys of sealed data away. A version from before them could not read these data."""
    if to >= next(number for number, one in _numbered() if str(one.id) == _SEALED):
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('sealed_domains') IS NOT NULL")
        if cursor.fetchall() == [(False,)]:
            return
        cursor.execute("SELECT domain FROM sealed_domains ORDER BY domain")
        domains = ", ".join(str(domain) for (domain,) in cursor.fetchall())
    if domains:
        raise RefusedError(
            f"data of {domains} are sealed, and no version from before {_SEALED} can read them: restore a"
            " backup from before they were sealed, or stay at this migration"
        )


def _refuse_unknown(applied: dict[str, datetime]) -> None:
    unknown = sorted(set(applied) - {one.id for one in _known()})
    if unknown:
        raise RefusedError(
            f"the schema holds {unknown[-1]}, which this version does not know:"
            " take it back with the version that brought it"
        )
