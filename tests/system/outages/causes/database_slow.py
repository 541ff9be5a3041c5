"""A transaction that somebody left open holds a lock that every sync needs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import psycopg2
from psycopg2.extensions import make_dsn

from tests.system.outages.devices import TENANT
from tests.system.outages.drill import Cause
from tests.system.outages.site import Site

_LOCK: Final = (
    "SELECT FROM tenant_counters WHERE tenant_id = (SELECT tenant_id FROM tenants WHERE name = %s) FOR UPDATE"
)


async def _begin(site: Site) -> None:
    """A person in ``psql`` locks the counter of a tenant, and goes to lunch."""
    person = await asyncio.to_thread(psycopg2.connect, make_dsn(site.dsn, application_name="psql"))

    def close() -> None:
        with suppress(psycopg2.Error):
            person.close()

    site.stack.callback(close)
    with person.cursor() as cursor:
        cursor.execute(_LOCK, (TENANT,))


async def _symptom(site: Site) -> str:
    await site.fleet.held()
    status, body = await site.readiness()
    assert status == 200, body
    return f"/readyz answers 200: {body}\n{site.fleet.waiting} edits wait on devices"


CAUSE = Cause(begin=_begin, symptom=_symptom, finds=(r"psql +\| idle in transaction", r"\{\d+\}"))
