"""What tenants hold: read for people, and counted again from the rows themselves.

Batches add what they write to the columns of ``tenant_counters`` (``engine.plan.bounds.tenant_usage``). The
columns are exact as long as every writer does this. A server of an earlier version does not, nor does a
person with psql, and a dropped day of answers or events is subtracted only after it is gone. So each tenant
is counted once a week, and a tenant that was never counted is counted soon.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.model.rows import TenantUsage
from engine.operate.ports import NoTenantError
from engine.operate.rows import TenantUsageSummary
from engine.plan.bounds.tenant_usage import NAMES
from storage.postgres.blocking import connected
from storage.postgres.partitions.bounds import is_detached
from storage.postgres.partitions.daily_usage import DROPPING, add
from storage.postgres.plain_bytes import CHANGE_DATA, plain_bytes
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import EVERYONE, of_tenant

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

#: A pass starts no further tenant after this time. The next pass begins with the tenants counted longest ago.
_BUDGET_S: Final = 60.0
_AGAIN: Final = "interval '7 days'"

_AHEAD_US: Final = "((extract(epoch FROM now()) + 86400) * 1000000)::bigint"


class _Kind(NamedTuple):
    """Columns that are counted in one snapshot, and the query of their values for one tenant."""

    names: tuple[str, ...]
    query: str


_KINDS: Final = (
    _Kind(
        ("record_rows", "record_bytes"),
        f"SELECT count(*), coalesce(sum({plain_bytes('data::text')}), 0)"
        " + coalesce(sum(octet_length(fields::text)), 0)"
        f" + coalesce(sum({plain_bytes('last_data::text')}), 0)"
        " FROM records WHERE tenant_id = %(tenant)s",
    ),
    _Kind(
        ("conflict_rows", "conflict_bytes"),
        f"SELECT count(*), coalesce(sum({plain_bytes('server_data::text')}), 0)"
        f" + coalesce(sum({plain_bytes('client_data::text')}), 0)"
        f" + coalesce(sum((SELECT sum({plain_bytes(CHANGE_DATA)})"
        " FROM json_array_elements(client_changes) AS change"
        " WHERE json_typeof(change->'data') <> 'null')), 0)"
        " FROM conflict_resolution_log WHERE tenant_id = %(tenant)s",
    ),
    _Kind(
        ("quarantine_rows", "quarantine_bytes"),
        f"SELECT count(*), coalesce(sum({plain_bytes('item')}), 0) FROM quarantine"
        " WHERE tenant_id = %(tenant)s",
    ),
    _Kind(
        ("event_rows", "event_bytes"),
        f"SELECT count(*), coalesce(sum({plain_bytes('data::text')}), 0) FROM events"
        " WHERE tenant_id = %(tenant)s",
    ),
    _Kind(
        ("answer_rows", "answer_bytes"),
        f"SELECT count(*), coalesce(sum({plain_bytes('results::text')}), 0) FROM sync_idempotency_record"
        " WHERE tenant_id = %(tenant)s",
    ),
)
#: Only the partitions of future days are read: they have no other events.
_FUTURE: Final = _Kind(
    ("future_event_rows",),
    f"SELECT count(*) FROM events WHERE tenant_id = %(tenant)s AND sent_at_us > {_AHEAD_US}",
)
#: If a process is killed while it counts, its tenant is counted again after an hour.
_DUE: Final = (
    f"UPDATE tenant_counters SET counted_at = now() - {_AGAIN} + interval '1 hour' WHERE tenant_id ="
    f" (SELECT tenant_id FROM tenant_counters WHERE coalesce(counted_at < now() - {_AGAIN}, true)"
    " ORDER BY counted_at NULLS FIRST LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING tenant_id"
)


def recount(dsn: str, budget_s: float = _BUDGET_S) -> int:
    """Count the tenants that are due, and all future events. Return how many tenants were counted.

    Raises StoreError.
    """
    until_s = time.monotonic() + budget_s
    counted = 0
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id FROM tenant_counters WHERE future_event_rows <> 0")
        for (tenant_id,) in cursor.fetchall():
            _mend(connection, tenant_id, _FUTURE)
        while time.monotonic() < until_s:
            cursor.execute(_DUE)
            due = cursor.fetchall()
            if not due:
                break
            for kind in (*_KINDS, _FUTURE):
                _mend(connection, due[0][0], kind)
            cursor.execute("UPDATE tenant_counters SET counted_at = now() WHERE tenant_id = %s", due[0])
            counted += 1
    return counted


class UsageTotals(NamedTuple):
    """What the fullest tenant holds of each number, what all hold together, and all open conflicts.

    ``most_devices`` is the number of devices of the tenant with the most.
    """

    fullest: TenantUsage
    held: TenantUsage
    open_conflicts: int
    most_devices: int


#: More than anybody settles: counting stops here, after some ten milliseconds.
_COUNTED_CONFLICTS: Final = 100_000
_OPEN_CONFLICTS: Final = (
    "SELECT count(*) FROM (SELECT FROM conflict_resolution_log WHERE outcome = 'open'"
    f" LIMIT {_COUNTED_CONFLICTS}) AS counted"
)
_MOST_DEVICES: Final = "SELECT coalesce(max(device_rows), 0) FROM tenant_storage"


class PostgresUsage:
    """``engine.operate.ports.UsageAdmin``, and what servers ask."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def usage(self, tenant: str | None) -> list[TenantUsageSummary]:
        """List what tenants hold, by name."""
        columns = ", ".join(f"coalesce(c.{name}, 0)" for name in NAMES)
        found = await self._database.query(
            f"SELECT t.name, coalesce(s.reserved_bytes, 0), coalesce(s.device_rows, 0), {columns}"
            " FROM tenants AS t"
            " LEFT JOIN tenant_counters AS c USING (tenant_id)"
            " LEFT JOIN tenant_storage AS s USING (tenant_id)"
            " WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s ORDER BY t.name",
            {"tenant": tenant},
            of_tenant(tenant),
        )
        if tenant is not None and not found:
            raise NoTenantError(tenant)
        return [
            TenantUsageSummary(name, TenantUsage(*held), file_bytes, devices)
            for name, file_bytes, devices, *held in found
        ]

    async def totals(self) -> UsageTotals:
        """Return what the fullest tenant holds of each number, and what all hold. Raises StoreError."""
        most = ", ".join(f"coalesce(max({name}), 0)::bigint" for name in NAMES)
        sums = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in NAMES)
        (numbers,) = await self._database.query(
            f"SELECT {most}, {sums} FROM tenant_counters", tenants=EVERYONE
        )
        (open_conflicts,) = await self._database.query(_OPEN_CONFLICTS, tenants=EVERYONE)
        (devices,) = await self._database.query(_MOST_DEVICES, tenants=EVERYONE)
        count = len(NAMES)
        fullest, held = TenantUsage(*numbers[:count]), TenantUsage(*numbers[count:])
        return UsageTotals(fullest, held, open_conflicts[0], devices[0])


def _mend(connection: Connection, tenant_id: int, kind: _Kind) -> None:
    """Add the error of a tenant's columns to them.

    Columns and rows are read in one snapshot. Batches that commit meanwhile only add to the columns, so the
    error of the columns in that snapshot is their error afterwards, too.
    """
    values = {"tenant": tenant_id, "dropping": DROPPING}
    names = ", ".join(kind.names)
    with connection, connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET LOCAL statement_timeout = 0")
        if kind.names[0] in ("answer_rows", "event_rows"):
            cursor.execute("SELECT pg_try_advisory_xact_lock_shared(%(dropping)s)", values)
            if cursor.fetchall() == [(False,)]:
                return
        if kind.names[-1].startswith(("event", "future")) and _events_are_apart(cursor):
            return
        cursor.execute(f"SELECT {names} FROM tenant_counters WHERE tenant_id = %(tenant)s", values)
        said = cursor.fetchall()
        if not said:
            return
        cursor.execute(kind.query, values)
        found = cursor.fetchall()
    named = zip(kind.names, *found, *said, strict=True)
    off = {name: int(right) - int(wrong) for name, right, wrong in named}
    if any(off.values()):
        with connection.cursor() as cursor:
            add(cursor, tenant_id, off)


def _events_are_apart(cursor: Cursor) -> bool:
    """Return whether some events are detached from their table now. The lock keeps others in it."""
    cursor.execute("LOCK TABLE events IN ACCESS SHARE MODE")
    return is_detached(cursor)
