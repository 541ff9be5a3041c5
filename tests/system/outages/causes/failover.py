"""The host of the primary dies, and its standby has to take over."""

from __future__ import annotations

from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site


async def _begin(site: Site) -> None:
    """The primary is killed, and does not come back."""
    await site.postgres.kill()


async def _symptom(site: Site) -> str:
    faults = await site.until_readiness(503)
    await site.fleet.held()
    return f"/readyz answers 503: {faults}\n{site.fleet.waiting} edits wait on devices"


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("read-only|Connection refused", "fault +database"),
    layout=Layout(standby=True),
)
