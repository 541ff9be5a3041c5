"""Scenario ``faults``: rounds of faults under load, and whether anything was lost or came twice.

The seed decides which faults come, how, and what devices send; when they send it, the clock.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, suppress
from functools import partial
from random import Random
from statistics import median
from typing import Any, Final

import msgspec
from aiohttp import ClientError

from bench.client.crew import DOMAINS, Crew, CrewError, Member, Setting, crew, pull_all
from bench.faults.check import Account, check
from bench.faults.device import HARMS, FaultsDevice
from bench.faults.history import Answered, Closed, Event, Fault, History, Logged, Paged, Refused, Sent, only
from bench.faults.inject import FAULTS, Site
from bench.faults.pipelining import PipeliningDevice
from bench.faults.tables import read_tables
from bench.harness.audit import Audit
from bench.harness.clusters import Cluster
from bench.harness.environment import Environment, fresh_on_tcp
from bench.harness.load_run import Target
from bench.harness.product import product
from bench.harness.progress import progress
from bench.harness.stage import Options, add_tenants
from bench.load.proxy import Chances, proxied
from bench.report.results import Bar, Figure, Report
from engine.model.domains import DomainPolicy, Domains
from storage.postgres.commands import command_database
from storage.stores.policies import PostgresPolicies

ROUNDS: Final = 50
WORKERS: Final = 2
DEVICES: Final = 40
#: Devices that nobody does harm to, one of each tenant; the others hold syncs back, double and lose them.
REFERENCES: Final = 4
TENANTS: Final = ("fault-a", "fault-b", "fault-c", "fault-d")
#: Policies by domain, of every second tenant in turn; what is missing stands as delivered.
POLICIES: Final = (
    {"work_order": ("field_merge", "most_recent_wins")},
    {"journal": ("manual", "most_recent_wins"), "task": ("field_merge", "manual")},
)
PER_S: Final = 2.0
#: The share of edits made as by a device that has never heard of the record.
_UNSEEN: Final = 0.1
_MOST_AT_ONCE: Final = 5
#: Records of each domain that a tenant's devices share.
_POOL: Final = 12
#: Devices on each worker's own port; every third of the others is behind a proxy.
_OWN: Final = 2
#: The share of chunks that the proxy holds back or swallows with their connection.
_DELAYED, _SWALLOWED = 0.05, 0.001
CALM_S: Final = (1.0, 2.0)
#: How long devices may take until all that they made during a fault is acknowledged, and to agree at the end.
PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.05
_PAGE_RECORDS: Final = 50
_NAMED: Final = 20
#: Two waits are measured once in so many rounds: for a tenant that a stopped worker holds, which is stopped
#: for longer than anybody may have to wait for it, and for a policy to be in force.
_ROUNDS_A_WAIT: Final = 5
_STOPPED_S: Final = 4.0
_BUSY_PER_S: Final = 10.0
_POLICY_DOMAIN: Final = "ticket"
_POLICIES_IN_TURN: Final = ("manual", "client_wins")


async def faults(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError, OSError."""
    rounds = options.rounds or ROUNDS
    work = (
        f"{rounds} rounds, seed {options.seed}; {DEVICES} devices of {len(TENANTS)} tenants, each"
        f" {PER_S:g} times a second with 1 to {_MOST_AT_ONCE} edits of records that all share; half of them"
        " pipeline syncs; 5 % of syncs delayed, 1 % doubled, 0.1 % lost, 0.1 % malformed; beside them"
        f" {REFERENCES} devices without that"
    )
    report = Report(scenario="faults", work=work)
    with fresh_on_tcp(options.settings) as (environment, postgres):
        run = _Run(options, environment, postgres, report)
        add_tenants(run.dsn, list(TENANTS))
        try:
            await run.rounds(rounds)
            report.audit = run.judge()
            # Without one of each harm nothing is known of it.
            met = [run.history.harms[harm] for harm in HARMS]
            found = report.audit.fault_count if all(met) else math.nan
            beside = ", ".join(f"{count} {harm}" for harm, count in zip(HARMS, met, strict=True))
            name = "lost, applied twice or otherwise wrong"
            report.bars.append(Bar(name, found, "at most", 0, "faults", f"syncs: {beside}", must=True))
        finally:
            if options.history is not None:
                run.history.write(options.history)
    return report


def order(random: Random, count: int) -> list[str]:
    """Draw faults so that each comes about equally often."""
    names: list[str] = []
    while len(names) < count:
        names += random.sample(list(FAULTS), len(FAULTS))
    return names[:count]


class _Run:
    site: Site
    crew: Crew

    def __init__(self, options: Options, environment: Environment, postgres: Cluster, report: Report) -> None:
        self.dsn = environment.database("product")
        self.history = History()
        self._options = options
        self._environment = environment
        self._postgres = postgres
        self._report = report
        self._random = Random(options.seed)
        self._found: list[str] = []

    def _warned(self, entry: dict[str, Any]) -> None:
        self.history.note(Logged, entry=entry)

    async def rounds(self, count: int) -> None:
        """Inject ``count`` faults, then let all devices finish."""
        await self._set_policies(
            (tenant, domain, {"policy": policy, "fallback": fallback})
            for index, tenant in enumerate(TENANTS)
            for domain, (policy, fallback) in POLICIES[index % len(POLICIES)].items()
        )
        secret, config = secrets.token_urlsafe(48), self._options.config
        async with AsyncExitStack() as stack:
            server = product(self._environment, self.dsn, secret, config, WORKERS, on_warning=self._warned)
            await stack.enter_async_context(server)
            await server.ready()
            chances = Chances(delayed=_DELAYED, swallowed=_SWALLOWED)
            random = Random(f"{self._options.seed} line")
            proxy = await stack.enter_async_context(proxied("127.0.0.1", server.port, random, chances))
            home = self._environment.home
            self.site = Site(home, self._postgres, self.dsn, server, proxy, self._random)
            audience = self._options.settings.auth.audience
            target = Target(port=server.port, secret=secret, tenants=TENANTS, audience=audience)
            self.crew = await stack.enter_async_context(crew(dict(self._settings(target))))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            working = [group.create_task(self._work(member)) for member in self.crew.members]
            await asyncio.sleep(CALM_S[1])
            for number, name in enumerate(order(self._random, count), 1):
                await self._round(number, name)
            times = max(1, count // _ROUNDS_A_WAIT)
            self._add_waits("behind a stopped worker", [await self._behind_stopped_s() for _ in range(times)])
            for task in working:
                task.cancel()
            await self._finish(times)
        self._report.logged = dict(server.logged)
        self._report.remarks.append(f"{proxy.cuts} connections were cut in mid-frame")

    async def _set_policies(self, chosen: Iterable[tuple[str, str, dict[str, str]]]) -> None:
        """Set policies of tenants' domains past the server."""
        async with command_database(self.dsn) as database:
            policies = PostgresPolicies(database, Domains(self._options.settings.domains).default_policies)
            for tenant, domain, policy in chosen:
                await policies.set(tenant, domain, msgspec.convert(policy, DomainPolicy))

    def _settings(self, target: Target) -> Iterator[tuple[str, Setting]]:
        """Say where each device connects to, and what goes wrong there."""
        server, seed = self.site.server, self._options.seed
        home = self._environment.home / "devices"
        home.mkdir()
        own = [f"http://127.0.0.1:{port}" for port in server.own_ports]
        shared = [
            self.site.proxy.url if index % 3 == 0 else f"http://127.0.0.1:{server.port}"
            for index in range(DEVICES - _OWN * WORKERS)
        ]
        urls = [*own * _OWN, *shared, *(own[index % WORKERS] for index in range(REFERENCES))]
        for index, url in enumerate(urls):
            tenant, harmed = TENANTS[index % len(TENANTS)], index < DEVICES
            pipelines = harmed and index // len(TENANTS) % 2 == 0
            kind = PipeliningDevice if pipelines else FaultsDevice
            setting = Setting(
                url=url,
                sign=partial(target.token, tenant),
                home=home,
                seed=seed,
                domains=DOMAINS,
                pool=_POOL,
                edits_per_minute=PER_S * 60,
                most_at_once=_MOST_AT_ONCE,
                unseen=_UNSEEN,
                tenant=tenant,
                make=partial(kind, self.history, tenant, (seed, index, DEVICES) if harmed else None),
            )
            yield f"device-{index:02}" if harmed else f"reference-{index - DEVICES}", setting

    async def _work(self, member: Member) -> None:
        try:
            await member.work(float("inf"), iter(()))
        except CrewError as error:
            self._found.append(str(error))

    async def _round(self, number: int, name: str) -> None:
        """Inject one fault, and report how long devices take after it."""
        began_s = time.monotonic()
        mark = partial(self.history.note, Fault, round=number, name=name)
        mark(phase="begins")
        try:
            await FAULTS[name](self.site)
            await self.site.server.ready()
        except TimeoutError:
            self._found.append(f"round {number}, {name}: the server did not come back")
            mark(phase="abandoned")
            return
        over_s = time.monotonic()
        mark(phase="over")
        due = [(member, member.made) for member in self.crew.members]
        if not await _within(lambda: all(len(member.settled) >= made for member, made in due)):
            late = ", ".join(member.name for member, made in due if len(member.settled) < made)
            self._found.append(f"round {number}, {name}: not acknowledged after {PATIENCE_S:.0f} s: {late}")
        mark(phase="answered")
        self._add(
            f"round {number}: {name}",
            time.monotonic() - over_s,
            "s until all was acknowledged",
            f"the fault took {over_s - began_s:.1f} s",
        )
        await asyncio.sleep(self._random.uniform(*CALM_S))

    def _add(self, name: str, value: float, unit: str, beside: str) -> None:
        self._report.figures.append(Figure(name, value, unit, beside))
        progress(f"{name}: {beside}, {value:.2f} {unit}")

    def _add_waits(self, name: str, waits_s: list[float]) -> None:
        self._add(name, median(waits_s), "s", f"median of {len(waits_s)}, the longest {max(waits_s):.2f} s")

    async def _behind_stopped_s(self) -> float:
        """Stop the first worker under load. Returns the longest wait of undisturbed devices of the other."""
        server, members, events = self.site.server, self.crew.members, self.history.events
        # Not those that pipeline: others would wait for what is queued, too.
        busy = [member for member in members if not isinstance(member.device, PipeliningDevice)]
        for member in busy:
            member.edits_per_minute = _BUSY_PER_S * 60
        await asyncio.sleep(1.0 + self._random.random() * 0.1)
        first, began_s = len(events), self.history.now_s()
        await self.site.freeze(server.workers[min(server.workers)], _STOPPED_S)
        over_s = self.history.now_s()
        for member in busy:
            member.edits_per_minute = member.setting.edits_per_minute
        far_port = f":{server.own_ports[-1]}"
        far = {member.name for member in members[DEVICES:] if member.setting.url.endswith(far_port)}
        sent_s: dict[str, float] = {}
        waits_s = [0.0]
        for event in events[first:]:
            if isinstance(event, Sent) and event.device in far:
                sent_s[event.key] = event.at_s
            elif isinstance(event, Answered) and event.device in far:
                waits_s.append(event.at_s - sent_s.pop(event.key, began_s))
        waits_s += [over_s - at_s for at_s in sent_s.values()]
        await server.ready()
        return max(waits_s)

    async def _in_force_s(self, policy: str) -> float:
        """Set a policy, telling no worker. Returns the seconds until devices of both are told."""
        await self._set_policies((tenant, _POLICY_DOMAIN, {"policy": policy}) for tenant in TENANTS)
        began_s = time.monotonic()
        devices = [member.device for member in self.crew.members[DEVICES:]]
        if not await _within(lambda: all(one.policies.get(_POLICY_DOMAIN) == policy for one in devices)):
            self._found.append(f"not told of a policy after {PATIENCE_S:.0f} s")
        return time.monotonic() - began_s

    async def _finish(self, times: int) -> None:
        """Wait until queues are empty and devices agree with the tables, then let them pull everything."""
        began_s, members = time.monotonic(), self.crew.members
        try:
            if not await self.crew.converge(PATIENCE_S):
                behind = ", ".join(member.name for member in members if member.waiting) or "none"
                late = f"devices do not agree {PATIENCE_S:.0f} s after the last fault"
                self._found.append(f"{late}; with edits that are not acknowledged: {behind}")
        except CrewError as error:
            self._found.append(str(error))
        progress(f"all queues empty and all devices up to date after {time.monotonic() - began_s:.2f} s")
        turns = itertools.cycle(_POLICIES_IN_TURN)
        self._add_waits("a policy in force", [await self._in_force_s(next(turns)) for _ in range(times)])
        async with self.site.without_redis():
            self._add_waits("a policy in force without Redis", [await self._in_force_s(next(turns))])
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*map(self._pull_whole, members))

    async def _pull_whole(self, member: Member) -> None:
        """Pull everything from null."""
        while True:
            url, token = member.setting.url, member.setting.sign(member.name)
            try:
                texts = await pull_all(self.crew.session, url, token, _PAGE_RECORDS)
            except (ClientError, OSError, TimeoutError):
                await asyncio.sleep(_LOOK_S)
                continue
            changes = [self.history.change(text) for text in texts]
            self.history.note(Paged, device=member.name, feed="whole", changes=changes)
            return

    def judge(self) -> Audit:
        """Compare the history with the tables."""
        progress("check")
        tables = read_tables(self.dsn, TENANTS)
        events = self.history.events
        account = Account(events)
        found = [*self._found, *check(events, tables)]
        self._report.remarks += _remarks(events)
        return Audit(len(account.told), len(tables.records), len(TENANTS), len(found), found[:_NAMED])


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
    refused = Counter(event.code for event in only(Refused, events))
    closed = Counter(event.code for event in only(Closed, events))
    answers = only(Answered, events)
    statuses = Counter(result.status for event in answers for result in event.results)
    replayed = sum(event.replayed for event in answers)
    yield f"results of items: {_counts(statuses)}; {replayed} answers were given again"
    yield f"errors that asked to come back: {_counts(refused)}"
    yield f"connections ended, by close code: {_counts(closed)}"


def _counts(counts: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
