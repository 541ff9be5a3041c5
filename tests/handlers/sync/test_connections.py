"""The registry of connections with fake sockets: one per device, silence, expiry, revocation and drain."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from engine.cache.revocations import Revocations
from engine.commit.validation import Session
from engine.model.tenants import Tenant
from engine.wire.close_codes import CloseCode
from engine.wire.errors import SyncError
from handlers.sync import connections as module
from handlers.sync.connections import PING_S, Connections
from handlers.sync.device_socket import DeviceSocket

IDLE_S = 90.0


class _Clock:
    now_s = 1000.0

    def now_us(self) -> int:
        return round(self.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self.now_s


class _Socket:
    """Notes what it is told, in order."""

    def __init__(self, device_id: str, tenant_id: int = 1, *, opened_at_us: int = 1, **session: Any) -> None:
        tenant = Tenant(tenant_id, f"tenant{tenant_id}")
        session_id = f"{device_id}-{opened_at_us}"
        self.session = Session(tenant=tenant, device_id=device_id, session_id=session_id, **session)
        self.key = (tenant_id, device_id)
        self.opened_at_us = opened_at_us
        self.last_message_s = self.pinged_at_s = 1000.0
        self.told: list[Any] = []

    def dismiss(self, reason: str, retry_after_ms: int, *, listening: bool = False) -> None:
        assert retry_after_ms > 0
        self.told.append((reason, "listening") if listening else reason)

    def announce(self, reason: str, retry_after_ms: int) -> None:
        assert retry_after_ms > 0
        self.told.append(("goodbye", reason))

    def close(self, code: int, _: str) -> None:
        self.told.append(code)

    def say(self, body: bytes) -> None:
        self.told.append(body)

    def fail(self, error: SyncError, request_id: str | None) -> None:
        self.told.append((error.code, request_id))

    def ping(self, now_s: float) -> None:
        self.pinged_at_s = now_s
        self.told.append("ping")

    def abort(self) -> None:
        self.told.append("abort")


class _World:
    def __init__(self) -> None:
        self.clock = _Clock()
        self.refused: set[tuple[int, str]] = set()
        self.connections = Connections(
            self.clock,
            IDLE_S,
            cast(Revocations, self),
            lambda tenant_id: {"task": f"policy{tenant_id}"},
            lambda _: None,
        )

    def refuses(self, key: tuple[int, str], _: str, __: int | None) -> bool:
        return key in self.refused

    def add(self, *args: Any, **more: Any) -> _Socket:
        socket = _Socket(*args, **more)
        self.connections.add(cast(DeviceSocket, socket))
        return socket

    def opened(self, *args: Any, **more: Any) -> _Socket:
        """Add one of which the device has sent a frame."""
        socket = self.add(*args, **more)
        self.connections.confirm(cast(DeviceSocket, socket))
        return socket

    def remove(self, socket: _Socket) -> None:
        self.connections.remove(cast(DeviceSocket, socket))

    async def swept(self) -> None:
        await self.connections._sweep()


async def test_connections_newer_socket_of_a_device_replaces_the_older_which_is_still_read() -> None:
    world = _World()
    older, other = world.opened("phone"), world.opened("phone", 2)
    newer = world.opened("phone", opened_at_us=2)
    assert (older.told, newer.told, other.told) == ([("replaced", "listening")], [], [])
    world.remove(older)
    assert (1, "phone") in world.connections, "the newer one stays"
    assert (len(world.connections), world.connections.count_of(1)) == (2, 1)


async def test_connections_socket_without_a_frame_replaces_none() -> None:
    world = _World()
    used = world.opened("phone")
    late = world.add("phone", opened_at_us=2)
    assert (used.told, late.told) == ([], [])
    world.remove(late)
    assert (1, "phone") in world.connections, "the one in use stays"
    world.remove(used)
    assert (1, "phone") not in world.connections


async def test_connections_socket_without_a_frame_counts_and_another_ends_it_as_silent() -> None:
    world = _World()
    silent = world.add("phone")
    assert (1, "phone") in world.connections
    second = world.add("phone", opened_at_us=2)
    assert (silent.told, second.told) == (["idle"], [])
    world.remove(silent)
    assert (1, "phone") in world.connections, "the second one stays"
    assert (len(world.connections), world.connections.count_of(1)) == (1, 1)


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize(("at_us", "told"), [(6, [("replaced", "listening")]), (4, [])])
async def test_connections_socket_elsewhere_replaces_an_older_one_only(
    at_us: int, told: list[Any], *, confirmed: bool
) -> None:
    world = _World()
    ours = (world.opened if confirmed else world.add)("phone", opened_at_us=5)
    world.connections.opened_elsewhere(1, "phone", "another", at_us)
    world.connections.opened_elsewhere(1, "tablet", "another", 9)
    assert ours.told == told


async def test_connections_socket_elsewhere_of_the_same_moment_is_decided_by_the_session() -> None:
    world = _World()
    ours = world.add("phone", opened_at_us=5)
    world.connections.opened_elsewhere(1, "phone", "phone-5", 5)
    assert ours.told == [], "it is its own news"
    world.connections.opened_elsewhere(1, "phone", "zzz", 5)
    assert ours.told == [("replaced", "listening")]


async def test_connections_device_revoked_during_its_handshake_is_dismissed_when_added() -> None:
    world = _World()
    world.refused.add((1, "phone"))
    assert (world.add("phone").told, world.add("tablet").told) == (["revoked"], [])


async def test_connections_revocation_dismisses_the_refused_devices_alone() -> None:
    world = _World()
    phone, tablet = world.add("phone"), world.add("tablet")
    world.refused.add((1, "phone"))
    await world.connections.revoked()
    assert (phone.told, tablet.told) == (["revoked"], [])


async def test_connections_of_a_removed_tenant_are_dismissed() -> None:
    world = _World()
    phone, other = world.add("phone"), world.add("phone", 2)
    world.connections.tenant_removed(1)
    assert (phone.told, other.told) == (["revoked"], [])


async def test_connections_silent_device_is_pinged_and_then_dismissed() -> None:
    world = _World()
    phone, talking = world.add("phone"), world.add("talking")
    for after_s, told in ((PING_S + 1, ["ping"]), (PING_S + 2, ["ping"]), (IDLE_S + 1, ["ping", "idle"])):
        world.clock.now_s = talking.last_message_s = 1000.0 + after_s
        await world.swept()
        assert phone.told == told
    assert talking.told == []


async def test_connections_expired_token_ends_its_connection() -> None:
    world = _World()
    phone, tablet = world.add("phone", expires_at_s=1010.0), world.add("tablet", expires_at_s=1011.0)
    world.clock.now_s = 1010.0
    await world.swept()
    assert (phone.told, tablet.told) == (["expired"], [])


async def test_connections_policy_change_is_sent_to_the_tenant_alone() -> None:
    world = _World()
    phone, other = world.add("phone"), world.add("phone", 2)
    world.connections.policies_changed(1)
    assert phone.told == [b'{"type":"policies","policies":{"task":"policy1"}}']
    assert other.told == []


async def test_connections_refusals_are_sent_together_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REFUSALS_S", 0.0)
    world = _World()
    phone, tablet = world.add("phone"), world.add("tablet")
    for socket in (phone, tablet):
        refused = cast(DeviceSocket, socket)
        world.connections.refuse_soon(refused, SyncError("overloaded", "full", retry_after_ms=1), "1")
    assert (phone.told, tablet.told) == ([], [])
    await asyncio.sleep(0.01)
    assert phone.told == tablet.told == [("overloaded", "1")]


async def test_connections_drain_says_goodbye_then_closes_and_cuts_off_who_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_CLOSING_S", 0.01)
    world = _World()
    phone = world.add("phone")
    await world.connections.say_goodbye()
    assert world.connections.draining.begun
    await world.connections.close_all()
    assert phone.told == [("goodbye", "drain"), CloseCode.RESTARTING, "abort"]


async def test_connections_drain_ends_as_soon_as_all_are_gone() -> None:
    world = _World()
    phone = world.add("phone")
    closing = asyncio.create_task(world.connections.close_all())
    await asyncio.sleep(0)
    world.remove(phone)
    await asyncio.wait_for(closing, 1)
    assert phone.told == [CloseCode.RESTARTING]
