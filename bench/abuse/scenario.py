"""Scenario ``abuse``: what devices feel while one client of another tenant takes all that it can get.

Each attack of ``bench.abuse.attacks`` begins on a server that was just started, and has five phases: at rest,
with one device, with ten devices of one tenant, and while the bytes of each go to a process that only reads,
which shows what the machine costs.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec

from bench.abuse.attacks import ATTACKS, PAST_NGINX, Attacker
from bench.abuse.criteria import ATTACKED, judge
from bench.abuse.gauge import Gauge
from bench.abuse.generator import Attacked, AttackPlan
from bench.abuse.others import DEVICES, PER_S, Others, photo_s
from bench.harness.administer import administer
from bench.harness.child import child
from bench.harness.environment import BenchError, Environment, fresh
from bench.harness.load_run import Target
from bench.harness.nginx import fronted, trusting
from bench.harness.product import HERE, Version, checked_out, variables
from bench.harness.progress import progress
from bench.harness.server import Server, end, free_ports
from bench.harness.stage import Options, add_tenants, remote
from bench.report.results import Abuse, Bar, Phase, Report
from bench.report.text import brief
from bench.report.written import reports_of
from engine.plan.bounds.tenant_usage import NAMES
from storage.postgres.blocking import connected
from storage.stores.usage import PostgresUsage

#: Of each phase.
DURATION_S: Final = 1.5
ONE, TEN = 1, 10
#: How long others go on at rest before their first phase, so that nothing is done for the first time in it.
_WARMUP_S: Final = 1.0
#: How long a worker may be busy after a phase before it is restarted, or waited for no longer.
_BUSY_S: Final = 5.0
_BUSY_REMOTE_S: Final = 30.0
#: What a phase takes beside its duration, and an attack beside its phases: the first guess of how long it is.
_AROUND_S, _START_S = 2.5, 6.0
_OTHERS: Final = "abuse-others"
#: Where attackers come from, so that bounds by address are theirs alone.
_SOURCE: Final = "127.0.0.2"
#: Makes partitions up to so many days ahead once it is told to, as the daily job does.
_CUT: Final = (
    "import sys; from datetime import datetime as d, timezone as z;"
    "from storage.postgres.partitions.maintenance import ensure_partitions; print(flush=True);"
    "sys.stdin.readline();"
    "ensure_partitions(sys.argv[1], d.now(z.utc).date(), int(sys.argv[2]))"
)
#: Days that a server gives partitions when it starts.
_DAYS_AHEAD: Final = 14


class Site(msgspec.Struct):
    """Where others and attackers go: ``target`` past nginx, ``way`` through it where there is one.

    ``server`` is None where it was not started here; ``environment`` is its own, before bounds are added.
    """

    target: Target
    way: Target
    version: Version = HERE
    server: Server | None = None
    environment: Mapping[str, str] = {}
    redis_url: str = ""
    certificate: Path | None = None
    cuts: int = 0

    @property
    def before(self) -> bool:
        """Whether it is of a version to compare with."""
        return self.version.commit is not None

    async def cutting(self, stack: AsyncExitStack) -> Process:
        """Start a process that makes the next day's partitions at once when it is told a line."""
        self.cuts += 1
        arguments = _CUT, self.target.dsn, str(_DAYS_AHEAD + self.cuts)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", *arguments), cwd=self.version.root, stdin=PIPE, stdout=PIPE
        )
        stack.push_async_callback(end, process, 5.0)
        assert process.stdout is not None
        await process.stdout.readline()
        return process

    def bus(self, tenant: str, devices: list[str]) -> tuple[str, str, list[tuple[int, str]]]:
        """Return what forged messages need: Redis, a channel, and devices with their tenant's id."""
        with connected(self.target.dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT current_database()::text, epoch::text FROM cluster_state")
            ((database, epoch),) = cursor.fetchall()
            cursor.execute("SELECT tenant_id::int FROM tenants WHERE name = %s", (tenant,))
            ((tenant_id,),) = cursor.fetchall()
        channel = f"tidemark:{database}:{epoch}"
        return self.redis_url, channel, [(tenant_id, device) for device in devices]

    async def renew(self, bounds: Mapping[str, int] | None = None) -> None:
        """Start the server anew, with other bounds of tenants where they are given."""
        assert self.server is not None
        await self.server.stop()
        if bounds is not None:
            named = {f"TIDEMARK__TENANT_LIMITS__{name.upper()}": str(bound) for name, bound in bounds.items()}
            self.server.environment = {**self.environment, **self.version.known(named)}
        await self.server.start()


@asynccontextmanager
async def _site(environment: Environment, options: Options, commit: str | None) -> AsyncIterator[Site]:
    """Prepare a server of this version, or of a commit, that is to be started.

    Raises BenchError, StoreError.
    """
    name = "product" if commit is None else "before"
    home = environment.home / name
    home.mkdir()
    version = HERE if commit is None else await asyncio.to_thread(checked_out, commit, home / "tree")
    dsn = await version.database(environment, name)
    secret, port = secrets.token_urlsafe(48), free_ports(2)
    audience = options.settings.audience
    target = Target(port=port, secret=secret, tenants=[_OTHERS], audience=audience, dsn=dsn)
    given = variables(environment, dsn, secret, options.config)
    # The limits of a server as it is delivered are part of what is measured.
    chosen = {name: value for name, value in given.items() if "__LIMITS__" not in name}
    chosen |= {"TIDEMARK__SERVER__DRAIN_S": "1", "TIDEMARK__DATA__DIR": str(home)}
    server = version.server(chosen, port=port)
    site = Site(target, target, version, server, server.environment, environment.redis_url)
    async with AsyncExitStack() as stack:
        if options.through_nginx:
            front = fronted(home, version.root, server.environment, port, 1, port + 1)
            site.certificate = await stack.enter_async_context(front)
            site.way = msgspec.structs.replace(target, port=port + 1)
        stack.push_async_callback(server.stop)
        yield site


async def abuse(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    names = list(options.attacks or ATTACKS)
    if options.through_nginx or options.url is not None:
        names = [name for name in names if name not in PAST_NGINX]
    rates = ", ".join(f"{per_s:g} {kind}s" for kind, per_s in PER_S.items())
    through = ", all through nginx" if options.through_nginx else ""
    report = Report(
        scenario="abuse",
        work=f"{DEVICES} devices of one tenant with together {rates} a second, an open loop, beside attacks"
        f" of one device and of {TEN} of another tenant{through}, and beside the same bytes into a process"
        " that only reads",
    )
    before = None if options.before is None else measured_before(Path(options.before), names)
    async with AsyncExitStack() as stack:
        if options.url is not None:
            one = msgspec.structs.replace(options, tenants=1)
            there = stack.enter_context(remote(one, options.url))
            sites = [Site(there, there)]
        else:
            environment = stack.enter_context(fresh(options.settings))
            commits = [None] if options.before is None or before is not None else [None, options.before]
            contexts = [_site(environment, options, commit) for commit in commits]
            sites = [await stack.enter_async_context(context) for context in contexts]
        sink = await stack.enter_async_context(child("the sink", "bench.abuse.generator", None))
        sink_port, began_s = await sink.read(int), perf_counter()
        for done, name in enumerate(names):
            guess_s = len(sites) * (_START_S + 5 * ((options.duration_s or DURATION_S) + _AROUND_S))
            each_s = (perf_counter() - began_s) / done if done else guess_s
            progress(f"{len(names) - done} attacks, about {each_s * (len(names) - done) / 60:.0f} minutes")
            for site in sites:
                said = f"{name}{' before' * site.before}"
                progress(f"{said}: {ATTACKS[name].told}")
                try:
                    await _Abuse(options, site, sink_port, report.abuses, name).run()
                except BenchError as error:  # what was measured before it took minutes, and is reported
                    report.remarks.append(f"{said} was not measured whole: {error}")
                    report.bars.append(Bar(f"{said}: measured whole", 0, "at least", 1, ""))
    report.abuses += before or []
    judge(report)
    report.logged = {} if sites[0].server is None else dict(sites[0].server.logged)
    return report


def _hold_conflicts(dsn: str, tenant: str) -> None:
    """Have a tenant's conflicts wait for a person, in the database of whatever version. Raises StoreError."""
    with connected(dsn) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy)"
            " SELECT tenant_id, 'task', 'manual' FROM tenants WHERE name = %s",
            (tenant,),
        )
        cursor.execute("UPDATE cluster_state SET generation = generation + 1")


def measured_before(file: Path, names: list[str]) -> list[Abuse] | None:
    """Read from a report what was measured before, None where it is no file. Raises BenchError."""
    reports = reports_of(file)
    if reports is None:
        return None
    every = [one for report in reports for one in report.abuses]
    found = [one for one in every if one.attack in names and not one.before]
    return [msgspec.structs.replace(one, before=True) for one in found]


class _Abuse:
    """One attack on one site."""

    def __init__(self, options: Options, site: Site, sink_port: int, found: list[Abuse], name: str) -> None:
        self._settings = options.settings
        self._site = site
        self._sink_port = sink_port
        self._found = found
        self._name = name
        self._attack = ATTACKS[name]
        self._tenant = f"abuse-{name}"
        self._duration_s = options.duration_s or DURATION_S
        self._others = Others(site.way, _OTHERS, trusting(site.certificate) if site.certificate else None)

    async def run(self) -> None:
        """Measure all phases. Raises BenchError."""
        attack, site = self._attack, self._site
        dsn, tenant = site.target.dsn, self._tenant
        add_tenants(dsn, [_OTHERS, tenant])
        if attack.manual:
            _hold_conflicts(dsn, tenant)
        if site.server is not None:
            await site.renew(attack.bounds)
        self._gauge = Gauge(site.target, tenant)
        await self._warm_up()
        await self._phase("at rest")
        if attack.seeded is not None and not self._gauge.held()[1]:
            attack.seeded(dsn, tenant)
        one = await self._phase("one device", self._plan(ONE))
        ten = await self._phase("ten devices", self._plan(TEN))
        if not site.before:
            await self._phase("sink of one", self._plan(ONE, one))
            await self._phase("sink of ten", self._plan(TEN, ten))
        if site.server is not None:
            await site.server.stop()

    async def _warm_up(self) -> None:
        """Send each of the others' messages once before anything is measured."""
        await self._others.connect()
        await self._others.feel(min(_WARMUP_S, self._duration_s))
        await self._gauge.calm(_BUSY_S)

    def _plan(self, count: int, sunk: Abuse | None = None) -> AttackPlan:
        """Plan an attack of so many devices, or to send as many bytes as one did into the sink."""
        site, mark = self._site, secrets.token_hex(4)
        way = site.way if sunk is None else msgspec.structs.replace(site.target, port=self._sink_port)
        bus = site.bus(_OTHERS, self._others.names) if self._attack.opening == "bus" else ()
        return AttackPlan(
            attack=self._name,
            host=way.host if sunk is None else "127.0.0.1",
            port=way.port,
            attackers=[
                Attacker(way.token(self._tenant, name), f"{way.host}:{way.port}", name, *bus)
                for name in (f"{mark}-{place}" for place in range(count))
            ],
            neighbour_token=way.token(self._tenant, f"{mark}-neighbour"),
            duration_s=self._duration_s,
            bytes_per_s=None if sunk is None else sunk.sent_bytes / sunk.duration_s,
            source=_SOURCE if way.host == "127.0.0.1" else None,
            certificate=str(site.certificate) if site.certificate and sunk is None else None,
        )

    async def _phase(self, phase: Phase, plan: AttackPlan | None = None) -> Abuse:
        gauge, others, site = self._gauge, self._others, self._site
        load, attackers, refused, attacked = os.getloadavg()[0], None, dict[str, int](), Attacked()
        async with AsyncExitStack() as stack:
            if plan is not None:
                attackers = await stack.enter_async_context(child("attackers", "bench.abuse.generator", plan))
                refused = await attackers.read(dict[str, int])
            cut = self._attack.beside == "cut" and phase in ATTACKED
            cutting = await site.cutting(stack) if cut else None
            held_bytes, rows = gauge.held()
            await others.connect()
            async with gauge.watched() as figures:
                if attackers is not None:
                    attackers.tell()
                beside = asyncio.create_task(self._beside(phase, cutting))
                felt = await others.feel(self._duration_s)
                if attackers is not None:
                    attacked = await attackers.read(Attacked)
                waited_s = await beside
        over_s = perf_counter()
        calm = await gauge.calm(_BUSY_S if site.server is not None else _BUSY_REMOTE_S)
        after_s = perf_counter() - over_s
        after_bytes, rows_after = gauge.held()
        found = Abuse(
            attack=self._name,
            phase=phase,
            others=felt,
            duration_s=self._duration_s,
            before=site.before,
            fullest=self._fullest(),
            photo_s=waited_s,
            disk_bytes=after_bytes - held_bytes,
            rows=rows_after - rows,
            unprepared=refused,
            after_s=after_s,
            renewed=not calm and site.server is not None,
            load=load,
            **figures,
            **msgspec.structs.asdict(attacked),
        )
        self._found.append(found)
        progress(f"  {brief(found)}")
        if found.renewed:
            progress(f"  the worker is still busy after {after_s:.0f} s, and is restarted")
            await site.renew()
            gauge.look_again()
            await self._warm_up()
        return found

    async def _beside(self, phase: Phase, cutting: Process | None) -> float | None:
        """Do what goes on beside the attack. Returns how long a photo waited, None where there is none."""
        if cutting is not None:
            await cutting.communicate(b"\n")
            if cutting.returncode:
                raise BenchError("the partitions were not cut: the last words of the command are above")
        if self._attack.beside == "photo" and not phase.startswith("sink"):
            return await photo_s(self._site.target, _OTHERS)
        return None

    def _fullest(self) -> float | None:
        """Return the most that the attackers' tenant holds of any bound; a version before may have none."""
        if self._site.before:
            return None
        dsn, tenant = self._site.target.dsn, self._tenant
        (holds,) = administer(dsn, lambda database: PostgresUsage(database).usage(tenant))
        limits = self._settings.tenant_limits
        bounds: dict[str, int] = {name: getattr(limits, name) for name in NAMES} | dict(self._attack.bounds)
        parts: list[float] = [getattr(holds.usage, name) / bounds[name] for name in NAMES]
        return max(*parts, holds.file_bytes / self._settings.uploads.tenant_bytes)
