"""Whose bytes go to the disk now: chunks take turns, fewer at a time and with rests while syncs come.

A chunk is a thousand times a sync's bytes. A hundred at once keep the loop, the processors and the disk busy
for as long as many syncs take, and nobody waits for a photo as for an answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from engine.runtime.ports import Clock

#: Turns at a time: enough to keep a disk and its threads busy, and enough that uploads go on beside syncs.
ALONE: Final = 48
BESIDE_SYNCS: Final = 2
#: Syncs a second from which on uploads give way. Files that are attached count as syncs, and are fewer.
SYNCS_PER_S: Final = 100.0
#: How long a turn rests after its chunk for each sync a second: a thirtieth of a second at 1,200. Beside
#: turns that did not rest the p95 of a sync was five times what it is alone.
REST_S_PER_SYNC: Final = 28e-6
_LONGEST_REST_S: Final = 0.1
_LOOK_S: Final = 0.1


class WriteLimiter:
    """``committed`` gives how many messages were committed so far."""

    def __init__(self, committed: Callable[[], int], clock: Clock) -> None:
        self._committed = committed
        self._clock = clock
        self._looked_s = clock.monotonic_s()
        self._seen = committed()
        self._most = ALONE
        self._rest_s = 0.0
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Have a turn; who came first has it first."""
        if self._waiting or self._taken >= self._limit():
            called = asyncio.get_running_loop().create_future()
            self._waiting.append(called)
            try:
                await called
            except asyncio.CancelledError:
                if called.done() and not called.cancelled():  # it was this one's turn already
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
        self._call()

    def _call(self) -> None:
        while self._waiting and self._taken < self._limit():
            called = self._waiting.popleft()
            if not called.done():
                self._taken += 1
                called.set_result(None)

    def _limit(self) -> int:
        now_s = self._clock.monotonic_s()
        passed_s = now_s - self._looked_s
        if passed_s >= _LOOK_S:
            committed = self._committed()
            syncs_per_s = (committed - self._seen) / passed_s
            busy = syncs_per_s >= SYNCS_PER_S
            self._most = BESIDE_SYNCS if busy else ALONE
            self._rest_s = min(syncs_per_s * REST_S_PER_SYNC, _LONGEST_REST_S) if busy else 0.0
            self._looked_s, self._seen = now_s, committed
        return self._most
