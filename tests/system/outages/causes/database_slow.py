"""A transaction that somebody left open holds a lock that every sync needs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import psycopg2
from psycopg2.extensions import make_dsn

from tests.harness.services import rows
from tests.system.outages.devices import TENANT
from tests.system.outages.drill import Cause
from tests.system.outages.site import Site

_LOCK: Final = (
    "SELECT FROM tenant_counters WHERE tenant_id = (SELECT tenant_id FROM tenants WHERE name = %s) FOR UPDATE"
)


async def _begin(site: Site) -> None:
    """A person in ``psql`` locks the counter of a tenant, and goes to lunch; a dump runs beside."""
    await _open(site, "psql", _LOCK, TENANT)
    await _open(site, "pg_dump", "LOCK TABLE tenants IN ACCESS SHARE MODE")


async def _open(site: Site, name: str, statement: str, *values: str) -> None:
    """Begin a transaction as the superuser, whose sessions the owner does not see into."""
    dsn = make_dsn(site.postgres.cluster.dsn, application_name=name)
    session = await asyncio.to_thread(psycopg2.connect, dsn)

    def close() -> None:
        with suppress(psycopg2.Error):
            session.close()

    site.stack.callback(close)
    with session.cursor() as cursor:
        cursor.execute(statement, values)


async def _symptom(site: Site) -> str:
    await site.fleet.held()
    status, body = await site.readiness()
    assert status == 200, body
    return f"/readyz answers 200: {body}\n{site.fleet.waiting} edits wait on devices"


async def _mended(site: Site) -> None:
    await site.ready()
    read = "SELECT application_name FROM pg_stat_activity WHERE state = 'idle in transaction'"
    left = await asyncio.to_thread(rows, site.postgres.cluster.dsn, f"{read} AND usename = 'tidemark'")
    assert left == [("pg_dump",)], "only what held the lock was to end"


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=(r"psql +\| idle in transaction", r"\{\d+\}"),
    mended=_mended,
)
