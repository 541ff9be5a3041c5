"""Probes and metrics: ``/healthz``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Final, NamedTuple

from aiohttp import web

from engine.cluster.bus import Bus
from engine.plan.bounds.capacity import CapacityState
from engine.runtime.metrics import MetricSource
from handlers.http.draining import Draining
from handlers.operate.exposition import CONTENT_TYPE, pieces
from handlers.operate.probe_access import ProbeAccess
from handlers.operate.worker_metrics import WorkerMetrics

#: A page is written for so long before other work gets its turn on the loop.
_PASS_S: Final = 0.0005


class Readiness(NamedTuple):
    """What keeps the database from being ready, in sentences, and what it is ready without."""

    faults: list[str]
    degraded: list[str]


LookAtReadiness = Callable[[], Awaitable[Readiness]]

_NO_BUS: Final = (
    "redis is away: what other processes do is looked up in the database twice a second; check redis.url"
)
_CONNECTING: Final = (
    "redis is being connected to: until then what other processes do is looked up in the database twice a"
    " second; nothing to do if this goes within seconds"
)


class Probes:
    """Answers probes and scrapes.

    Args:
        access: Decides which requests are told more than the status.
        draining: Whether this process goes away.
        readiness: Looks at the database.
        bus: The bus between processes.
        capacity: The room that is left for records.
        sources: The components that yield metrics.
        workers: The workers of which this process is one; None if it is alone.
    """

    def __init__(
        self,
        access: ProbeAccess,
        draining: Draining,
        readiness: LookAtReadiness,
        bus: Bus,
        capacity: CapacityState,
        sources: Sequence[MetricSource],
        workers: WorkerMetrics | None = None,
    ) -> None:
        self._access = access
        self._draining = draining
        self._readiness = readiness
        self._bus = bus
        self._capacity = capacity
        self._workers = workers
        self._looking: asyncio.Future[Readiness] | None = None
        self._sources = sources

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        return [
            web.get("/healthz", self.alive),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.metrics),
        ]

    async def alive(self, _: web.Request) -> web.Response:
        """Answer that the process runs."""
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        """Answer whether devices may be sent here, with 503 if not. Operators get the reasons as well."""
        faults, away = (["draining"], []) if self._draining.begun else await self._looked()
        if request not in self._access:
            if faults:
                return web.json_response({"status": "not ready"}, status=503)
            return web.json_response({"status": "ready"})
        if faults:
            return web.json_response({"status": "not ready", "faults": faults}, status=503)
        bus, capacity = self._bus.state, self._capacity
        degraded = [] if bus.up else [_CONNECTING if bus.connecting else _NO_BUS]
        if capacity.full is not None:
            degraded.append(capacity.full)
        degraded += away
        if degraded:
            return web.json_response({"status": "degraded", "degraded": degraded})
        return web.json_response({"status": "ready"})

    async def _looked(self) -> Readiness:
        """Check the database once for all requests during the check: anybody may ask at any rate."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._readiness())
            self._looking.add_done_callback(self._has_looked)
        return await asyncio.shield(self._looking)

    def _has_looked(self, _: asyncio.Future[Readiness]) -> None:
        self._looking = None

    async def metrics(self, request: web.Request) -> web.Response:
        """Return all metrics as text; on a port that workers share, those of all workers.

        Raises:
            SyncError: The request has no access.
        """
        self._access.check(request)
        page = await self._own_page()
        if self._workers is not None and self._workers.asked_together(request):
            page = await self._workers.joined(page)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE})

    async def _own_page(self) -> bytes:
        """Write the metrics of this process. Other work has its turn on the loop between two pieces."""
        worker = None if self._workers is None else self._workers.worker
        metrics = (metric for source in self._sources for metric in source.metrics())
        texts: list[str] = []
        until_s = perf_counter() + _PASS_S
        for text in pieces(metrics, worker):
            texts.append(text)
            if perf_counter() > until_s:
                await asyncio.sleep(0)
                until_s = perf_counter() + _PASS_S
        return "".join(texts).encode()
