"""What probes and scrapes ask: alive, ready, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from engine.runtime.metrics import DURATION_BOUNDS_MS, Histogram, MetricSource, Value
from handlers.http.context import Core
from handlers.operate.insiders import Insiders, Told
from handlers.operate.worker_metrics import Labelled, Merged, Siblings
from handlers.sync.connections import Connections

Faults = Callable[[], Awaitable[list[str]]]

_NO_BUS: Final = (
    "redis is away: what other processes do is looked up in the database twice a second; check redis.url"
)
_CONNECTING: Final = (
    "redis is being connected to: until then what other processes do is looked up in the database twice a"
    " second; nothing to do if this goes within seconds"
)


class Probes:
    """``faults`` lists in sentences what keeps the database from being right, nothing when it is.

    ``siblings`` are the workers of which this process is one, ``told`` who is told more than the status.
    """

    def __init__(
        self,
        core: Core,
        connections: Connections,
        faults: Faults,
        siblings: Siblings | None = None,
        told: Told = "insiders",
    ) -> None:
        self._core = core
        self._connections = connections
        self._faults = faults
        self._siblings = siblings
        self._looking: asyncio.Future[list[str]] | None = None
        self._insiders = Insiders(core, told, "" if siblings is None else siblings.secret)
        self._registry = CollectorRegistry(auto_describe=False)
        scrape = _Scrape(
            [
                core.bus.state,
                core.watch,
                connections,
                core.devices,
                core.revocations,
                core.policies,
                core.committer,
                core.room,
                core.doors,
                core.partial_messages,
                core.shares,
                core.traffic,
                core.uploads,
                core.cleanup_job,
            ]
        )
        self._registry.register(Labelled(scrape, siblings.worker) if siblings else scrape)

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        return [
            web.get("/healthz", self.alive),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.metrics),
        ]

    async def alive(self, _: web.Request) -> web.Response:
        """Say that the process runs."""
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        """Say whether devices may be sent here, with 503 if not; the reasons are for insiders."""
        faults = ["draining"] if self._connections.draining.begun else await self._looked()
        if request not in self._insiders:
            if faults:
                return web.json_response({"status": "not ready"}, status=503)
            return web.json_response({"status": "ready"})
        if faults:
            return web.json_response({"status": "not ready", "faults": faults}, status=503)
        bus, room = self._core.bus.state, self._core.room
        degraded = [] if bus.up else [_CONNECTING if bus.connecting else _NO_BUS]
        if room.full is not None:
            degraded.append(room.full)
        if degraded:
            return web.json_response({"status": "degraded", "degraded": degraded})
        return web.json_response({"status": "ready"})

    async def _looked(self) -> list[str]:
        """Look once for all who ask while it is looked: anybody may ask, as often as they like."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._faults())
            self._looking.add_done_callback(self._has_looked)
        return await asyncio.shield(self._looking)

    def _has_looked(self, _: asyncio.Future[list[str]]) -> None:
        self._looking = None

    async def metrics(self, request: web.Request) -> web.Response:
        """Give all metrics as text; on a port that workers share, those of all of them.

        Raises SyncError for who is not to be told.
        """
        self._insiders.check(request)
        page = generate_latest(self._registry)
        if self._siblings is not None and self._siblings.asked_together(request):
            pages = await self._siblings.pages()
            pages[self._siblings.worker] = page.decode()
            up = GaugeMetricFamily("tidemark_worker_up", "Whether a worker answers", labels=["worker"])
            for worker in sorted(pages):
                up.add_metric([str(worker)], pages[worker] is not None)
            told = [pages[worker] or "" for worker in sorted(pages)]
            page = generate_latest(Merged(told, up))
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


class _Scrape(Collector):
    """Turns the components' metrics into families of Prometheus, only when somebody asks."""

    def __init__(self, sources: Sequence[MetricSource]) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Family]:
        """Read every count once."""
        for source in self._sources:
            for metric in source.metrics():
                yield _histogram(metric) if isinstance(metric, Histogram) else _value(metric)


def _value(metric: Value) -> Family:
    family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    if not isinstance(metric.values, Mapping):
        return family(metric.name, metric.text, value=metric.values)
    labelled = family(metric.name, metric.text, labels=[metric.label])
    for name, value in metric.values.items():
        labelled.add_metric([name], value)
    return labelled


def _histogram(metric: Histogram) -> Family:
    bounds = [str(bound / 1000) for bound in DURATION_BOUNDS_MS] + ["+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(metric.counts)), strict=True))
    return HistogramMetricFamily(metric.name, metric.text, buckets=buckets, sum_value=metric.sum_s)
