"""Minutes of this process: counted in memory with plain integers, and written every ten seconds.

Each write has the whole count of the process's minute so far, so that a write may be repeated. A process that
is killed loses what it counted since its last write. While the store is away, minutes wait in memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec
import structlog

from engine.cache.ports import MinuteRow, MinuteStore
from engine.model.minutes import MINUTE_US, Minute
from engine.runtime.batching import write_last
from engine.runtime.metrics import Metric, counter, gauge
from engine.runtime.ports import Clock, StoreError, StorePoisonError

#: The pause between two writes; a process that is killed loses so much.
FLUSH_S: Final = 10.0
#: Rows of one statement: its values take the event loop a millisecond at most.
_ROWS: Final = 25
#: The most rows that wait while the store is away, then the oldest are dropped. A row takes up to 6 KiB.
_MOST_WAITING: Final = 10_000

_log = structlog.get_logger()


class MinuteCounters(msgspec.Struct):
    """Counts since the start: rows written, the time that it took, writes that failed, rows dropped."""

    rows: int = 0
    flush_s: float = 0.0
    failures: int = 0
    dropped: int = 0

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield from (
            counter("tidemark_minute_rows", "Rows of minutes written", self.rows),
            counter("tidemark_minute_flush_seconds", "Time that writing minutes took", self.flush_s),
            counter("tidemark_minute_flush_failures", "Writes of minutes that failed", self.failures),
            counter(
                "tidemark_minute_rows_dropped",
                "Rows of minutes dropped while the database was away",
                self.dropped,
            ),
        )


class Minutes:
    """The minutes of this process by tenant: the present one, and those that are not written yet.

    Args:
        store: Where they are written.
        clock: Its wall clock tells the minutes.
        new_id: Returns an id for the rows of this process. If the clock goes back, the process takes another
            one, so that it does not overwrite what it counted in the same minute before.
        on_minute: Is called with the present minutes of all tenants, which are empty, as each minute begins.
    """

    def __init__(
        self,
        store: MinuteStore,
        clock: Clock,
        new_id: Callable[[], str],
        on_minute: Callable[[Mapping[int, Minute]], None] = lambda _: None,
    ) -> None:
        self.counters = MinuteCounters()
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._process = new_id()
        self._start_us = self._minute_us()
        self._on_minute = on_minute
        self._present: dict[int, Minute] = {}
        on_minute(self._present)
        self._written: dict[int, int] = {}
        self._waiting: deque[MinuteRow] = deque()
        self._flushing = asyncio.Lock()
        self._fails = False

    def of(self, tenant_id: int) -> Minute:
        """Return a tenant's present minute, to count in."""
        minute = self._present.get(tenant_id)
        if minute is None:
            minute = self._present[tenant_id] = Minute()
        return minute

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts of writes, and how much waits for one."""
        yield gauge(
            "tidemark_minute_rows_waiting", "Rows of ended minutes not written yet", len(self._waiting)
        )
        yield from self.counters.metrics()

    async def run(self) -> None:
        """End each minute in time and write every ten seconds, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_ends())
            group.create_task(self._run_flushes())

    async def drain(self) -> None:
        """Write everything; try again a few times if the store fails."""
        error = await write_last(self.flush)
        if error is not None:
            _log.error("minutes_lost", reason=type(error).__name__)

    async def _run_ends(self) -> None:
        while True:
            left_us = MINUTE_US - self._clock.now_us() % MINUTE_US
            await asyncio.sleep(left_us / 1_000_000)
            self.end_minute()

    async def _run_flushes(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
                self._fails = False
            except StoreError as error:
                if not self._fails:
                    _log.warning("minutes_not_stored", reason=type(error).__name__)
                self._fails = True

    def end_minute(self) -> None:
        """Begin another minute, if the clock is in another one."""
        start_us = self._minute_us()
        if start_us == self._start_us:
            return
        self._waiting.extend(self._unwritten())
        if start_us < self._start_us:
            self._process = self._new_id()
        self._start_us, self._present, self._written = start_us, {}, {}
        self._on_minute(self._present)
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft()
            self.counters.dropped += 1

    async def flush(self) -> None:
        """Write all that changed since the last write. Raises StoreError; the rest waits for the next one."""
        async with self._flushing:
            begun_s = self._clock.monotonic_s()
            try:
                await self._flush()
            except StoreError:
                self.counters.failures += 1
                raise
            finally:
                self.counters.flush_s += self._clock.monotonic_s() - begun_s

    async def _flush(self) -> None:
        while self._waiting:
            rows = [self._waiting.popleft() for _ in range(min(_ROWS, len(self._waiting)))]
            try:
                await self._put(rows)
            except BaseException:
                self._waiting.extendleft(reversed(rows))
                raise
        changed = list(self._unwritten())
        written = self._written
        for first in range(0, len(changed), _ROWS):
            rows = changed[first : first + _ROWS]
            events = [(row.tenant_id, row.minute.events) for row in rows]
            await self._put(rows)
            written.update(events)

    def _unwritten(self) -> Iterator[MinuteRow]:
        for tenant_id, minute in self._present.items():
            if minute.events != self._written.get(tenant_id):
                yield MinuteRow(tenant_id, self._start_us, self._process, minute)

    async def _put(self, rows: list[MinuteRow]) -> None:
        try:
            await self._store.put(rows)
        except StorePoisonError as error:  # it would be refused again, and keep all others waiting
            if len(rows) > 1:
                for row in rows:
                    await self._put([row])
                return
            _log.error("minutes_refused", rows=len(rows), reason=str(error))
            self.counters.dropped += len(rows)
        else:
            self.counters.rows += len(rows)

    def _minute_us(self) -> int:
        now_us = self._clock.now_us()
        return now_us - now_us % MINUTE_US
