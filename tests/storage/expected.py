"""Writes the schema and the plans that ``run.py verify`` expects: ``python -m tests.storage.expected``.

The plans are of a database that was migrated just then, and of the same one with many rows: PostgreSQL may
choose either while a table grows.
"""

from __future__ import annotations

import msgspec

from bench.harness.clusters import as_role, migrate_for_roles
from storage.postgres.blocking import connected
from storage.postgres.checkup import catalogue
from storage.stores.plans import explained
from tests.harness.services import cluster, execute
from tests.storage.stores.test_query_plans import GROWTH, TENANTS

LIFETIME_H = 720
#: Under way at the same time, by 500 devices.
OPEN_UPLOADS = """
    INSERT INTO upload_session (tenant_id, upload_id, device_id, kind, file_name, domain, record_id, metadata,
        reserved_bytes, state, expires_at)
    SELECT 1, md5('open' || n)::uuid, 'd' || n / 4, 'whole', 'a.jpg', 'task', 'r' || n, '', 1,
        'open', now() FROM generate_series(1, 2000) AS n
"""


def _written(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=1) + b"\n"


def accesses(dsn: str) -> dict[str, set[str]]:
    """How the statements of serving read growing tables; a probe of a whole unique key is always right."""
    found = explained.read_accesses(as_role(dsn, "serving"), LIFETIME_H)
    return {name: {one.by for one in reads if not isinstance(one, str)} for name, reads in found.items()}


def tables(dsn: str) -> bytes:
    """The schema as it is written to the file."""
    with connected(dsn) as connection:
        return _written(catalogue.read_catalogue(connection).tables)


if __name__ == "__main__":
    with cluster("expected") as made:
        migrate_for_roles(made.dsn)
        catalogue.EXPECTED.write_bytes(tables(made.dsn))
        execute(made.dsn, *TENANTS)
        empty = accesses(made.dsn)
        execute(made.dsn, GROWTH, "ANALYZE")
        grown = accesses(made.dsn)
        execute(made.dsn, OPEN_UPLOADS, "ANALYZE upload_session")
        uploading = accesses(made.dsn)
        every = {name: sorted(empty[name] | grown[name] | uploading[name]) for name in empty}
        explained.EXPECTED.write_bytes(_written(every))
