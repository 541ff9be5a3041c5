"""Alerts of a database that is away: from memory, because their rows are in that database.

Of all processes one watches. If two do for a while, because one is started and the other ends, their alerts
have the same id, which is made of the cause, the last check, and the number of the outage since then. So has
an alert that is sent again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

import structlog

from engine.operate.alert_delivery import AlertSender, attempt
from engine.operate.monitor.alerts import Alert, AlertKind
from engine.runtime.ports import Clock

#: A database that is back so soon was restarted, or failed over.
AWAY_S: Final = 30.0
#: A receiver that takes nothing for long hears of the last outages alone, each with its end.
MOST_WAITING: Final = 20
_METRIC: Final = "database"

_log = structlog.get_logger()


class _Receiver:
    """What one receiver is still to be told."""

    def __init__(self, sender: AlertSender) -> None:
        self.sender = sender
        self.waiting: list[Alert] = []
        self.attempts = 0
        self.due_at_s = 0.0

    def tell(self, alert: Alert) -> None:
        """Have an alert wait. If too many do, the oldest outage is left out that is over, untried."""
        self.waiting.append(alert)
        if len(self.waiting) > MOST_WAITING:
            fired = next(place for place in (1, 2) if self.waiting[place].kind == "fired")
            del self.waiting[fired : fired + 2]
            _log.warning("database_alerts_left_out", target=self.sender.kind)


class _Outage(NamedTuple):
    """An outage: the time of the last check before it, or when the watch began, and its number since then."""

    since_us: int
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
        self._since_us: int | None = None
        self._away_since_s: float | None = None
        self._outages = 0
        #: The outage that is told; None while there is none.
        self._told: _Outage | None = None

    @property
    def watches(self) -> bool:
        """Whether this process tells of outages. The end of one that it told of, it always tells."""
        return self._since_us is not None

    def watch(self, since_us: int | None) -> None:
        """Watch from now on, or no longer.

        Args:
            since_us: The last check, or now, by the database's clock; None: another process watches.
        """
        self._since_us, self._outages = since_us, 0

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
            if self._told is None and self._since_us is not None and away_s >= AWAY_S:
                self._told = _Outage(self._since_us, self._outages)
                self._outages += 1
                self._tell("fired", self._told, f"the database does not answer: {reason}")
        due = (one for one in self._receivers if one.waiting and one.due_at_s <= now_s)
        await asyncio.gather(*(self._send(one) for one in due))

    def _tell(self, kind: AlertKind, outage: _Outage, message: str) -> None:
        at = datetime.fromtimestamp(self._clock.now_us() / 1e6, UTC)
        alert = Alert(
            id=uuid5(NAMESPACE_URL, f"tidemark:{_METRIC}:{outage.since_us}:{outage.number}:{kind}").hex,
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
            one.tell(alert)

    async def _send(self, receiver: _Receiver) -> None:
        while receiver.waiting:
            pause_s = await attempt(receiver.sender, receiver.waiting[0], receiver.attempts, self._counts)
            if pause_s is not None:
                receiver.due_at_s = self._clock.monotonic_s() + pause_s
                receiver.attempts += 1
                return
            receiver.attempts = 0
            del receiver.waiting[0]
