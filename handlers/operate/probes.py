"""What probes and scrapes ask: alive, ready, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from handlers.http.context import Core
from handlers.http.counters import DURATION_BOUNDS_MS
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
        scrape = _Scrape(core, connections)
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
    """Turns plain counts into metrics, only when somebody asks."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections

    def collect(self) -> Iterator[Metric]:
        """Read every count once."""
        traffic, committed = self._core.traffic, self._core.committer.counters
        bus = self._core.bus.state
        uploads, cleanup = self._core.uploads, self._core.cleanup_job
        yield _gauge("tidemark_bus_up", "Whether Redis carries messages between processes", bus.up)
        yield _gauge(
            "tidemark_bus_round_trip_seconds", "How long the last message took to come back", bus.round_trip_s
        )
        watch = self._core.watch
        yield _histogram(
            "tidemark_loop_delay_seconds",
            "By how much the event loop was late, measured 20 times a second",
            watch.delays,
            watch.delay_sum_s,
        )
        yield _gauge(
            "tidemark_loop_delay_longest_seconds", "The longest since the last scrape", watch.take_longest_s()
        )
        yield _gauge("tidemark_connections", "WebSockets that are open", len(self._connections))
        policies, devices = self._core.policies, self._core.devices
        yield _gauge("tidemark_devices_remembered", "Devices in memory", len(devices))
        revocations = self._core.revocations
        yield _gauge("tidemark_devices_revoked", "Devices that are refused", revocations.devices)
        yield _gauge("tidemark_tokens_revoked", "Tokens that are refused", revocations.tokens)
        yield _gauge("tidemark_tenants_remembered", "Tenants whose policies are in memory", len(policies))
        yield _gauge(
            "tidemark_queued_messages",
            "Messages that wait to be stored",
            self._core.committer.queued_messages,
        )
        room = self._core.room
        parts = GaugeMetricFamily(
            "tidemark_tenant_fullest_ratio",
            "The part of a bound that the fullest tenant holds",
            labels=["bound"],
        )
        for name, part in room.parts().items():
            parts.add_metric([name], part)
        yield parts
        if room.free_bytes is not None:
            yield _gauge("tidemark_database_free_bytes", "Room on the database's disk", room.free_bytes)
        if cleanup.abandonment_ratio is not None:
            yield _gauge(
                "tidemark_upload_abandonment_ratio",
                "The part of the last day's uploads, of all tenants, that was given up",
                cleanup.abandonment_ratio,
            )
        doors = self._core.doors
        yield _gauge("tidemark_strangers", "Connections that have shown no valid token", doors.strangers)
        partial = self._core.partial_messages
        yield _gauge("tidemark_partial_bytes", "Bytes of messages that are not whole", partial.waiting_bytes)
        for name, text, count in (
            ("tidemark_partial_refused", "Sockets closed for messages that are not whole", partial.refused),
            ("tidemark_strangers_refused", "Connections refused, of addresses with too many", doors.refused),
            ("tidemark_heads_late", "Connections closed before a request's headers came", doors.late),
            ("tidemark_heads_refused", "Connections refused while many headers wait", doors.heads_refused),
            ("tidemark_answers_unread", "Connections cut for not reading an answer", doors.unread),
            ("tidemark_loop_charged_seconds", "Loop time charged to devices", self._core.shares.charged_s),
            ("tidemark_connections_opened", "WebSockets opened", traffic.connections),
            ("tidemark_handshakes_refused", "Handshakes refused", traffic.refused_handshakes),
            ("tidemark_messages_received", "Messages received", traffic.messages_in),
            ("tidemark_received_bytes", "Bytes of WebSocket messages received", traffic.bytes_in),
            ("tidemark_slow_readers_cut", "Connections cut for not reading", traffic.slow_readers_cut),
            ("tidemark_batches", "Batches committed", committed.batches),
            ("tidemark_batch_seconds", "Time that batches took, added up", committed.batch_s),
            ("tidemark_policy_hits", "Reads of policies answered from memory", policies.hits),
            ("tidemark_policy_misses", "Reads of policies that asked the database", policies.misses),
            ("tidemark_device_hits", "Syncs of devices in memory", devices.counters.hits),
            ("tidemark_device_misses", "Syncs of devices not read yet", devices.counters.misses),
            ("tidemark_device_reads", "Devices read when they connected", devices.counters.reads),
            ("tidemark_health_flush_rows", "Rows of health written behind", devices.counters.flush_rows),
            ("tidemark_health_flush_seconds", "Time that writing behind took", devices.counters.flush_s),
            ("tidemark_health_flush_failures", "Flushes that failed", devices.counters.flush_failures),
            ("tidemark_batch_messages", "Messages in committed batches", committed.messages),
            ("tidemark_batch_retries", "Batches tried again", committed.retries),
            ("tidemark_commits_unknown", "Commits of unknown outcome", committed.unknown_outcomes),
            ("tidemark_messages_poisoned", "Messages refused by the database", committed.poisoned),
            ("tidemark_messages_failed", "Messages that could not be stored", committed.failed),
            (
                "tidemark_messages_without_room",
                "Messages refused for a full tenant",
                committed.refused_at_limit,
            ),
            ("tidemark_old_keys_reused", "Keys used again after more than a day", committed.old_keys_reused),
            ("tidemark_bus_published", "Messages told to other processes", bus.published),
            ("tidemark_bus_received", "Messages heard, one's own as well", bus.received),
            ("tidemark_bus_garbled", "Messages heard that were none", bus.garbled),
            ("tidemark_bus_doubted", "Messages not signed rightly, or of another time", bus.doubted),
            ("tidemark_bus_losses", "How often Redis went away", bus.losses),
            ("tidemark_uploads_created", "Uploads begun", uploads.created),
            ("tidemark_uploads_finished", "Uploads that became files", uploads.finished),
            ("tidemark_uploads_cancelled", "Uploads and files that devices took back", uploads.cancelled),
            ("tidemark_uploads_expired", "Uploads given up, as the clean-up found them", cleanup.expired),
            ("tidemark_upload_chunks", "Requests that brought bytes of uploads", uploads.chunks),
            ("tidemark_upload_received_bytes", "Bytes of uploads that were kept", uploads.received_bytes),
            ("tidemark_upload_files_freed", "Files removed after their records", cleanup.freed),
            ("tidemark_upload_orphans_removed", "Drafts and files that no row wanted", cleanup.orphans),
        ):
            yield CounterMetricFamily(name, text, value=count)
        errors = CounterMetricFamily("tidemark_errors", "Errors sent, by code", labels=["code"])
        for code, count in traffic.errors.items():
            errors.add_metric([code], count)
        yield errors
        closes = CounterMetricFamily("tidemark_closes", "Connections closed, by code", labels=["code"])
        for close, count in traffic.closes.items():
            closes.add_metric([str(close)], count)
        yield closes
        yield _histogram(
            "tidemark_sync_duration_seconds",
            "From a sync's arrival to its answer",
            traffic.sync_durations,
            traffic.sync_duration_sum_ms / 1000,
        )


def _histogram(name: str, text: str, counts: Sequence[int], sum_s: float) -> Metric:
    bounds = [str(bound / 1000) for bound in DURATION_BOUNDS_MS] + ["+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(counts)), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=sum_s)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
