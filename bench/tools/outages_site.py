"""One deployment whose database goes away and comes back, and the devices that see it."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from aiohttp import ClientSession

from bench.harness.child import progress
from bench.harness.clusters import Cluster
from bench.harness.environment import BenchError, fresh_on_tcp
from bench.harness.load_run import Target
from bench.harness.product import product
from bench.harness.server import Server
from bench.harness.stage import add_tenants
from bench.load.websocket_client import HandshakeError
from bench.tools.outages_devices import Guided, OpenDevice
from engine.runtime.settings import Settings
from storage.postgres.blocking import connected

TENANT: Final = "acme"
#: Devices with a socket that is open before, during and after, on each worker.
_OPEN: Final = 4
#: Devices that connect in the midst of an outage, and those that work all the time where there is load.
_COMING: Final = 4
_WORKING: Final = 12
_EDITS_PER_S: Final = 2.0
_PATIENCE_S: Final = 90.0
_AGAIN_S: Final = 0.05
_CALM_S: Final = (0.5, 1.5)

RESTART: Final = "restart"


class Plan(NamedTuple):
    """What a site goes through: outages of so many seconds, or ``restart``, in a random order."""

    workers: int
    loaded: bool
    outages: list[str]
    seed: int

    @property
    def name(self) -> str:
        """What it is, in three words."""
        return f"{self.workers} worker{'s' * (self.workers > 1)}, {'loaded' if self.loaded else 'idle'}"


class Seen(NamedTuple):
    """One outage. Seconds count from the moment that PostgreSQL let clients in again.

    ``tries`` is how often an open socket had to ask. The slowest device that follows the guide was back
    after ``back_s``; until ``own_wait_s`` it waited by its own backoff, or as the server had asked it to.
    ``beyond_s`` is what any took on top of that, at most.
    """

    outage: str
    welcomed_s: float
    synced_s: float
    tries: int
    answered_s: float
    back_s: float
    own_wait_s: float
    beyond_s: float


class Result(NamedTuple):
    """What a site went through, and what was wrong with it."""

    plan: Plan
    seen: list[Seen]
    acknowledged: int
    wrong: list[str]


class Site:
    """A running deployment."""

    def __init__(
        self, plan: Plan, postgres: Cluster, dsn: str, server: Server, target: Target, session: ClientSession
    ) -> None:
        self._plan = plan
        self._postgres = postgres
        self._dsn = dsn
        self._server = server
        self._target = target
        self._session = session
        self._random = Random(plan.seed)
        self._home = postgres.data.parent.parent / "devices"
        self._home.mkdir(0o700)
        self._pids = server.pids()
        self._open: list[OpenDevice] = []
        self._fresh: list[OpenDevice] = []
        self._working: list[Guided] = []
        self._coming: list[Guided] = []
        self._wrong: list[str] = []

    async def run(self) -> Result:
        """Go through the plan."""
        for port in self._server.own_ports:
            for number in range(_OPEN):
                one = OpenDevice(f"open-{port}-{number}")
                await one.open("127.0.0.1", port, self._target.token(TENANT, one.name))
                self._open.append(one)
        if self._plan.loaded:
            self._working = [self._guided(f"working-{number}") for number in range(_WORKING)]
        outages = self._plan.outages.copy()
        self._random.shuffle(outages)
        seen = []
        async with AsyncExitStack() as stack:
            for device in self._working:
                await stack.enter_async_context(_task(device.run()))
                await stack.enter_async_context(_task(self._work(device)))
            for number, outage in enumerate(outages, 1):
                await asyncio.sleep(self._random.uniform(*_CALM_S))
                seen.append(await self._outage(number, outage))
                progress(f"{self._plan.name}: outage {number} of {len(outages)}, {outage}: {_said(seen[-1])}")
        for one in self._open:
            one.close()
        acknowledged = self._audit()
        return Result(self._plan, seen, acknowledged, self._wrong)

    def _guided(self, name: str) -> Guided:
        port = self._random.choice(self._server.own_ports)
        signed = self._target.token(TENANT, name)
        return Guided(name, self._home, f"http://127.0.0.1:{port}", signed, self._session)

    async def _work(self, device: Guided) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(_EDITS_PER_S))
            device.write()

    async def _outage(self, number: int, outage: str) -> Seen:
        async with AsyncExitStack() as stack:
            coming = [self._guided(f"coming-{number}-{index}") for index in range(_COMING)]
            self._coming += coming
            if outage == RESTART:
                for device in coming:
                    device.write()
                    await stack.enter_async_context(_task(device.run()))
                await asyncio.to_thread(self._postgres.restart)
            else:
                await asyncio.to_thread(self._postgres.stop, signal.SIGINT)
                for device in coming:
                    device.write()
                    await stack.enter_async_context(_task(device.run()))
                await asyncio.sleep(float(outage))
                await asyncio.to_thread(self._postgres.start)
            there_s = time.monotonic()
            guided = [*coming, *self._working]
            made = [(device, device.edits) for device in guided]
            fresh, tried, back = await asyncio.gather(
                asyncio.gather(*(self._handshake(number, port, there_s) for port in self._server.own_ports)),
                asyncio.gather(*(self._try(device, there_s) for device in self._open)),
                asyncio.gather(*(self._back(*one, there_s) for one in made)),
            )
        self._look(number, outage)
        back_s, own_wait_s = max(back)
        return Seen(
            outage,
            max(welcomed_s for welcomed_s, _ in fresh),
            max(synced_s for _, synced_s in fresh),
            max(tries for tries, _ in tried),
            max(answered_s for _, answered_s in tried),
            back_s,
            own_wait_s,
            max(one_s - own_s for one_s, own_s in back),
        )

    async def _handshake(self, number: int, port: int, there_s: float) -> tuple[float, float]:
        """Connect as a device that was never seen, again and again, and sync."""
        device = OpenDevice(f"fresh-{number}-{port}")
        signed = self._target.token(TENANT, device.name)
        while True:
            try:
                await device.open("127.0.0.1", port, signed)
                break
            except (HandshakeError, OSError, TimeoutError):
                await self._again(there_s)
        welcomed_s = time.monotonic() - there_s
        _, synced_s = await self._try(device, there_s)
        device.close()
        self._fresh.append(device)
        return welcomed_s, synced_s

    async def _try(self, device: OpenDevice, there_s: float) -> tuple[int, float]:
        """Sync until it is acknowledged. Returns the tries, and when the last one was answered."""
        tries = 1
        while await device.push() != "synced":
            tries += 1
            await self._again(there_s)
        return tries, time.monotonic() - there_s

    async def _back(self, device: Guided, edits: int, there_s: float) -> tuple[float, float]:
        """Wait until all edits of a device are answered. Returns when, and when its own last wait ended.

        A try that began before the return is refused after it, and the wait that it was asked for counts.
        """
        due_s = there_s
        while device.answered < edits:
            now_s = time.monotonic()
            if wait_s := device.own_wait_s(now_s):
                due_s = now_s + wait_s
            await self._again(there_s)
        return time.monotonic() - there_s, due_s - there_s

    async def _again(self, there_s: float) -> None:
        if time.monotonic() - there_s > _PATIENCE_S:
            raise BenchError(f"{self._plan.name}: nothing works {_PATIENCE_S:.0f} s after the return")
        await asyncio.sleep(_AGAIN_S)

    def _look(self, number: int, outage: str) -> None:
        """Note whatever is not as it was."""
        if not self._server.alive or self._server.pids() != self._pids:
            self._wrong.append(f"outage {number}, {outage}: a process ended")
            self._pids = self._server.pids()
        closed = sum(device.ended.done() for device in self._open)
        if closed:
            self._wrong.append(f"outage {number}, {outage}: {closed} open sockets were closed")
        for event in ("service_failed", "service_ended", "worker_died"):
            if self._server.logged[event]:
                self._wrong.append(f"outage {number}, {outage}: the log says {event}")

    def _audit(self) -> int:
        """Compare what was acknowledged with the tables. Returns how much that was."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id, version FROM records")
            stored: dict[str, int] = dict(cursor.fetchall())
        acknowledged = 0
        for device in (*self._working, *self._coming):
            applied = device.applied
            acknowledged += len(applied)
            self._wrong += device.odd
            if applied != list(range(1, len(applied) + 1)):
                self._wrong.append(f"{device.name}: acknowledged as {applied}")
            # What was under way in the end may be stored and not acknowledged.
            version = stored.get(f"record of {device.name}", 0)
            if not len(applied) <= version <= device.edits:
                self._wrong.append(f"{device.name}: {len(applied)} acknowledged, {version} stored")
            device.store.close()
        for one in (*self._open, *self._fresh):
            acknowledged += len(one.acknowledged)
            for record_id in one.acknowledged:
                if stored.get(record_id) != 1:
                    self._wrong.append(f"{record_id}: acknowledged as 1, stored as {stored.get(record_id)}")
        return acknowledged


def _said(seen: Seen) -> str:
    return (
        f"welcomed {seen.welcomed_s:.2f} s, synced {seen.synced_s:.2f} s, {seen.tries} tries,"
        f" back {seen.back_s:.2f} s of {seen.own_wait_s:.2f} s"
    )


@asynccontextmanager
async def _task(running: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(running)
    try:
        yield
    finally:
        if not task.done():
            task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def site(plan: Plan, settings: Settings, config: Path | None) -> AsyncIterator[Site]:
    """Start a deployment. Raises BenchError, EmbeddedError, StoreError, OSError."""
    secret = secrets.token_urlsafe(48)
    async with AsyncExitStack() as stack:
        environment, postgres = await asyncio.to_thread(stack.enter_context, fresh_on_tcp(settings))
        dsn = environment.database("product")
        add_tenants(dsn, [TENANT])
        server = await stack.enter_async_context(product(environment, dsn, secret, config, plan.workers))
        await server.ready()
        session = await stack.enter_async_context(ClientSession())
        target = Target(port=server.port, secret=secret, tenants=[TENANT], audience=settings.auth.audience)
        yield Site(plan, postgres, dsn, server, target, session)
