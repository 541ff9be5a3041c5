"""``GET /v1/admin/health``: the health of tenants for people, as ``run.py monitor --json`` prints it."""

from __future__ import annotations

import math
from typing import Final

import msgspec
from aiohttp import web

from engine.operate.ports import HealthMonitor, NoTenantError
from engine.wire.errors import SyncError
from handlers.operate.people import People, no_tenant
from handlers.operate.turns import Turns

_PARAMETERS: Final = ("tenant", "hours")
_KNOWN: Final = ", ".join(_PARAMETERS)
_DEFAULT_HOURS: Final = 24.0
#: Minutes are kept for longer, so that a window has all of its minutes.
MOST_HOURS: Final = 48


class AdminHealth:
    """Answers one request after the other: a check reads all devices and minutes of a tenant, or of all.

    Args:
        people: Decides which tenant a request may ask about.
        monitor: Judges.
        turns: Decides when.
    """

    def __init__(self, people: People, monitor: HealthMonitor, turns: Turns) -> None:
        self._people = people
        self._monitor = monitor
        self._turns = turns

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        return [web.get("/v1/admin/health", self.health)]

    async def health(self, request: web.Request) -> web.Response:
        """Judge the tenant ``tenant``, or all that the token may see, over the last ``hours``.

        Raises:
            SyncError: As ``People.question`` and ``Turns.turn_of``; ``malformed`` for a parameter that does
                not exist, or comes twice; ``invalid_message`` for wrong ``hours``; ``not_found`` if there is
                no such tenant.
            StoreError: The database is away.
        """
        tenant, token = await self._people.question(request, request.query.get("tenant"))
        for name in request.query:
            if name not in _PARAMETERS:
                raise SyncError("malformed", f"{name[:100]}: there is no such parameter; known: {_KNOWN}")
            if len(request.query.getall(name)) > 1:
                raise SyncError("malformed", f"{name}: it is there several times: leave one")
        window_s = _window_s(request.query.get("hours"))
        async with self._turns.turn_of(token):
            try:
                judgement = await self._monitor.check(tenant, window_s)
            except NoTenantError:
                raise no_tenant() from None
        body = msgspec.json.encode(judgement)  # a thousand tenants take 0.9 ms
        return web.Response(body=body, content_type="application/json")


def _window_s(text: str | None) -> int:
    try:
        hours = _DEFAULT_HOURS if text is None else float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= MOST_HOURS:
        raise SyncError("invalid_message", f"hours: a number above 0 and up to {MOST_HOURS} is required")
    return max(60, round(hours * 3600))
