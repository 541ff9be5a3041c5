"""One cell under faults: its server, its devices, and whether its tables hold what the devices were told."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import msgspec
from aiohttp import ClientError

from bench.client.crew import DOMAINS, Crew, CrewError, Member, Setting, crew, pull_all
from bench.faults.account import Account
from bench.faults.check import Found, check, summary
from bench.faults.device import FaultsDevice
from bench.faults.history import Answered, Closed, Fault, History, Logged, Paged, Sent, only
from bench.faults.inject import Site
from bench.faults.pipelining import PipeliningDevice
from bench.faults.tables import read_tables
from bench.harness.audit import Audit
from bench.harness.clusters import Cluster
from bench.harness.environment import Environment
from bench.harness.load_run import Target
from bench.harness.product import product
from bench.harness.stage import Options
from bench.load.proxy import Chances, proxied
from engine.model.domains import DomainPolicy, Domains
from engine.runtime.settings import audience_in
from storage.postgres.cell.dsn import schema_of
from storage.postgres.commands import command_database
from storage.stores.policies import PostgresPolicies

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
MOST_AT_ONCE: Final = 5
#: Records of each domain that a tenant's devices share.
_POOL: Final = 12
#: Devices on each worker's own port; every third of the others is behind a proxy.
_OWN: Final = 2
#: The share of chunks that the proxy holds back or swallows with their connection.
_DELAYED, _SWALLOWED = 0.05, 0.001
#: How long devices may take until all that they made during a fault is acknowledged, and to agree at the end.
PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.05
_PAGE_RECORDS: Final = 50
#: A worker is stopped for longer than anybody may have to wait for a tenant that it holds.
_STOPPED_S: Final = 4.0
_BUSY_PER_S: Final = 10.0
_POLICY_DOMAIN: Final = "ticket"
#: Kinds of faults that are found before the tables are read.
STOPPED: Final = "devices that stopped"
LATE: Final = "too late"
#: Ends of connections that a report names of a device that stopped.
_ENDS: Final = 5


class Cell:
    """A server on a schema of its own, and its devices.

    Tenants, devices and records have the same names in every cell, so that what reaches another cell does
    harm there. The history, the tables as they are read, and all data name a tenant with its cell.

    Args:
        options: What the command line asks for.
        environment: The services, which cells share.
        dsn: The owner's, with the schema of the cell.
        name: The name of the cell, empty if it is the only one.
    """

    site: Site
    crew: Crew

    def __init__(self, options: Options, environment: Environment, dsn: str, name: str) -> None:
        self.dsn = dsn
        self.name = name
        self.history = History()
        self.found: list[Found] = []
        self._options = options
        self._environment = environment
        #: Before the names of tenants, and before what a report says of the cell.
        self._prefix = f"{name}/" if name else ""
        self.heading = f"{name}: " if name else ""

    @asynccontextmanager
    async def serving(self, postgres: Cluster, random: Random) -> AsyncIterator[None]:
        """Start the server, and open the stores of its devices. Raises BenchError, StoreError."""
        await self._set_policies(
            (tenant, domain, {"policy": policy, "fallback": fallback})
            for index, tenant in enumerate(TENANTS)
            for domain, (policy, fallback) in POLICIES[index % len(POLICIES)].items()
        )
        secret, config = secrets.token_urlsafe(48), self._options.config
        warned = partial(self.history.note, Logged)
        server = product(
            *(self._environment, self.dsn, secret, config, WORKERS),
            on_warning=lambda entry: warned(entry=entry),
        )
        chances = Chances(delayed=_DELAYED, swallowed=_SWALLOWED)
        line = Random(f"{self._options.seed} line{self.name}")
        audience = audience_in(self._options.settings.auth.audience, schema_of(self.dsn))
        async with server:
            await server.ready()
            async with proxied("127.0.0.1", server.port, line, chances) as proxy:
                self.site = Site(self._environment.home, postgres, self.dsn, server, proxy, random)
                target = Target(port=server.port, secret=secret, tenants=TENANTS, audience=audience)
                async with crew(dict(self._settings(target))) as self.crew:
                    yield

    async def _set_policies(self, chosen: Iterable[tuple[str, str, dict[str, str]]]) -> None:
        """Set policies of tenants' domains past the server."""
        async with command_database(self.dsn) as database:
            policies = PostgresPolicies(database, Domains(self._options.settings.domains).default_policies)
            for tenant, domain, policy in chosen:
                await policies.set(tenant, domain, msgspec.convert(policy, DomainPolicy))

    def _settings(self, target: Target) -> Iterator[tuple[str, Setting]]:
        """Say where each device connects to, and what goes wrong there."""
        server, seed = self.site.server, self._options.seed
        home = self._environment.home / f"devices{self.name}"
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
            kind, marked = PipeliningDevice if pipelines else FaultsDevice, self._prefix + tenant
            setting = Setting(
                url=url,
                sign=partial(target.token, tenant),
                home=home,
                seed=seed,
                domains=DOMAINS,
                pool=_POOL,
                edits_per_minute=PER_S * 60,
                most_at_once=MOST_AT_ONCE,
                unseen=_UNSEEN,
                tenant=marked,
                make=partial(kind, self.history, marked, (seed, index, DEVICES) if harmed else None),
            )
            yield f"device-{index:02}" if harmed else f"reference-{index - DEVICES}", setting

    async def work(self, member: Member) -> None:
        """Have a device edit without an end."""
        try:
            await member.work(float("inf"), iter(()))
        except CrewError as error:
            self.found.append(Found(STOPPED, self._stopped(member, error)))

    def _stopped(self, member: Member, error: CrewError) -> str:
        """Say what is known of a device that the server sent away."""
        events = self.history.events
        ends = [
            f"{one.code} at {one.at_s:.2f} s" for one in only(Closed, events) if one.device == member.name
        ]
        has = f"{member.waiting} of its {member.made} edits have no answer"
        return (
            f"{error}; of {member.setting.tenant}; {has}; its connections ended: {', '.join(ends[-_ENDS:])}"
        )

    def mark(self, number: int, name: str, phase: str) -> None:
        """Note where a round stands."""
        self.history.note(Fault, round=number, name=name, phase=phase)

    async def answered(self) -> list[str]:
        """Wait until all edits made before are acknowledged. Returns the devices that take too long."""
        due = [(member, member.made) for member in self.crew.members]
        if await _within(lambda: all(len(member.settled) >= made for member, made in due)):
            return []
        return [member.name for member, made in due if len(member.settled) < made]

    async def behind_stopped_s(self, random: Random) -> float:
        """Stop the first worker under load. Returns the longest wait of undisturbed devices of the other."""
        server, members, events = self.site.server, self.crew.members, self.history.events
        # Not those that pipeline: others would wait for what is queued, too.
        busy = [member for member in members if not isinstance(member.device, PipeliningDevice)]
        for member in busy:
            member.edits_per_minute = _BUSY_PER_S * 60
        await asyncio.sleep(1.0 + random.random() * 0.1)
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

    async def in_force_s(self, policy: str) -> float:
        """Set a policy, telling no worker. Returns the seconds until devices of both are told."""
        await self._set_policies((tenant, _POLICY_DOMAIN, {"policy": policy}) for tenant in TENANTS)
        began_s = time.monotonic()
        devices = [member.device for member in self.crew.members[DEVICES:]]
        if not await _within(lambda: all(one.policies.get(_POLICY_DOMAIN) == policy for one in devices)):
            self.found.append(Found(LATE, f"not told of a policy after {PATIENCE_S:.0f} s"))
        return time.monotonic() - began_s

    async def converge(self) -> None:
        """Wait until queues are empty and devices agree with the tables, as long as edits are acknowledged.

        On a busy machine queues are long. Before they are empty, every edit that waits would count as lost.
        """
        settled = -1
        try:
            while settled < (now_settled := sum(len(member.settled) for member in self.crew.members)):
                settled = now_settled
                if await self.crew.converge(PATIENCE_S):
                    break
            else:
                behind = ", ".join(member.name for member in self.crew.members if member.waiting) or "none"
                late = f"devices do not agree, and nothing was acknowledged for {PATIENCE_S:.0f} s"
                self.found.append(Found(LATE, f"{late}; with edits that are not acknowledged: {behind}"))
        except CrewError as error:
            self.found.append(Found(LATE, f"not compared whether devices agree: {error}"))

    async def pull_all(self) -> None:
        """Let all devices pull everything from null, for as long as that may take."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*map(self._pull_whole, self.crew.members))

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
        """Compare the history with the tables. Raises StoreError."""
        tables = read_tables(self.dsn, TENANTS, self._prefix)
        told = Account(self.history.events).told
        before = sorted(self.found, key=lambda one: (one.kind != STOPPED, one.kind))
        found = [*before, *check(self.history.events, tables)]
        lines = [self.heading + line for line in summary(found)]
        return Audit(len(told), len(tables.records), len(TENANTS), len(found), lines)

    def write_history(self, path: Path) -> None:
        """Write the history, with the name of the cell in the file's. Raises OSError."""
        self.history.write(path.with_suffix(f".{self.name}{path.suffix}") if self.name else path)


async def _within(done: Callable[[], bool]) -> bool:
    """Wait until something holds; False if that takes too long."""
    until_s = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > until_s:
            return False
        await asyncio.sleep(_LOOK_S)
    return True
