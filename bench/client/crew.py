"""A crew of simulated devices in one process: they work, go offline, come back and have to agree."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from msgspec import Raw

from bench.client.device import Device, StoppedError
from bench.client.edits import Settled
from bench.client.messages import Change, Result, canonical, payload
from bench.client.store import Store

Outcome = Literal["applied", "unchanged", "won", "merged", "superseded", "held", "rejected"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)
_BY_WINNER: Final[dict[str | None, Outcome]] = {"client": "won", "merged": "merged", "server": "superseded"}
#: Of each domain as delivered, what its ``status`` may be; the others have none.
_STATUSES: Final = {
    "task": ("ASSIGNED", "INPROGRESS", "PARTIALLYCOMPLETED", "STANDBY", "COMPLETED"),
    "ticket": ("NEW", "OPEN", "INPROGRESS", "ONHOLD", "RESOLVED"),
    "attendance": ("PENDING", "VERIFIED", "REJECTED", "CORRECTED"),
    "work_order": ("draft", "in_progress", "paused", "completed"),
}
DOMAINS: Final = (*_STATUSES, "journal")
#: How often a crew looks whether it agrees.
_LOOK_S: Final = 0.2
_HTTP: Final = ClientTimeout(10)
#: Records by domain and id: version and data.
State = dict[tuple[str, str], tuple[int, bytes]]


class _Page(msgspec.Struct):
    cursor: str
    more: bool
    changes: list[Raw]


_decode_page = msgspec.json.Decoder(_Page).decode
_decode_change = msgspec.json.Decoder(Change).decode


class CrewError(Exception):
    """The simulation cannot go on; one sentence says why and names the remedy."""


class Setting(NamedTuple):
    """Where and how members work. ``sign`` signs a device's token; ``domains`` are edited.

    ``pool`` is how many records of each domain all of them edit, ``most_at_once`` how many edits a person
    makes without a pause. ``unseen`` is the share of edits that are made as by a device that has never heard
    of the record. ``skew_s`` is how far a device's clock is off at most. All data names ``tenant`` unless it
    is empty. ``make`` makes a device.
    """

    url: str
    sign: Callable[[str], str]
    home: Path
    seed: int
    domains: tuple[str, ...]
    pool: int
    edits_per_minute: float
    most_at_once: int = 1
    unseen: float = 0.0
    skew_s: float = 0.0
    tenant: str = ""
    make: Callable[..., Device] = Device


def outcome_of(result: Result) -> Outcome:
    """Name what became of an edit; ``won``, ``merged``, ``superseded`` are conflicts settled by policy."""
    if result.status == "resolved":
        return _BY_WINNER[result.winner]
    return "held" if result.status == "conflict" else result.status


async def pull_all(session: ClientSession, url: str, token: str, limit: int = 1000) -> list[Raw]:
    """Pull all records of a tenant over HTTP, ``limit`` a page. Raises ClientError, TimeoutError."""
    headers = {"Authorization": f"Bearer {token}"}
    found: list[Raw] = []
    cursor, more = "", True
    while more:
        query = {"cursor": cursor, "limit": str(limit)}
        async with session.get(
            f"{url}/v1/changes", params=query, headers=headers, timeout=_HTTP, raise_for_status=True
        ) as response:
            page = _decode_page(await response.read())
        found += page.changes
        cursor, more = page.cursor, page.more
    return found


class Member:
    """One device and the person who works with it."""

    def __init__(self, name: str, setting: Setting, session: ClientSession) -> None:
        self.name = name
        self.setting = setting
        self.edits_per_minute = setting.edits_per_minute
        self.made = 0
        self.settled: list[Settled] = []
        self.outcomes: Counter[Outcome] = Counter()
        self.random = Random(f"{setting.seed} {name}")
        skew_us = int(self.random.uniform(-setting.skew_s, setting.skew_s) * 1e6)
        self.store = Store(setting.home / f"{name}.sqlite", name, durability="NORMAL")
        self.device = setting.make(
            self.store,
            setting.url,
            lambda: setting.sign(name),
            session,
            unit=Random(f"{setting.seed} {name} unit").random,
            clock_us=lambda: time.time_ns() // 1000 + skew_us,
            on_settled=self._settle,
        )
        self._running: asyncio.Task[None] | None = None

    def _settle(self, settled: Settled) -> None:
        self.settled.append(settled)
        self.outcomes[outcome_of(settled.result)] += 1

    @property
    def waiting(self) -> int:
        """How many edits have no outcome."""
        return self.made - len(self.settled)

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
                for _ in range(self.random.randint(1, self.setting.most_at_once)):
                    self.edit()
                edit_s += self._pause_s()
            await asyncio.sleep(max(0.0, min(edit_s, switch_s, until_s) - time.monotonic()))
        self.go_online()

    def _pause_s(self) -> float:
        return self.random.expovariate(self.edits_per_minute / 60)

    def edit(self) -> None:
        """Make one edit of any kind; no two edits of a crew have the same content."""
        draw, edit, setting = self.random, self.device.edit, self.setting
        mark = {"tenant": setting.tenant} if setting.tenant else {}
        self.made += 1
        tag, chance = f"{self.name} {self.made}", draw.random()
        if chance < 0.1:
            metric = {"metric_name": "edits", "value": self.made, "timestamp": "2026-01-01T00:00:00Z"}
            edit("metrics", f"{self.name}-{self.made}", "append", {**metric, "by": tag, **mark})
            return
        domain, record_id = draw.choice(setting.domains), f"sim{setting.seed}-{draw.randrange(setting.pool)}"
        shown = self.store.record(domain, record_id).data
        field = draw.choice(["note", "place", "count"])
        value = f"{draw.randrange(1000)} by {tag}" if field == "count" else tag
        patch: dict[str, Any] = {field: value, **mark}
        unseen = draw.random() < setting.unseen
        if shown is None or unseen:
            status = {"status": _STATUSES[domain][0]} if domain in _STATUSES else {}
            fields = {"title": "Check the pump", "note": tag, **status, **mark}
            edit(domain, record_id, "put", fields, known=not unseen)
        elif chance < 0.12:
            edit(domain, record_id, "patch", {"status": "NO SUCH STATUS", "note": tag})
        elif chance < 0.19:
            edit(domain, record_id, "delete")
        elif chance < 0.35:
            edit(domain, record_id, "put", {**shown, **patch}, changed=[field])
        elif chance < 0.5 and domain in _STATUSES:
            edit(domain, record_id, "patch", {**patch, "status": draw.choice(_STATUSES[domain])})
        else:
            removed = {"place": None} if chance > 0.95 else {}
            edit(domain, record_id, "patch", {**removed, **patch})

    def state(self) -> State:
        """Return all records of the server that the device holds."""
        return {
            (domain, name): (version, canonical(data)) for domain, name, version, data in self.store.replica()
        }


class Crew:
    """All devices of a run."""

    def __init__(self, members: list[Member], session: ClientSession) -> None:
        self.members = members
        self.session = session

    async def catch_up(self, patience_s: float) -> None:
        """Connect all and wait until each has taken in what there is. Raises CrewError."""
        url = self.members[0].setting.url
        try:
            async with self.session.get(f"{url}/healthz", timeout=_HTTP):
                pass
        except (ClientError, OSError, TimeoutError):
            raise CrewError(f"no server answers at {url}: start `run.py serve`, or give --url") from None
        for member in self.members:
            member.go_online()
        try:
            async with asyncio.timeout(patience_s):
                await self._all_settled()
        except TimeoutError:
            late = f"the devices have not caught up with {url} after {patience_s:.0f} s"
            raise CrewError(f"{late}: see what the server logs, then try again") from None

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
        """Compare all replicas with what the first device of their tenant pulls. Raises CrewError."""
        served: dict[str, State] = {}
        for member in self.members:
            tenant = member.setting.tenant
            if tenant not in served:
                served[tenant] = await self._served(member)
            if member.state() != served[tenant]:
                return False
        return True

    async def _served(self, member: Member) -> State:
        try:
            texts = await pull_all(self.session, member.setting.url, member.setting.sign(member.name))
        except ClientError as error:
            raise CrewError(f"the server's records cannot be pulled: {error}") from None
        changes = map(_decode_change, texts)
        return {(one.domain, one.id): (one.version, canonical(payload(one.data))) for one in changes}

    @property
    def made(self) -> int:
        """How many edits were made."""
        return sum(member.made for member in self.members)

    @property
    def outcomes(self) -> dict[Outcome, int]:
        """How many edits came to what."""
        return {outcome: sum(member.outcomes[outcome] for member in self.members) for outcome in OUTCOMES}


@asynccontextmanager
async def crew(settings: Mapping[str, Setting]) -> AsyncIterator[Crew]:
    """Open the stores of members by their names; closes all connections in the end."""
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        members = [Member(name, setting, session) for name, setting in settings.items()]
        try:
            yield Crew(members, session)
        finally:
            await asyncio.gather(*(member.go_offline() for member in members))
            for member in members:
                member.store.close()
