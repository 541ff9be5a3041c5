"""Events written behind: kept while the store is away, bounded, and written at the end."""

from __future__ import annotations

import asyncio

import pytest

from engine.model.audit import Actor, AuditRow
from engine.operate import audit_trail as module
from engine.operate.audit_trail import AuditTrail
from engine.runtime.ports import StoreError, StorePoisonError, StoreUnavailableError


class Clock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.s = 1000.0

    def now_us(self) -> int:
        """The wall clock."""
        return round(self.s * 1_000_000)

    def monotonic_s(self) -> float:
        """The monotonic clock."""
        return self.s

    def cpu_s(self) -> float:
        """Not asked for."""
        raise NotImplementedError


class Stored:
    """Takes rows, or raises what ``faults`` has next."""

    def __init__(self, *faults: StoreError) -> None:
        self.rows: list[AuditRow] = []
        self.faults = list(faults)
        self.called = asyncio.Event()

    async def append(self, rows: list[AuditRow]) -> None:
        """Append, or fail."""
        self.called.set()
        if self.faults:
            raise self.faults.pop(0)
        self.rows += rows


def refused(address: str) -> AuditRow:
    """A token that was refused."""
    return AuditRow("token_refused", Actor("address", address), "GET /v1/sync")


def counted(trail: AuditTrail, name: str) -> object:
    """The value of a metric."""
    return next(one.values for one in trail.metrics() if one.name == name)  # type: ignore[union-attr]


async def test_audit_trail_rows_have_the_time_of_the_event() -> None:
    clock, stored = Clock(), Stored()
    trail = AuditTrail(stored, clock)
    trail.note(refused("a"), "expired")
    clock.s += 7
    await trail.flush()
    assert [row.at_us for row in stored.rows] == [1_000_000_000]


async def test_audit_trail_flood_from_many_addresses_hides_no_device() -> None:
    clock, stored = Clock(), Stored()
    trail = AuditTrail(stored, clock)
    for number in range(200):
        trail.note(refused(f"2001:db8::{number:x}"), "the token is not valid")
    known = AuditRow("access_forbidden", Actor("device", "phone"), "GET /v1/admin/health", "acme")
    trail.note(known, "a token of an operator or a viewer is required")
    await trail.drain()
    assert [row.target for row in stored.rows if row.actor == known.actor] == [known.target]
    assert sum(row.times for row in stored.rows) == 201


async def test_audit_trail_devices_past_their_rates_write_few_rows_and_hide_nothing() -> None:
    clock, stored = Clock(), Stored()
    trail = AuditTrail(stored, clock)
    for number in range(1_000):
        row = AuditRow("rate_limited", Actor("device", f"d{number % 100}"), "", "acme")
        trail.note(row, "too many messages")
    known = AuditRow("access_forbidden", Actor("device", "d1"), "GET /v1/admin/health", "acme")
    trail.note(known, "a token of an operator or a viewer is required")
    await trail.drain()
    assert sum(row.times for row in stored.rows) == 1_001
    assert sum(row.event == "rate_limited" for row in stored.rows) <= 41
    assert [row.target for row in stored.rows if row.event == known.event] == [known.target]


async def test_audit_trail_store_away_keeps_rows_in_order_and_the_drain_writes_them() -> None:
    clock, stored = Clock(), Stored(StoreUnavailableError("away"), StoreUnavailableError("away"))
    trail = AuditTrail(stored, clock)
    trail.note(refused("a"), "expired")
    with pytest.raises(StoreUnavailableError):
        await trail.flush()
    for _ in range(9):
        trail.note(refused("b"), "expired")
    await trail.drain()
    told = [(row.actor.name, row.times) for row in stored.rows]
    assert told == [("a", 1), *[("b", 1)] * 5, ("b", 4)], "the minute ends with the process"
    values = counted(trail, "tidemark_security_events")
    assert isinstance(values, dict)
    assert (values["token_refused"], values["access_forbidden"]) == (10, 0)


async def test_audit_trail_rows_past_the_bound_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 3)
    stored = Stored()
    trail = AuditTrail(stored, Clock())
    for name in "abcde":
        trail.note(refused(name), "expired")
    await trail.flush()
    assert [row.actor.name for row in stored.rows] == ["c", "d", "e"]
    assert counted(trail, "tidemark_security_events_dropped") == 2


async def test_audit_trail_rows_that_the_store_refuses_keep_no_others_waiting() -> None:
    stored = Stored(StorePoisonError("a value"))
    trail = AuditTrail(stored, Clock())
    trail.note(refused("a"), "expired")
    await trail.flush()
    trail.note(refused("b"), "expired")
    await trail.flush()
    assert [row.actor.name for row in stored.rows] == ["b"]


async def test_audit_trail_service_writes_after_its_pause_and_goes_on_through_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.0)
    stored = Stored(StoreUnavailableError("away"))
    trail = AuditTrail(stored, Clock())
    running = asyncio.create_task(trail.run())
    trail.note(refused("a"), "expired")
    async with asyncio.timeout(10):
        while not stored.rows:
            await stored.called.wait()
            stored.called.clear()
            await asyncio.sleep(0)
    running.cancel()
    assert [row.actor.name for row in stored.rows] == ["a"]
