"""Alerts of a database that is away: from memory, because their rows are in that database.

The process that made the last check alerts, so that of many processes one does. If several do, their alerts
have the same id, which is made of the cause, the last check, and the number of the outage since then.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from engine.operate.alert_delivery import AlertSender, attempt
from engine.operate.monitor.alerts import Alert, AlertKind
from engine.runtime.ports import Clock

#: A database that is back so soon was restarted, or failed over.
AWAY_S: Final = 30.0
_METRIC: Final = "database"


class _Receiver:
    """What one receiver is still to be told."""

    def __init__(self, sender: AlertSender) -> None:
        self.sender = sender
        self.waiting: deque[Alert] = deque()
        self.attempts = 0
        self.due_at_s = 0.0


class _Outage(NamedTuple):
    """An outage: the time of the last check before it, and its number since that check."""

    checked_us: int
    number: int


class DatabaseAlert:
    """Tells receivers that the database is away, and that it is back.

    Args:
        senders: The receivers.
        clock: The time.
        counts: Attempts to send, by kind of receiver and outcome; they are counted here too.
    """

    def __init__(
        self, senders: Sequence[AlertSender], clock: Clock, counts: Counter[tuple[str, str]]
    ) -> None:
        self._receivers = [_Receiver(sender) for sender in senders]
        self._clock = clock
        self._counts = counts
        self._checked_us: int | None = None
        self._away_since_s: float | None = None
        self._outages = 0
        #: The outage that is told; None while there is none.
        self._told: _Outage | None = None

    def checked(self, at_us: int) -> None:
        """Note that this process made the last check, at a time by the database's clock."""
        self._checked_us, self._outages = at_us, 0

    def checked_elsewhere(self) -> None:
        """Note that another process made the last check: it alerts from now on."""
        self._checked_us = None

    async def observe(self, reason: str | None) -> None:
        """Note whether the database answers, and send what is due.

        Args:
            reason: One sentence that says why it does not answer; None if it does.
        """
        now_s = self._clock.monotonic_s()
        if reason is None:
            self._away_since_s = None
            if self._told is not None:
                self._tell("cleared", self._told, "the database answers again")
                self._told = None
        else:
            if self._away_since_s is None:
                self._away_since_s = now_s
            away_s = now_s - self._away_since_s
            if self._told is None and self._checked_us is not None and away_s >= AWAY_S:
                self._told = _Outage(self._checked_us, self._outages)
                self._outages += 1
                self._tell("fired", self._told, f"the database does not answer: {reason}")
        due = (one for one in self._receivers if one.waiting and one.due_at_s <= now_s)
        await asyncio.gather(*(self._send(one) for one in due))

    def _tell(self, kind: AlertKind, outage: _Outage, message: str) -> None:
        at = datetime.fromtimestamp(self._clock.now_us() / 1e6, UTC)
        alert = Alert(
            id=uuid5(NAMESPACE_URL, f"tidemark:{_METRIC}:{outage.checked_us}:{outage.number}:{kind}").hex,
            kind=kind,
            metric=_METRIC,
            tenant=None,
            severity="critical",
            current_value=None,
            threshold=None,
            message=message,
            timestamp=at,
        )
        for one in self._receivers:
            one.waiting.append(alert)

    async def _send(self, receiver: _Receiver) -> None:
        while receiver.waiting:
            pause_s = await attempt(receiver.sender, receiver.waiting[0], receiver.attempts, self._counts)
            if pause_s is not None:
                receiver.due_at_s = self._clock.monotonic_s() + pause_s
                receiver.attempts += 1
                return
            receiver.attempts = 0
            receiver.waiting.popleft()
