"""Scenario ``abuse``: what devices feel while one client of another tenant takes all that it can get.

Each attack of ``bench.abuse.attacks`` begins on a server that was just started, and has five phases: at rest,
with one device, with ten devices of one tenant, and while the bytes of each go to a process that only reads,
which shows what the machine costs.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Final

import msgspec

from bench.abuse.attacks import ATTACKS, PAST_NGINX, Attack
from bench.abuse.criteria import judge
from bench.abuse.gauge import Gauge
from bench.abuse.generator import Attacked, AttackPlan, Prepared
from bench.abuse.others import DEVICES, PER_S, Others
from bench.abuse.photo import photo_s
from bench.abuse.site import Site, site_at, site_of
from bench.harness.administer import administer
from bench.harness.child import Child, child, progress
from bench.harness.environment import BenchError, fresh
from bench.harness.nginx import trusting
from bench.harness.stage import Options, add_tenants
from bench.report.results import Abuse, Bar, Phase, Report
from bench.report.tables import brief
from engine.model.domains import DomainPolicy
from engine.plan.tenant_usage import NAMES
from storage.postgres.commands import command_database
from storage.stores.policies import PostgresPolicies
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


class _Told(msgspec.Struct):
    abuses: list[Abuse]


class _Reports(msgspec.Struct):
    reports: list[_Told]


async def abuse(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    names = list(options.attacks or ATTACKS)
    if options.through_nginx or options.url is not None:
        names = [name for name in names if name not in PAST_NGINX]
    report = Report(scenario="abuse", work=_work(options))
    file = Path(options.before) if options.before else None
    commit = options.before if file is not None and not file.is_file() else None
    async with AsyncExitStack() as stack:
        if options.url is not None:
            sites = [await stack.enter_async_context(site_at(options, options.url))]
        else:
            environment = stack.enter_context(fresh(options.settings))
            sites = [await stack.enter_async_context(site_of(environment, options, _OTHERS))]
            if commit is not None:
                sites.append(await stack.enter_async_context(site_of(environment, options, _OTHERS, commit)))
        sink = await stack.enter_async_context(child("the sink", "bench.abuse.generator", None))
        sink_port = await sink.read(int)
        await _measure(options, names, sites, sink_port, report)
    if file is not None and commit is None:
        report.abuses += measured_before(file, names)
    judge(report)
    worker = sites[0].worker
    report.logged = {} if worker is None else dict(worker.logged)
    return report


def _work(options: Options) -> str:
    rates = ", ".join(f"{per_s:g} {kind}s" for kind, per_s in PER_S.items())
    return (
        f"{DEVICES} devices of one tenant with together {rates} a second, an open loop, beside attacks of one"
        f" device and of {TEN} of another tenant{', all through nginx' if options.through_nginx else ''}, and"
        " beside the same bytes into a process that only reads"
    )


def measured_before(file: Path, names: list[str]) -> list[Abuse]:
    """Read from a report what was measured before. Raises BenchError."""
    try:
        told = msgspec.json.decode(file.read_bytes(), type=_Reports)
    except msgspec.MsgspecError as error:
        raise BenchError(f"--before {file}: no report of bench --scenario abuse --json: {error}") from None
    found = [one for each in told.reports for one in each.abuses if one.attack in names and not one.before]
    return [msgspec.structs.replace(one, before=True) for one in found]


async def _measure(
    options: Options, names: list[str], sites: list[Site], sink_port: int, report: Report
) -> None:
    for site in sites:
        add_tenants(site.dsn, [_OTHERS])
    duration_s = options.duration_s or DURATION_S
    left_s = [_START_S + (3 if site.before else 5) * (duration_s + _AROUND_S) for site in sites]
    progress(f"{len(names)} attacks, about {len(names) * sum(left_s) / 60:.0f} minutes")
    began_s = perf_counter()
    for done, name in enumerate(names):
        if done:
            each_s = (perf_counter() - began_s) / done
            progress(f"about {each_s * (len(names) - done) / 60:.0f} minutes are left")
        for site in sites:
            progress(f"{done + 1} of {len(names)}, {name}{' before' * site.before}: {ATTACKS[name].told}")
            try:
                await _Abuse(options, site, sink_port, report, name).run()
            except BenchError as error:  # what was measured before it took minutes, and is reported
                said = f"{name}{' before' * site.before}"
                report.remarks.append(f"{said} was not measured whole: {error}")
                report.bars.append(Bar(f"{said}: measured whole", 0, "at least", 1, ""))


class _Abuse:
    """One attack on one site."""

    def __init__(self, options: Options, site: Site, sink_port: int, report: Report, name: str) -> None:
        self._settings = options.settings
        self._site = site
        self._sink_port = sink_port
        self._report = report
        self._name = name
        self._attack: Attack = ATTACKS[name]
        self._cut: Callable[[], Awaitable[None]] | None = None
        self._tenant = f"abuse-{name}"
        self._duration_s = options.duration_s or DURATION_S
        self._others = Others(site.way, _OTHERS, trusting(site.certificate) if site.certificate else None)

    async def run(self) -> None:
        """Measure all phases."""
        attack, site = self._attack, self._site
        add_tenants(site.dsn, [self._tenant])
        if attack.manual:
            held = DomainPolicy("manual")
            async with command_database(site.dsn) as database:
                await PostgresPolicies(database, {"task": held}).set(self._tenant, "task", held)
        if site.worker is not None:
            await site.worker.renew(attack.bounds)
        self._gauge = Gauge(site.target.host, site.target.port, site.dsn)
        await self._warm_up()
        await self._phase("at rest", None)
        if attack.seeded is not None and not self._gauge.rows(self._tenant):
            attack.seeded(site.dsn, self._tenant)
        one = await self._phase("one device", self._plan(ONE))
        ten = await self._phase("ten devices", self._plan(TEN))
        if not site.before:
            await self._phase("sink of one", self._into_sink(ONE, one))
            await self._phase("sink of ten", self._into_sink(TEN, ten))
        if site.worker is not None:
            await site.worker.stop()

    async def _warm_up(self) -> None:
        """Send each of the others' messages once before anything is measured."""
        await self._others.connect()
        await self._others.feel(min(_WARMUP_S, self._duration_s))
        await self._others.answered()
        await self._gauge.calm(_BUSY_S)

    def _plan(self, count: int) -> AttackPlan:
        site = self._site
        way, mark = site.way, secrets.token_hex(4)
        devices = [f"{mark}-{place}" for place in range(count)]
        return AttackPlan(
            attack=self._name,
            host=way.host,
            port=way.port,
            devices=[(device, way.token(self._tenant, device)) for device in devices],
            neighbour_token=way.token(self._tenant, f"{mark}-neighbour"),
            mark=mark,
            duration_s=self._duration_s,
            source=_SOURCE if way.host == "127.0.0.1" else None,
            certificate=None if site.certificate is None else str(site.certificate),
            bus=site.bus(_OTHERS, self._others.names) if self._attack.opening == "bus" else None,
        )

    def _into_sink(self, count: int, found: Abuse) -> AttackPlan:
        return msgspec.structs.replace(
            self._plan(count),
            host="127.0.0.1",
            port=self._sink_port,
            bytes_per_s=found.sent_bytes / found.duration_s,
            certificate=None,
        )

    async def _phase(self, phase: Phase, plan: AttackPlan | None) -> Abuse:
        gauge, others, site = self._gauge, self._others, self._site
        prepared, attacked = Prepared({}), Attacked(0, 0, {}, 0.0)
        load = os.getloadavg()[0]
        async with AsyncExitStack() as stack:
            attackers: Child | None = None
            if plan is not None:
                attackers = await stack.enter_async_context(child("attackers", "bench.abuse.generator", plan))
                prepared = await attackers.read(Prepared)
            if self._attack.beside == "cut" and phase in ("one device", "ten devices"):
                self._cut = await stack.enter_async_context(site.cutting())
            rows = gauge.rows(self._tenant)
            await others.connect()
            _, charged_s = await gauge.told()
            disk_bytes, rss_bytes = gauge.database_bytes(), gauge.rss_bytes()
            async with gauge.watched():
                if attackers is not None:
                    attackers.tell()
                beside = asyncio.create_task(self._beside(phase))
                await others.feel(self._duration_s)
                if attackers is not None:
                    attacked = await attackers.read(Attacked)
                await others.answered()
                waited_s = await beside
        stretch_s, charged_after_s = await gauge.told()
        over_s = perf_counter()
        calm = await gauge.calm(_BUSY_S if site.worker is not None else _BUSY_REMOTE_S)
        after_s = perf_counter() - over_s
        here = gauge.of_this_host
        found = Abuse(
            attack=self._name,
            phase=phase,
            others=others.felt(),
            duration_s=self._duration_s,
            before=site.before,
            window_s=gauge.window_s,
            grown_mib=(gauge.peak_bytes - rss_bytes) / (1 << 20) if here else None,
            share=gauge.share if here else None,
            loop=gauge.loop.ran_s if here else None,
            queued=gauge.loop.queued_s if here else None,
            charged=None
            if charged_s is None or charged_after_s is None
            else (charged_after_s - charged_s) / gauge.window_s,
            stretch_ms=None if stretch_s is None else stretch_s * 1000,
            fullest=self._fullest(),
            photo_s=waited_s,
            disk_bytes=gauge.database_bytes() - disk_bytes,
            rows=gauge.rows(self._tenant) - rows,
            sent_bytes=attacked.sent_bytes,
            connections=attacked.connections,
            ended=attacked.ended,
            unprepared=prepared.refused,
            generator=attacked.cpu_s / self._duration_s,
            after_s=after_s,
            renewed=not calm and site.worker is not None,
            load=load,
        )
        self._report.abuses.append(found)
        progress(f"  {brief(found)}")
        if not calm and site.worker is not None:
            progress(f"  the worker is still busy after {after_s:.0f} s, and is restarted")
            await site.worker.renew()
            gauge.look_again()
            await self._warm_up()
        return found

    async def _beside(self, phase: Phase) -> float | None:
        """Do what goes on beside the attack. Returns how long a photo waited, None where there is none."""
        site = self._site
        if self._attack.beside == "photo" and not phase.startswith("sink"):
            return await photo_s(site.target, site.dsn, _OTHERS)
        cut, self._cut = self._cut, None
        if cut is not None:
            await cut()
        return None

    def _fullest(self) -> float | None:
        """Return the most that the attackers' tenant holds of any bound; a version before may have none."""
        if self._site.before:
            return None
        (holds,) = administer(self._site.dsn, lambda database: PostgresUsage(database).usage(self._tenant))
        limits = self._settings.tenant_limits
        bounds: dict[str, int] = {name: getattr(limits, name) for name in NAMES} | dict(self._attack.bounds)
        parts: list[float] = [getattr(holds.usage, name) / bounds[name] for name in NAMES]
        return max(*parts, holds.file_bytes / self._settings.uploads.tenant_bytes)
