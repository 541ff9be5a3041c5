"""The edge of one process: its handlers, each given the parts that it uses, and its two applications."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import web

from compose.uploads import UploadComponents
from engine.cache.devices import DeviceCache
from engine.cache.minutes import Minutes
from engine.cache.revocations import Revocations
from engine.cache.telemetry import TelemetryIntake
from engine.cache.tenants import TenantCache
from engine.cluster.bus import Bus
from engine.commit.admission import Admission
from engine.commit.committer import Committer
from engine.commit.validation import MessageValidator
from engine.feed.feed import Feed
from engine.model.domains import Domains
from engine.operate.audit_trail import AuditTrail
from engine.operate.conflicts import ConflictStore
from engine.operate.ports import HealthMonitor
from engine.plan.bounds.capacity import CapacityState
from engine.runtime.loop_scheduler import LoopScheduler
from engine.runtime.loop_share import LoopShares
from engine.runtime.metrics import MetricSource
from engine.runtime.open_requests import OpenRequests, RequestLimits
from engine.runtime.partial_messages import PartialMessages
from engine.runtime.ports import Clock
from engine.runtime.rate_limit import TenantRates
from engine.runtime.read_limiter import ReadLimiter
from engine.runtime.services import Service
from engine.runtime.settings import Settings
from handlers.http.authenticate import Authenticator, RequestGate
from handlers.http.client_address import RefusedHandshakeLog, networks
from handlers.http.counters import Traffic
from handlers.http.limits import EdgeLimits
from handlers.http.loop.charges import LoopCharges
from handlers.http.loop.watch import LoopWatch
from handlers.http.refusals import Refusals
from handlers.http.tokens import KeySet, Verifier
from handlers.http.unauthenticated import UnauthenticatedConnections, UnauthenticatedLimits
from handlers.operate.admin_health import AdminHealth
from handlers.operate.people import People
from handlers.operate.probe_access import Audience, ProbeAccess
from handlers.operate.probes import LookAtReadiness, Probes
from handlers.operate.turns import Turns
from handlers.operate.worker_metrics import WorkerMetrics
from handlers.reference.documents import Documents
from handlers.server import SYNC_PATH, application, services
from handlers.sync.connections import Connections
from handlers.sync.http_api import SyncHttp
from handlers.sync.operations import Operations
from handlers.sync.push_counts import PushCounts
from handlers.sync.websocket import SyncSocket

#: The incomplete messages of all sockets may take as much as so many tenants may have each.
_TENANTS_WAITING: Final = 2


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the engine that the edge hands on to its handlers."""

    clock: Clock
    domains: Domains
    committer: Committer
    feed: Feed
    tenants: TenantCache
    devices: DeviceCache
    minutes: Minutes
    telemetry: TelemetryIntake
    revocations: Revocations
    conflicts: ConflictStore
    read_limiter: ReadLimiter
    shares: LoopShares
    bus: Bus
    capacity: CapacityState
    files: UploadComponents
    health: HealthMonitor
    trail: AuditTrail


class Edge:
    """The handlers of one process.

    Args:
        settings: All settings.
        keys: The keys of tokens.
        engine: The engine.
        connections: The connections of devices.
        readiness: Looks at the database.
        workers: The workers of which this process is one; None if it is alone.
        sources: The components besides the edge and the engine that yield metrics.
    """

    def __init__(
        self,
        settings: Settings,
        keys: KeySet,
        engine: Engine,
        connections: Connections,
        readiness: LookAtReadiness,
        workers: WorkerMetrics | None,
        sources: Sequence[MetricSource],
    ) -> None:
        server, limits = settings.server, settings.limits
        self._engine = engine
        self._connections = connections
        self._readiness = readiness
        self._workers = workers
        self._sources = sources
        self._probe_port = server.probe_port
        self._limits = EdgeLimits(
            frame_bytes=limits.frame_bytes,
            items=limits.items,
            record_bytes=limits.record_bytes,
            messages_per_minute=limits.messages_per_minute,
            outbox_bytes=server.outbox_bytes,
            heartbeat_s=server.heartbeat_s,
            compress=server.compress,
            write_patience_s=server.write_patience_s,
            body_s=server.body_s,
        )
        self._trusted = networks(server.trusted_proxies)
        self._refusals = Refusals(engine.trail, self._trusted)
        request_limits = RequestLimits(
            device_requests=limits.open_requests,
            device_bytes=limits.waiting_bytes,
            tenant_requests=limits.tenant_open_requests,
            tenant_bytes=limits.tenant_waiting_bytes,
        )
        self.unauthenticated = UnauthenticatedConnections(
            UnauthenticatedLimits(
                head_s=server.head_s,
                head_bytes=server.head_bytes,
                address_connections=server.address_connections,
                write_patience_s=server.write_patience_s,
                trusted=self._trusted,
            ),
            OpenRequests(request_limits),
            on_refused=self._refusals.connection,
        )
        self._traffic = Traffic()
        self._partial_messages = PartialMessages(
            limits.tenant_waiting_bytes, _TENANTS_WAITING * limits.tenant_waiting_bytes
        )
        clock = engine.clock
        self._watch = LoopWatch(clock)
        self._loop = LoopCharges(engine.shares, LoopScheduler(engine.shares, clock), self._watch, clock)
        verifier = Verifier(keys, settings.audience, frozenset(server.origins), settings.auth.leeway_s)
        authenticator = Authenticator(
            verifier, engine.tenants, engine.devices, engine.revocations, self._loop
        )
        self._admission = Admission(
            engine.committer,
            TenantRates(limits.tenant_messages_per_minute),
            connections,
            messages_per_minute=limits.messages_per_minute,
            tenant_connections=limits.tenant_connections,
            now_s=clock.monotonic_s(),
        )
        self._open_requests = OpenRequests(request_limits)
        self._gate = RequestGate(authenticator, connections.draining, self._admission, self._open_requests)

    def application(self) -> web.Application:
        """Build the application for devices."""
        engine, gate, limits = self._engine, self._gate, self._limits
        operations = Operations(
            domains=engine.domains,
            validator=MessageValidator(engine.domains, limits.items),
            committer=engine.committer,
            feed=engine.feed,
            tenants=engine.tenants,
            conflicts=engine.conflicts,
            read_limiter=engine.read_limiter,
            telemetry=engine.telemetry,
            admission=self._admission,
            loop=self._loop,
            clock=engine.clock,
            limits=limits,
        )
        counts = PushCounts(engine.devices, engine.minutes, self._traffic, engine.clock)
        socket = SyncSocket(
            authenticator=gate.authenticator,
            admission=self._admission,
            connections=self._connections,
            operations=operations,
            validator=operations.validator,
            committer=engine.committer,
            feed=engine.feed,
            counts=counts,
            loop=self._loop,
            bus=engine.bus,
            traffic=self._traffic,
            partial_messages=self._partial_messages,
            limits=limits,
            refused_handshakes=RefusedHandshakeLog(self._trusted),
            refusals=self._refusals,
        )
        http = SyncHttp(
            gate=gate,
            admission=self._admission,
            operations=operations,
            validator=operations.validator,
            committer=engine.committer,
            counts=counts,
            loop=self._loop,
            traffic=self._traffic,
            limits=limits,
            trusted_proxies=self._trusted,
        )
        people = People(gate.authenticator.verifier, engine.tenants, engine.revocations)
        routes = [
            web.get(SYNC_PATH, socket.handle),
            *http.routes(),
            *engine.files.routes(gate, self._traffic, engine.read_limiter, engine.domains),
            *AdminHealth(people, engine.health, Turns(self._loop.clock)).routes(),
            *self._probes("nobody" if self._probe_port else "operators").routes(),
            *Documents().routes(),
        ]
        return application(
            routes, self._traffic, self._open_requests, limits.frame_bytes, counts, self._refusals
        )

    def probe_application(self) -> web.Application:
        """Build the application of the port for probes: everybody who reaches it is told everything."""
        return application(self._probes("all").routes(), self._traffic)

    def services(self) -> list[Service]:
        """List what has to run, in the order in which it is drained."""
        engine = self._engine
        return [
            *services(
                connections=self._connections,
                committer=engine.committer,
                feed=engine.feed,
                tenants=engine.tenants,
                devices=engine.devices,
                minutes=engine.minutes,
                watch=self._watch,
            ),
            Service("telemetry", engine.telemetry.run),
        ]

    def _probes(self, audience: Audience) -> Probes:
        engine, workers = self._engine, self._workers
        secret = "" if workers is None else workers.secret
        verifier = self._gate.authenticator.verifier
        return Probes(
            ProbeAccess(verifier, engine.revocations, audience, secret),
            self._connections.draining,
            self._readiness,
            engine.bus,
            engine.capacity,
            [
                engine.bus.state,
                self._watch,
                self._connections,
                engine.devices,
                engine.minutes,
                engine.telemetry,
                engine.trail,
                engine.revocations,
                engine.tenants,
                engine.committer,
                engine.feed,
                engine.read_limiter,
                engine.capacity,
                self._admission,
                self._open_requests,
                self.unauthenticated,
                self._partial_messages,
                engine.shares,
                self._traffic,
                engine.files.service.counters,
                *self._sources,
            ],
            workers,
        )
