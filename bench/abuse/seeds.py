"""Rows that an attacker's tenant has before an attack, written past the server."""

from __future__ import annotations

from typing import Final

from bench.harness.preload import fill
from storage.postgres.blocking import connected

#: Records of a feed that attacks read.
LONG_FEED: Final = 200_000
FUTURE_EVENTS: Final = 500_000
EARLY_FILES: Final = 20_000
#: The days that events are spread over, beyond those that have partitions already.
_FROM_DAY, _DAYS = 15, 400

_FUTURE: Final = """
INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)
SELECT %(tenant)s, 'behavioral', 'ahead-' || n, at_us, at_us, 'seed', '{"event_id":"a","event_type":"b"}'
FROM generate_series(1, %(rows)s) AS n,
LATERAL (SELECT ((floor(extract(epoch FROM now()) / 86400) + %(from)s) * 86400000000)::bigint
+ n::bigint * %(step_us)s AS at_us) AS dated"""

_EARLY: Final = """
INSERT INTO upload_session (tenant_id, upload_id, device_id, kind, file_name, content_type, domain, record_id,
metadata, size_bytes, reserved_bytes, offset_bytes, sha256, state, expires_at)
SELECT %(tenant)s, gen_random_uuid(), 'seed', 'whole', n || '.jpg', 'image/jpeg', 'task', 'never-' || n,
'', 1000, 1000, 1000, repeat('0', 64), 'stored', now() + interval '1 day'
FROM generate_series(1, %(rows)s) AS n"""


def long_feed(dsn: str, tenant: str) -> None:
    """Write a feed for the tenant of ``LONG_FEED`` records. Raises StoreError."""
    fill(dsn, [tenant], LONG_FEED)


def future_events(dsn: str, tenant: str) -> None:
    """Write events of the tenant that are dated from a fortnight to a year ahead. Raises StoreError."""
    step_us = _DAYS * 86_400_000_000 // FUTURE_EVENTS
    _write(dsn, tenant, _FUTURE, {"rows": FUTURE_EVENTS, "from": _FROM_DAY, "step_us": step_us})


def early_files(dsn: str, tenant: str) -> None:
    """Write files of the tenant whose records are not there. Raises StoreError."""
    _write(dsn, tenant, _EARLY, {"rows": EARLY_FILES})


def _write(dsn: str, tenant: str, statement: str, values: dict[str, int]) -> None:
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s", (tenant,))
        ((tenant_id,),) = cursor.fetchall()
        cursor.execute(statement, {"tenant": tenant_id, **values})
        cursor.execute("CHECKPOINT")
