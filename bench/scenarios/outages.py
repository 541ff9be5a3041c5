"""Scenario ``outages``: what becomes of devices while the database is away, and once it is back.

Several deployments side by side, each with a PostgreSQL of its own on TCP, of one and of two workers, idle
and under load, go through outages of 1, 5, 15 and 60 seconds and restarts in a random order. All waits are on
this machine, whose processors the deployments share.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import msgspec
from aiohttp import ClientSession
from psycopg2.extensions import make_dsn

from bench.harness.audit import Audit
from bench.harness.clusters import Cluster
from bench.harness.environment import BenchError, fresh_on_tcp
from bench.harness.load_run import Target
from bench.harness.product import product
from bench.harness.progress import progress
from bench.harness.server import Server
from bench.harness.stage import Options, add_tenants
from bench.load.simple_device import SimpleDevice
from bench.report.results import Bar, Figure, Report
from bench.scenarios.guided import Guided, beside, versions_of

RESTART: Final = "a restart"
OUTAGES: Final = ("1 s", "5 s", "15 s", "60 s", RESTART)
#: How often each comes on each kind of deployment; two of a kind share that, to take less time.
ROUNDS, _PARTS = 20, 2
#: How often a server starts whose first host in ``postgres.dsn`` is dead, and by when it has to be ready.
_STARTS: Final = 3
_READY_S: Final = 10.0
_TENANT: Final = "acme"
#: Devices with a socket that is open before, during and after, on each worker.
_OPEN: Final = 4
#: Devices that connect in the midst of an outage, and those that work all the time where there is load.
_COMING, _WORKING = 4, 12
_EDITS_PER_S: Final = 2.0
_PATIENCE_S: Final = 90.0
_ANSWER_S: Final = 15.0
_AGAIN_S: Final = 0.05
_CALM_S: Final = (0.5, 1.5)
#: Workers, and whether there is load or, of a start, whether the dead host is silent.
_KINDS: Final = ((1, False), (1, True), (2, False), (2, True))


_WELCOMED: Final = "a device that was never seen is welcomed"
_SYNCED: Final = "its sync is answered"
_TRIES: Final = "tries of a socket that was open all the time"
_BEYOND: Final = "a device that follows the guide is back, after its own wait"
#: The most that each may be; the seconds count from the moment that PostgreSQL let clients in again.
_LIMITS: Final = {_WELCOMED: 2.0, _SYNCED: 2.0, _TRIES: 1, _BEYOND: 2.0}


async def outages(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError, OSError."""
    rounds = options.rounds or ROUNDS
    chosen = OUTAGES if options.duration_s is None else (f"{options.duration_s:g} s", RESTART)
    report = Report(
        scenario="outages", work=f"databases that are away: {', '.join(chosen)}, {rounds} times each"
    )
    for workers, silent in _KINDS:
        ready_s = [await _ready_s(options, workers, silent=silent) for _ in range(min(rounds, _STARTS))]
        name = f"{workers} of {workers} workers ready, the first host {'silent' if silent else 'refusing'}"
        report.bars.append(Bar(name, max(ready_s), "at most", _READY_S, "s", _median(ready_s)))
    found: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        sites: list[Site] = []
        runs: list[Coroutine[Any, Any, None]] = []
        for workers, loaded in _KINDS:
            for part in range(min(_PARTS, rounds)):
                site = await stack.enter_async_context(_site(options, workers, loaded=loaded))
                own = [outage for outage in chosen for _ in range(part, rounds, _PARTS)]
                runs.append(site.run(own, Random(options.seed + len(sites)), found))
                sites.append(site)
        await asyncio.gather(*runs)
    for where, seen in sorted(found.items()):
        for name in seen[0]:
            values, unit = [one[name] for one in seen], "s" if name != _TRIES else ""
            said = f"{where}: {name}", max(values)
            if name in _LIMITS:
                report.bars.append(Bar(*said, "at most", _LIMITS[name], unit, _median(values)))
            else:
                report.figures.append(Figure(*said, unit, _median(values)))
    wrong = [fault for site in sites for fault in site.wrong]
    acknowledged = sum(site.acknowledged for site in sites)
    report.audit = Audit(acknowledged, acknowledged, len(sites), len(wrong), wrong)
    return report


def _median(values: list[float]) -> str:
    return f"median {median(values):.2f} of {len(values)}"


async def _ready_s(options: Options, workers: int, *, silent: bool) -> float:
    """Start a server whose first host is dead. Returns the seconds until each worker is ready."""
    dead = socket.create_server(("127.0.0.1", 0))
    with fresh_on_tcp(options.settings) as (environment, postgres), dead:
        ports = f"{dead.getsockname()[1]},{postgres.port}"
        if not silent:
            dead.close()
        dsn = make_dsn(environment.database("product"), host="127.0.0.1,127.0.0.1", port=ports)
        began_s = time.monotonic()
        async with product(environment, dsn, secrets.token_urlsafe(48), options.config, workers) as server:
            await server.ready()
            return time.monotonic() - began_s


@asynccontextmanager
async def _site(options: Options, workers: int, *, loaded: bool) -> AsyncIterator[Site]:
    name = f"{workers} worker{'s' * (workers > 1)}, {'loaded' if loaded else 'idle'}"
    progress(f"{name}: starts")
    secret, audience = secrets.token_urlsafe(48), options.settings.audience
    async with AsyncExitStack() as stack:
        environment, postgres = await asyncio.to_thread(stack.enter_context, fresh_on_tcp(options.settings))
        dsn = environment.database("product")
        add_tenants(dsn, [_TENANT])
        server = await stack.enter_async_context(product(environment, dsn, secret, options.config, workers))
        await server.ready()
        session = await stack.enter_async_context(ClientSession())
        target = Target(port=server.port, secret=secret, tenants=[_TENANT], audience=audience, dsn=dsn)
        yield Site(name, loaded, environment.home, postgres, server, target, session, server.pids())


class Site(msgspec.Struct):
    """A running deployment."""

    name: str
    loaded: bool
    home: Path
    postgres: Cluster
    server: Server
    target: Target
    session: ClientSession
    pids: list[int]
    open: list[SimpleDevice] = []
    guided: list[Guided] = []
    pushed: list[str] = []
    wrong: list[str] = []
    acknowledged: int = 0

    async def run(
        self, outages: list[str], random: Random, found: Mapping[str, list[dict[str, float]]]
    ) -> None:
        """Go through outages, and audit."""
        for port in self.server.own_ports * _OPEN:
            self.open.append(SimpleDevice(answer_s=_ANSWER_S))
            await self.open[-1].open("127.0.0.1", port, self.target.token(_TENANT, secrets.token_hex(8)))
        async with AsyncExitStack() as stack:
            working = [self._device(random) for _ in range(_WORKING * self.loaded)]
            for device in working:
                working_s = device.work(lambda: random.expovariate(_EDITS_PER_S))
                await stack.enter_async_context(beside(device.run(), working_s))
            for outage in random.sample(outages, len(outages)):
                await asyncio.sleep(random.uniform(*_CALM_S))
                seen = await self._outage(outage, working, random)
                found[f"{self.name}, {outage}"].append(seen)
                progress(f"{self.name}, {outage}: {seen}")
        for one in self.open:
            one.close()
        versions = versions_of(self.target.dsn)
        self.acknowledged = len(self.pushed) + sum(len(device.applied) for device in self.guided)
        self.wrong += [fault for device in self.guided for fault in device.faults(versions)]
        stored = {name: versions.get(name) for name in self.pushed}
        self.wrong += [f"{name}: stored as {version}" for name, version in stored.items() if version != 1]

    def _device(self, random: Random) -> Guided:
        name, port = f"guided-{len(self.guided)}", random.choice(self.server.own_ports)
        signed, url = self.target.token(_TENANT, name), f"http://127.0.0.1:{port}"
        self.guided.append(Guided(name, self.home, url, signed, self.session))
        return self.guided[-1]

    async def _outage(self, outage: str, working: list[Guided], random: Random) -> dict[str, float]:
        coming = [self._device(random) for _ in range(_COMING)]
        async with AsyncExitStack() as stack:
            if outage != RESTART:
                await asyncio.to_thread(self.postgres.stop, signal.SIGINT)
            for device in coming:
                device.write()
                await stack.enter_async_context(beside(device.run()))
            if outage == RESTART:
                await asyncio.to_thread(self.postgres.restart)
            else:
                await asyncio.sleep(float(outage.removesuffix(" s")))
                await asyncio.to_thread(self.postgres.start)
            there_s = time.monotonic()
            made = [(device, device.edits) for device in (*coming, *working)]
            fresh, tried, back = await asyncio.gather(
                asyncio.gather(*(self._handshake(port, there_s) for port in self.server.own_ports)),
                asyncio.gather(*(self._try(device, there_s) for device in self.open)),
                asyncio.gather(*(self._back(*one, there_s) for one in made)),
            )
        self._look(outage)
        # Of the slowest device that follows the guide; until then it waited by itself, or as it was asked to.
        back_s, own_wait_s = max(back)
        return {
            _WELCOMED: max(welcomed_s for welcomed_s, _ in fresh),
            _SYNCED: max(synced_s for _, synced_s in fresh),
            _TRIES: max(tries for tries, _ in tried),
            "a socket that was open all the time is answered": max(answered_s for _, answered_s in tried),
            "a device that follows the guide is back": back_s,
            "until when the slowest of these waits by itself": own_wait_s,
            _BEYOND: max(one_s - own_s for one_s, own_s in back),
        }

    async def _handshake(self, port: int, there_s: float) -> tuple[float, float]:
        """Connect as a device that was never seen, again and again, and sync."""
        device, signed = SimpleDevice(answer_s=_ANSWER_S), self.target.token(_TENANT, secrets.token_hex(8))
        while True:
            try:
                await device.open("127.0.0.1", port, signed)
                break
            except OSError:  # TimeoutError is one
                await self._again(there_s)
        welcomed_s = time.monotonic() - there_s
        _, synced_s = await self._try(device, there_s)
        device.close()
        return welcomed_s, synced_s

    async def _try(self, device: SimpleDevice, there_s: float) -> tuple[int, float]:
        """Sync new records until one is acknowledged. Returns the tries, and when the last was answered."""
        tries, answer = 0, {"type": "silence"}
        while answer["type"] != "synced":
            if tries:
                await self._again(there_s)
            tries += 1
            name = secrets.token_hex(8)
            item = {"domain": "task", "id": name, "op": "put", "data": {"number": 1}}
            with suppress(TimeoutError):
                answer = await device.ask("sync", key=name, items=[item])
        self.pushed.append(name)
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
            raise BenchError(f"{self.name}: nothing works {_PATIENCE_S:.0f} s after the return")
        await asyncio.sleep(_AGAIN_S)

    def _look(self, outage: str) -> None:
        """Note whatever is not as it was."""
        pids, self.pids = self.pids, self.server.pids()
        found = ["a process ended"] if not self.server.alive or pids != self.pids else []
        if closed := sum(device.ended.done() for device in self.open):
            found.append(f"{closed} open sockets were closed")
        events = "service_failed", "service_ended", "worker_died"
        found += [f"the log says {event}" for event in events if self.server.logged[event]]
        self.wrong += [f"{self.name}, {outage}: {sentence}" for sentence in found]
