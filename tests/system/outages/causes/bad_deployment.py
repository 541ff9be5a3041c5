"""A new version fails on every sync."""

from __future__ import annotations

from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site

_PLACE = "    unit = UnitOfWork(snapshot, extra_conflicts)\n"


async def _begin(site: Site) -> None:
    """A version is deployed that raises KeyError where it plans a batch."""
    path = site.checkout / "engine" / "plan" / "batch.py"
    text = path.read_text("utf-8")
    assert _PLACE in text
    path.write_text(text.replace(_PLACE, f'{_PLACE}    batch = {{"old": batch}}["new"]\n'), "utf-8")
    site.commit("Plan by the new rules")
    await site.units["tidemark"].stop()
    await site.units["tidemark"].start()


async def _symptom(site: Site) -> str:
    await site.until_readiness(200)
    await site.fleet.held()
    await site.server.until("message_failed")
    return f"/readyz answers 200, and {site.fleet.waiting} edits wait on devices"


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("Plan by the new rules", "KeyError", "batch.py"),
    layout=Layout(own_checkout=True),
)
