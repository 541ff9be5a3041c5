"""Fills a database with records before a run, past the server."""

from __future__ import annotations

from typing import Final

from bench.harness.child import progress
from bench.load.workload import DOMAIN, data_of
from storage.postgres.blocking import connected

_CHUNK_RECORDS: Final = 250_000
#: Ids begin with eight hexadecimal digits that cover their whole range, as those of later runs do.
_RANGE: Final = 1 << 32

_FILL: Final = """
INSERT INTO records (tenant_id, domain, id, version, seq, at_us, device_id, chain_from, data)
SELECT %(tenant)s, %(domain)s, lpad(to_hex(n * %(step)s), 8, '0') || '-0-' || n, 1, n,
       1767225600000000 + n * 1000, 'fill', 1, replace(%(data)s, 'round 0', 'round ' || n)::json
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n"""


def fill(dsn: str, tenants: list[str], records: int) -> None:
    """Write ``records`` over the tenants, as many to each, one version each. Raises StoreError."""
    each = max(1, records // len(tenants))
    with connected(dsn) as connection, connection.cursor() as cursor:
        for done, name in enumerate(tenants):
            progress(f"filling: {done * each:,} of {each * len(tenants):,} records")
            cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s", (name,))
            ((tenant_id,),) = cursor.fetchall()
            for first in range(1, each + 1, _CHUNK_RECORDS):
                cursor.execute(
                    _FILL,
                    {
                        "tenant": tenant_id,
                        "domain": DOMAIN,
                        "step": max(1, _RANGE // (each + 1)),
                        "data": data_of(0, 0).decode(),
                        "first": first,
                        "last": min(each, first + _CHUNK_RECORDS - 1),
                    },
                )
            cursor.execute("UPDATE tenant_counters SET seq = %s WHERE tenant_id = %s", (each, tenant_id))
        progress("filling: vacuum and checkpoint")
        cursor.execute("VACUUM (ANALYZE) records")
        cursor.execute("CHECKPOINT")
