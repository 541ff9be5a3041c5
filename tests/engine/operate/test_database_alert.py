"""A database that is away is told from memory, by the process that watches."""

from __future__ import annotations

from collections import Counter

from structlog.testing import capture_logs

from engine.operate.alert_delivery import AlertNotSentError
from engine.operate.database_alert import AWAY_S, MOST_WAITING, DatabaseAlert
from engine.operate.monitor.alerts import Alert, AlertThreshold


class Clock:
    """Stands still."""

    at_s = 1000.0

    def now_us(self) -> int:
        """Return the time."""
        return int(self.at_s * 1e6)

    def monotonic_s(self) -> float:
        """Return the time."""
        return self.at_s


class Receiver:
    """Takes alerts, or fails."""

    target = "webhook:1"
    kind = "webhook"
    threshold: AlertThreshold = "critical"

    def __init__(self) -> None:
        self.taken: list[Alert] = []
        self.fails = False

    async def send(self, alert: Alert) -> None:
        """Take an alert."""
        if self.fails:
            raise AlertNotSentError("status 500")
        self.taken.append(alert)


class Process:
    """One process that watches the database."""

    def __init__(self, clock: Clock) -> None:
        self.receiver = Receiver()
        self.clock = clock
        self.counts: Counter[tuple[str, str]] = Counter()
        self.alert = DatabaseAlert([self.receiver], clock, self.counts)

    async def away(self, for_s: float) -> None:
        """Find the database away for a while."""
        for _ in range(int(for_s // 5)):
            self.clock.at_s += 5
            await self.alert.observe("no answer")

    def kinds(self) -> list[str]:
        """List the kinds of all alerts that arrived."""
        return [one.kind for one in self.receiver.taken]


async def test_database_alert_away_and_back_is_told_once_each() -> None:
    process = Process(Clock())
    process.alert.watch(7)
    await process.away(AWAY_S * 3)
    assert process.kinds() == ["fired"]
    await process.alert.observe(None)
    assert process.kinds() == ["fired", "cleared"]
    assert len({one.id for one in process.receiver.taken}) == 2


async def test_database_alert_restart_is_not_told() -> None:
    process = Process(Clock())
    process.alert.watch(7)
    await process.away(AWAY_S - 5)
    await process.alert.observe(None)
    await process.away(AWAY_S - 5)
    assert process.kinds() == []


async def test_database_alert_process_that_does_not_watch_is_silent() -> None:
    process = Process(Clock())
    await process.away(AWAY_S * 2)
    process.alert.watch(7)
    process.alert.watch(None)
    await process.away(AWAY_S * 2)
    assert process.kinds() == []


async def test_database_alert_of_several_hosts_is_one_by_its_id() -> None:
    clock = Clock()
    processes = [Process(clock), Process(clock)]
    for process in processes:
        process.alert.watch(7)
        await process.away(AWAY_S * 2)
    first, second = (process.receiver.taken[0] for process in processes)
    assert first.id == second.id


async def test_database_alert_end_has_an_id_of_its_outage_whoever_checked_since() -> None:
    process = Process(Clock())
    for checked_us in (7, 8):
        process.alert.watch(checked_us)
        await process.away(AWAY_S * 2)
        process.alert.watch(None)
        await process.alert.observe(None)
    assert process.kinds() == ["fired", "cleared"] * 2
    assert len({one.id for one in process.receiver.taken}) == 4


async def test_database_alert_of_a_second_outage_before_the_next_check_has_ids_of_its_own() -> None:
    clock = Clock()
    processes = [Process(clock), Process(clock)]
    for process in processes:
        process.alert.watch(7)
        for _ in range(2):
            await process.away(AWAY_S * 2)
            await process.alert.observe(None)
    first, second = ([one.id for one in process.receiver.taken] for process in processes)
    assert len(set(first)) == 4
    assert first == second


async def test_database_alert_receiver_that_fails_is_told_later_in_order() -> None:
    process = Process(Clock())
    process.alert.watch(7)
    process.receiver.fails = True
    await process.away(AWAY_S * 2)
    await process.alert.observe(None)
    assert process.kinds() == []
    assert process.counts["webhook", "failed"] > 0
    process.receiver.fails = False
    process.clock.at_s += 3600
    await process.alert.observe(None)
    assert process.kinds() == ["fired", "cleared"]
    assert process.counts["webhook", "sent"] == 2


async def test_database_alert_receiver_that_fails_for_long_is_told_of_the_first_and_the_last_outages() -> (
    None
):
    process = Process(Clock())
    process.receiver.fails = True
    with capture_logs() as logs:
        for number in range(MOST_WAITING):
            process.alert.watch(number)
            await process.away(AWAY_S * 2)
            await process.alert.observe(None)
    left_out = MOST_WAITING // 2
    assert [one["event"] for one in logs].count("database_alerts_left_out") == left_out
    process.receiver.fails = False
    process.clock.at_s += 3600
    await process.alert.observe(None)
    assert process.kinds() == ["fired", "cleared"] * (MOST_WAITING // 2)
    hours = [one.timestamp for one in process.receiver.taken]
    assert hours == sorted(hours)
    assert (hours[2] - hours[0]).total_seconds() > left_out * AWAY_S, "those after the first"
