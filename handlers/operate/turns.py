"""Turns of people's requests that cost the database much: one at a time, and each token has its share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Final

from engine.runtime.ports import Clock
from engine.wire.errors import SyncError

#: Requests of one token that are under way. More are refused.
MOST_REQUESTS: Final = 4
_LONGEST_REST_S: Final = 30.0
_RETRY_AFTER_MS: Final = 5000


class _Person:
    """``requests`` are under way, ``rests_until_s`` is the end of the rest after the last one."""

    def __init__(self) -> None:
        self.requests = 0
        self.rests_until_s = 0.0
        self.turn = asyncio.Lock()


class Turns:
    """The turns in one process.

    A token waits for its own requests, and after each for as long as that took. So it takes the database half
    of the time at most, and a request of another token waits for one of each token that asks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._turn = asyncio.Lock()
        self._persons: dict[Hashable, _Person] = {}

    @asynccontextmanager
    async def turn_of(self, token: Hashable) -> AsyncIterator[None]:
        """Wait for a turn of a token's request.

        Raises:
            SyncError: ``rate_limited``: too many requests of this token wait.
        """
        now_s = self._clock.monotonic_s()
        self._persons = {
            key: one for key, one in self._persons.items() if one.requests or one.rests_until_s > now_s
        }
        person = self._persons.setdefault(token, _Person())
        if person.requests >= MOST_REQUESTS:
            sentence = f"{MOST_REQUESTS} requests of this token are under way: wait for their answers"
            raise SyncError("rate_limited", sentence, retry_after_ms=_RETRY_AFTER_MS)
        person.requests += 1
        try:
            async with person.turn:
                await asyncio.sleep(person.rests_until_s - self._clock.monotonic_s())
                async with self._turn:
                    began_s = self._clock.monotonic_s()
                    try:
                        yield
                    finally:
                        ended_s = self._clock.monotonic_s()
                        person.rests_until_s = ended_s + min(ended_s - began_s, _LONGEST_REST_S)
        finally:
            person.requests -= 1
