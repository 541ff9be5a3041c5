"""A crew of simulated devices in one process: they work, go offline, come back and have to agree."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, NamedTuple

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from bench.client.device import Device, Observer, StoppedError
from bench.client.edits import Settled
from bench.client.messages import Changes, Result, canonical, payload
from bench.client.persona import Persona
from bench.client.store import Store

Outcome = Literal["applied", "unchanged", "won", "merged", "superseded", "held", "rejected"]
OUTCOMES: Final[tuple[Outcome, ...]] = (
    "applied",
    "unchanged",
    "won",
    "merged",
    "superseded",
    "held",
    "rejected",
)
_BY_WINNER: Final[dict[str | None, Outcome]] = {"client": "won", "merged": "merged", "server": "superseded"}
#: How often a crew looks whether it agrees.
_LOOK_S: Final = 0.2
#: Records by domain and id: version and data.
State = dict[tuple[str, str], tuple[int, bytes]]

_decode_page = msgspec.json.Decoder(Changes).decode


def outcome_of(result: Result) -> Outcome:
    """Name what became of an edit; ``won``, ``merged``, ``superseded`` are conflicts settled by policy."""
    if result.status == "resolved":
        return _BY_WINNER[result.winner]
    return "held" if result.status == "conflict" else result.status


class CrewError(Exception):
    """The simulation cannot go on; one sentence says why and names the remedy."""


class Setting(NamedTuple):
    """Where and how a crew works. ``sign`` signs a device's token; ``domains`` are edited.

    ``observe`` makes a device's observer. ``skew_s`` is how far a device's clock is off at most, ``pool`` the
    records of each domain.
    """

    url: str
    sign: Callable[[str], str]
    home: Path
    seed: int
    domains: tuple[str, ...]
    pool: int
    edits_per_minute: float
    skew_s: float = 0.0
    observe: Callable[[str], Observer] = lambda _: Observer()


class Member:
    """One device and the person who works with it."""

    def __init__(self, name: str, setting: Setting, session: ClientSession) -> None:
        self.name = name
        self.made = 0
        self.settled: list[Settled] = []
        self.outcomes: Counter[Outcome] = Counter()
        self.random = Random(f"{setting.seed} {name}")
        skew_us = int(self.random.uniform(-setting.skew_s, setting.skew_s) * 1e6)
        self.store = Store(setting.home / f"{name}.sqlite", name, durability="NORMAL")
        self.device = Device(
            self.store,
            setting.url,
            lambda: setting.sign(name),
            session,
            unit=self.random.random,
            clock_us=lambda: time.time_ns() // 1000 + skew_us,
            on_settled=self._settle,
            observer=setting.observe(name),
        )
        prefix = f"sim{setting.seed}"
        self._persona = Persona(name, self.random, setting.domains, prefix, setting.pool)
        self._per_s = setting.edits_per_minute / 60
        self._running: asyncio.Task[None] | None = None

    def _settle(self, settled: Settled) -> None:
        self.settled.append(settled)
        self.outcomes[outcome_of(settled.result)] += 1

    @property
    def waiting(self) -> int:
        """How many edits have no outcome."""
        return self.made - self.outcomes.total()

    def go_online(self) -> None:
        """Begin to look for the server."""
        if self._running is None:
            self._running = asyncio.create_task(self.device.run())

    async def go_offline(self) -> None:
        """Drop the connection, whatever is under way."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])

    def check(self) -> None:
        """Raise CrewError if the server has sent the device away for good."""
        if self._running is not None and self._running.done():
            error = self._running.exception()
            if isinstance(error, StoppedError):
                raise CrewError(f"{self.name} was sent away: {error}")
            if error is not None:
                raise error

    async def work(self, until_s: float, spells_s: Iterator[float]) -> None:
        """Edit at random until then. ``spells_s`` says how long to be offline, then online, and so on."""
        edit_s = time.monotonic() + self._pause_s()
        switch_s, online = time.monotonic(), True
        while (now_s := time.monotonic()) < until_s:
            self.check()
            if now_s >= switch_s:
                online = not online
                spell_s = next(spells_s, None)
                switch_s = float("inf") if spell_s is None else now_s + spell_s
                if online or spell_s is None:
                    self.go_online()
                else:
                    await self.go_offline()
            if now_s >= edit_s:
                self._persona.edit(self.device)
                self.made += 1
                edit_s += self._pause_s()
            await asyncio.sleep(max(0.0, min(edit_s, switch_s, until_s) - time.monotonic()))
        self.go_online()

    def _pause_s(self) -> float:
        return self.random.expovariate(self._per_s)

    def state(self) -> State:
        """Return all records of the server that the device holds."""
        return {
            (domain, name): (version, canonical(data)) for domain, name, version, data in self.store.replica()
        }


class Crew:
    """All devices of a run."""

    def __init__(self, members: list[Member], setting: Setting, session: ClientSession) -> None:
        self.members = members
        self._setting = setting
        self._session = session

    async def reach(self) -> None:
        """Make sure that a server answers. Raises CrewError."""
        try:
            async with self._session.get(f"{self._setting.url}/healthz", timeout=ClientTimeout(5)):
                pass
        except (ClientError, OSError, TimeoutError):
            raise CrewError(
                f"no server answers at {self._setting.url}: start `run.py serve`, or give --url"
            ) from None

    async def catch_up(self, patience_s: float) -> None:
        """Connect all and wait until each has taken in what there is. Raises CrewError."""
        for member in self.members:
            member.go_online()
        try:
            async with asyncio.timeout(patience_s):
                await self._all_settled()
        except TimeoutError:
            raise CrewError(
                f"the devices have not caught up with {self._setting.url} after {patience_s:.0f} s:"
                " see what the server logs, then try again"
            ) from None

    async def work(self, duration_s: float, spells_s: Callable[[Random], Iterator[float]]) -> None:
        """Let everybody work for so long. Raises CrewError."""
        until_s = time.monotonic() + duration_s
        try:
            async with asyncio.TaskGroup() as group:
                for member in self.members:
                    group.create_task(member.work(until_s, spells_s(member.random)))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def converge(self, patience_s: float) -> bool:
        """Wait until every edit is answered and every replica equals the server; False if that takes long."""
        try:
            async with asyncio.timeout(patience_s):
                await self._all_settled()
                while not await self._agree():  # noqa: ASYNC110  # others may write besides
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            return False
        return True

    async def _all_settled(self) -> None:
        for member in self.members:
            settled = asyncio.create_task(member.device.settled())
            try:
                while not settled.done():
                    await asyncio.wait([settled], timeout=1)
                    member.check()
            finally:
                settled.cancel()

    async def _agree(self) -> bool:
        served = await self.served()
        return all(member.state() == served for member in self.members)

    async def served(self) -> State:
        """Pull all records of the tenant. Raises CrewError."""
        headers = {"Authorization": f"Bearer {self._setting.sign(self.members[0].name)}"}
        found: State = {}
        cursor, more = "", True
        while more:
            query = {"cursor": cursor, "limit": "1000"}
            url = f"{self._setting.url}/v1/changes"
            async with self._session.get(url, params=query, headers=headers) as response:
                body: Any = await response.read()
                if response.status != 200:
                    raise CrewError(f"the server's records cannot be pulled: it says {response.status}")
            page = _decode_page(body)
            for change in page.changes:
                found[change.domain, change.id] = change.version, canonical(payload(change.data))
            cursor, more = page.cursor, page.more
        return found

    @property
    def made(self) -> int:
        """How many edits were made."""
        return sum(member.made for member in self.members)

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """How many edits came to what."""
        return {outcome: sum(member.outcomes[outcome] for member in self.members) for outcome in OUTCOMES}


@asynccontextmanager
async def crew(names: list[str], setting: Setting) -> AsyncIterator[Crew]:
    """Open a crew's stores; closes its connections in the end."""
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        members = [Member(name, setting, session) for name in names]
        try:
            yield Crew(members, setting, session)
        finally:
            await asyncio.gather(*(member.go_offline() for member in members))
            for member in members:
                member.store.close()
