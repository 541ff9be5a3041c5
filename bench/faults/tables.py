"""What PostgreSQL holds after a run with faults, read past the server (``storage/migrations``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from bench.faults.history import Data
from storage.postgres.blocking import connected

#: Tenant, domain, id.
Where = tuple[str, str, str]
_decode = msgspec.json.Decoder(Data).decode


class Stored(NamedTuple):
    """A record as the table has it."""

    version: int
    seq: int
    data: Data


class Tables(NamedTuple):
    """What PostgreSQL holds at the end. ``keys`` are (tenant, key hash), ``rejected`` (tenant, device).

    ``settled`` are the conflicts that a policy settled, by tenant, device, domain, id and winner; ``waiting``
    the changes that were held for a person, also those that joined another one.
    """

    records: dict[Where, Stored]
    counters: dict[str, int]
    events: dict[Where, list[Data]]
    keys: Counter[tuple[str, str]]
    rejected: Counter[tuple[str, str]]
    conflicts: Counter[tuple[str, str, str]]
    settled: Counter[tuple[str, ...]]
    waiting: Counter[tuple[str, ...]]


def read_tables(dsn: str, tenants: Sequence[str]) -> Tables:
    """Read all that there is of some tenants. Raises StoreError."""
    tables = Tables({}, {}, {}, Counter(), Counter(), Counter(), Counter(), Counter())
    with connected(dsn) as connection, connection.cursor() as cursor:

        def rows(columns: str, table: str, besides: str = "") -> list[tuple[Any, ...]]:
            cursor.execute(
                f"SELECT t.name, {columns} FROM {table} AS x JOIN tenants AS t USING (tenant_id)"
                f" WHERE t.name = ANY(%s) {besides}",
                (list(tenants),),
            )
            return cursor.fetchall()

        for tenant, domain, record_id, version, seq, data in rows(
            "x.domain, x.id, x.version, x.seq, coalesce(x.data::text, 'null')", "records"
        ):
            tables.records[tenant, domain, record_id] = Stored(version, seq, _decode(data))
        tables.counters.update(rows("x.seq", "tenant_counters"))
        for tenant, domain, event_id, data in rows("x.domain, x.id, x.data::text", "events"):
            tables.events.setdefault((tenant, domain, event_id), []).append(_decode(data))
        for tenant, key_hash in rows("x.key_hash::text", "sync_idempotency_record"):
            tables.keys[tenant, key_hash.replace("-", "")] += 1
        tables.rejected.update(rows("x.device_id", "quarantine"))
        columns = "x.device_id, x.conflict_id, x.domain, x.record_id, x.outcome, x.settled_by IS NOT NULL"
        for tenant, device, conflict_id, domain, record_id, outcome, by_person in rows(
            columns, "conflict_resolution_log"
        ):
            if outcome not in {"open", "held"} and not by_person:
                tables.settled[tenant, device, domain, record_id, outcome] += 1
                continue
            tables.waiting[tenant, device, domain, record_id] += 1
            if outcome != "held":
                tables.conflicts[tenant, device, conflict_id] += 1
    return tables
