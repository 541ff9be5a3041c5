"""Devices as all processes together know them: read and added to many at once."""

from __future__ import annotations

from typing import Final

from engine.cache.device_health import Counts, DeviceKey, Health
from engine.cache.ports import HealthUnknownError, Revoked
from engine.runtime.ports import StorePoisonError
from storage.postgres.arrays import numbers, numbers_or_null, texts, texts_or_null
from storage.postgres.pool import SERVER_MS, ConnectionLostError, Database, Row, Statement

_COLUMNS: Final = (
    "tenant_id, device_id, total_syncs, failed_syncs, sync_duration_us, conflicts,"
    " (extract(epoch FROM last_sync_at) * 1000000)::bigint, network_type, app_version, os_version"
)
#: LATERAL with LIMIT fixes the plan: one index probe a device, however the table is analysed.
_READ: Final = (
    "SELECT f.* FROM unnest(%(tenants)s::int[], %(devices)s::text[]) AS w(t, d)"
    f" CROSS JOIN LATERAL (SELECT {_COLUMNS} FROM sync_device_health"
    " WHERE tenant_id = w.t AND device_id = w.d LIMIT 1) AS f"
)
_LATEST: Final = (
    f"SELECT {_COLUMNS} FROM sync_device_health WHERE last_sync_at IS NOT NULL"
    " ORDER BY last_sync_at DESC LIMIT %(limit)s"
)
_REVOKED: Final = (
    "SELECT tenant_id, device_id,"
    " CASE WHEN revoked_at IS NULL THEN floor(extract(epoch FROM tokens_from))::bigint END, NULL"
    " FROM devices WHERE revoked_at IS NOT NULL OR tokens_from IS NOT NULL"
    " UNION ALL SELECT tenant_id, NULL, NULL, token_id FROM revoked_tokens"
)

#: Of this transaction alone. It gives way before the server looks for a deadlock (1 s), so that nobody
#: else is taken for its victim, and it has no business waiting: what it writes can wait.
_SETTINGS: Final = Statement(
    "SELECT "
    + ", ".join(
        f"set_config('{name}', '{value}', true)"
        for name, value in (
            ("idle_in_transaction_session_timeout", 2000),
            ("lock_timeout", 500),
            ("statement_timeout", SERVER_MS),
        )
    )
)
#: In ascending order of keys, as every process does, so that no two wait for each other.
_SEEN: Final = Statement(
    "INSERT INTO devices AS t (tenant_id, device_id, app_version, os_version)"
    " SELECT w.* FROM unnest(%(seen_tenants)s::int[], %(seen_devices)s::text[],"
    " %(seen_apps)s::text[], %(seen_systems)s::text[]) AS w(tenant_id, device_id, app, os)"
    " WHERE EXISTS (SELECT FROM tenants WHERE tenants.tenant_id = w.tenant_id)"
    ' ORDER BY w.tenant_id, w.device_id COLLATE "C"'
    " ON CONFLICT (tenant_id, device_id) DO UPDATE SET last_seen_at = now(),"
    " app_version = coalesce(excluded.app_version, t.app_version),"
    " os_version = coalesce(excluded.os_version, t.os_version)"
)
_ADD: Final = Statement(
    "INSERT INTO sync_device_health AS t (tenant_id, device_id, total_syncs, failed_syncs,"
    " sync_duration_us, avg_sync_duration_ms, conflicts, last_sync_at,"
    " network_type, app_version, os_version)"
    " SELECT w.t, w.d, w.s, w.f, w.u, w.u / 1000.0 / nullif(w.s, 0), w.c,"
    " 'epoch'::timestamptz + w.l * interval '1 microsecond',"
    " w.n, w.a, w.o FROM unnest(%(tenants)s::int[], %(devices)s::text[], %(syncs)s::bigint[],"
    " %(failed)s::bigint[], %(durations)s::bigint[], %(conflicts)s::bigint[], %(latest)s::bigint[],"
    " %(networks)s::text[], %(apps)s::text[], %(systems)s::text[])"
    " AS w(t, d, s, f, u, c, l, n, a, o)"
    " WHERE EXISTS (SELECT FROM tenants WHERE tenants.tenant_id = w.t)"
    ' ORDER BY w.t, w.d COLLATE "C"'
    " ON CONFLICT (tenant_id, device_id) DO UPDATE SET"
    " total_syncs = t.total_syncs + excluded.total_syncs,"
    " failed_syncs = t.failed_syncs + excluded.failed_syncs,"
    " sync_duration_us = t.sync_duration_us + excluded.sync_duration_us,"
    " avg_sync_duration_ms = (t.sync_duration_us + excluded.sync_duration_us) / 1000.0"
    " / nullif(t.total_syncs + excluded.total_syncs, 0),"
    " conflicts = t.conflicts + excluded.conflicts,"
    " last_sync_at = greatest(t.last_sync_at, excluded.last_sync_at),"
    " network_type = coalesce(excluded.network_type, t.network_type),"
    " app_version = coalesce(excluded.app_version, t.app_version),"
    " os_version = coalesce(excluded.os_version, t.os_version),"
    " updated_at = now()"
)
_RECEIPT: Final = Statement("SELECT pg_current_xact_id()::text")


class PostgresDevices:
    """``engine.cache.ports.DeviceStore``.

    The receipt of an ``add`` is its transaction's id, asked for before COMMIT: whatever becomes of the
    connection, the server knows for long which transactions were committed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def health(self, keys: list[DeviceKey]) -> list[Health]:
        """Read several devices at once."""
        if not keys:
            return []
        tenants, devices = zip(*keys, strict=True)
        rows = await self._database.query(_READ, {"tenants": numbers(tenants), "devices": texts(devices)})
        return [_health(row) for row in rows]

    async def latest(self, limit: int) -> list[Health]:
        """Read those that synced last."""
        return [_health(row) for row in await self._database.query(_LATEST, {"limit": limit})]

    async def add(self, changes: list[Health]) -> None:
        """Add to the stored counts; see the port for what it raises."""
        statements, values = _adding(changes)
        async with self._database.session() as session:
            ((receipt,),) = await session.run_prepared("BEGIN; ", statements, "", values)
            try:
                await session.run("COMMIT")
            except ConnectionLostError:
                raise HealthUnknownError(receipt) from None

    async def stored(self, receipt: str) -> bool | None:
        """Say what became of a transaction."""
        try:
            rows = await self._database.query(
                "SELECT pg_xact_status(%(receipt)s::xid8)", {"receipt": receipt}
            )
        except StorePoisonError:  # not begun yet: another server took over, without this transaction
            return False
        status = rows[0][0]
        return None if status == "in progress" else status == "committed"

    async def revoked(self) -> Revoked:
        """List the devices some of whose tokens are refused, and the tokens that are believed no more."""
        revoked = Revoked({}, set())
        for tenant_id, device_id, from_s, token_id in await self._database.query(_REVOKED):
            if device_id is None:
                revoked.tokens.add((tenant_id, token_id))
            else:
                revoked.devices[DeviceKey(tenant_id, device_id)] = from_s
        return revoked


def _adding(changes: list[Health]) -> tuple[list[Statement], dict[str, object]]:
    values: dict[str, object] = {
        "tenants": numbers(one.key.tenant_id for one in changes),
        "devices": texts(one.key.device_id for one in changes),
        "syncs": numbers(one.counts.syncs for one in changes),
        "failed": numbers(one.counts.failed for one in changes),
        "durations": numbers(one.counts.duration_us for one in changes),
        "conflicts": numbers(one.counts.conflicts for one in changes),
        "latest": numbers_or_null(one.last_sync_at_us for one in changes),
        "networks": texts_or_null(one.network_type for one in changes),
        "apps": texts_or_null(one.app_version for one in changes),
        "systems": texts_or_null(one.os_version for one in changes),
    }
    seen = [one for one in changes if one.seen]
    if not seen:
        return [_SETTINGS, _ADD, _RECEIPT], values
    values["seen_tenants"] = numbers(one.key.tenant_id for one in seen)
    values["seen_devices"] = texts(one.key.device_id for one in seen)
    values["seen_apps"] = texts_or_null(one.app_version for one in seen)
    values["seen_systems"] = texts_or_null(one.os_version for one in seen)
    return [_SETTINGS, _SEEN, _ADD, _RECEIPT], values


def _health(row: Row) -> Health:
    tenant_id, device_id, syncs, failed, duration_us, conflicts, latest_us, network, app, system = row
    return Health(
        DeviceKey(tenant_id, device_id),
        Counts(syncs, failed, duration_us, conflicts),
        latest_us,
        network,
        app,
        system,
    )
