"""Security events of a server: noted at once, and written behind, so that no request waits for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

import structlog

from engine.model.audit import SERVER_EVENTS, AuditRow
from engine.operate.event_tally import RATES, EventTally, TallyLimits
from engine.runtime.batching import write_last
from engine.runtime.metrics import Metric, Value, counter
from engine.runtime.ports import Clock, StoreError, StorePoisonError

#: The pause before a write. A process that is killed loses the events of that time.
FLUSH_S: Final = 10.0
#: Rows of one statement.
_ROWS: Final = 50
#: The most rows that wait while the store is away, then the oldest are dropped. A minute makes 298 at most.
_MOST_WAITING: Final = 5000

_log = structlog.get_logger()


class AuditStore(Protocol):
    """Where events are written."""

    async def append(self, rows: list[AuditRow]) -> None:
        """Append events to the audit log. Raises StoreError."""


class AuditTrail:
    """Notes the security events of one process.

    Args:
        store: Where they are written.
        clock: Tells their time, and the minutes of the bounds.
    """

    def __init__(self, store: AuditStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        #: Apart, so that a flood from many addresses, which needs no token, hides no event of a device.
        self._of_addresses = EventTally(TallyLimits())
        self._of_others = EventTally(TallyLimits())
        self._of_rates = EventTally(RATES)
        self._counts = dict.fromkeys(SERVER_EVENTS, 0)
        self._dropped = 0
        self._waiting: deque[AuditRow] = deque()
        self._noted = asyncio.Event()
        self._fails = False

    def note(self, row: AuditRow, cause: str) -> None:
        """Note one event. It costs microseconds and is bounded: see ``EventTally``."""
        self._counts[row.event] += 1
        tally = self._tally(row)
        tally.note(row._replace(at_us=self._clock.now_us()), cause, self._clock.monotonic_s())
        self._noted.set()

    def _tally(self, row: AuditRow) -> EventTally:
        if row.event == "rate_limited":
            return self._of_rates
        return self._of_addresses if row.actor.kind == "address" else self._of_others

    @property
    def _tallies(self) -> tuple[EventTally, ...]:
        return self._of_addresses, self._of_others, self._of_rates

    def metrics(self) -> Iterator[Metric]:
        """Yield how many events there were, also those that are not written whole."""
        yield Value(
            "counter",
            "tidemark_security_events",
            "Requests, connections and messages refused for security, by event",
            {str(name): count for name, count in self._counts.items()},
            "event",
        )
        text = "Security events dropped while the database was away"
        yield counter("tidemark_security_events_dropped", text, self._dropped)

    async def run(self) -> None:
        """Write what was noted, until cancelled. Without events it only waits for one."""
        while True:
            await self._noted.wait()
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
                self._fails = False
            except StoreError as error:
                if not self._fails:
                    _log.warning("audit_not_stored", reason=type(error).__name__)
                self._fails = True
            if not (self._waiting or any(tally.open for tally in self._tallies)):
                self._noted.clear()

    async def drain(self) -> None:
        """Write everything, also of the minute that has not ended; try again if the store fails."""
        for tally in self._tallies:
            tally.end()
        error = await write_last(self.flush)
        if error is not None:
            _log.error("audit_lost", rows=len(self._waiting), reason=type(error).__name__)

    async def flush(self) -> None:
        """Write the rows that are ready. Raises StoreError; the rest waits for the next time."""
        now_s = self._clock.monotonic_s()
        for tally in self._tallies:
            self._waiting += tally.take(now_s)
        while len(self._waiting) > _MOST_WAITING:
            self._dropped += self._waiting.popleft().times
        while self._waiting:
            rows = [self._waiting.popleft() for _ in range(min(_ROWS, len(self._waiting)))]
            try:
                await self._store.append(rows)
            except StorePoisonError as error:  # it would be refused again, and keep all others waiting
                _log.error("audit_refused", rows=len(rows), reason=str(error))
                self._dropped += sum(row.times for row in rows)
            except BaseException:
                self._waiting.extendleft(reversed(rows))
                raise
