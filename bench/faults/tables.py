"""What PostgreSQL holds after a run with faults, read past the server (``storage/migrations``)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from bench.faults.history import Data
from bench.harness.sealed import open_tables
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
    """What PostgreSQL holds at the end. ``counts`` say how many there are of what, by tenant and more."""

    records: dict[Where, Stored]
    counters: dict[str, int]
    events: dict[Where, list[Data]]
    counts: dict[str, Counter[tuple[str, ...]]]


#: A changed record's row in the log waits for a person, or did until one settled it.
_BY_PERSON: Final = "(x.outcome IN ('open', 'held') OR x.settled_by IS NOT NULL)"
#: Columns besides the tenant that are counted by, table and rows. A held change may join an open conflict.
COUNTED: Final[Mapping[str, tuple[str, str, str]]] = {
    "keys": ("replace(x.key_hash::text, '-', '')", "sync_idempotency_record", "true"),
    "rejected items": ("x.device_id", "quarantine", "true"),
    "conflicts": (
        *("x.device_id, x.conflict_id", "conflict_resolution_log"),
        f"x.outcome <> 'held' AND {_BY_PERSON}",
    ),
    "settled changes": (
        *("x.device_id, x.domain, x.record_id, x.outcome", "conflict_resolution_log"),
        f"NOT {_BY_PERSON}",
    ),
    "held changes": ("x.device_id, x.domain, x.record_id", "conflict_resolution_log", _BY_PERSON),
}


def read_tables(dsn: str, tenants: Sequence[str], prefix: str = "") -> Tables:
    """Read all that there is of some tenants, whose names get ``prefix`` before them. Raises StoreError."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        open_tables(cursor, dsn)

        def rows(columns: str, table: str, condition: str = "true") -> list[tuple[Any, ...]]:
            cursor.execute(
                f"SELECT %s || t.name, {columns} FROM {table} AS x JOIN tenants AS t USING (tenant_id)"
                f" WHERE t.name = ANY(%s) AND {condition}",
                (prefix, list(tenants)),
            )
            return cursor.fetchall()

        records = rows("x.domain, x.id, x.version, x.seq, coalesce(x.data::text, 'null')", "records")
        events: dict[Where, list[Data]] = defaultdict(list)
        for tenant, domain, event_id, data in rows("x.domain, x.id, x.data::text", "events"):
            events[tenant, domain, event_id].append(_decode(data))
        return Tables(
            records={row[:3]: Stored(row[3], row[4], _decode(row[5])) for row in records},
            counters=dict(rows("x.seq", "tenant_counters")),
            events=dict(events),
            counts={what: Counter(rows(*source)) for what, source in COUNTED.items()},
        )
