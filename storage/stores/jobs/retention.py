"""Deletes rows that are past their retention, over all tenants, a page at a time."""

from __future__ import annotations

from typing import Final

from engine.operate.retention import Page, Position
from storage.postgres.plain_bytes import CHANGE_DATA, plain_bytes
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import EVERYONE
from storage.postgres.transactions import transaction_settings

_NOW: Final = "to_timestamp(%(now)s::float8 / 1000000)"
#: Where a tenant's rows begin in this page: before it an index has only the entries of deleted rows.
_FROM: Final = "CASE WHEN t.tenant_id = %(tenant)s::int THEN %(at)s::bigint ELSE 0 END"
#: Tenants that a batch has locked are left for the next run, so that neither waits for the other in a circle.
#: No batch can change a tombstone of the other tenants, and one whose last data changed has a later time.
_DROP_LAST_DATA: Final = (
    "WITH old AS MATERIALIZED (SELECT tenant_id AS t, domain AS d, id AS i,"
    f" {plain_bytes('last_data::text')} AS b, (extract(epoch FROM last_data_at) * 1000000)::bigint AS at"
    f" FROM records WHERE last_data IS NOT NULL AND last_data_at < {_NOW}"
    " AND last_data_at >= to_timestamp(%(at)s::float8 / 1000000)"
    " ORDER BY last_data_at LIMIT %(limit)s::int),"
    " held AS MATERIALIZED (SELECT tenant_id FROM tenant_counters"
    " WHERE tenant_id IN (SELECT t FROM old) FOR UPDATE SKIP LOCKED),"
    " emptied AS (UPDATE records AS r SET last_data = NULL, last_data_at = NULL FROM old, held"
    " WHERE held.tenant_id = old.t AND r.tenant_id = old.t AND r.domain = old.d AND r.id = old.i"
    f" AND r.last_data IS NOT NULL AND r.last_data_at < {_NOW} RETURNING old.t, old.b),"
    " counted AS (UPDATE tenant_counters AS c SET record_bytes = c.record_bytes - w.b"
    " FROM (SELECT t, sum(b) AS b FROM emptied GROUP BY t) AS w WHERE c.tenant_id = w.t)"
    " SELECT count(*), (SELECT count(*) FROM emptied), 0, max(at) FROM old"
)
#: Tenant by tenant, by an index of lists: one of time alone would cost every conflict a write. Tenants
#: that a batch has locked are left for the next run. What is deleted is taken off the tenant's usage.
_OLD: Final = (
    "WITH old AS MATERIALIZED (SELECT f.* FROM tenants AS t CROSS JOIN LATERAL ({found}"
    " LIMIT %(limit)s::int) AS f WHERE t.tenant_id >= %(tenant)s::int ORDER BY t.tenant_id, f.at"
    " LIMIT %(limit)s::int),"
    " held AS MATERIALIZED (SELECT tenant_id FROM tenant_counters"
    " WHERE tenant_id IN (SELECT t FROM old) FOR UPDATE SKIP LOCKED),"
    " gone AS (DELETE FROM {table} AS g USING old, held"
    " WHERE held.tenant_id = old.t AND g.tenant_id = old.t AND g.{key} = old.i RETURNING old.t, old.b),"
    " counted AS (UPDATE tenant_counters AS c SET {kind}_rows = c.{kind}_rows - w.n,"
    " {kind}_bytes = c.{kind}_bytes - w.b"
    " FROM (SELECT t, count(*) AS n, sum(b) AS b FROM gone GROUP BY t) AS w"
    " WHERE c.tenant_id = w.t) SELECT count(*), (SELECT count(*) FROM gone), max(t),"
    " (array_agg(at ORDER BY t DESC, at DESC))[1] FROM old"
)
#: Changes that a conflict held are deleted with it. The time of a settled conflict counts from its settling.
_CONFLICTS: Final = _OLD.format(
    found=f"SELECT c.tenant_id AS t, c.conflict_id AS i, coalesce({plain_bytes('c.server_data::text')}, 0)"
    f" + coalesce({plain_bytes('c.client_data::text')}, 0)"
    f" + coalesce((SELECT sum({plain_bytes(CHANGE_DATA)})"
    " FROM json_array_elements(c.client_changes) AS change"
    " WHERE json_typeof(change->'data') <> 'null'), 0) AS b, coalesce(c.settled_at_us, c.opened_at_us) AS at"
    " FROM conflict_resolution_log AS c WHERE c.tenant_id = t.tenant_id"
    f" AND coalesce(c.settled_at_us, c.opened_at_us) >= {_FROM} AND c.outcome <> 'open'"
    " AND coalesce(c.settled_at_us, c.opened_at_us) < %(now)s::bigint AND (c.held_in IS NULL OR NOT EXISTS"
    " (SELECT FROM conflict_resolution_log AS h WHERE h.tenant_id = c.tenant_id AND h.conflict_id = c.held_in"
    " AND (h.outcome = 'open' OR h.settled_at_us >= %(now)s::bigint)))"
    " ORDER BY coalesce(c.settled_at_us, c.opened_at_us)",
    table="conflict_resolution_log",
    key="conflict_id",
    kind="conflict",
)
_QUARANTINED: Final = _OLD.format(
    found=f"SELECT q.tenant_id AS t, q.quarantine_id AS i, {plain_bytes('q.item')} AS b, q.at_us AS at"
    f" FROM quarantine AS q WHERE q.tenant_id = t.tenant_id AND q.at_us > 0 AND q.at_us >= {_FROM}"
    " AND q.at_us < %(now)s::bigint ORDER BY q.at_us",
    table="quarantine",
    key="quarantine_id",
    kind="quarantine",
)
#: A page is read in the order of an index, and ends early. The planner cannot know where a page begins, and
#: would read and sort all of a tenant's rows: 80 ms for 25,000. COMMIT does not wait for the disk, so that
#: the tenants are locked for less: what a crash brings back is deleted again, and counted with its rows.
_SETTINGS: Final = transaction_settings("off", enable_bitmapscan="off", enable_sort="off")


class PostgresRetention:
    """``engine.operate.retention.RetentionStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def drop_last_data(self, before_us: int, after: Position, limit: int) -> Page:
        """Drop last data, the oldest first."""
        return await self._delete(_DROP_LAST_DATA, before_us, after, limit)

    async def delete_conflicts(self, before_us: int, after: Position, limit: int) -> Page:
        """Delete settled conflicts, each tenant's oldest first."""
        return await self._delete(_CONFLICTS, before_us, after, limit)

    async def delete_quarantined(self, before_us: int, after: Position, limit: int) -> Page:
        """Delete rejected items, each tenant's oldest first."""
        return await self._delete(_QUARANTINED, before_us, after, limit)

    async def _delete(self, statement: str, before_us: int, after: Position, limit: int) -> Page:
        """Run one statement as a transaction, planned each time, since the tables grow."""
        values = {
            "now": str(before_us),
            "tenant": str(after.tenant_id),
            "at": str(after.at_us),
            "limit": str(limit),
        }
        ((found, deleted, tenant_id, at_us),) = await self._database.execute(
            statement, values, _SETTINGS, EVERYONE
        )
        return Page(found, deleted, Position(tenant_id, at_us) if found else after)
