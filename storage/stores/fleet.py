"""Devices as people look at them, and their revocation, which servers notice by the generation."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from engine.cache.device_health import Counts, score
from engine.operate.ports import DeviceSummary, NoTenantError, RefusedError
from storage.postgres.blocking import connected

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

_DEVICES: Final = (
    "SELECT t.name, d.device_id, d.first_seen_at, greatest(d.last_seen_at, h.last_sync_at), h.last_sync_at,"
    " coalesce(h.total_syncs, 0), coalesce(h.failed_syncs, 0), coalesce(h.sync_duration_us, 0),"
    " coalesce(h.conflicts, 0), h.network_type, coalesce(d.app_version, h.app_version),"
    " coalesce(d.os_version, h.os_version), d.revoked_at, d.tokens_from, now()"
    " FROM tenants AS t JOIN devices AS d USING (tenant_id)"
    " LEFT JOIN sync_device_health AS h USING (tenant_id, device_id)"
    " WHERE {which} ORDER BY t.name, d.device_id"
)
_ALL: Final = _DEVICES.format(which="true")
_OF_TENANT: Final = _DEVICES.format(which="tenant_id = %s")
_ONE: Final = _DEVICES.format(which="tenant_id = %s AND device_id = %s")


class PostgresFleet:
    """``engine.operate.ports.Fleet``."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def devices(self, tenant: str | None) -> list[DeviceSummary]:
        """List devices by tenant and id."""
        with connected(self._dsn) as connection:
            if tenant is None:
                return _read(connection, _ALL)
            return _read(connection, _OF_TENANT, tenant_id_of(connection, tenant))

    def device(self, tenant: str, device_id: str) -> DeviceSummary:
        """Find one device."""
        with connected(self._dsn) as connection:
            found = _read(connection, _ONE, tenant_id_of(connection, tenant), device_id)
        if not found:
            raise RefusedError(_nobody(tenant, device_id))
        return found[0]

    def known(self, tenant: str, device_id: str) -> bool:
        """Tell whether a device was ever seen, or revoked."""
        with connected(self._dsn) as connection:
            return bool(_read(connection, _ONE, tenant_id_of(connection, tenant), device_id))

    def revoke(self, tenant: str, device_id: str) -> bool:
        """Let a device in no more, also one that was never seen; tell whether it was let in until now."""
        with connected(self._dsn) as connection, connection:
            tenant_id = tenant_id_of(connection, tenant)
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO devices AS d (tenant_id, device_id, revoked_at) VALUES (%s, %s, now())"
                    " ON CONFLICT (tenant_id, device_id) DO UPDATE SET revoked_at = now()"
                    " WHERE d.revoked_at IS NULL RETURNING 1",
                    (tenant_id, device_id),
                )
                revoked = bool(cursor.fetchall())
                cursor.execute("UPDATE cluster_state SET generation = generation + 1")
        return revoked

    def restore(self, tenant: str, device_id: str) -> bool:
        """Let a revoked device in again, with tokens that are signed from now on."""
        with connected(self._dsn) as connection, connection:
            tenant_id = tenant_id_of(connection, tenant)
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE devices SET revoked_at = NULL, tokens_from = now()"
                    " WHERE tenant_id = %s AND device_id = %s AND revoked_at IS NOT NULL RETURNING 1",
                    (tenant_id, device_id),
                )
                restored = bool(cursor.fetchall())
                cursor.execute("UPDATE cluster_state SET generation = generation + 1")
            if not restored and not _read(connection, _ONE, tenant_id, device_id):
                raise RefusedError(_nobody(tenant, device_id))
        return restored


def _nobody(tenant: str, device_id: str) -> str:
    return f"tenant {tenant} has no device {device_id}: see `run.py device list`"


def tenant_id_of(connection: Connection, name: str) -> int:
    """Find a tenant by its name. Raises RefusedError if there is none."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s", (name,))
        found = cursor.fetchall()
    if not found:
        raise NoTenantError(name)
    return int(found[0][0])


def _read(connection: Connection, statement: str, *values: object) -> list[DeviceSummary]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return [_summary(*row) for row in cursor.fetchall()]


def _summary(
    tenant: str,
    device_id: str,
    first_seen_at: datetime,
    last_seen_at: datetime,
    last_sync_at: datetime | None,
    *rest: Any,
) -> DeviceSummary:
    syncs, failed, duration_us, conflicts, network, app, system, revoked_at, tokens_from, now = rest
    counts = Counts(syncs, failed, duration_us, conflicts)
    last_sync_us = None if last_sync_at is None else _us(last_sync_at)
    return DeviceSummary(
        tenant=tenant,
        device_id=device_id,
        first_seen_at=first_seen_at,
        last_seen_at=last_seen_at,
        last_sync_at=last_sync_at,
        total_syncs=syncs,
        failed_syncs=failed,
        avg_sync_duration_ms=duration_us / syncs / 1000 if syncs else None,
        conflicts=conflicts,
        health_score=score(counts, last_sync_us, _us(now)),
        network_type=network,
        app_version=app,
        os_version=system,
        revoked_at=revoked_at,
        tokens_from=tokens_from,
    )


def _us(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000)
