"""PostgreSQL dies, as by a power cut or for want of memory."""

from __future__ import annotations

from tests.system.outages.drill import Cause
from tests.system.outages.site import Site


async def _begin(site: Site) -> None:
    """PostgreSQL is killed with all its processes."""
    await site.postgres.kill()


async def _symptom(site: Site) -> str:
    faults = await site.until_readiness(503)
    await site.fleet.held()
    await site.server.until("batch_unavailable")
    return f"/readyz answers 503: {faults}\n{site.fleet.waiting} edits wait on devices"


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("cannot connect to 127.0.0.1", "Active: failed", "fault +database"),
)
