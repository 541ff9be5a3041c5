"""Scenario ``abuse``: what devices feel while one client of another tenant takes all that it can get.

Each attack of ``bench.abuse_attacks`` has four phases: at rest, with one device, with ten devices
of one tenant, and while the same bytes go to a process that only reads, which shows what the machine costs.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import Final, Literal, Self

import msgspec

from bench.abuse_attacks import ATTACKS
from bench.abuse_gauge import Gauge
from bench.abuse_load import Attacked, AttackPlan, Prepared
from bench.abuse_others import DEVICES, PER_S, Others
from bench.abuse_verdict import judge
from bench.drive import Target, say, token
from bench.fill import fill
from bench.ground import BenchError, Ground, fresh
from bench.report import Abuse, Report, this_machine
from bench.server import ROOT, end, free_ports, started, variables
from bench.stage import Options, add_tenants, remote
from engine.domains import DomainPolicy
from storage.direct import connected
from storage.policies import PostgresPolicies

#: Of each phase, of which every attack has four.
DURATION_S: Final = 1.5
ONE, TEN = 1, 10
#: How long others go on at rest before their first phase, so that nothing is done for the first time in it.
_WARMUP_S: Final = 1.0
_STOP_S: Final = 5.0
#: How long a worker may be busy after a phase before it is restarted, or waited for no longer.
_BUSY_S: Final = 5.0
_BUSY_REMOTE_S: Final = 30.0
_OTHERS: Final = "abuse-others"


async def abuse(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    names = [options.attack] if options.attack else list(ATTACKS)
    report = Report(scenario="abuse", work=_work(), machine=this_machine())
    if options.url is not None:
        with remote(msgspec.structs.replace(options, tenants=1), options.url) as (target, dsn):
            await _measure(options, names, target, dsn, report)
        return report
    with fresh(options.settings) as ground:
        dsn = ground.database("product")
        secret = secrets.token_urlsafe(48)
        port = free_ports(1)
        target = Target(port=port, secret=secret, tenants=[_OTHERS], audience=options.settings.auth.audience)
        async with _Worker(port, _as_delivered(ground, dsn, secret, options)) as worker:
            await _measure(options, names, target, dsn, report, worker)
        report.logged = dict(worker.logged)
    return report


class _Worker:
    """A server of our own, restarted where it is busy with what an attack left."""

    def __init__(self, port: int, environment: Mapping[str, str]) -> None:
        self._port = port
        self._environment = environment
        self._running = AsyncExitStack()
        self.logged: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.aclose()
        self.logged += self._server.logged

    async def renew(self) -> None:
        """Stop the server and start it anew."""
        await self._running.aclose()
        self.logged += self._server.logged
        await self._start()

    async def _start(self) -> None:
        command = [str(ROOT / "run.py"), "serve", "--port", str(self._port), "--workers", "1"]
        self._server = await self._running.enter_async_context(started(command, self._environment))


def _as_delivered(ground: Ground, dsn: str, secret: str, options: Options) -> Mapping[str, str]:
    """Return the environment of a server whose limits stand: they are what is measured."""
    given = variables(ground, dsn, secret, options.config)
    kept = {name: value for name, value in given.items() if "__LIMITS__" not in name}
    return {**kept, "TIDEMARK__SERVER__DRAIN_S": "1"}


def _work() -> str:
    rates = ", ".join(f"{per_s:g} {kind}s" for kind, per_s in PER_S.items())
    return (
        f"{DEVICES} devices of one tenant with together {rates} a second, an open loop, beside attacks of one"
        f" device and of {TEN} of another tenant, and beside the same bytes into a process that only reads"
    )


async def _measure(
    options: Options,
    names: list[str],
    target: Target,
    dsn: str,
    report: Report,
    worker: _Worker | None = None,
) -> None:
    add_tenants(dsn, [_OTHERS])
    gauge = Gauge(target.host, target.port, dsn)
    async with _sink() as sink_port:
        run = _Abuse(options, target, gauge, sink_port, report, worker)
        await run.warm_up()
        for name in names:
            await run.attacked(name, dsn)
    judge(report)
    if not gauge.of_this_host:
        report.remarks.append("the worker is no process that can be looked at here: no memory and no CPU")


class _Abuse:
    def __init__(
        self,
        options: Options,
        target: Target,
        gauge: Gauge,
        sink_port: int,
        report: Report,
        worker: _Worker | None,
    ) -> None:
        self._worker = worker
        self._duration_s = options.duration_s or DURATION_S
        self._target = target
        self._gauge = gauge
        self._sink_port = sink_port
        self._report = report
        self._others = Others(target, _OTHERS)

    async def warm_up(self) -> None:
        """Do everything once that others do."""
        await self._others.connect()
        await self._others.feel(min(_WARMUP_S, self._duration_s))
        await self._others.answered()

    async def attacked(self, name: str, dsn: str) -> None:
        """Measure all phases of one attack."""
        attack, tenant = ATTACKS[name], f"abuse-{name}"
        say(f"{name}: {attack.told}")
        add_tenants(dsn, [tenant])
        if attack.manual:
            PostgresPolicies(dsn, {"task": DomainPolicy("manual")}).set(
                tenant, "task", DomainPolicy("manual")
            )
        if attack.feed_records and not _seq(dsn, tenant):
            fill(dsn, [tenant], attack.feed_records)
        await self._phase(name, "at rest", None)
        await self._phase(name, "one device", self._plan(name, tenant, ONE))
        ten = await self._phase(name, "ten devices", self._plan(name, tenant, TEN))
        sink = msgspec.structs.replace(
            self._plan(name, tenant, TEN),
            host="127.0.0.1",
            port=self._sink_port,
            bytes_per_s=ten.sent_bytes / ten.duration_s,
        )
        await self._phase(name, "sink", sink)

    def _plan(self, name: str, tenant: str, count: int) -> AttackPlan:
        mark = secrets.token_hex(4)
        devices = [f"{mark}-{place}" for place in range(count)]
        return AttackPlan(
            attack=name,
            host=self._target.host,
            port=self._target.port,
            devices=[(device, token(self._target, tenant, device)) for device in devices],
            neighbour_token=token(self._target, tenant, f"{mark}-neighbour"),
            mark=mark,
            duration_s=self._duration_s,
        )

    async def _phase(
        self,
        name: str,
        phase: Literal["at rest", "one device", "ten devices", "sink"],
        plan: AttackPlan | None,
    ) -> Abuse:
        gauge, others = self._gauge, self._others
        prepared, attacked = Prepared({}), Attacked(0, 0, {}, 0.0)
        if plan is None:
            disk_bytes, rss_bytes = await self._before()
            async with gauge.watched():
                await others.feel(self._duration_s)
                await others.answered()
        else:
            async with _attackers(plan) as (process, prepared):
                disk_bytes, rss_bytes = await self._before()
                async with gauge.watched():
                    assert process.stdin is not None
                    process.stdin.write(b"\n")
                    await others.feel(self._duration_s)
                    attacked = msgspec.json.decode(await _heard(process), type=Attacked)
                    await others.answered()
        stretch_ms = await gauge.stretch_ms()
        over_s = perf_counter()
        calm = await gauge.calm(_BUSY_S if self._worker is not None else _BUSY_REMOTE_S)
        renewed = not calm and self._worker is not None
        after_s = perf_counter() - over_s
        found = Abuse(
            attack=name,
            phase=phase,
            others=others.felt(),
            duration_s=self._duration_s,
            grown_mib=(gauge.peak_bytes - rss_bytes) / (1 << 20) if gauge.of_this_host else None,
            share=gauge.share if gauge.of_this_host else None,
            stretch_ms=stretch_ms,
            disk_bytes=gauge.database_bytes() - disk_bytes,
            sent_bytes=attacked.sent_bytes,
            connections=attacked.connections,
            ended=attacked.ended,
            unprepared=prepared.refused,
            generator=attacked.cpu_s / self._duration_s,
            after_s=after_s,
            renewed=renewed,
        )
        if self._worker is not None and renewed:
            await self._worker.renew()
            gauge.look_again()
            await self.warm_up()
        self._report.abuses.append(found)
        return found

    async def _before(self) -> tuple[int, int]:
        """Connect others, and return how large database and worker are before the phase."""
        await self._others.connect()
        await self._gauge.stretch_ms()
        return self._gauge.database_bytes(), self._gauge.rss_bytes()


def _seq(dsn: str, tenant: str) -> int:
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq FROM tenant_counters JOIN tenants USING (tenant_id) WHERE name = %s", (tenant,)
        )
        return int(cursor.fetchall()[0][0])


@asynccontextmanager
async def _sink() -> AsyncIterator[int]:
    async with _process("sink") as process:
        assert process.stdout is not None
        yield int(await process.stdout.readline())


@asynccontextmanager
async def _attackers(plan: AttackPlan) -> AsyncIterator[tuple[Process, Prepared]]:
    async with _process() as process:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(plan) + b"\n")
        yield process, msgspec.json.decode(await _heard(process), type=Prepared)


@asynccontextmanager
async def _process(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.abuse_load", *arguments), cwd=ROOT, stdin=PIPE, stdout=PIPE
    )
    try:
        yield process
    finally:
        await end(process, _STOP_S)


async def _heard(process: Process) -> bytes:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise BenchError("the attackers' process ended before it was done: its last words are above")
    return line
