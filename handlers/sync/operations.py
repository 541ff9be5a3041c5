"""The operations that sockets and HTTP share: the welcome, pulls, conflicts, domains, heartbeats, clocks."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from math import inf
from typing import Final

import msgspec
from msgspec import UNSET

from engine.cache.device_clock import DeviceClock
from engine.cache.device_health import Device, Facts
from engine.cache.telemetry import TelemetryIntake
from engine.cache.tenants import TenantCache
from engine.commit.admission import Admission
from engine.commit.committer import Committer
from engine.commit.validation import MessageValidator, Session
from engine.feed.feed import Feed
from engine.model.domains import Domain, DomainPolicy, Domains
from engine.model.telemetry import TelemetryRow, telemetry_row
from engine.operate.conflict_view import open_conflict
from engine.operate.conflicts import ConflictStore
from engine.plan.work import Resolution
from engine.runtime.ports import Clock
from engine.runtime.read_limiter import ReadLimiter
from engine.wire.errors import SyncError
from engine.wire.messages import (
    ConflictList,
    Conflicts,
    DomainInfo,
    DomainList,
    Heartbeat,
    HeartbeatAck,
    Pull,
    Resolve,
    Telemetry,
    TelemetryAck,
    Welcome,
)
from engine.wire.timestamps import to_text, to_us
from handlers.http.authenticate import reader_of
from handlers.http.limits import EdgeLimits
from handlers.http.loop.charges import LoopCharges

#: A list of conflicts ends after this many bytes, but not before its first conflict.
LIST_BYTES: Final = 1 << 20
#: A deeper queue is stored as one of this depth, the highest that its column has.
_MOST_QUEUED: Final = (1 << 31) - 1
#: A read lets accepted pushes go first for this long at most.
READS_YIELD_S: Final = 1.0

_encode = msgspec.json.encode


class Operations(msgspec.Struct, frozen=True, kw_only=True):
    """Answers the requests of a session, over a socket or over HTTP."""

    domains: Domains
    validator: MessageValidator
    committer: Committer
    feed: Feed
    tenants: TenantCache
    conflicts: ConflictStore
    read_limiter: ReadLimiter
    telemetry: TelemetryIntake
    admission: Admission
    loop: LoopCharges
    clock: Clock
    limits: EdgeLimits

    def policy_names(self, tenant_id: int) -> dict[str, str]:
        """Map each domain to the name of a tenant's policy."""
        return {name: policy.policy for name, policy in self.tenants.policies_of(tenant_id).items()}

    def welcome(self, session: Session) -> bytes:
        """Return the first message of a socket."""
        return _encode(
            Welcome(
                session.session_id,
                to_text(self.clock.now_us()),
                self.feed.epoch,
                self.limits.heartbeat_s,
                self.limits.welcome(),
                self.policy_names(session.tenant.tenant_id),
                self.domains.events,
            )
        )

    async def yield_to_writes(self, session: Session) -> None:
        """Let accepted pushes go first, for ``READS_YIELD_S`` at most."""
        await self.committer.yield_to_writes(session.tenant.tenant_id, READS_YIELD_S)

    async def pull(self, session: Session, request: Pull) -> bytes:
        """Return one page of the feed, without an ``id``. Raises SyncError, StoreError."""
        await self.yield_to_writes(session)
        return await self.feed.pull(reader_of(session), request.cursor, request.domains, request.limit)

    async def list_conflicts(self, session: Session, request: Conflicts, request_id: str | None) -> bytes:
        """Return the open conflicts of a device, for a supervisor those of the tenant. Raises StoreError."""
        await self.yield_to_writes(session)
        device_id = None if session.supervisor else session.device_id
        async with self.read_limiter.slot(reader_of(session)):
            listed = await self.conflicts.open_conflicts(
                session.tenant.tenant_id, device_id, request.after, request.limit, LIST_BYTES
            )
        shown = [open_conflict(one.conflict, one.record) for one in listed.found]
        after = shown[-1].conflict_id if listed.more else None
        return _encode(ConflictList(request_id or UNSET, shown, after))

    async def resolution(self, session: Session, device: Device, request: Resolve) -> Resolution:
        """Check a ``resolve`` against its conflict, in turns of the loop. Raises SyncError, StoreError."""
        tenant_id = session.tenant.tenant_id
        async with self.read_limiter.slot(reader_of(session)):
            conflict = await self.conflicts.conflict(tenant_id, request.conflict_id)
        if conflict is None or not (session.supervisor or conflict.device_id == session.device_id):
            raise SyncError("not_found", "there is no such conflict")
        steps = self.validator.resolution_steps(request, session, conflict, self.clock.now_us())
        charge = partial(self.loop.charge, device, "resolve")
        return await self.loop.scheduler.handled(tenant_id, steps, charge)

    def list_domains(self, session: Session) -> bytes:
        """Return the rules of each domain, so that a device can refuse an item before it sends it."""
        policies = self.tenants.policies_of(session.tenant.tenant_id)
        rules = self.domains.rules.items()
        return _encode(
            DomainList({name: _domain_info(one.domain, policies.get(name)) for name, one in rules})
        )

    def heartbeat(self, device: Device, request: Heartbeat, request_id: str | None) -> bytes:
        """Store the state of a device, and return the answer."""
        device.introduce(
            network_type=request.network,
            app_version=request.app_version,
            os_version=request.os_version,
        )
        now_us = self.clock.now_us()
        device.report(_facts(request, now_us))
        return _encode(HeartbeatAck(request_id or UNSET, to_text(now_us), device.health_score(now_us)))

    def telemetry_row(self, session: Session, device: Device, request: Telemetry) -> TelemetryRow:
        """Check a ``telemetry``, and count it for the device's rate. Raises SyncError."""
        tenant_id, device_id = device.key
        self.admission.check("telemetry", tenant_id, device, self.clock.monotonic_s())
        return telemetry_row(request, session.codec, tenant_id, device_id, self.clock.now_us())

    async def store_telemetry(self, row: TelemetryRow, request_id: str | None) -> bytes:
        """Store a checked ``telemetry``, and return the answer. Raises SyncError, StoreError."""
        replayed = await self.telemetry.add(row)
        return _encode(TelemetryAck(request_id or UNSET, replayed))


def _facts(told: Heartbeat, now_us: int) -> Facts:
    """Return what a heartbeat tells of its device, without values that stand for an unknown one.

    They are rounded: a column of single precision refuses 1e-300.
    """
    battery, storage_free_mb = told.battery, told.storage_free_mb
    return Facts(
        now_us,
        round(battery, 2) if battery is not None and battery >= 0 else None,
        None if told.queue_depth is None else min(told.queue_depth, _MOST_QUEUED),
        round(storage_free_mb, 1) if storage_free_mb is not None and 0 <= storage_free_mb < inf else None,
    )


def _domain_info(domain: Domain, policy: DomainPolicy | None) -> DomainInfo:
    required = list(domain.required)
    status = {value: list(steps) for value, steps in domain.status.items()}
    if policy is None:
        return DomainInfo(kind=domain.kind, required=required, status=status)
    return DomainInfo(
        kind=domain.kind,
        required=required,
        status=status,
        policy=policy.policy,
        fallback=policy.fallback,
        server_owned=list(domain.server_owned),
    )


def set_device_clock(device: Device, session: Session, clock: datetime, now_us: int, delay_us: int) -> None:
    """Learn a device's clock; the times of later messages of its session are corrected by it.

    Args:
        device: The device.
        session: The session of its connection or request.
        clock: The device's time when it sent the message.
        now_us: The server's time when the whole message had come.
        delay_us: The most that the message may have been under way.
    """
    if device.clock is None:
        device.clock = DeviceClock()
    session.clock_offset_us = device.clock.observe(to_us(clock), now_us, delay_us)
    session.clock_known = True
