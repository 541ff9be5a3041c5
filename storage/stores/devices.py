"""Devices: their health for servers, many at once, and their list and revocations for commands."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from engine.cache.device_health import Counts, DeviceKey, Facts, Health, score
from engine.cache.ports import HealthUnknownError, Revoked
from engine.operate.ports import RefusedError
from engine.operate.rows import DeviceSummary
from engine.runtime.ports import StorePoisonError, StoreUnknownError
from storage.postgres.arrays import int_array, number_array_or_null, text_array, text_array_or_null
from storage.postgres.connection import Statement
from storage.postgres.driver import Row, Values
from storage.postgres.pool import Database
from storage.postgres.roles.hidden import hidden, hidden_error
from storage.postgres.roles.named_tenants import EVERYONE, Tenants
from storage.postgres.transactions import HOLD_MS, SERVER_MS, set_for_transaction
from storage.stores.audit import by_account
from storage.stores.tenant_rows import advance_generation, tenant_id_of

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
#: A row without a tenant names a table that the role may not see: its revocations are unknown, and not none.
_REVOKED: Final = (
    "SELECT tenant_id, device_id,"
    " CASE WHEN revoked_at IS NULL THEN floor(extract(epoch FROM tokens_from))::bigint END, NULL"
    " FROM devices WHERE revoked_at IS NOT NULL OR tokens_from IS NOT NULL"
    " UNION ALL SELECT tenant_id, NULL, NULL, token_id FROM revoked_tokens"
    " UNION ALL SELECT NULL, w.name, NULL, NULL FROM (VALUES ('devices', 'devices'::regclass),"
    f" ('revoked_tokens', 'revoked_tokens'::regclass)) AS w(name, place) WHERE {hidden('w.place')}"
)

#: Counts can wait: their transaction gives up a lock before PostgreSQL looks for a deadlock (after 1 s), so
#: that no other transaction is chosen as the victim.
_SETTINGS: Final = set_for_transaction(
    idle_in_transaction_session_timeout=HOLD_MS,
    lock_timeout=500,
    statement_timeout=SERVER_MS,
    client_min_messages="warning",
)
#: In ascending order of keys in every process, so that no two transactions wait for each other.
_SEEN: Final = Statement(
    "WITH seen AS MATERIALIZED (SELECT w.* FROM unnest(%(seen_tenants)s::int[], %(seen_devices)s::text[],"
    " %(seen_apps)s::text[], %(seen_systems)s::text[]) AS w(tenant_id, device_id, app, os)"
    " WHERE EXISTS (SELECT FROM tenants WHERE tenants.tenant_id = w.tenant_id)"
    ' ORDER BY w.tenant_id, w.device_id COLLATE "C")'
    " INSERT INTO devices AS t (tenant_id, device_id, app_version, os_version) SELECT * FROM seen"
    " ON CONFLICT (tenant_id, device_id) DO UPDATE SET last_seen_at = excluded.last_seen_at,"
    " app_version = coalesce(excluded.app_version, t.app_version),"
    " os_version = coalesce(excluded.os_version, t.os_version)"
)
#: Of two processes that store facts of a device, the one with the later heartbeat is right.
_LATER: Final = (
    "CASE WHEN excluded.heartbeat_at >= coalesce(t.heartbeat_at, '-infinity')"
    " THEN coalesce(excluded.{0}, t.{0}) ELSE t.{0} END"
)
_COUNTED: Final = (
    "(tenant_id, device_id, total_syncs, failed_syncs, sync_duration_us, avg_sync_duration_ms, conflicts,"
    " last_sync_at, network_type, app_version, os_version, battery, queue_depth, storage_free_mb,"
    " heartbeat_at)"
)
_ADD: Final = Statement(
    f"WITH counted {_COUNTED} AS MATERIALIZED"
    " (SELECT w.t, w.d, w.s, w.f, w.u, w.u / 1000.0 / nullif(w.s, 0), w.c,"
    " 'epoch'::timestamptz + w.l * interval '1 microsecond',"
    " w.n, w.a, w.o, w.b, w.q, w.r, 'epoch'::timestamptz + w.h * interval '1 microsecond'"
    " FROM unnest(%(tenants)s::int[], %(devices)s::text[], %(syncs)s::bigint[],"
    " %(failed)s::bigint[], %(durations)s::bigint[], %(conflicts)s::bigint[], %(latest)s::bigint[],"
    " %(networks)s::text[], %(apps)s::text[], %(systems)s::text[], %(batteries)s::real[],"
    " %(depths)s::int[], %(free)s::float8[], %(told)s::bigint[])"
    " AS w(t, d, s, f, u, c, l, n, a, o, b, q, r, h)"
    " WHERE EXISTS (SELECT FROM tenants WHERE tenants.tenant_id = w.t)"
    ' ORDER BY w.t, w.d COLLATE "C")'
    f" INSERT INTO sync_device_health AS t {_COUNTED} SELECT * FROM counted"
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
    f" battery = {_LATER.format('battery')}, queue_depth = {_LATER.format('queue_depth')},"
    f" storage_free_mb = {_LATER.format('storage_free_mb')},"
    " heartbeat_at = greatest(t.heartbeat_at, excluded.heartbeat_at), updated_at = excluded.updated_at"
)
_HOUR: Final = "(tenant_id, device_id, hour_start, syncs, failed, conflicts, battery, queue_depth, user_id)"
#: The row of a device's present hour, by the clock of the database. Counts that were kept during an outage
#: belong to the hour in which they are stored.
_ADD_HOUR: Final = Statement(
    f"WITH counted {_HOUR} AS MATERIALIZED"
    " (SELECT w.t, w.d, date_trunc('hour', now(), 'UTC'), w.s, w.f, w.c, w.b, w.q, w.u"
    " FROM unnest(%(tenants)s::int[], %(devices)s::text[], %(syncs)s::bigint[], %(failed)s::bigint[],"
    " %(conflicts)s::bigint[], %(batteries)s::real[], %(depths)s::int[], %(users)s::text[])"
    " AS w(t, d, s, f, c, b, q, u)"
    " WHERE EXISTS (SELECT FROM tenants WHERE tenants.tenant_id = w.t)"
    ' ORDER BY w.t, w.d COLLATE "C")'
    f" INSERT INTO sync_device_hours AS t {_HOUR} SELECT * FROM counted"
    " ON CONFLICT (tenant_id, device_id, hour_start) DO UPDATE SET syncs = t.syncs + excluded.syncs,"
    " failed = t.failed + excluded.failed, conflicts = t.conflicts + excluded.conflicts,"
    " battery = coalesce(excluded.battery, t.battery),"
    " queue_depth = coalesce(excluded.queue_depth, t.queue_depth),"
    " user_id = coalesce(excluded.user_id, t.user_id)"
)
#: Which devices have no row, and whether there is room for one. Nobody locks anything for it, so that devices
#: past the bound of their tenant cost no write, however often they come.
_ROOM: Final = Statement(
    "SELECT w.t, w.d, coalesce(s.device_rows, 0) + row_number() OVER (PARTITION BY w.t ORDER BY w.n)"
    " <= %(most)s::int FROM unnest(%(tenants)s::int[], %(devices)s::text[]) WITH ORDINALITY AS w(t, d, n)"
    " LEFT JOIN tenant_storage AS s ON s.tenant_id = w.t LEFT JOIN LATERAL (SELECT true AS known FROM devices"
    " WHERE tenant_id = w.t AND device_id = w.d LIMIT 1) AS k ON true WHERE k.known IS NULL ORDER BY w.n"
)
#: Makes the first rows of devices, as many as there is room for. The rows of ``tenant_storage`` are locked
#: first, so that two processes do not fill the same room; a trigger counts.
_STORAGE: Final = Statement(
    "INSERT INTO tenant_storage (tenant_id) SELECT tenant_id FROM tenants"
    " WHERE tenant_id = ANY(%(tenants)s::int[]) ORDER BY tenant_id ON CONFLICT (tenant_id) DO NOTHING"
)
_LOCK_STORAGE: Final = Statement(
    "SELECT FROM tenant_storage WHERE tenant_id = ANY(%(tenants)s::int[]) ORDER BY tenant_id"
    " FOR NO KEY UPDATE"
)
_WITHOUT_ROW: Final = (
    " FROM unnest(%(tenants)s::int[], %(devices)s::text[]) WITH ORDINALITY AS w(t, d, n)"
    " JOIN tenant_storage AS s ON s.tenant_id = w.t LEFT JOIN LATERAL (SELECT true AS known FROM devices"
    " WHERE tenant_id = w.t AND device_id = w.d LIMIT 1) AS k ON true WHERE k.known IS NULL"
)
_INTRODUCE: Final = Statement(
    "WITH new AS MATERIALIZED (SELECT f.t, f.d FROM (SELECT w.t, w.d,"
    f" s.device_rows + row_number() OVER (PARTITION BY w.t ORDER BY w.n) AS place{_WITHOUT_ROW}) AS f"
    ' WHERE f.place <= %(most)s::int ORDER BY f.t, f.d COLLATE "C")'
    " INSERT INTO devices (tenant_id, device_id) SELECT * FROM new"
    " ON CONFLICT (tenant_id, device_id) DO NOTHING"
)
_NO_ROOM: Final = Statement(f"SELECT w.t, w.d{_WITHOUT_ROW}")
#: Beside a table, as ``storage.stores.sealed.checked.NUMBERED``.
_RECEIPT: Final = Statement("SELECT pg_current_xact_id()::text FROM cluster_state")
_STATUS: Final = "SELECT pg_xact_status(%(receipt)s::xid8) FROM cluster_state"
_DEVICES: Final = (
    "SELECT t.name, d.device_id, d.first_seen_at, greatest(d.last_seen_at, h.last_sync_at), h.last_sync_at,"
    " coalesce(h.total_syncs, 0), coalesce(h.failed_syncs, 0), coalesce(h.sync_duration_us, 0),"
    " coalesce(h.conflicts, 0), h.network_type, coalesce(d.app_version, h.app_version),"
    " coalesce(d.os_version, h.os_version), h.battery, h.queue_depth, h.storage_free_mb, h.heartbeat_at,"
    " d.revoked_at, d.tokens_from, now()"
    " FROM tenants AS t JOIN devices AS d USING (tenant_id)"
    " LEFT JOIN sync_device_health AS h USING (tenant_id, device_id)"
    " WHERE {which} ORDER BY t.name, d.device_id"
)
_ALL: Final = _DEVICES.format(which="true")
_OF_TENANT: Final = _DEVICES.format(which="tenant_id = %(tenant)s")
_ONE: Final = _DEVICES.format(which="tenant_id = %(tenant)s AND device_id = %(device)s")

#: The facts of a change without any.
_UNTOLD: Final = Facts(0)


class PostgresDevices:
    """``engine.cache.ports.DeviceStore`` and ``engine.operate.ports.DeviceAdmin``.

    The receipt of an ``add`` is the id of its transaction, read before COMMIT. If the connection breaks, the
    server can still say whether that transaction was committed.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def health(self, keys: list[DeviceKey]) -> list[Health]:
        """Read several devices at once."""
        if not keys:
            return []
        tenants, devices = zip(*keys, strict=True)
        rows = await self._database.query(
            _READ, {"tenants": int_array(tenants), "devices": text_array(devices)}, set(tenants)
        )
        return [_health(row) for row in rows]

    async def latest(self, limit: int) -> list[Health]:
        """Read those that synced last."""
        rows = await self._database.query(_LATEST, {"limit": limit}, EVERYONE)
        return [_health(row) for row in rows]

    async def introduce(self, keys: list[DeviceKey], most: int) -> set[DeviceKey]:
        """Make a row for each device that has none, while its tenant has fewer than ``most``."""
        without = await self._database.query(_ROOM, _introduced(keys, most), {key.tenant_id for key in keys})
        refused = {DeviceKey(tenant_id, device_id) for tenant_id, device_id, room in without if not room}
        new = [DeviceKey(tenant_id, device_id) for tenant_id, device_id, room in without if room]
        if not new:
            return refused
        async with self._database.transaction(_SETTINGS, {key.tenant_id for key in new}) as transaction:
            rows = await transaction.run(
                [_STORAGE, _LOCK_STORAGE, _INTRODUCE, _NO_ROOM], _introduced(new, most)
            )
        return refused | {DeviceKey(tenant_id, device_id) for tenant_id, device_id in rows}

    async def add(self, changes: list[Health]) -> None:
        """Add to the stored counts; see the port for what it raises."""
        statements, values = _adding(changes)
        receipt = ""
        try:
            tenants = {one.key.tenant_id for one in changes}
            async with self._database.transaction(_SETTINGS, tenants) as transaction:
                ((receipt,),) = await transaction.run(statements, values)
        except StoreUnknownError:
            raise HealthUnknownError(receipt) from None

    async def stored(self, receipt: str) -> bool | None:
        """Return whether a transaction was committed; None while it runs."""
        try:
            rows = await self._database.query(_STATUS, {"receipt": receipt})
        except StorePoisonError:  # a higher id than any: another server took over, without this transaction
            return False
        status = rows[0][0]
        return None if status == "in progress" else status == "committed"

    async def revoked(self) -> Revoked:
        """Return the devices with refused tokens, and the revoked tokens.

        Raises:
            StoreError: The database is away, or hides rows from the role of jobs.
        """
        revoked = Revoked({}, set())
        for tenant_id, device_id, from_s, token_id in await self._database.query(_REVOKED, tenants=EVERYONE):
            if tenant_id is None:
                raise hidden_error(device_id)
            if device_id is None:
                revoked.tokens.add((tenant_id, token_id))
            else:
                revoked.devices[DeviceKey(tenant_id, device_id)] = from_s
        return revoked

    async def devices(self, tenant: str | None) -> list[DeviceSummary]:
        """List devices by tenant and id."""
        if tenant is None:
            return await self._summaries(_ALL, {}, EVERYONE)
        tenant_id = await tenant_id_of(self._database, tenant)
        return await self._summaries(_OF_TENANT, {"tenant": tenant_id}, [tenant_id])

    async def device(self, tenant: str, device_id: str) -> DeviceSummary:
        """Find one device."""
        found = await self._find(tenant, device_id)
        if not found:
            raise RefusedError(_nobody(tenant, device_id))
        return found[0]

    async def known(self, tenant: str, device_id: str) -> bool:
        """Return whether a device was ever seen, or revoked."""
        return bool(await self._find(tenant, device_id))

    async def revoke(self, tenant: str, device_id: str) -> bool:
        """Refuse a device from now on, also one that was never seen; return whether it was let in before."""
        async with self._database.transaction(tenants=tenant) as transaction:
            tenant_id = await tenant_id_of(transaction, tenant)
            revoked = await transaction.query(
                "INSERT INTO devices AS d (tenant_id, device_id, revoked_at)"
                " VALUES (%(tenant)s, %(device)s, now())"
                " ON CONFLICT (tenant_id, device_id) DO UPDATE SET revoked_at = excluded.revoked_at"
                " WHERE d.revoked_at IS NULL RETURNING 1",
                {"tenant": tenant_id, "device": device_id},
            )
            if revoked:
                await transaction.note(by_account("device_revoked", device_id, tenant, tenant_id))
            await advance_generation(transaction)
        return bool(revoked)

    async def restore(self, tenant: str, device_id: str) -> bool:
        """Let a revoked device in again, with tokens that are signed from now on."""
        async with self._database.transaction(tenants=tenant) as transaction:
            tenant_id = await tenant_id_of(transaction, tenant)
            key = {"tenant": tenant_id, "device": device_id}
            restored = await transaction.query(
                "UPDATE devices SET revoked_at = NULL, tokens_from = now() WHERE tenant_id = %(tenant)s"
                " AND device_id = %(device)s AND revoked_at IS NOT NULL RETURNING 1",
                key,
            )
            if not restored and not await transaction.query(_ONE, key):
                raise RefusedError(_nobody(tenant, device_id))
            if restored:
                await transaction.note(by_account("device_restored", device_id, tenant, tenant_id))
            await advance_generation(transaction)
        return bool(restored)

    async def _find(self, tenant: str, device_id: str) -> list[DeviceSummary]:
        tenant_id = await tenant_id_of(self._database, tenant)
        return await self._summaries(_ONE, {"tenant": tenant_id, "device": device_id}, [tenant_id])

    async def _summaries(self, statement: str, values: Values, tenants: Tenants) -> list[DeviceSummary]:
        return [_summary(*row) for row in await self._database.query(statement, values, tenants)]


def _adding(changes: list[Health]) -> tuple[list[Statement], dict[str, object]]:
    facts = [one.facts or _UNTOLD for one in changes]
    values: dict[str, object] = {
        "tenants": int_array(one.key.tenant_id for one in changes),
        "devices": text_array(one.key.device_id for one in changes),
        "syncs": int_array(one.counts.syncs for one in changes),
        "failed": int_array(one.counts.failed for one in changes),
        "durations": int_array(one.counts.duration_us for one in changes),
        "conflicts": int_array(one.counts.conflicts for one in changes),
        "latest": number_array_or_null(one.last_sync_at_us for one in changes),
        "networks": text_array_or_null(one.network_type for one in changes),
        "apps": text_array_or_null(one.app_version for one in changes),
        "systems": text_array_or_null(one.os_version for one in changes),
        "batteries": number_array_or_null(one.battery for one in facts),
        "depths": number_array_or_null(one.queue_depth for one in facts),
        "free": number_array_or_null(one.storage_free_mb for one in facts),
        "users": text_array_or_null(one.user_id for one in changes),
        "told": number_array_or_null(one.at_us or None for one in facts),
    }
    seen = [one for one in changes if one.seen]
    if not seen:
        return [_ADD, _ADD_HOUR, _RECEIPT], values
    values["seen_tenants"] = int_array(one.key.tenant_id for one in seen)
    values["seen_devices"] = text_array(one.key.device_id for one in seen)
    values["seen_apps"] = text_array_or_null(one.app_version for one in seen)
    values["seen_systems"] = text_array_or_null(one.os_version for one in seen)
    return [_SEEN, _ADD, _ADD_HOUR, _RECEIPT], values


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


def _nobody(tenant: str, device_id: str) -> str:
    return f"tenant {tenant} has no device {device_id}: see `run.py device list`"


def _summary(
    tenant: str,
    device_id: str,
    first_seen_at: datetime,
    last_seen_at: datetime,
    last_sync_at: datetime | None,
    *rest: Any,
) -> DeviceSummary:
    syncs, failed, duration_us, conflicts, network, app, system, *told, revoked_at, tokens_from, now = rest
    battery, queue_depth, storage_free_mb, heartbeat_at = told
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
        battery=battery,
        queue_depth=queue_depth,
        storage_free_mb=storage_free_mb,
        heartbeat_at=heartbeat_at,
        revoked_at=revoked_at,
        tokens_from=tokens_from,
    )


def _us(at: datetime) -> int:
    return round(at.timestamp() * 1_000_000)


def _introduced(keys: list[DeviceKey], most: int) -> dict[str, str | int]:
    tenants, devices = zip(*keys, strict=True)
    return {"tenants": int_array(tenants), "devices": text_array(devices), "most": most}
