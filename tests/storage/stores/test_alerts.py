"""Alerts as rows: each is taken by one process, and is due again if that one dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Final

import pytest

from compose.server import SystemClock
from engine.operate.alert_delivery import AlertDelivery, AlertNotSentError
from engine.operate.monitor.alerts import Alert, AlertKey, AlertState, AlertThreshold
from engine.operate.monitor.report import Finding, Judgement, Report, Severity, Values
from storage.postgres.pool import Database
from storage.stores.monitoring.alerts import PostgresAlerts
from tests.harness.services import Serving, execute, rows

AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
KEY: Final = AlertKey("acme", "success_rate")
LAPSE: Final = "UPDATE alerts SET held_until = now() - interval '1 s' WHERE held_until IS NOT NULL"
DUE: Final = "UPDATE alerts SET due_at = now()"


class Receiver:
    """Takes alerts, or fails."""

    target = "webhook:1"
    kind = "webhook"
    threshold: AlertThreshold = "warning"

    def __init__(self) -> None:
        self.taken: list[Alert] = []
        self.fault: AlertNotSentError | None = None
        self.killed = False

    async def send(self, alert: Alert) -> None:
        """Take an alert."""
        if self.fault is not None:
            raise self.fault
        self.taken.append(alert)
        if self.killed:
            raise asyncio.CancelledError


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Serving(dsn, 4)
    yield opened
    await opened.close()


def _judgement(severity: Severity | None, tenant: str = "acme") -> Judgement:
    found = [] if severity is None else [Finding("success_rate", tenant, severity, 0.5, 0.95, "half failed")]
    report = Report(
        tenant=tenant,
        judged_at=AT,
        window_s=900,
        status="healthy",
        score=100,
        reasons=[],
        findings=found,
        unjudged=[],
        values=Values(),
    )
    return Judgement(status="healthy", reports=[report])


def _delivery(database: Database, receiver: Receiver) -> AlertDelivery:
    return AlertDelivery(PostgresAlerts(database), [receiver], SystemClock())


async def test_delivery_tells_beginning_and_end_and_leaves_no_row(database: Database, dsn: str) -> None:
    receiver = Receiver()
    delivery = _delivery(database, receiver)
    for severity in ("warning", "warning", "critical", "warning", None, None):
        await delivery.checked(_judgement(severity), everything=True)
        await delivery.send_due()
    assert [(one.kind, one.severity) for one in receiver.taken] == [
        ("fired", "warning"),
        ("worsened", "critical"),
        ("cleared", "critical"),
    ]
    assert rows(dsn, "SELECT * FROM alerts") == []


async def test_delivery_of_two_processes_sends_once(database: Database) -> None:
    receiver = Receiver()
    first, second = _delivery(database, receiver), _delivery(database, receiver)
    await first.checked(_judgement("critical"), everything=True)
    assert sum(await asyncio.gather(first.send_due(), second.send_due())) == 1
    assert len(receiver.taken) == 1


async def test_delivery_killed_while_it_sends_repeats_the_same_id(database: Database, dsn: str) -> None:
    receiver = Receiver()
    receiver.killed = True
    delivery = _delivery(database, receiver)
    await delivery.checked(_judgement("critical"), everything=True)
    with pytest.raises(asyncio.CancelledError):
        await delivery.send_due()
    other = _delivery(database, receiver)
    receiver.killed = False
    assert await other.send_due() == 0  # the one that was killed still has it
    execute(dsn, LAPSE)
    assert await other.send_due() == 1
    assert receiver.taken[0] == receiver.taken[1]


async def test_delivery_refused_is_due_again_and_then_tells_all_that_happened(
    database: Database, dsn: str
) -> None:
    receiver = Receiver()
    receiver.fault = AlertNotSentError("status 500")
    delivery = _delivery(database, receiver)
    await delivery.checked(_judgement("critical"), everything=True)
    assert await delivery.send_due() == 0
    assert rows(dsn, "SELECT attempts, due_at > now() FROM alerts") == [(1, True)]
    await delivery.checked(_judgement(None), everything=True)
    receiver.fault = None
    assert await delivery.send_due() == 0  # not due yet: a receiver that fails is not flooded
    execute(dsn, DUE)
    assert [await delivery.send_due() for _ in range(3)] == [1, 1, 0]
    assert [one.kind for one in receiver.taken] == ["fired", "cleared"]


async def test_delivery_receiver_that_hangs_holds_up_no_other(database: Database) -> None:
    class Hanging(Receiver):
        target = "slack:2"

        async def send(self, alert: Alert) -> None:  # noqa: ARG002  # it takes none
            await asyncio.Event().wait()

    class Quick(Receiver):
        def __init__(self) -> None:
            super().__init__()
            self.has_all = asyncio.Event()

        async def send(self, alert: Alert) -> None:
            await super().send(alert)
            if len(self.taken) == len(tenants):
                self.has_all.set()

    tenants = [f"tenant{number}" for number in range(12)]
    quick = Quick()
    delivery = AlertDelivery(PostgresAlerts(database), [Hanging(), quick], SystemClock())
    reports = [report for tenant in tenants for report in _judgement("critical", tenant).reports]
    await delivery.checked(Judgement(status="critical", reports=reports), everything=True)
    running = asyncio.create_task(delivery.run())
    async with asyncio.timeout(20):
        await quick.has_all.wait()
    running.cancel()


async def test_store_row_of_a_metric_of_a_later_version_stays_and_holds_nothing_up(
    database: Database, dsn: str
) -> None:
    receiver = Receiver()
    execute(
        dsn,
        "INSERT INTO alerts (target, tenant, metric, told, pending, due_at)"
        f" VALUES ('{receiver.target}', 'acme', 'of_later', 'warning', '{{}}', '-infinity')",
    )
    delivery = _delivery(database, receiver)
    await delivery.checked(_judgement("critical"), everything=True)
    assert await delivery.send_due() == 1
    assert await delivery.send_all(0) == 0
    assert rows(dsn, "SELECT count(*) FROM alerts WHERE metric = 'of_later'") == [(1,)]


async def test_store_taken_in_by_another_process_before_changes_nothing(database: Database, dsn: str) -> None:
    store = PostgresAlerts(database)
    receiver = Receiver()
    await _delivery(database, receiver).checked(_judgement("critical"), everything=True)
    (late,) = await store.take(receiver.target, 10)
    execute(dsn, LAPSE)
    await _delivery(database, receiver).send_due()
    await store.taken_in(late, lambda _: AlertState())
    assert rows(dsn, "SELECT told FROM alerts") == [("critical",)]


async def test_store_change_of_two_checks_at_once_makes_one_alert(database: Database) -> None:
    receiver = Receiver()
    deliveries = [_delivery(database, receiver) for _ in range(3)]
    await asyncio.gather(*(one.checked(_judgement("critical"), everything=True) for one in deliveries))
    assert await deliveries[0].send_due() == 1
    assert await deliveries[1].send_due() == 0


async def test_store_receivers_know_nothing_of_each_other(database: Database) -> None:
    store = PostgresAlerts(database)
    seen: list[Mapping[AlertKey, AlertState]] = []

    def change(states: Mapping[AlertKey, AlertState]) -> Mapping[AlertKey, AlertState]:
        seen.append(dict(states))
        return {KEY: AlertState(told="warning")}

    await store.change("webhook:1", change)
    await store.change("slack:2", change)
    assert seen == [{}, {}]
    assert await store.take("slack:2", 10) == []
