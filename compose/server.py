"""One process: the engine, its stores and its edge, put together and run."""

from __future__ import annotations

import gc
import resource
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import anyio
import structlog
import uvloop
from anyio.abc import TaskStatus

from compose.alerts import Alerts, receivers
from compose.capacity_watch import CapacityWatch
from compose.edge import Edge, Engine
from compose.jobs import Jobs, warm
from compose.metrics import ProcessMetrics
from compose.monitoring import health_check
from compose.pools import pools
from compose.sealing.master_key import MasterKeySource
from compose.sealing.stores import server_sealing
from compose.uploads import UploadComponents
from engine.cache.device_limits import DeviceLimits
from engine.cache.devices import DeviceCache
from engine.cache.minutes import Minutes
from engine.cache.revocations import Revocations
from engine.cache.telemetry import TelemetryIntake
from engine.cache.tenant_metrics import TenantMetrics
from engine.cache.tenants import TenantCache
from engine.cluster.listener import ClusterListener
from engine.commit.committer import Committer
from engine.commit.queue import CommitLimits
from engine.feed.feed import Feed
from engine.feed.hub import FeedLimits
from engine.model.commit_counts import UNITS_US
from engine.model.domains import Domains
from engine.model.rows import Record
from engine.operate.audit_trail import AuditTrail
from engine.plan.context import PlanContext
from engine.runtime.loop_share import LoopShares
from engine.runtime.metrics import MetricSource
from engine.runtime.ports import StoreError
from engine.runtime.read_limiter import ReadLimiter
from engine.runtime.services import Service, running
from engine.runtime.settings import Settings
from handlers.http.refusals import note_limited
from handlers.http.tokens import KeySet
from handlers.http.unauthenticated import UnauthenticatedConnections
from handlers.operate.logging import counters as log_counters
from handlers.operate.probes import Readiness
from handlers.operate.worker_metrics import WorkerMetrics
from handlers.server import ListenError, listening
from handlers.sync.connections import Connections
from storage.bus.redis_bus import RedisBus
from storage.embedded.servers import Services
from storage.postgres.migrate import newest_migration
from storage.postgres.pool_metrics import PoolMetrics
from storage.postgres.readiness import faults
from storage.postgres.server_processes import ServerProcess
from storage.stores.audit import PostgresAudit, bus_rejection
from storage.stores.commit.store import PostgresStore
from storage.stores.conflicts import PostgresConflicts
from storage.stores.devices import PostgresDevices
from storage.stores.feed import PostgresFeed
from storage.stores.monitoring.minutes import PostgresMinutes
from storage.stores.monitoring.telemetry import PostgresTelemetry
from storage.stores.sealed.answers import keyed_request
from storage.stores.tenants import PostgresTenants

#: How long a thread that comes back from the disk waits for the interpreter. With the usual 5 ms, four times
#: a chunk, that is longer than the disk takes.
_SWITCH_S: Final = 0.0005

_log = structlog.get_logger()


class SystemClock:
    """The machine's clock (``engine.runtime.ports.Clock``)."""

    now_us = staticmethod(lambda: time.time_ns() // 1000)
    monotonic_s = staticmethod(time.monotonic)
    cpu_s = staticmethod(time.thread_time)


class Server:
    """One process: the engine, its stores, its edge. ``worker`` counts from 1; 0 has no supervisor."""

    def __init__(
        self, settings: Settings, at: Services, keys: KeySet, worker: int = 0, secret: str = ""
    ) -> None:
        self._settings = settings
        port, host, count = settings.server.port, settings.server.host, settings.server.workers
        several = worker > 0 and count > 1
        self._supervised = worker > 0
        self._own_port = port + worker if several else None
        workers: WorkerMetrics | None = None
        if several:
            probe_port = settings.server.probe_port
            workers = WorkerMetrics(worker, count, host, port, probe_port, secret)
        clock = SystemClock()
        databases = self._databases = pools(at, settings)
        reads = databases.reads
        # Of several connections one is left to what the process itself reads.
        read_limiter = ReadLimiter(max(1, settings.postgres.read_connections - 1))
        domains = Domains(dict(settings.domains))
        master_keys = MasterKeySource(settings)
        sealing = self._sealing = server_sealing(settings, reads, master_keys)
        limits, server = settings.limits, settings.server
        feed = self._feed = Feed(
            PostgresFeed(reads, sealing),
            clock,
            FeedLimits(
                settings.feed.page_bytes,
                settings.feed.tail_changes,
                settings.feed.tail_bytes,
                settings.feed.page_interval_ms / 1000,
            ),
            domains.default_policies.keys(),
            read_limiter,
        )
        device_store = PostgresDevices(reads)
        self._revocations = Revocations(device_store)

        def policy_names(tenant_id: int) -> dict[str, str]:
            return {name: policy.policy for name, policy in tenants.policies_of(tenant_id).items()}

        trail = self._trail = AuditTrail(PostgresAudit(reads), clock)
        self._connections = Connections(
            clock, server.idle_s, self._revocations, policy_names, partial(note_limited, trail)
        )
        bus = RedisBus(
            at.redis_url,
            reads,
            lambda: feed.epoch,
            lambda reason: trail.note(bus_rejection(reason), reason),
        )

        def committed(changes: list[tuple[Record, str]]) -> None:
            feed.publish(changes)
            bus.committed(changes)
            files.pending_attachments.committed(changes)

        self._tenants = tenants = TenantCache(
            PostgresTenants(reads),
            clock,
            domains.default_policies,
            self._connections,
            self._renew,
        )
        reports = reads.with_everyone(databases.reports)
        self._capacity_watch = CapacityWatch(reports, settings)
        room = self._capacity_watch.state
        context = PlanContext(
            domains,
            tenants.policies_of,
            lambda: uuid.uuid4().hex,
            limits.record_bytes,
            limits.answer_data_bytes,
            settings.records.tombstone_data_h > 0,
            room.bounds,
            lambda: room.full,
            unsealed_domains=sealing.unsealed_domains,
            keyed_request=partial(keyed_request, sealing),
        )
        shares = LoopShares()
        committer = Committer(
            PostgresStore(databases.commit, settings.idempotency.lifetime_h, sealing),
            context,
            clock,
            committed,
            feed.note_unknown_outcome,
            CommitLimits(
                settings.commit.batch_items,
                settings.commit.batch_bytes,
                settings.commit.queue_messages,
                settings.commit.queue_bytes,
            ),
            settings.commit.lanes,
            shares.wanted,
        )
        by_tenant = TenantMetrics(tenants.name_of, self._connections.count_of)
        minutes = Minutes(
            PostgresMinutes(reads),
            clock,
            lambda: uuid.uuid4().hex,
            by_tenant.begin if settings.metrics.tenants else lambda _: None,
        )
        files = self._files = UploadComponents(
            *(settings, databases, sealing, committer, bus, clock, minutes),
            lambda: room.full,
        )
        self._devices = DeviceCache(
            device_store,
            clock,
            self._connections.__contains__,
            DeviceLimits(
                settings.devices.remembered,
                settings.devices.ttl_s,
                settings.devices.flush_s,
                settings.tenant_limits.device_rows,
            ),
            limits.messages_per_minute,
        )
        alerts = Alerts(receivers(settings), reads, clock)
        self._jobs = Jobs(
            *(settings, at, databases.jobs, sealing, files.cleanup_job),
            *(partial(warm, tenants, self._devices), clock, alerts),
        )
        self._bus = bus
        sources: list[MetricSource] = [
            PoolMetrics(databases._asdict()),
            ProcessMetrics(),
            log_counters,
            sealing,
            self._jobs,
        ]
        if settings.metrics.tenants:
            sources.append(by_tenant)
        self._edge = Edge(
            settings,
            keys,
            Engine(
                clock=clock,
                domains=domains,
                committer=committer,
                feed=feed,
                tenants=tenants,
                devices=self._devices,
                minutes=minutes,
                telemetry=TelemetryIntake(
                    PostgresTelemetry(reads, lambda: clock.now_us() // UNITS_US["day"]),
                    clock,
                    lambda: room.full,
                ),
                revocations=self._revocations,
                conflicts=PostgresConflicts(reads, sealing),
                read_limiter=read_limiter,
                shares=shares,
                bus=bus,
                capacity=room,
                files=files,
                health=health_check(settings, reports, clock),
                trail=trail,
            ),
            self._connections,
            self._readiness,
            workers,
            sources,
        )
        self._server_process = ServerProcess(reads, port, worker, alerts.recorded, master_keys.ids)
        self._cluster_listener = ClusterListener(bus, feed, tenants, self._connections, files.locks)

    async def run(self, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled from outside or told to stop by SIGTERM or SIGINT, then drain.

        SIGUSR1 stops it too: a supervisor has put another process in its place, devices are told ``restart``.
        Tells ``task_status`` the port once devices are let in. Raises StoreError when the database
        does not answer at the start, ListenError when the port is taken.
        """
        settings = self._settings
        await self._renew()
        await self._server_process.record()
        await self._tenants.preload(await self._devices.preload())
        await self._jobs.preload()
        await self._capacity_watch.check()
        probe_port = settings.server.probe_port
        app = self._edge.application()
        goodbye, *others = self._edge.services()
        everything = [
            goodbye,
            *self._files.services(),
            *others,
            Service("cluster_listener", self._cluster_listener.run, self._bus.drain),
            *self._jobs.services(),
            Service("server_process", self._server_process.run, self._server_process.leave),
            Service("room", self._capacity_watch.run),
            Service("audit", self._trail.run, self._trail.drain),
        ]
        async with AsyncExitStack() as stack:
            # Until the end: a second signal while draining must not kill what the first asked to finish.
            signals = stack.enter_context(
                anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
            )
            stack.callback(self._files.close)
            stack.push_async_callback(self._databases.close)
            async with running(everything, settings.server.drain_s):
                host = settings.server.host
                port, stop_listening = await stack.enter_async_context(
                    listening(
                        app,
                        host,
                        settings.server.port,
                        self._own_port,
                        unauthenticated=self._edge.unauthenticated,
                        shared=self._supervised,
                    )
                )
                if probe_port:
                    _, close_probes = await stack.enter_async_context(
                        listening(
                            self._edge.probe_application(),
                            host,
                            probe_port,
                            # Its own: too many connections elsewhere must not keep a probe out.
                            unauthenticated=UnauthenticatedConnections(self._edge.unauthenticated.limits),
                            shared=self._supervised,
                        )
                    )
                # What is there now lives as long as the process: the collector need not look at it again.
                gc.collect()
                gc.freeze()
                gc.set_threshold(20_000, 20, 20)
                _log.info("listening", host=host, port=port)
                task_status.started(port)
                async for received in signals:
                    _log.info("draining", signal=received.name)
                    renewed = received is signal.SIGUSR1
                    if renewed:
                        self._connections.leaves_for = "restart"
                    # The system is to send newcomers to the other workers, where there are any.
                    if renewed or self._own_port is not None:
                        await stop_listening()
                        if probe_port:
                            await close_probes()
                    break
            _log.info("stopped")

    async def _renew(self) -> None:
        """Read again what commands change. Raises StoreError."""
        await self._sealing.refresh()  # first: an error in the others must not keep values plain
        await self._feed.refresh_epoch()
        if await self._revocations.refresh():
            await self._connections.revoked()

    async def _readiness(self) -> Readiness:
        found = await faults(self._databases.readiness, newest_migration())
        return Readiness(found, [] if found else await self._databases.away())


def run_server(
    settings: Settings,
    at: Services,
    keys: KeySet,
    started: Callable[[int], None] = lambda _: None,
    worker: int = 0,
    secret: str = "",
) -> None:
    """Serve in this process until told to stop; ``started`` is told the port.

    ``worker`` is its number under a supervisor, ``secret`` what the supervisor's workers know each other by.

    Raises StoreError and ListenError as themselves, what else fails in an exception group.
    """
    _raise_file_limit()
    sys.setswitchinterval(_SWITCH_S)

    async def main() -> None:
        server = Server(settings, at, keys, worker, secret)
        async with anyio.create_task_group() as group:
            started(await group.start(server.run))

    try:
        uvloop.run(main())
    except ExceptionGroup as failed:
        match list(_causes(failed)):
            case [(StoreError() | ListenError()) as sole]:
                raise sole from None
        raise


def _causes(failed: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in failed.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _causes(error)
        else:
            yield error


def _raise_file_limit() -> None:
    """Every connection is a file: take what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
