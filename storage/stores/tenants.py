"""Tenants added and removed, each in one transaction that servers notice by the generation."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from engine.cache.ports import ANY_TENANT
from engine.model.domains import DomainPolicy
from engine.model.tenants import Reused, Tenant, TenantPolicies
from engine.operate.ports import NoTenantError, RefusedError, TenantSummary
from engine.runtime.ports import StoreError
from storage.postgres.arrays import int_array
from storage.postgres.blocking import connected
from storage.postgres.driver import Row
from storage.postgres.pool import Database

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

#: Rows erased in one transaction: a long one would keep the tenants' counters from being vacuumed.
_ERASED_ROWS: Final = 10_000
#: What belongs to a tenant without being data of it.
_OWN: Final = ("tenants", "tenant_counters", "tenant_conflict_policy", "tenant_storage", "revoked_tokens")
#: Every table with tenants in it, so that none that is added later is forgotten.
_TABLES: Final = (
    "SELECT c.relname::text FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid"
    " WHERE c.relnamespace = current_schema()::regnamespace"
    " AND a.attname = 'tenant_id' AND NOT a.attisdropped AND c.relname <> ALL(%s)"
)
_WHOLE: Final = f"{_TABLES} AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1"
#: A row's ctid is of its partition.
_PARTS: Final = f"{_TABLES} AND c.relkind = 'r' ORDER BY 1"
_TENANTS: Final = (
    "SELECT t.tenant_id, t.name, floor(extract(epoch FROM t.created_at))::bigint,"
    " floor(extract(epoch FROM r.removed_at))::bigint, p.domain, p.policy, p.fallback FROM tenants AS t"
    " LEFT JOIN removed_tenants AS r ON r.name = t.name"
    " LEFT JOIN tenant_conflict_policy AS p ON p.tenant_id = t.tenant_id"
)


class PostgresTenancy:
    """``engine.operate.ports.Tenants``."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def add(self, name: str) -> None:
        """Create a tenant and its counter."""
        if not self.ensure(name):
            raise RefusedError(f"there is a tenant {name} already")

    def ensure(self, name: str) -> bool:
        """Create a tenant unless there is one of that name; tell whether it was created."""
        with connected(self._dsn) as connection, connection, connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO tenants (name) VALUES (%s) ON CONFLICT (name) DO NOTHING RETURNING tenant_id",
                (name,),
            )
            created = cursor.fetchall()
            if created:
                cursor.execute("INSERT INTO tenant_counters (tenant_id) VALUES (%s)", created[0])
                _notice(cursor)
            return bool(created)

    def number(self, name: str) -> int | None:
        """Return the number of a tenant, None if there is none of that name."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s", (name,))
            found = cursor.fetchall()
        return int(found[0][0]) if found else None

    def removed_at(self, name: str) -> datetime | None:
        """Tell when the last tenant of a name was removed, None if none ever was."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT removed_at FROM removed_tenants WHERE name = %s", (name,))
            found: list[tuple[datetime]] = cursor.fetchall()
        return found[0][0] if found else None

    def revoke_token(self, token_id: str, tenant: str | None) -> bool:
        """Have tokens with a ``jti`` believed no more, of one tenant or of all."""
        with connected(self._dsn) as connection, connection, connection.cursor() as cursor:
            tenant_id = ANY_TENANT if tenant is None else _tenant_id(connection, tenant)
            cursor.execute(
                "INSERT INTO revoked_tokens (tenant_id, token_id) VALUES (%s, %s)"
                " ON CONFLICT DO NOTHING RETURNING 1",
                (tenant_id, token_id),
            )
            revoked = bool(cursor.fetchall())
            _notice(cursor)
        return revoked

    def tenants(self) -> list[TenantSummary]:
        """List tenants by name."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT name, tenant_id, created_at, coalesce(seq, 0) FROM tenants"
                " LEFT JOIN tenant_counters USING (tenant_id) ORDER BY name"
            )
            return [TenantSummary(*row) for row in cursor.fetchall()]

    def remove(self, name: str, *, erase: bool) -> None:
        """Remove a tenant; its data go in small transactions first, so that no other tenant waits."""
        with connected(self._dsn) as connection:
            if erase:
                _erase(connection, _tenant_id(connection, name))
            with connection, connection.cursor() as cursor:
                # Looked up again: an older tenant of that name may be gone by now. Batches lock the
                # counter first, whatever else they lock.
                tenant_id = _tenant_id(connection, name)
                cursor.execute("SELECT FROM tenant_counters WHERE tenant_id = %s FOR UPDATE", (tenant_id,))
                cursor.execute("SELECT FROM tenants WHERE tenant_id = %s FOR UPDATE", (tenant_id,))
                holding = [table for table in _tables(cursor, _WHOLE) if _holds(cursor, table, tenant_id)]
                if holding and not erase:
                    raise RefusedError(
                        f"tenant {name} has data in {', '.join(holding)}: add --erase to erase all of it"
                    )
                for table in (*holding, *_OWN[::-1]):
                    cursor.execute(f"DELETE FROM {table} WHERE tenant_id = %s", (tenant_id,))
                # The clock's time, not the transaction's: a token signed until now may be the old tenant's.
                cursor.execute(
                    "INSERT INTO removed_tenants (name, removed_at) VALUES (%s, clock_timestamp())"
                    " ON CONFLICT (name) DO UPDATE SET removed_at = excluded.removed_at",
                    (name,),
                )
                _notice(cursor)


def _tenant_id(connection: Connection, name: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s", (name,))
        found = cursor.fetchall()
    if not found:
        raise NoTenantError(name)
    return int(found[0][0])


def _tables(cursor: Cursor, which: str) -> list[str]:
    cursor.execute(which, (list(_OWN),))
    return [str(name) for (name,) in cursor.fetchall()]


def _holds(cursor: Cursor, table: str, tenant_id: int) -> bool:
    cursor.execute(f"SELECT EXISTS (SELECT FROM {table} WHERE tenant_id = %s)", (tenant_id,))
    return cursor.fetchall() == [(True,)]


def _erase(connection: Connection, tenant_id: int) -> None:
    with connection.cursor() as cursor:
        for table in _tables(cursor, _PARTS):
            rows = _ERASED_ROWS
            while rows == _ERASED_ROWS:
                cursor.execute(
                    f"DELETE FROM {table} WHERE tenant_id = %s AND ctid = ANY (ARRAY("
                    f"SELECT ctid FROM {table} WHERE tenant_id = %s LIMIT {_ERASED_ROWS}))",
                    (tenant_id, tenant_id),
                )
                rows = cursor.rowcount


def _notice(cursor: Cursor) -> None:
    """Have every server read its tenants and policies again."""
    cursor.execute("UPDATE cluster_state SET generation = generation + 1")


class PostgresTenants:
    """``engine.cache.ports.TenantStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, name: str) -> TenantPolicies | None:
        """Find a tenant by name."""
        rows = await self._database.query(f"{_TENANTS} WHERE t.name = %(name)s", {"name": name})
        for found in _gathered(rows).values():
            return found
        return None

    async def reread(self, tenant_ids: list[int]) -> dict[int, TenantPolicies]:
        """Read tenants that are known."""
        wanted = {"tenants": int_array(tenant_ids)}
        return _gathered(
            await self._database.query(f"{_TENANTS} WHERE t.tenant_id = ANY(%(tenants)s::int[])", wanted)
        )

    async def generation(self) -> tuple[int, str]:
        """Return the number that grows with every change, and the epoch."""
        rows = await self._database.query("SELECT generation, epoch FROM cluster_state")
        if not rows:
            raise StoreError("cluster_state has no row")
        generation, epoch = rows[0]
        return int(generation), str(epoch)


def _gathered(rows: list[Row]) -> dict[int, TenantPolicies]:
    gathered: dict[int, TenantPolicies] = {}
    for tenant_id, name, made_s, removed_s, domain, policy, fallback in rows:
        found = gathered.get(tenant_id)
        if found is None:
            reused = None if removed_s is None else Reused(made_s, removed_s)
            found = gathered[tenant_id] = TenantPolicies(Tenant(tenant_id, name, reused), {})
        if domain is not None:
            chosen = {"policy": policy, "fallback": fallback}
            found.own[domain] = msgspec.convert(chosen, DomainPolicy)
    return gathered
