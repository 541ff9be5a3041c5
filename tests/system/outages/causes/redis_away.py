"""Redis dies: servers go on, and look in the database for what other processes did."""

from __future__ import annotations

from tests.system.outages.drill import Cause
from tests.system.outages.site import Site


async def _begin(site: Site) -> None:
    """Redis is killed."""
    await site.redis.stop()


async def _symptom(site: Site) -> str:
    before = site.fleet.acknowledged
    degraded = await site.until_readiness(200, "redis is away")
    await site.fleet.progress()
    return (
        f"/readyz answers 200: {degraded}\n{site.fleet.acknowledged - before} edits were acknowledged since"
    )


CAUSE = Cause(begin=_begin, symptom=_symptom, finds=("redis is away", "Connection refused", "Active: failed"))
