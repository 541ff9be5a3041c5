"""What sockets and HTTP answer alike: conflicts, their resolution, heartbeats."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Final

import msgspec
from msgspec import UNSET

from engine.cache.device_clock import DeviceClock
from engine.cache.device_health import Device
from engine.commit.validation import Session
from engine.model.domains import Domain, DomainPolicy
from engine.model.merge import encode_fields
from engine.operate.conflicts import HeldConflict
from engine.plan.held_changes import applied, changes_of, op_of
from engine.plan.work import PushAnswer, Resolution
from engine.wire.errors import SyncError
from engine.wire.messages import (
    ClientSide,
    ConflictList,
    Conflicts,
    DomainInfo,
    DomainList,
    Heartbeat,
    HeartbeatAck,
    OpenConflict,
    Resolve,
    ServerSide,
)
from engine.wire.timestamps import to_text, to_us
from handlers.http.authenticate import reader_of
from handlers.http.context import Core
from handlers.http.metering import take_share

#: A list of conflicts ends here, one conflict at least.
LIST_BYTES: Final = 1 << 20
#: Errors with which the server takes in nothing from anybody just now: no failure of the device's.
_REFUSALS: Final = frozenset({"rate_limited", "overloaded", "unavailable"})
#: How long a read gives way to pushes that were accepted.
READS_YIELD_S: Final = 1.0

_encode = msgspec.json.encode


class _Status(msgspec.Struct):
    status: str


_statuses = msgspec.json.Decoder(list[_Status])


async def list_conflicts(core: Core, session: Session, request: Conflicts, request_id: str | None) -> bytes:
    """Answer ``conflicts``: a device's own, for a supervisor the tenant's. Raises StoreError."""
    device_id = None if session.supervisor else session.device_id
    async with core.read_turns.turn(reader_of(session)):
        listed = await core.conflicts.open_conflicts(
            session.tenant.tenant_id, device_id, request.after, request.limit, LIST_BYTES
        )
    shown = [_open_conflict(held) for held in listed.found]
    after = shown[-1].conflict_id if listed.more else None
    return _encode(ConflictList(request_id or UNSET, shown, after))


def _open_conflict(held: HeldConflict) -> OpenConflict:
    conflict, record = held.conflict, held.record
    server = None if record is None else record.data
    changes = changes_of(conflict)
    wanted = applied(changes, None if record is None else record.patch_base)
    return OpenConflict(
        conflict.conflict_id,
        conflict.domain,
        conflict.record_id,
        conflict.policy,
        ServerSide(0 if record is None else record.version, _raw(server)),
        ClientSide(
            changes[0].base,
            to_text(changes[-1].at_us),
            conflict.device_id,
            _raw(None if wanted is None else encode_fields(wanted)),
            op_of(changes),
            conflict.client_count,
        ),
        to_text(conflict.opened_at_us),
    )


def _raw(data: bytes | None) -> msgspec.Raw | None:
    return None if data is None else msgspec.Raw(data)


def list_domains(core: Core, session: Session) -> bytes:
    """Answer which rules each domain has, so that a device can refuse an item before it sends it."""
    policies = core.policies.of(session.tenant.tenant_id)
    rules = core.domains.rules.items()
    return _encode(DomainList({name: _domain_info(one.domain, policies.get(name)) for name, one in rules}))


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


async def resolution(core: Core, session: Session, device: Device, request: Resolve) -> Resolution:
    """Check a ``resolve`` against its conflict, in turns of the loop. Raises SyncError, StoreError."""
    async with core.read_turns.turn(reader_of(session)):
        conflict = await core.conflicts.conflict(session.tenant.tenant_id, request.conflict_id)
    if conflict is None or not (session.supervisor or conflict.device_id == session.device_id):
        raise SyncError("not_found", "there is no such conflict")
    steps = core.intake.resolution_steps(request, session, conflict, core.clock.now_us())
    charge = partial(take_share, core, device, "resolve")
    return await core.turns.handled(session.tenant.tenant_id, steps, charge)


def tell_clock(device: Device, session: Session, clock: datetime, now_us: int, way_us: int) -> None:
    """Take in what a device's clock shows: what comes later in its session is corrected by it.

    Args:
        device: Which device.
        session: Its connection or request.
        clock: The device's time at the moment of sending.
        now_us: The server's time, after the whole message has come.
        way_us: The most that the message may have been under way.
    """
    if device.clock is None:
        device.clock = DeviceClock()
    session.clock_offset_us = device.clock.heard(to_us(clock), now_us, way_us)
    session.clock_known = True


def heartbeat(core: Core, device: Device, request: Heartbeat, request_id: str | None) -> bytes:
    """Take in a heartbeat and answer it."""
    device.introduce(
        network_type=request.network,
        app_version=request.app_version,
        os_version=request.os_version,
    )
    now_us = core.clock.now_us()
    return _encode(HeartbeatAck(request_id or UNSET, to_text(now_us), device.health_score(now_us)))


def charge_planning(core: Core, device: Device, spent_s: float) -> None:
    """Charge a device for the time that planning a push of it took."""
    device.bucket.charge(spent_s)
    take_share(core, device, "planning", spent_s, core.clock.monotonic_s())


def count_answer(core: Core, device: Device, answer: PushAnswer, started_us: int) -> None:
    """Count a sync that was answered with results."""
    now_us = core.clock.now_us()
    duration_us = now_us - started_us
    conflicts = 0 if answer.plain or answer.replayed else count_conflicts(answer.results)
    device.synced(now_us, duration_us, conflicts)
    core.devices.used(device)
    core.traffic.sync_answered(duration_us)


def count_error(core: Core, device: Device, error: SyncError, started_us: int) -> None:
    """Count a sync that was answered with an error, if it failed and was not merely put off."""
    if error.code not in _REFUSALS:
        device.failed(core.clock.now_us() - started_us)
        core.devices.used(device)


def count_conflicts(results: bytes) -> int:
    """Count the items that met a conflict. The search tells of most answers that there is none."""
    if b'"status":"resolved"' not in results and b'"status":"conflict"' not in results:
        return 0
    return sum(one.status in ("resolved", "conflict") for one in _statuses.decode(results))
