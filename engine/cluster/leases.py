"""What one process does for all of them, on whatever host: whoever's turn it is, by a lease in the store.

No promise rests on a turn, only that work is not done twice over: what is done in one harms nobody who does
the same at once. So a lease that ran out, because its holder was killed or stalled, is simply taken.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

import anyio

from engine.runtime.ports import Clock, StoreError

#: A process has its turn for so long without a word.
LEASE_S: Final = 60
_RENEW_S: Final = 15.0
_GIVE_BACK_S: Final = 2.0


class TurnLostError(Exception):
    """Another process has the turn by now."""


class TurnStore(Protocol):
    """Turns, by the name of the job. Every method may be run again. All raise StoreError."""

    async def begin(self, job: str, holder: str, every_s: float) -> int | None:
        """Give a turn, if nobody has it and the last one began ``every_s`` ago, as the store's time in µs."""

    async def renew(self, job: str, holder: str) -> bool:
        """Begin the lease anew; False when the turn is another's."""

    async def end(self, job: str, holder: str, report: bytes | None) -> None:
        """Give a turn back; ``report`` (JSON) takes the place of the last one, None does not."""

    async def report(self, job: str) -> bytes | None:
        """Find what the last turn came to."""


class Turn:
    """One's turn. ``now_us`` is the store's time when it began; ``report`` is left for all processes."""

    def __init__(self, store: TurnStore, clock: Clock, job: str, holder: str, now_us: int) -> None:
        self.now_us = now_us
        self.report: bytes | None = None
        self._store = store
        self._clock = clock
        self._job = job
        self._holder = holder
        self._renew_at_s = clock.monotonic_s() + _RENEW_S

    async def keep(self) -> None:
        """Keep the turn; to be called now and then. Raises TurnLostError, StoreError."""
        if self._clock.monotonic_s() < self._renew_at_s:
            return
        if not await self._store.renew(self._job, self._holder):
            raise TurnLostError
        self._renew_at_s = self._clock.monotonic_s() + _RENEW_S


class ClusterTurns:
    """Takes turns for this process."""

    def __init__(self, store: TurnStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @asynccontextmanager
    async def taking(self, job: str, every_s: float) -> AsyncIterator[Turn | None]:
        """Have a turn, or None while it is another's, or not time yet. Raises StoreError."""
        holder = uuid.uuid4().hex
        now_us = await self._store.begin(job, holder, every_s)
        if now_us is None:
            yield None
            return
        turn = Turn(self._store, self._clock, job, holder, now_us)
        try:
            yield turn
        finally:
            with suppress(StoreError), anyio.move_on_after(_GIVE_BACK_S, shield=True):  # else it runs out
                await self._store.end(job, holder, turn.report)

    async def report(self, job: str) -> bytes | None:
        """Find what the last turn came to, whoever had it. Raises StoreError."""
        return await self._store.report(job)
