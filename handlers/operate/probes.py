"""Probes and metrics: ``/healthz``, ``/readyz``, ``/metrics``."""

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

from engine.cluster.bus import Bus
from engine.plan.capacity import CapacityState
from engine.runtime.metrics import DURATION_BOUNDS_MS, Histogram, MetricSource, Value
from handlers.http.draining import Draining
from handlers.operate.probe_access import ProbeAccess
from handlers.operate.worker_metrics import Labelled, Merged, WorkerMetrics

ReadinessProblems = Callable[[], Awaitable[list[str]]]

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
        problems: Lists in sentences what keeps the database from being ready; nothing if it is ready.
        bus: The bus between processes.
        capacity: The room that is left for records.
        sources: The components that yield metrics.
        workers: The workers of which this process is one; None if it is alone.
    """

    def __init__(
        self,
        access: ProbeAccess,
        draining: Draining,
        problems: ReadinessProblems,
        bus: Bus,
        capacity: CapacityState,
        sources: Sequence[MetricSource],
        workers: WorkerMetrics | None = None,
    ) -> None:
        self._access = access
        self._draining = draining
        self._problems = problems
        self._bus = bus
        self._capacity = capacity
        self._workers = workers
        self._looking: asyncio.Future[list[str]] | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        scrape = _Scrape(sources)
        self._registry.register(Labelled(scrape, workers.worker) if workers else scrape)

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
        faults = ["draining"] if self._draining.begun else await self._looked()
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
        if degraded:
            return web.json_response({"status": "degraded", "degraded": degraded})
        return web.json_response({"status": "ready"})

    async def _looked(self) -> list[str]:
        """Check the database once for all requests during the check: anybody may ask at any rate."""
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._problems())
            self._looking.add_done_callback(self._has_looked)
        return await asyncio.shield(self._looking)

    def _has_looked(self, _: asyncio.Future[list[str]]) -> None:
        self._looking = None

    async def metrics(self, request: web.Request) -> web.Response:
        """Return all metrics as text; on a port that workers share, those of all workers.

        Raises:
            SyncError: The request has no access.
        """
        self._access.check(request)
        page = generate_latest(self._registry)
        if self._workers is not None and self._workers.asked_together(request):
            pages = await self._workers.pages()
            pages[self._workers.worker] = page.decode()
            up = GaugeMetricFamily("tidemark_worker_up", "Whether a worker answers", labels=["worker"])
            for worker in sorted(pages):
                up.add_metric([str(worker)], pages[worker] is not None)
            told = [pages[worker] or "" for worker in sorted(pages)]
            page = generate_latest(Merged(told, up))
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


class _Scrape(Collector):
    """Turns the components' metrics into families of Prometheus, on each scrape."""

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
