"""Delivers alerts: each at least once, under the same id each time, and without holding up a check.

A check writes what is to be told, in one transaction for each receiver. Every process looks for alerts that
are due, takes some for ``HELD_S`` and sends them. One that was not sent, because the receiver or the sending
process failed, is due again after a pause.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final, Protocol
from uuid import uuid4

import msgspec
import structlog

from engine.operate.monitor.alerts import (
    Alert,
    AlertKey,
    AlertState,
    AlertThreshold,
    checked,
    sent,
)
from engine.operate.monitor.report import Judgement
from engine.runtime.metrics import Metric, Value
from engine.runtime.ports import Clock

#: A process has this long to send what it took: several times what a receiver has to answer.
HELD_S: Final = 30
#: How often a process looks for alerts that are due; the one that made a check looks at once.
_LOOK_S: Final = 5.0
#: How often a command looks whether an alert is due again.
_RETRY_LOOK_S: Final = 0.5
#: Alerts that are sent to a receiver at once.
_AT_ONCE: Final = 10
_FIRST_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 300.0
OUTCOMES: Final = ("sent", "failed")

_log = structlog.get_logger()


class AlertNotSentError(Exception):
    """A receiver did not take an alert. The text is one sentence, without the receiver's URL.

    ``retry_after_s`` is the pause that the receiver asked for, 0 without one.
    """

    def __init__(self, sentence: str, retry_after_s: float = 0) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class AlertSender(Protocol):
    """One receiver.

    Attributes:
        target: Names the receiver in rows, without its URL; the same in every process.
        kind: The kind of receiver, for logs and metrics.
        threshold: The mildest severity that it wants to know.
    """

    target: str
    kind: str
    threshold: AlertThreshold

    async def send(self, alert: Alert) -> None:
        """Send an alert, within seconds. Raises AlertNotSentError."""


class DueAlert(msgspec.Struct, frozen=True):
    """An alert that this process has taken to send; ``attempts`` were made before."""

    target: str
    key: AlertKey
    alert: Alert
    attempts: int


Change = Callable[[Mapping[AlertKey, AlertState]], Mapping[AlertKey, AlertState]]


class AlertStore(Protocol):
    """What each receiver knows. Every method raises StoreError."""

    async def change(self, target: str, change: Change) -> None:
        """Change the states of a receiver, in one transaction, one process at a time.

        Args:
            target: The receiver.
            change: Returns the states that are new or changed, by all states of the receiver.
        """

    async def take(self, target: str, most: int) -> list[DueAlert]:
        """Take alerts of a receiver that are due, and that no process has, for ``HELD_S``."""

    async def taken_in(self, due: DueAlert, change: Callable[[AlertState], AlertState]) -> None:
        """Change the state of an alert that the receiver has, unless another process did so."""

    async def put_off(self, due: DueAlert, pause_s: float) -> None:
        """Have an alert due again after a pause."""

    async def waiting(self, targets: Sequence[str]) -> int:
        """Return how many alerts are still to be sent."""


class AlertDelivery:
    """Tells receivers of what checks found.

    Args:
        store: What the receivers know.
        senders: The receivers.
        clock: The time of a next alert.
    """

    def __init__(self, store: AlertStore, senders: Sequence[AlertSender], clock: Clock) -> None:
        self._store = store
        self._senders = {sender.target: sender for sender in senders}
        self._clock = clock
        self._due = {target: asyncio.Event() for target in self._senders}
        self.counts: Counter[tuple[str, str]] = Counter()

    async def checked(self, judgement: Judgement, *, everything: bool) -> None:
        """Note what a check found. Nothing is sent yet.

        Args:
            judgement: The check.
            everything: Whether all tenants were judged.

        Raises:
            StoreError: It is not noted for every receiver; the next check does it.
        """
        for target, sender in self._senders.items():
            change = partial(
                checked,
                judgement=judgement,
                threshold=sender.threshold,
                new_id=_new_id,
                everything=everything,
            )
            await self._store.change(target, change)
            self._due[target].set()

    async def run(self) -> None:
        """Send what is due, until cancelled. A receiver that is slow or fails holds up no other."""
        async with asyncio.TaskGroup() as group:
            for target in self._senders:
                group.create_task(self._keep_sending(target))

    async def _keep_sending(self, target: str) -> None:
        logged = ""
        while True:
            try:
                while await self._send_due(target):
                    pass
                logged = ""
            except Exception as error:  # the receiver is told when the database is back; syncs go on
                reason = type(error).__name__
                if reason != logged:
                    _log.warning("alerts_unread", reason=reason)
                logged = reason
            self._due[target].clear()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._due[target].wait()
            except TimeoutError:
                pass

    async def send_all(self, patience_s: float) -> int:
        """Send everything, and try again for a while where a receiver fails.

        Returns:
            How many alerts are left.

        Raises:
            StoreError: The database is away.
        """
        ends_at_s = self._clock.monotonic_s() + patience_s
        targets = list(self._senders)
        while left := await self._store.waiting(targets) if targets else 0:
            if not await self.send_due():
                if self._clock.monotonic_s() >= ends_at_s:
                    break
                await asyncio.sleep(_RETRY_LOOK_S)
        return left

    async def send_due(self) -> int:
        """Send alerts that are due, some at once. Returns how many receivers took. Raises StoreError."""
        return sum(await asyncio.gather(*map(self._send_due, self._senders)))

    async def _send_due(self, target: str) -> int:
        due = await self._store.take(target, _AT_ONCE)
        return sum(await asyncio.gather(*map(self._send, due)))

    async def _send(self, due: DueAlert) -> bool:
        sender = self._senders[due.target]
        pause_s = await attempt(sender, due.alert, due.attempts, self.counts)
        if pause_s is not None:
            await self._store.put_off(due, pause_s)
            return False
        at = datetime.fromtimestamp(self._clock.now_us() / 1e6, UTC)
        await self._store.taken_in(due, lambda state: sent(state, due.key, sender.threshold, _new_id, at))
        return True

    def metrics(self) -> Iterator[Metric]:
        """Yield how many attempts receivers took, and how many they did not."""
        kinds = sorted({sender.kind for sender in self._senders.values()})
        values: dict[tuple[str, str], float] = {
            (kind, outcome): self.counts[kind, outcome] for kind in kinds for outcome in OUTCOMES
        }
        text = "Attempts of this process to send an alert, by kind of receiver and outcome"
        yield Value("counter", "tidemark_alerts_sent", text, values, ("target", "outcome"))


async def attempt(
    sender: AlertSender, alert: Alert, attempts: int, counts: Counter[tuple[str, str]]
) -> float | None:
    """Try to send an alert, count it and log it.

    Args:
        sender: The receiver.
        alert: The alert.
        attempts: How many attempts were made before.
        counts: Attempts by kind of receiver and outcome.

    Returns:
        The pause before the next attempt, with jitter; None if the receiver took the alert.
    """
    try:
        await sender.send(alert)
    except AlertNotSentError as error:
        counts[sender.kind, "failed"] += 1
        _log.warning(
            "alert_not_sent",
            target=sender.kind,
            tenant=alert.tenant,
            metric=alert.metric,
            attempts=attempts + 1,
            reason=str(error),
        )
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(attempts, 10))
        return max(error.retry_after_s, pause_s * random.uniform(0.75, 1.25))
    counts[sender.kind, "sent"] += 1
    _log.info(
        "alert_sent",
        target=sender.kind,
        kind=alert.kind,
        tenant=alert.tenant,
        metric=alert.metric,
        severity=alert.severity,
    )
    return None


def _new_id() -> str:
    return uuid4().hex
