"""A device that does as the guide says, while its server or the database goes away and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import ClientSession

from bench.client.device import Device
from bench.client.edits import Settled
from bench.client.store import Store
from storage.postgres.blocking import connected


class Guided(Device):
    """The device, which edits one record. ``applied`` are the versions that its edits became.

    It is live once an edit was answered on the connection that is open. ``away_s`` are the times from the end
    of a connection that was live to the next one that is.
    """

    def __init__(self, name: str, home: Path, url: str, token: str, session: ClientSession) -> None:
        self.name = name
        self.edits = 0
        self.applied: list[int] = []
        self.odd: list[str] = []
        self.live = False
        self.live_at_s = self._ended_at_s = 0.0
        self.away_s: list[float] = []
        random = Random(name)
        # It follows a domain that nobody edits, so that nothing is delivered.
        store = Store(home / f"{name}.sqlite", name, domains=["note"], durability="NORMAL")
        super().__init__(store, url, lambda: token, session, unit=random.random, on_settled=self._settle)

    def write(self) -> None:
        """Edit its record."""
        self.edits += 1
        self.edit("task", f"record of {self.name}", "put", {"number": self.edits})

    async def work(self, pause_s: Callable[[], float]) -> None:
        """Edit again and again."""
        while True:
            await asyncio.sleep(pause_s())
            self.write()

    def _settle(self, settled: Settled) -> None:
        result = settled.result
        if result.status == "applied" and result.version is not None:
            self.applied.append(result.version)
        else:
            self.odd.append(f"{self.name}: edit {settled.edit} became {result.status}")
        if not self.live:
            self.live, self.live_at_s = True, time.monotonic()
            if self._ended_at_s:
                self.away_s.append(self.live_at_s - self._ended_at_s)

    async def _once(self, token: str) -> Any:
        """Connect, and have an edit to send as soon as it is back."""
        ended = await super()._once(token)
        if self.live:
            self.live, self._ended_at_s = False, time.monotonic()
        if self.answered == self.edits:
            self.write()
        return ended

    @property
    def answered(self) -> int:
        """How many of its edits have an outcome."""
        return len(self.applied) + len(self.odd)

    def own_wait_s(self, now_s: float) -> float:
        """Return how long it still waits by its own backoff."""
        pause_s = 0.0 if self._protocol is None else self._protocol.pause_s or 0.0
        return max(pause_s, self._backoff.due_s - now_s, 0.0)

    def faults(self, versions: dict[str, int]) -> Iterator[str]:
        """Compare what was acknowledged with the versions in the tables, and close the store."""
        self.store.close()
        yield from self.odd
        if self.applied != list(range(1, len(self.applied) + 1)):
            yield f"{self.name}: acknowledged as {self.applied}"
        # What was under way in the end may be stored and not acknowledged.
        version = versions.get(f"record of {self.name}", 0)
        if not len(self.applied) <= version <= self.edits:
            yield f"{self.name}: {len(self.applied)} acknowledged, {version} stored"


def versions_of(dsn: str) -> dict[str, int]:
    """Read the version of each record by its id."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id, version FROM records")
        return dict(cursor.fetchall())


@asynccontextmanager
async def beside(*running: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these until the end of the block. Raises what one of them ended with before."""
    tasks = [asyncio.create_task(one) for one in running]
    try:
        yield
        for task in tasks:
            if task.done():
                await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
