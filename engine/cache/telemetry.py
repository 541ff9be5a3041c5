"""Takes telemetry in: in batches of its own, off the way of a sync, and acknowledged once it is durable."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from engine.cache.ports import TelemetryOutcome, TelemetryStore
from engine.model.telemetry import MAX_DEVICE_NAMES, MAX_PARTS, MAX_TENANT_NAMES, TelemetryRow
from engine.runtime.batching import Batcher
from engine.runtime.metrics import Metric, Value, gauge
from engine.runtime.ports import Clock
from engine.runtime.rate_limit import retry_later_ms
from engine.wire.errors import SyncError

#: Messages of one statement: to write its values takes the event loop a millisecond or two.
_BATCH: Final = 50
#: Nobody waits for telemetry, and all devices bring theirs when a weekend is over. So a process stores 250
#: messages a second at most, and rests for thrice the time that a batch took. With 500 a second the p95 of
#: syncs was 1.9 to 2.7 times that without telemetry, with 250 it was 0.8 to 1.5 times that.
_REST_S: Final = 0.2
_REST_FACTOR: Final = 3.0
#: From so many messages on that wait in one process, a tenant with its equal share of them is refused. They
#: take some KB each, and 16 s to store. A large message counts as one for each ``_ORDINARY_SIZE`` of names
#: and pairs: it has up to 51 KB, and goes in smaller batches.
_SHARED_FROM: Final = 4000
_ORDINARY_SIZE: Final = 128
#: From so many on every message is refused.
MOST_WAITING: Final = 8000

_REFUSED: Final[dict[TelemetryOutcome, tuple[str, str]]] = {
    "reused": ("idempotency_key_reused", "key: it was used for other telemetry of this hour"),
    "parts": ("too_large", f"hour: the limit is {MAX_PARTS} messages of a device about one hour"),
    "names": (
        "too_large",
        f"names: a tenant has {MAX_TENANT_NAMES}, of which a device brings up {MAX_DEVICE_NAMES}: use others",
    ),
    "no_tenant": ("forbidden", "there is no such tenant: check the tid of the token"),
}
_LATER: Final = ("overloaded", "insufficient_storage")


class TelemetryIntake:
    """Stores the telemetry that devices send to this process.

    Args:
        store: Where it is stored.
        clock: For rests.
        full: Returns the reason why the database has no room, None if it has.

    Attributes:
        waiting: Messages that are not stored yet.
    """

    def __init__(self, store: TelemetryStore, clock: Clock, full: Callable[[], str | None]) -> None:
        self._full = full
        self._store = store
        self._clock = clock
        self._rests_until_s = 0.0
        self._batches = Batcher(self._put, _BATCH)
        self._outcomes: dict[str, int] = dict.fromkeys(("stored", "replayed", *_REFUSED, *_LATER), 0)
        #: What waits, in ordinary messages: of all, and by tenant.
        self._weight = 0
        self._waiting: Counter[int] = Counter()
        self.waiting = 0

    async def add(self, row: TelemetryRow) -> bool:
        """Store a message.

        Returns:
            True if it had been stored before.

        Raises:
            SyncError: It is refused.
            StoreError: It may be stored, or not.
        """
        if reason := self._full():
            raise self._later("insufficient_storage", reason)
        if self._is_over(row.tenant_id):
            raise self._later("overloaded", "too much telemetry waits to be stored")
        weight = 1 + row.size // _ORDINARY_SIZE
        self._wait(row.tenant_id, 1, weight)
        try:
            outcome = await self._batches.submit(row)
        finally:
            self._wait(row.tenant_id, -1, -weight)
        self._outcomes[outcome] += 1
        if outcome in _REFUSED:
            raise SyncError(*_REFUSED[outcome])
        return outcome == "replayed"

    def _is_over(self, tenant_id: int) -> bool:
        """Return whether too much waits, and this tenant has its equal share of it."""
        if self._weight < _SHARED_FROM:
            return False
        share = _SHARED_FROM / len(self._waiting.keys() | {tenant_id})
        return self._weight >= MOST_WAITING or self._waiting[tenant_id] >= share

    def _wait(self, tenant_id: int, messages: int, weight: int) -> None:
        self.waiting += messages
        self._weight += weight
        self._waiting[tenant_id] += weight
        if not self._waiting[tenant_id]:
            del self._waiting[tenant_id]

    def _later(self, code: str, reason: str) -> SyncError:
        self._outcomes[code] += 1
        return SyncError(code, reason, retry_after_ms=retry_later_ms())

    async def _put(self, rows: Sequence[TelemetryRow]) -> list[TelemetryOutcome]:
        clock_s = self._clock.monotonic_s
        await asyncio.sleep(self._rests_until_s - clock_s())
        began_s = clock_s()
        try:
            return await self._store.put(rows)
        finally:
            ended_s = clock_s()
            self._rests_until_s = ended_s + max(_REST_S, _REST_FACTOR * (ended_s - began_s))

    async def run(self) -> None:
        """Store what comes, until cancelled."""
        await self._batches.run()

    def metrics(self) -> Iterator[Metric]:
        """Yield the messages by outcome, and those that wait."""
        text = "Telemetry messages of devices, by what became of them"
        yield Value("counter", "tidemark_telemetry", text, self._outcomes, "outcome")
        yield gauge("tidemark_telemetry_waiting", "Telemetry messages that are not stored yet", self.waiting)
