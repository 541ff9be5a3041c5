"""Checks of doctor: whether a database is fit for a server."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from engine.operate.ports import RefusedError
from engine.operate.rows import CheckResult
from engine.runtime.ports import StoreError
from storage.postgres.blocking import connected
from storage.postgres.cell.citus import is_on_citus
from storage.postgres.cell.dsn import schema_of
from storage.postgres.cell.identity import is_restored
from storage.postgres.checkup.citus import citus_findings
from storage.postgres.checkup.days import partition_findings
from storage.postgres.display_names import database_name
from storage.postgres.migrate import newest_migration, status
from storage.postgres.readiness import DURABLE, undurable, unfit
from storage.postgres.remedies import DatabaseFaultError
from storage.postgres.roles.guard import access_findings, check_roles, row_security_findings
from storage.postgres.roles.rights import foreign_findings, rights_finding, tenant_findings

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

#: With more between the clocks, times of devices and times of rows no longer agree.
WARN_APART_S: Final = 1.0
FAULT_APART_S: Final = 60.0

APART_REMEDY: Final = "have both hosts' clocks kept by NTP (chrony, systemd-timesyncd)"


def database_findings(
    dsn: str,
    owner_dsn: str,
    jobs_dsn: str,
    connections: int,
    tenants: Mapping[str, Collection[str]],
    *,
    migrates_itself: bool,
) -> Iterator[CheckResult]:
    """Check a database.

    Args:
        dsn: The database, as the role of serving.
        owner_dsn: The same, as the role that owns the tables.
        jobs_dsn: The same, as the role of jobs.
        connections: How many connections servers open to it.
        tenants: The names of tenants that have settings of their own, by the setting.
        migrates_itself: Whether `serve` brings the schema up to date.
    """
    try:
        with connected(owner_dsn) as connection:
            yield from _fitness(connection, database_name(owner_dsn))
            cell = schema_of(owner_dsn)
            with connection.cursor() as cursor:
                on_citus = is_on_citus(cursor, cell)
            if on_citus:
                yield from citus_findings(connection)
            rights = rights_finding(connection, cell)
            yield rights
            yield _clock(connection)
            yield _connections(connection, connections)
            if rights.level == "fault":
                return  # the checks after this one need those rights
            yield from tenant_findings(connection, tenants)
            yield from foreign_findings(connection)
        applied = list(migration_findings(owner_dsn, migrates_itself=migrates_itself))
        yield from applied
        if len(applied) > 1:
            yield from partition_findings(owner_dsn)
            yield from role_findings(dsn, owner_dsn, jobs_dsn)
    except StoreError as error:
        yield unread_finding(error)


def unread_finding(error: StoreError) -> CheckResult:
    """Say why a check could not read the database: PostgreSQL refused it, or is away."""
    if isinstance(error, DatabaseFaultError):
        return CheckResult("fault", "database", error.found, error.remedy)
    remedy = "see that it runs and that postgres.dsn leads to it"
    return CheckResult("fault", "database", str(error), remedy)


def role_findings(dsn: str, owner_dsn: str, jobs_dsn: str) -> Iterator[CheckResult]:
    """Check what the roles may do, and whether one could pass row-level security by. Raises StoreError."""
    access = list(access_findings(dsn, owner_dsn, jobs_dsn))
    yield from access
    try:
        ways = check_roles(dsn, owner_dsn, jobs_dsn)
    except RefusedError as error:
        yield CheckResult("fault", "roles", str(error), "correct the DSNs")
    else:
        if ways or all(one.level == "ok" for one in access):
            yield from row_security_findings(ways)


def _fitness(connection: Connection, place: str) -> Iterator[CheckResult]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, setting FROM pg_settings")
        settings: dict[str, str] = dict(cursor.fetchall())
    faults = unfit(settings)
    for found, remedy in faults:
        yield CheckResult("fault", "database", found, remedy)
    if not faults:
        yield CheckResult(
            "ok", "database", f"PostgreSQL {settings['server_version']} at {place}, the primary"
        )
    lossy = undurable(settings)
    for found, remedy in lossy:
        yield CheckResult("fault", "durability", found, remedy)
    if not lossy:
        yield CheckResult("ok", "durability", f"{', '.join(DURABLE)} are on")


def _clock(connection: Connection) -> CheckResult:
    with connection.cursor() as cursor:
        before_s = time.time()
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        theirs_s = float(cursor.fetchall()[0][0])
        middle_s = (before_s + time.time()) / 2
    apart_s = theirs_s - middle_s
    found = f"the database's clock is {apart_s * 1000:+.0f} ms from this host's"
    if abs(apart_s) > FAULT_APART_S:
        return CheckResult("fault", "clock", found, APART_REMEDY)
    if abs(apart_s) > WARN_APART_S:
        return CheckResult("warning", "clock", found, APART_REMEDY)
    return CheckResult("ok", "clock", found)


def _connections(connection: Connection, wanted: int) -> CheckResult:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(setting::int) FILTER (WHERE name = 'max_connections')"
            " - sum(setting::int) FILTER (WHERE name <> 'max_connections') FROM pg_settings"
            " WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
        )
        limit = int(cursor.fetchall()[0][0])
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND application_name <> 'tidemark'"
        )
        others = int(cursor.fetchall()[0][0])
    found = f"{wanted} connections are wanted, {others} are others', {limit} may be open"
    remedy = (
        "raise max_connections, or lower server.workers, commit.lanes or postgres.read_connections,"
        " or put a pooler between"
    )
    if wanted > limit:
        return CheckResult("fault", "connections", found, remedy)
    if wanted + others > limit:
        return CheckResult("warning", "connections", found, remedy)
    return CheckResult("ok", "connections", found)


def migration_findings(dsn: str, *, migrates_itself: bool) -> Iterator[CheckResult]:
    """Check that the schema is of this version, and not restored. Nothing else follows a fault of the first.

    Args:
        dsn: The database, as the owner.
        migrates_itself: Whether `serve` brings the schema up to date.

    Raises:
        StoreError: The database is away.
    """
    states = status(dsn)
    missing = [one.name for one in states if one.applied_at is None]
    unknown = [one.name for one in states if not one.number]
    if missing and migrates_itself:
        found = f"{len(missing)} migrations are to come: serve applies them"
        yield CheckResult("ok", "schema", found)
    elif missing:
        yield CheckResult("fault", "schema", f"{missing[0]} is not applied", "run `run.py migrate`")
    elif unknown:
        found = f"{unknown[-1]} is applied, which this version does not know: a newer version made it"
        yield CheckResult("warning", "schema", found, "use that version, or take it back with that version")
    else:
        yield CheckResult("ok", "schema", f"all migrations are applied, up to {newest_migration()}")
    if not missing:
        yield _epoch(dsn)


def _epoch(dsn: str) -> CheckResult:
    with connected(dsn) as connection, connection.cursor() as cursor:
        restored = is_restored(cursor)
    if restored:
        return CheckResult("fault", "epoch", "this database was restored", "run `run.py epoch renew`")
    return CheckResult("ok", "epoch", "the database is of the cluster that devices know")
