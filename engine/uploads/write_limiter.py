"""Limits how many chunks are written at once, so that uploads give way while syncs come.

A chunk is a thousand times a sync's bytes. A hundred at once keep the loop, the processors and the disk busy
for as long as many syncs take, and an answer to a sync is more urgent than a photo.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from engine.runtime.ports import Clock

#: Slots while few syncs come: 48 keep a disk and its threads busy.
ALONE: Final = 48
#: Slots beside syncs: 2 are enough for uploads to go on.
BESIDE_SYNCS: Final = 2
#: Uploads give way from this rate of syncs on. Attached files count as syncs, and are fewer.
SYNCS_PER_S: Final = 100.0
#: A slot rests after its chunk for this long per sync a second: a thirtieth of a second at 1,200. Beside
#: slots that did not rest the p95 of a sync was five times what it is alone.
REST_S_PER_SYNC: Final = 28e-6
_LONGEST_REST_S: Final = 0.1
_MEASURE_EVERY_S: Final = 0.1


class WriteLimiter:
    """Hands out slots for writing, first come, first served.

    Args:
        committed: Returns how many messages were committed since the process started.
        clock: Tells the time.
    """

    def __init__(self, committed: Callable[[], int], clock: Clock) -> None:
        self._committed = committed
        self._clock = clock
        self._measured_s = clock.monotonic_s()
        self._measured = committed()
        self._slots = ALONE
        self._rest_s = 0.0
        self._taken = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and have it for the body of ``async with``."""
        if self._queue or self._taken >= self._limit():
            called = asyncio.get_running_loop().create_future()
            self._queue.append(called)
            try:
                await called
            except asyncio.CancelledError:
                if called.done() and not called.cancelled():  # the slot was handed over already
                    self._give_back()
                raise
        else:
            self._taken += 1
        try:
            yield
        finally:
            self._limit()
            if self._rest_s:
                asyncio.get_running_loop().call_later(self._rest_s, self._give_back)
            else:
                self._give_back()

    def _give_back(self) -> None:
        self._taken -= 1
        self._call_next()

    def _call_next(self) -> None:
        while self._queue and self._taken < self._limit():
            called = self._queue.popleft()
            if not called.done():
                self._taken += 1
                called.set_result(None)

    def _limit(self) -> int:
        """Return how many slots there are, measuring the rate of syncs anew when it is time."""
        now_s = self._clock.monotonic_s()
        passed_s = now_s - self._measured_s
        if passed_s >= _MEASURE_EVERY_S:
            committed = self._committed()
            syncs_per_s = (committed - self._measured) / passed_s
            busy = syncs_per_s >= SYNCS_PER_S
            self._slots = BESIDE_SYNCS if busy else ALONE
            self._rest_s = min(syncs_per_s * REST_S_PER_SYNC, _LONGEST_REST_S) if busy else 0.0
            self._measured_s, self._measured = now_s, committed
        return self._slots
