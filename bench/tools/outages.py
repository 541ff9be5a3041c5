"""What becomes of devices while the database is away, and once it is back: ``python -m bench.tools.outages``.

Several deployments side by side, each with a PostgreSQL of its own on TCP, of one and of two workers, idle
and under load, go through outages of 1, 5, 15 and 60 seconds and restarts. What is judged:

- no process ends, no open socket is closed, and everything acknowledged is there once;
- within 2 s of the database's return a device that was never seen is welcomed, and its sync is answered;
- a socket that was open all the time is answered at its next try;
- a device that follows the guide is back within 2 s of what it waits by its own backoff;
- a server whose first host in ``postgres.dsn`` is dead, refusing or silent, is ready within 10 s.

Each site's outages come in a random order. All waits are on this machine, whose processors the sites share.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from random import Random
from statistics import median
from typing import Any, Final, NamedTuple

import click
from aiohttp import ClientSession
from psycopg2.extensions import make_dsn

from bench.harness.child import progress
from bench.harness.clusters import Cluster
from bench.harness.environment import BenchError, fresh_on_tcp, read_settings
from bench.harness.load_run import Target
from bench.harness.product import product
from bench.harness.server import Server
from bench.harness.stage import add_tenants
from bench.load.simple_device import SimpleDevice
from bench.report.text import Columns, lines, table
from bench.tools.guided import Guided, versions_of
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings, SettingsError
from storage.embedded.servers import EmbeddedError

RESTART: Final = "restart"
OUTAGES: Final = ("1", "5", "15", "60", RESTART)
RETURN_S: Final = 2.0
READY_S: Final = 10.0
_TENANT: Final = "acme"
#: Sites of each kind of deployment, which share the outages: more take less time and more memory.
_PARTS: Final = 2
#: Devices with a socket that is open before, during and after, on each worker.
_OPEN: Final = 4
#: Devices that connect in the midst of an outage, and those that work all the time where there is load.
_COMING: Final = 4
_WORKING: Final = 12
_EDITS_PER_S: Final = 2.0
_PATIENCE_S: Final = 90.0
_ANSWER_S: Final = 15.0
_AGAIN_S: Final = 0.05
_CALM_S: Final = (0.5, 1.5)


class Seen(NamedTuple):
    """One outage. Seconds count from the moment that PostgreSQL let clients in again.

    ``tries`` is how often an open socket had to ask. The slowest device that follows the guide was back
    after ``back_s``; until ``own_wait_s`` it waited by its own backoff, or as the server had asked it to.
    ``beyond_s`` is what any took on top of that, at most.
    """

    site: str
    outage: str
    welcomed_s: float
    synced_s: float
    tries: int
    answered_s: float
    back_s: float
    own_wait_s: float
    beyond_s: float


class Site:
    """A running deployment."""

    def __init__(
        self, name: str, postgres: Cluster, dsn: str, server: Server, target: Target, session: ClientSession
    ) -> None:
        self.name = name
        self.wrong: list[str] = []
        self.acknowledged = 0
        self._postgres = postgres
        self._dsn = dsn
        self._server = server
        self._target = target
        self._session = session
        self._home = postgres.data.parent.parent / "devices"
        self._home.mkdir(0o700)
        self._pids = server.pids()
        self._open: list[SimpleDevice] = []
        self._guided: list[Guided] = []
        self._pushed: list[str] = []

    async def run(self, outages: Sequence[str], *, loaded: bool, random: Random) -> list[Seen]:
        """Go through outages of so many seconds, or ``restart``, in a random order, and audit."""
        for port in self._server.own_ports * _OPEN:
            self._open.append(SimpleDevice(answer_s=_ANSWER_S))
            await self._open[-1].open("127.0.0.1", port, self._token())
        seen: list[Seen] = []
        async with AsyncExitStack() as stack:
            working = [self._device(random) for _ in range(_WORKING * loaded)]
            for device in working:
                await stack.enter_async_context(_task(device.run()))
                await stack.enter_async_context(_task(device.work(lambda: random.expovariate(_EDITS_PER_S))))
            for outage in random.sample(outages, len(outages)):
                await asyncio.sleep(random.uniform(*_CALM_S))
                seen.append(await self._outage(outage, working, random))
                progress(f"outage {len(seen)} of {len(outages)}: {seen[-1]}")
        for one in self._open:
            one.close()
        versions = versions_of(self._dsn)
        self.acknowledged = len(self._pushed) + sum(len(device.applied) for device in self._guided)
        self.wrong += [fault for device in self._guided for fault in device.faults(versions)]
        self.wrong += [
            f"{name}: stored as {versions.get(name)}" for name in self._pushed if versions.get(name) != 1
        ]
        return seen

    def _token(self, name: str = "") -> str:
        return self._target.token(_TENANT, name or secrets.token_hex(8))

    def _device(self, random: Random) -> Guided:
        name, port = f"guided-{len(self._guided)}", random.choice(self._server.own_ports)
        url = f"http://127.0.0.1:{port}"
        self._guided.append(Guided(name, self._home, url, self._token(name), self._session))
        return self._guided[-1]

    async def _outage(self, outage: str, working: list[Guided], random: Random) -> Seen:
        coming = [self._device(random) for _ in range(_COMING)]
        async with AsyncExitStack() as stack:
            if outage != RESTART:
                await asyncio.to_thread(self._postgres.stop, signal.SIGINT)
            for device in coming:
                device.write()
                await stack.enter_async_context(_task(device.run()))
            if outage == RESTART:
                await asyncio.to_thread(self._postgres.restart)
            else:
                await asyncio.sleep(float(outage))
                await asyncio.to_thread(self._postgres.start)
            there_s = time.monotonic()
            made = [(device, device.edits) for device in (*coming, *working)]
            fresh, tried, back = await asyncio.gather(
                asyncio.gather(*(self._handshake(port, there_s) for port in self._server.own_ports)),
                asyncio.gather(*(self._try(device, there_s) for device in self._open)),
                asyncio.gather(*(self._back(*one, there_s) for one in made)),
            )
        self._look(outage)
        return Seen(
            self.name,
            outage if outage == RESTART else f"{outage} s",
            max(welcomed_s for welcomed_s, _ in fresh),
            max(synced_s for _, synced_s in fresh),
            max(tries for tries, _ in tried),
            max(answered_s for _, answered_s in tried),
            *max(back),
            max(one_s - own_s for one_s, own_s in back),
        )

    async def _handshake(self, port: int, there_s: float) -> tuple[float, float]:
        """Connect as a device that was never seen, again and again, and sync."""
        device, token = SimpleDevice(answer_s=_ANSWER_S), self._token()
        while True:
            try:
                await device.open("127.0.0.1", port, token)
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
        self._pushed.append(name)
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
        pids, self._pids = self._pids, self._server.pids()
        found = ["a process ended"] if not self._server.alive or pids != self._pids else []
        if closed := sum(device.ended.done() for device in self._open):
            found.append(f"{closed} open sockets were closed")
        events = "service_failed", "service_ended", "worker_died"
        found += [f"the log says {event}" for event in events if self._server.logged[event]]
        self.wrong += [f"{outage}: {sentence}" for sentence in found]


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
async def _site(name: str, workers: int, settings: Settings) -> AsyncIterator[Site]:
    """Start a deployment. Raises BenchError, EmbeddedError, StoreError, OSError."""
    progress(f"{name}: starts")
    secret = secrets.token_urlsafe(48)
    async with AsyncExitStack() as stack:
        environment, postgres = await asyncio.to_thread(stack.enter_context, fresh_on_tcp(settings))
        dsn = environment.database("product")
        add_tenants(dsn, [_TENANT])
        server = await stack.enter_async_context(product(environment, dsn, secret, None, workers))
        await server.ready()
        session = await stack.enter_async_context(ClientSession())
        target = Target(port=server.port, secret=secret, tenants=[_TENANT], audience=settings.auth.audience)
        yield Site(name, postgres, dsn, server, target, session)


async def _outages(
    chosen: Settings, outages: Sequence[str], times: int, seed: int
) -> tuple[list[Site], list[Seen]]:
    """Run ``_PARTS`` sites of each kind of deployment, which share the times."""
    sites: list[Site] = []
    running = []
    async with AsyncExitStack() as stack:
        for workers, loaded in ((1, False), (1, True), (2, False), (2, True)):
            for part in range(min(_PARTS, times)):
                own = [outage for outage in outages for _ in range(part, times, _PARTS)]
                name = f"{workers} worker{'s' * (workers > 1)}, {'loaded' if loaded else 'idle'}"
                site = await stack.enter_async_context(_site(name, workers, chosen))
                running.append(site.run(own, loaded=loaded, random=Random(seed + len(sites))))
                sites.append(site)
        seen = await asyncio.gather(*running)
    return sites, [one for each in seen for one in each]


async def _ready_s(chosen: Settings, workers: int, *, silent: bool) -> float:
    """Start a server whose first host is dead. Returns the seconds until each worker is ready."""
    with fresh_on_tcp(chosen) as (environment, postgres), socket.create_server(("127.0.0.1", 0)) as dead:
        port = dead.getsockname()[1]
        if not silent:
            dead.close()
        ports = f"{port},{postgres.port}"
        dsn = make_dsn(environment.database("product"), host="127.0.0.1,127.0.0.1", port=ports)
        began_s = time.monotonic()
        async with product(environment, dsn, secrets.token_urlsafe(48), None, workers) as server:
            await server.ready()
            return time.monotonic() - began_s


def verdict(seen: Sequence[Seen]) -> str:
    """Judge the outages of one kind."""
    late = {
        "welcomed late": max(one.welcomed_s for one in seen) > RETURN_S,
        "synced late": max(one.synced_s for one in seen) > RETURN_S,
        "asked again": max(one.tries for one in seen) > 1,
        "back late": max(one.beyond_s for one in seen) > RETURN_S,
    }
    return ", ".join(sentence for sentence, missed in late.items() if missed) or "ok"


def _spread(found_s: Sequence[float]) -> str:
    return f"{median(found_s):.2f} ≤ {max(found_s):.2f}"


#: Of the outages of one kind on deployments of one kind.
_COLUMNS: Final[Columns] = (
    ("deployment", lambda seen: seen[0].site),
    ("outage", lambda seen: seen[0].outage),
    ("times", lambda seen: str(len(seen))),
    ("welcomed s", lambda seen: _spread([one.welcomed_s for one in seen])),
    ("synced s", lambda seen: _spread([one.synced_s for one in seen])),
    ("tries of open", lambda seen: str(max(one.tries for one in seen))),
    ("answered s", lambda seen: _spread([one.answered_s for one in seen])),
    ("guided back s", lambda seen: _spread([one.back_s for one in seen])),
    ("of own wait s", lambda seen: f"{max(seen, key=lambda one: one.back_s).own_wait_s:.2f}"),
    ("beyond it s", lambda seen: f"{max(one.beyond_s for one in seen):.2f}"),
    ("verdict", verdict),
)


@click.command(
    help=__doc__, epilog="Example: python -m bench.tools.outages --times 2 --outage 1 --outage restart"
)
@click.option(
    "--outage", "outages", multiple=True, default=OUTAGES, show_default=True, metavar="S|restart",
    help="Seconds to be away for, or a restart; may be repeated.",
)  # fmt: skip
@click.option(
    "--times", type=click.IntRange(0), default=20, show_default=True,
    help="How often each kind of outage comes; 0 for none.",
)  # fmt: skip
@click.option("--starts", default=3, show_default=True, help="How often a first host is dead; 0 for never.")
@click.option("--seed", default=1, show_default=True, help="In which order outages come, and when.")
@click.option("--data-dir", metavar="DIR", help="Where the servers' files are kept while this runs.")
def main(outages: Sequence[str], times: int, starts: int, seed: int, data_dir: str | None) -> None:
    """Measure, print a table, and exit with 1 if a bar is missed."""
    for outage in outages:
        if outage != RESTART and not outage.replace(".", "", 1).isdecimal():
            raise click.BadParameter(f"{outage} is neither a number of seconds nor {RESTART}.")
    first = [("workers", "first host", "times", "ready s", "verdict")]
    try:
        chosen = read_settings(None, data_dir)
        for workers, silent in ((1, False), (1, True), (2, False), (2, True)) if starts else ():
            found_s = [asyncio.run(_ready_s(chosen, workers, silent=silent)) for _ in range(starts)]
            judged = "ok" if max(found_s) <= READY_S else "late"
            dead = "is silent" if silent else "refuses"
            first.append((str(workers), dead, str(starts), _spread(found_s), judged))
        sites, seen = asyncio.run(_outages(chosen, outages, times, seed))
    except (BenchError, EmbeddedError, SettingsError, StoreError) as error:
        raise click.ClickException(str(error)) from None
    kinds = dict.fromkeys((one.site, one.outage) for one in seen)
    rows = [[one for one in seen if (one.site, one.outage) == kind] for kind in sorted(kinds)]
    for line in (*(lines(rows, _COLUMNS) if rows else ()), "", *table(first)):
        click.echo(line)
    wrong = [f"{site.name}: {sentence}" for site in sites for sentence in site.wrong]
    count = sum(site.acknowledged for site in sites)
    said = "see below" if wrong else "yes, no process ended, no socket was closed"
    click.echo("\n".join([f"\n{count} edits acknowledged, each there once: {said}", *wrong]))
    passed = all(verdict(row) == "ok" for row in rows) and all(row[-1] != "late" for row in first)
    sys.exit(0 if passed and not wrong else 1)


if __name__ == "__main__":
    main()
