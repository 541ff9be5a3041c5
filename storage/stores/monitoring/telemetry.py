"""Telemetry of devices: stored once by key, read for people, and deleted when its time is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from engine.cache.ports import TelemetryOutcome
from engine.model.commit_counts import Unit
from engine.model.minutes import Durations
from engine.model.telemetry import MAX_DEVICE_NAMES, MAX_PARTS, MAX_TENANT_NAMES, Identity, TelemetryRow
from engine.operate.figures.telemetry import Summed
from engine.runtime.ports import StoreRetryError
from storage.postgres.arrays import hex_array, int_array, text_array
from storage.postgres.connection import Statement
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import EVERYONE
from storage.stores.monitoring.minutes import BEFORE, SINCE, UNTIL
from storage.stores.tenant_rows import tenant_id_of

#: Another process may take the next part first, at most once for each part.
_ATTEMPTS: Final = MAX_PARTS + 1
#: Names and pairs of one statement: to write them takes the event loop a millisecond or two. Fifty ordinary
#: messages have no more, and five of the largest. Fifty of those together took 22 ms at a load of 10.
_MOST_VALUES: Final = 4000
#: Tenants whose names are remembered, 50 KB each at most.
_MOST_TENANTS: Final = 500
#: Names are numbered where they are met first. A name that is used is noted once a day by each process, since
#: it remembers names for a day.
_NAMES: Final = (
    "WITH w AS MATERIALIZED (SELECT * FROM unnest(%(tenants)s::int[], %(devices)s::text[], %(names)s::text[])"
    " WITH ORDINALITY AS w(tenant_id, device_id, name, place)"
    " WHERE EXISTS (SELECT FROM tenants AS t WHERE t.tenant_id = w.tenant_id)),"
    " known AS MATERIALIZED (SELECT n.tenant_id, n.name, n.number, n.used_on FROM"
    " (SELECT DISTINCT tenant_id, name FROM w) AS d"
    " JOIN telemetry_names AS n ON n.tenant_id = d.tenant_id AND n.name = d.name),"
    " idle AS MATERIALIZED (SELECT * FROM (SELECT n.tenant_id, n.number FROM telemetry_names AS n"
    " JOIN known AS k ON k.tenant_id = n.tenant_id AND k.number = n.number WHERE k.used_on < current_date"
    " ORDER BY n.tenant_id, n.number FOR UPDATE OF n) AS held),"
    " used AS (UPDATE telemetry_names AS n SET used_on = current_date FROM idle"
    " WHERE n.tenant_id = idle.tenant_id AND n.number = idle.number),"
    " own AS (SELECT w.*, row_number() OVER (PARTITION BY w.tenant_id, w.device_id ORDER BY w.place)"
    " + (SELECT count(*) FROM telemetry_names AS n WHERE n.tenant_id = w.tenant_id"
    " AND n.device_id = w.device_id) AS own FROM w WHERE NOT EXISTS (SELECT FROM known AS k"
    " WHERE k.tenant_id = w.tenant_id AND k.name = w.name)),"
    " wanted AS (SELECT *, row_number() OVER (PARTITION BY tenant_id ORDER BY place) AS turn FROM"
    f" (SELECT DISTINCT ON (tenant_id, name) * FROM own WHERE own <= {MAX_DEVICE_NAMES}"
    " ORDER BY tenant_id, name, place) AS first),"
    " free AS (SELECT t.tenant_id, g.number, row_number() OVER (PARTITION BY t.tenant_id ORDER BY g.number)"
    " AS turn FROM (SELECT DISTINCT tenant_id FROM wanted) AS t"
    f" CROSS JOIN generate_series(1, {MAX_TENANT_NAMES}) AS g(number) WHERE NOT EXISTS"
    " (SELECT FROM telemetry_names AS n WHERE n.tenant_id = t.tenant_id AND n.number = g.number)),"
    " new AS MATERIALIZED (SELECT w.tenant_id, f.number, w.name, w.device_id FROM wanted AS w"
    " JOIN free AS f ON f.tenant_id = w.tenant_id AND f.turn = w.turn ORDER BY 1, 2),"
    " added AS (INSERT INTO telemetry_names (tenant_id, number, name, device_id) SELECT * FROM new"
    " ON CONFLICT DO NOTHING RETURNING tenant_id, name, number)"
    " SELECT tenant_id, name, number FROM known UNION ALL SELECT * FROM added"
)
_ARRAYS: Final = {
    "counter_names": "smallint",
    "counter_values": "bigint",
    "histogram_names": "smallint",
    "histogram_places": "smallint",
    "histogram_buckets": "smallint",
    "histogram_counts": "integer",
}
#: A row that another process puts in the same place at the same time is waited for; this one has its turn in
#: the next attempt, which sees it. All processes go by the same order, so that none waits in a circle.
#: A statement adds one part of a device's hour, the next that it sees: a second one would be free although
#: another process has just stored the same key as the first.
_PUT: Final = Statement(
    "WITH w AS MATERIALIZED (SELECT w.tenant_id,"
    " 'epoch'::timestamptz + w.hour * interval '1 hour' AS hour_start, w.device_id, w.key_hash, "
    + ", ".join(f"w.{name}::{kind}[] AS {name}" for name, kind in _ARRAYS.items())
    + ", w.place FROM unnest(%(tenants)s::int[], %(hours)s::int[], %(devices)s::text[], %(keys)s::uuid[], "
    + ", ".join(f"%({name})s::text[]" for name in _ARRAYS)
    + f") WITH ORDINALITY AS w(tenant_id, hour, device_id, key_hash, {', '.join(_ARRAYS)}, place)),"
    " met AS MATERIALIZED (SELECT w.*, s.parts, s.same,"
    " EXISTS (SELECT FROM tenants AS t WHERE t.tenant_id = w.tenant_id) AS tenant FROM w CROSS JOIN LATERAL"
    " (SELECT count(*) AS parts, bool_and("
    + " AND ".join(f"x.{name} = w.{name}" for name in _ARRAYS)
    + ") FILTER (WHERE x.key_hash = w.key_hash) AS same FROM device_telemetry AS x"
    " WHERE x.tenant_id = w.tenant_id AND x.hour_start = w.hour_start AND x.device_id = w.device_id) AS s),"
    " new AS MATERIALIZED (SELECT *, parts + 1 AS part, row_number() OVER"
    " (PARTITION BY tenant_id, hour_start, device_id ORDER BY place) AS turn"
    " FROM met WHERE same IS NULL AND tenant),"
    " added AS (INSERT INTO device_telemetry"
    f" (tenant_id, hour_start, device_id, part, key_hash, {', '.join(_ARRAYS)})"
    f" SELECT tenant_id, hour_start, device_id, part, key_hash, {', '.join(_ARRAYS)} FROM new"
    f' WHERE turn = 1 AND part <= {MAX_PARTS} ORDER BY tenant_id, hour_start, device_id COLLATE "C", part'
    " ON CONFLICT DO NOTHING RETURNING tenant_id, hour_start, device_id, key_hash)"
    " SELECT met.place, CASE WHEN NOT met.tenant THEN 'no_tenant' WHEN met.same THEN 'replayed'"
    " WHEN NOT met.same THEN 'reused' WHEN a.key_hash IS NOT NULL THEN 'stored'"
    f" WHEN n.part > {MAX_PARTS} THEN 'parts' END FROM met"
    " LEFT JOIN new AS n ON n.place = met.place LEFT JOIN added AS a ON a.tenant_id = met.tenant_id"
    " AND a.hour_start = met.hour_start AND a.device_id = met.device_id AND a.key_hash = met.key_hash"
)
_OF_SPAN: Final = f"d.tenant_id = %(tenant)s AND d.hour_start >= {SINCE} AND d.hour_start < {UNTIL}"
_NAMED: Final = "JOIN telemetry_names AS n ON n.tenant_id = %(tenant)s AND n.number = s.number"
_PERIOD: Final = "(extract(epoch FROM date_bin('1 {0}', d.hour_start, 'epoch')) * 1000000)::bigint"
#: Of a period 0 all periods are summed: devices are no sum.
_COUNTERS: Final = (
    "SELECT coalesce(period, 0), n.name, count(DISTINCT s.device_id), sum(s.value)::text FROM"
    " (SELECT {period} AS period, d.device_id, u.number, u.value FROM device_telemetry AS d"
    " CROSS JOIN LATERAL unnest(d.counter_names, d.counter_values) AS u(number, value)"
    f" WHERE {_OF_SPAN}) AS s {_NAMED}"
    " GROUP BY GROUPING SETS ((period, n.name), (n.name))"
)
_DEVICES: Final = (
    "SELECT coalesce(period, 0), n.name, count(DISTINCT s.device_id) FROM"
    " (SELECT {period} AS period, d.device_id, unnest(d.histogram_names) AS number FROM device_telemetry AS d"
    f" WHERE {_OF_SPAN}) AS s {_NAMED}"
    " GROUP BY GROUPING SETS ((period, n.name), (n.name))"
)
_BUCKETS: Final = (
    "SELECT period, n.name, s.bucket, sum(s.count)::text FROM"
    " (SELECT {period} AS period, d.histogram_names[u.place] AS number, u.bucket, u.count"
    " FROM device_telemetry AS d CROSS JOIN LATERAL"
    " unnest(d.histogram_places, d.histogram_buckets, d.histogram_counts) AS u(place, bucket, count)"
    f" WHERE {_OF_SPAN}) AS s {_NAMED}"
    " GROUP BY period, n.name, s.bucket"
)
#: Tenant by tenant, by the primary key: an index of time alone would cost every row a write.
_DELETE: Final = (
    "WITH old AS MATERIALIZED (SELECT f.* FROM tenants AS t CROSS JOIN LATERAL"
    " (SELECT d.tenant_id AS t, d.hour_start AS h, d.device_id AS i, d.part AS p FROM device_telemetry AS d"
    f" WHERE d.tenant_id = t.tenant_id AND d.hour_start < {BEFORE}"
    " ORDER BY d.hour_start LIMIT %(limit)s::int) AS f LIMIT %(limit)s::int),"
    " gone AS (DELETE FROM device_telemetry AS g USING old WHERE g.tenant_id = old.t AND g.hour_start = old.h"
    " AND g.device_id = old.i AND g.part = old.p RETURNING 1) SELECT count(*) FROM gone"
)
#: Two days later than their last rows: a process remembers a name for a day, and an hour may be ahead. While
#: a row is left that may have it, a name stays.
_DELETE_NAMES: Final = (
    "WITH old AS MATERIALIZED (SELECT f.* FROM tenants AS t CROSS JOIN LATERAL"
    " (SELECT n.tenant_id AS t, n.number AS i FROM telemetry_names AS n WHERE n.tenant_id = t.tenant_id"
    f" AND n.used_on < ({BEFORE} AT TIME ZONE 'UTC')::date - 2 AND NOT EXISTS (SELECT FROM device_telemetry"
    f" AS d WHERE d.tenant_id = t.tenant_id AND d.hour_start < {BEFORE}) LIMIT %(limit)s::int) AS f"
    " LIMIT %(limit)s::int), gone AS (DELETE FROM telemetry_names AS g USING old"
    " WHERE g.tenant_id = old.t AND g.number = old.i RETURNING 1) SELECT count(*) FROM gone"
)


class PostgresTelemetry:
    """Telemetry: ``engine.cache.ports.TelemetryStore``, and deletion.

    It is also ``engine.operate.figures.telemetry.TelemetryReads``.
    """

    def __init__(self, database: Database, today: Callable[[], int] = lambda: 0) -> None:
        """Make a store. One that stores is given ``today``, which returns the number of the present day."""
        self._database = database
        self._today = today
        self._day = 0
        #: The numbers of names by tenant, as of this day.
        self._names: dict[int, dict[str, int]] = {}

    async def put(self, rows: Sequence[TelemetryRow]) -> list[TelemetryOutcome]:
        """Store messages."""
        return [outcome for group in _groups(rows) for outcome in await self._put_group(group)]

    async def _put_group(self, rows: Sequence[TelemetryRow]) -> list[TelemetryOutcome]:
        first: dict[Identity, int] = {}
        for place, row in enumerate(rows):
            first.setdefault(row.identity, place)
        await self._number(rows)
        found = await self._put([rows[place] for place in first.values() if self._numbered(rows[place])])
        outcomes: list[TelemetryOutcome] = []
        for place, row in enumerate(rows):
            own = first[row.identity]
            outcome = found.get(row.identity, "names")
            if own != place and outcome in ("stored", "replayed"):
                outcome = "replayed" if row == rows[own] else "reused"
            outcomes.append(outcome)
        return outcomes

    async def _put(self, rows: list[TelemetryRow]) -> dict[Identity, TelemetryOutcome]:
        found: dict[Identity, TelemetryOutcome] = {}
        for _ in range(_ATTEMPTS):
            if not rows:
                return found
            tenants = {row.tenant_id for row in rows}
            told = await self._database.execute(_PUT, self._values(rows), tenants=tenants)
            found |= {rows[place - 1].identity: outcome for place, outcome in told if outcome is not None}
            rows = [row for row in rows if row.identity not in found]
        if rows:
            raise StoreRetryError("other processes store telemetry of the same devices")
        return found

    def _values(self, rows: Sequence[TelemetryRow]) -> dict[str, object]:
        numbers = [self._names[row.tenant_id] for row in rows]
        each = list(zip(rows, numbers, strict=True))
        return {
            "tenants": int_array(row.tenant_id for row in rows),
            "hours": int_array(row.hour for row in rows),
            "devices": text_array(row.device_id for row in rows),
            "keys": hex_array(row.key_hash for row in rows),
            "counter_names": text_array(_ints([of[name] for name in row.counters]) for row, of in each),
            "counter_values": text_array(_ints(row.values) for row in rows),
            "histogram_names": text_array(_ints([of[name] for name in row.histograms]) for row, of in each),
            "histogram_places": text_array(_ints(row.places) for row in rows),
            "histogram_buckets": text_array(_ints(row.buckets) for row in rows),
            "histogram_counts": text_array(_ints(row.counts) for row in rows),
        }

    # -- names --------------------------------------------------------------------------------

    async def _number(self, rows: Iterable[TelemetryRow]) -> None:
        """Learn the numbers of names; there is none for a name that has no room."""
        day = self._today()
        if day != self._day or len(self._names) > _MOST_TENANTS:
            self._day, self._names = day, {}
        missing: set[tuple[int, str]] = set()
        sent: set[tuple[int, str, str]] = set()
        for row in rows:
            known = self._names.setdefault(row.tenant_id, {})
            for name in (*row.counters, *row.histograms):
                if name not in known:
                    missing.add((row.tenant_id, name))
                    sent.add((row.tenant_id, row.device_id, name))
        for _ in range(2):  # another process may number the same names at the same time
            if not missing:
                return
            tenants, devices, names = zip(*sorted(sent), strict=True)
            values = {
                "tenants": int_array(tenants),
                "devices": text_array(devices),
                "names": text_array(names),
            }
            found = await self._database.execute(_NAMES, values, tenants=set(tenants))
            for tenant_id, name, number in found:
                self._names[tenant_id][name] = number
                missing.discard((tenant_id, name))

    def _numbered(self, row: TelemetryRow) -> bool:
        known = self._names[row.tenant_id]
        return all(name in known for name in row.counters) and all(name in known for name in row.histograms)

    # -- for people ---------------------------------------------------------------------------

    async def telemetry(self, tenant: str, since_us: int, until_us: int, by: Unit) -> list[Summed]:
        """Sum the telemetry of a tenant."""
        tenant_id = await tenant_id_of(self._database, tenant)
        values = {"tenant": tenant_id, "since": since_us, "until": until_us}
        period = _PERIOD.format(by)
        rows = await self._database.query(_COUNTERS.format(period=period), values, [tenant_id])
        found = [Summed(start_us, name, devices, int(value), None) for start_us, name, devices, value in rows]
        buckets: dict[tuple[int, str], dict[int, int]] = {}
        for start_us, name, bucket, count in await self._database.query(
            _BUCKETS.format(period=period), values, [tenant_id]
        ):
            for key in ((start_us, name), (0, name)):
                filled = buckets.setdefault(key, {})
                filled[bucket] = filled.get(bucket, 0) + int(count)
        rows = await self._database.query(_DEVICES.format(period=period), values, [tenant_id])
        for start_us, name, devices in rows:
            filled = buckets.get((start_us, name), {})
            durations = Durations.of(filled, filled.values(), 0)
            found.append(Summed(start_us, name, devices, durations.count, durations))
        return found

    async def delete(self, before_us: int, limit: int) -> int:
        """Delete telemetry of hours before an instant, each tenant's oldest first. Returns how many rows."""
        return await self._delete(_DELETE, before_us, limit)

    async def delete_names(self, before_us: int, limit: int) -> int:
        """Delete names that no row can have any more, if all rows before an instant are deleted."""
        return await self._delete(_DELETE_NAMES, before_us, limit)

    async def _delete(self, statement: str, before_us: int, limit: int) -> int:
        ((count,),) = await self._database.execute(
            statement, {"before": before_us, "limit": limit}, tenants=EVERYONE
        )
        return int(count)


def _groups(rows: Iterable[TelemetryRow]) -> Iterator[list[TelemetryRow]]:
    """Split messages into those of one statement each."""
    group: list[TelemetryRow] = []
    values = 0
    for row in rows:
        if group and values + row.size > _MOST_VALUES:
            yield group
            group, values = [], 0
        group.append(row)
        values += row.size
    if group:
        yield group


def _ints(values: Sequence[int]) -> str:
    """Return an array of integers, a tenth of the time of ``int_array`` for hundreds of them."""
    return "{" + msgspec.json.encode(values)[1:-1].decode() + "}"
