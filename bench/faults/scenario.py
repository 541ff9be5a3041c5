"""Scenario ``faults``: rounds of faults under load, and whether anything was lost or came twice.

The seed decides which faults come, how, and what devices send; when they send it, the clock.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from random import Random
from typing import Any, Final

import msgspec
from aiohttp import ClientSession

from bench.faults.account import Account
from bench.faults.check import check
from bench.faults.device import Changes, Device, Way
from bench.faults.history import Answered, Closed, Event, Fault, History, Refused
from bench.faults.inject import FAULTS, Site
from bench.faults.reference import ReferenceDevice
from bench.faults.tables import read_tables
from bench.faults.workload import POLICIES
from bench.harness.audit import Audit
from bench.harness.child import progress
from bench.harness.clusters import Cluster
from bench.harness.environment import Environment, administer, fresh_on_tcp
from bench.harness.load_run import Target
from bench.harness.product import product
from bench.harness.server import Server
from bench.harness.stage import Options, add_tenants
from bench.load.proxy import Chances, proxied
from bench.report.results import Figure, Report
from engine.model.domains import DomainPolicy, Domains
from storage.postgres.pool import Database
from storage.stores.policies import PostgresPolicies

ROUNDS: Final = 50
WORKERS: Final = 2
DEVICES: Final = 40
#: Reference devices, one of each tenant, with their own store and backoff.
REFERENCES: Final = 4
TENANTS: Final = ("fault-a", "fault-b", "fault-c", "fault-d")
PER_S: Final = 2.0
#: Devices on each worker's own port, and proxies; every third of the others is behind one.
_OWN: Final = 2
_PROXIES: Final = 2
#: The share of chunks that a proxy holds back or swallows with their connection.
_DELAYED, _SWALLOWED = 0.05, 0.001
CALM_S: Final = (1.0, 2.0)
#: How long devices may take until all that they made during a fault is acknowledged, and to agree at the end.
PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.05
_NAMED: Final = 20


async def faults(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError, OSError."""
    rounds = options.rounds or ROUNDS
    report = Report(scenario="faults", work=_work(rounds, options.seed))
    history = History()
    with fresh_on_tcp(options.settings) as (environment, postgres):
        dsn = environment.database("product")
        _prepare(dsn, options)
        run = _Run(options, environment, postgres, dsn, history, report)
        try:
            await run.rounds(rounds)
            report.audit = run.judge()
        finally:
            if options.history is not None:
                history.write(options.history)
    return report


def _work(rounds: int, seed: int) -> str:
    return (
        f"{rounds} rounds, seed {seed}; {DEVICES} devices of {len(TENANTS)} tenants, each with {PER_S:g}"
        " syncs a second of 1 to 5 edits of records that all share; 5 % of messages delayed, 1 % doubled,"
        f" 0.1 % dropped, 0.1 % malformed; beside them {REFERENCES} reference devices"
    )


def _prepare(dsn: str, options: Options) -> None:
    add_tenants(dsn, list(TENANTS))

    async def choose(database: Database) -> None:
        policies = PostgresPolicies(database, Domains(options.settings.domains).default_policies)
        for index, tenant in enumerate(TENANTS):
            for domain, (policy, fallback) in POLICIES[index % len(POLICIES)].items():
                chosen = {"policy": policy, "fallback": fallback}
                await policies.set(tenant, domain, msgspec.convert(chosen, DomainPolicy))

    administer(dsn, choose)


def order(random: Random, count: int) -> list[str]:
    """Draw faults so that each comes about equally often."""
    names: list[str] = []
    while len(names) < count:
        names += random.sample(list(FAULTS), len(FAULTS))
    return names[:count]


class _Run:
    def __init__(
        self,
        options: Options,
        environment: Environment,
        postgres: Cluster,
        dsn: str,
        history: History,
        report: Report,
    ) -> None:
        self._options = options
        self._environment = environment
        self._postgres = postgres
        self._dsn = dsn
        self._history = history
        self._report = report
        self._random = Random(options.seed)
        self._changes = Changes()
        self._devices: list[Device | ReferenceDevice] = []
        self._found: list[str] = []

    async def rounds(self, count: int) -> None:
        """Inject ``count`` faults, then let all devices finish."""
        secret = secrets.token_urlsafe(48)
        async with AsyncExitStack() as stack:
            config = self._options.config
            server = product(
                *(self._environment, self._dsn, secret, config, WORKERS), on_warning=self._history.logged
            )
            await stack.enter_async_context(server)
            await server.ready()
            proxies = [
                await stack.enter_async_context(
                    proxied(
                        *("127.0.0.1", server.port, Random(f"{self._options.seed} line {index}")),
                        Chances(delayed=_DELAYED, swallowed=_SWALLOWED),
                    )
                )
                for index in range(_PROXIES)
            ]
            ways = _ways(server, [proxy.port for proxy in proxies])
            target = Target(
                port=server.port,
                secret=secret,
                tenants=TENANTS,
                audience=self._options.settings.auth.audience,
            )
            session = await stack.enter_async_context(ClientSession())
            addresses = [proxies[0].url, f"http://127.0.0.1:{server.port}"]
            self._devices = [*self._made(target, ways), *self._references(target, addresses, session)]
            group = await stack.enter_async_context(asyncio.TaskGroup())
            running = [group.create_task(device.run()) for device in self._devices]
            site = Site(self._environment.home, self._postgres, self._dsn, server, proxies, self._random)
            try:
                await asyncio.sleep(CALM_S[1])
                names = order(self._random, count)
                for number, name in enumerate(names, 1):
                    await self._round(number, name, site)
                await self._finish()
            finally:
                for task in running:
                    task.cancel()
        self._report.logged = dict(server.logged)
        self._report.remarks.append(
            f"{sum(proxy.cuts for proxy in proxies)} connections were cut in mid-frame"
        )

    def _made(self, target: Target, ways: list[Way]) -> list[Device]:
        devices = []
        for index in range(DEVICES):
            name, tenant = f"device-{index:02}", TENANTS[index % len(TENANTS)]
            way = ways[index % len(ways)]
            seed = f"{self._options.seed} {name}"
            device = Device(name, tenant, target.token(tenant, name), way, self._history, self._changes, seed)
            device.per_s = PER_S
            devices.append(device)
        return devices

    def _references(
        self, target: Target, addresses: Sequence[str], session: ClientSession
    ) -> Iterator[ReferenceDevice]:
        home = self._environment.home / "reference"
        home.mkdir()
        for index in range(REFERENCES):
            name, tenant = f"reference-{index}", TENANTS[index % len(TENANTS)]
            device = ReferenceDevice(
                name,
                tenant,
                target.token(tenant, name),
                addresses[index % len(addresses)],
                self._history,
                self._changes,
                f"{self._options.seed} {name}",
                home,
                session,
            )
            device.per_s = PER_S
            yield device

    async def _round(self, number: int, name: str, site: Site) -> None:
        """Inject one fault, and report how long devices take after it."""
        began_s = time.monotonic()
        self._mark(number, name, "begins")
        try:
            await FAULTS[name](site)
        except TimeoutError:
            self._found.append(f"round {number}, {name}: the server did not come back")
            self._mark(number, name, "abandoned")
            return
        over_s = time.monotonic()
        self._mark(number, name, "over")
        due = [(device, device.last) for device in self._devices]
        if not await _within(lambda: not any(device.waits(last) for device, last in due)):
            late = ", ".join(device.name for device, last in due if device.waits(last))
            self._found.append(f"round {number}, {name}: not acknowledged after {PATIENCE_S:.0f} s: {late}")
        answered_s = time.monotonic()
        self._mark(number, name, "answered")
        figure = Figure(
            f"round {number}: {name}",
            answered_s - over_s,
            "s until all was acknowledged",
            f"the fault took {over_s - began_s:.1f} s",
        )
        self._report.figures.append(figure)
        progress(f"{figure.name}: {figure.beside}, {figure.value:.2f} {figure.unit}")
        await asyncio.sleep(self._random.uniform(*CALM_S))

    def _mark(self, number: int, name: str, phase: str) -> None:
        fault = Fault(at_s=self._history.now_s(), round=number, name=name, phase=phase)  # type: ignore[arg-type]
        self._history.events.append(fault)

    async def _finish(self) -> None:
        """Wait until queues are empty and devices agree with the tables, then let them pull everything."""
        began_s = time.monotonic()
        for device in self._devices:
            device.per_s = 0
        if not await _within(lambda: not any(device.waits(device.last) for device in self._devices)):
            self._found.append(f"queues are not empty {PATIENCE_S:.0f} s after the last fault")
        stands: dict[str, dict[tuple[str, str], int]] = {tenant: {} for tenant in TENANTS}
        tables = await asyncio.to_thread(read_tables, self._dsn, TENANTS)
        for (tenant, domain, record_id), row in tables.records.items():
            stands[tenant][domain, record_id] = row.version
        if not await _within(lambda: all(one.versions == stands[one.tenant] for one in self._devices)):
            behind = [one.name for one in self._devices if one.versions != stands[one.tenant]]
            names = ", ".join(behind)
            self._found.append(f"not up to date {PATIENCE_S:.0f} s after the last answer: {names}")
        progress(f"all queues empty and all devices up to date after {time.monotonic() - began_s:.2f} s")
        for device in self._devices:
            device.pull_whole()
        await _within(lambda: all(device.pulled.is_set() for device in self._devices))

    def judge(self) -> Audit:
        """Compare the history with the tables."""
        progress("check")
        tables = read_tables(self._dsn, TENANTS)
        events = self._history.events
        account = Account(events)
        found = [*self._found, *check(events, tables)]
        self._report.remarks += _remarks(events)
        items = sum(len(account.sent[where]) for where in account.answers if where in account.sent)
        return Audit(items, len(tables.records), len(TENANTS), len(found), found[:_NAMED])


def _ways(server: Server, proxy_ports: list[int]) -> list[Way]:
    """Return where each device connects to, in turn."""

    def to(port: int) -> Way:
        return lambda: ("127.0.0.1", port)

    own = [to(port) for port in server.own_ports for _ in range(_OWN)]
    others = DEVICES - len(own)
    shared = [
        to(proxy_ports[index % len(proxy_ports)] if index % 3 == 0 else server.port)
        for index in range(others)
    ]
    return [*own, *shared]


async def _within(done: Callable[[], bool]) -> bool:
    """Wait until something holds; False if that takes too long."""
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > until_s:
            return False
        await asyncio.sleep(_LOOK_S)
    return True


def _remarks(events: list[Event]) -> Iterator[str]:
    """Write what devices met that is no fault by itself."""
    refused = Counter(event.code for event in events if isinstance(event, Refused))
    closed = Counter(event.code for event in events if isinstance(event, Closed))
    statuses = Counter(
        result.status for event in events if isinstance(event, Answered) for result in event.results
    )
    replayed = sum(event.replayed for event in events if isinstance(event, Answered))
    yield f"results of items: {_counts(statuses)}; {replayed} answers were given again"
    yield f"errors that asked to come back: {_counts(refused)}"
    yield f"connections ended, by close code: {_counts(closed)}"


def _counts(counts: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
