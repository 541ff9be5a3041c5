"""How fast does a fleet come back behind nginx, and do the largest headers pass?

``python -m bench.tools.behind_nginx`` starts PostgreSQL, Redis, a server of two workers and nginx with the
printed site. Devices keep a socket each while the server is stopped for a while, killed with all its
processes, and restarted worker by worker; past nginx the same for comparison.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Literal

import click
import msgspec

from bench.harness.child import ROOT
from bench.harness.environment import BenchError, Environment, fresh, read_settings
from bench.harness.load_run import Target
from bench.harness.nginx import Nginx, certify, nginx_program, printed, trusting
from bench.harness.product import HERE, variables
from bench.harness.server import Server, free_ports
from bench.harness.stage import add_tenants
from bench.report.tables import table
from bench.tools.behind_nginx_heads import Head, largest_heads
from bench.tools.fleet import TENANT, Member, Other, Sign, Way
from engine.runtime.settings import Settings, SettingsError
from storage.embedded.servers import EmbeddedError
from storage.postgres.blocking import connected

Fault = Literal["stop", "kill", "renew"]
FAULTS: Final[dict[Fault, str]] = {
    "stop": "stop, {outage_s:g} s, start",
    "kill": "kill -9 of all, start",
    "renew": "rolling restart",
}
WORKERS: Final = 2
_OTHERS: Final = 10
_SETTLE_S: Final = 3.0
_BACK_S: Final = 150.0
_CALM_S: Final = 1.0
_BAR_S: Final = 15.0


class Asked(msgspec.Struct, frozen=True):
    """What to run."""

    devices: int
    rounds: int
    outage_s: float


class Back(msgspec.Struct, frozen=True):
    """One fault: seconds until devices were live again, since the workers' return and since their own end."""

    way: Literal["nginx", "direct"]
    fault: Fault
    workers_away_s: float
    p50_s: float
    p95_s: float
    last_s: float
    away_p50_s: float
    away_last_s: float
    errors_during: dict[str, int]
    errors_beyond: dict[str, int]
    faults: list[str]


@asynccontextmanager
async def _front(serving: Server, home: Path) -> AsyncIterator[Way]:
    """Run nginx before a server's workers."""
    program = nginx_program()
    if program is None:
        raise BenchError("nginx is not installed: apt-get install nginx-light, or give --only direct")
    certificate = certify(home)
    port = serving.port + WORKERS + 1
    site = await printed(ROOT, serving.environment, certificate, serving.port, WORKERS, port)
    nginx = Nginx(program, home, site, port, connections=8192)
    await nginx.start()
    try:
        yield Way(port, trusting(certificate))
    finally:
        await nginx.stop()


def _serving(environment: Environment, dsn: str, secret: str) -> Server:
    """Make a server whose ports stay the same, with one more for nginx behind them."""
    given = variables(environment, dsn, secret, None)
    return HERE.server(given, WORKERS, free_ports(WORKERS + 2))


class Run:
    """A fleet on one way to a server, and the faults that come over it."""

    def __init__(
        self, name: Literal["nginx", "direct"], way: Way, serving: Server, dsn: str, asked: Asked
    ) -> None:
        self._name = name
        self._way = way
        self._serving = serving
        self._dsn = dsn
        self._asked = asked

    async def under(self, fault: Fault, sign: Sign, prefix: str) -> Back:
        """Wait until a fleet is live, inject a fault, and measure its return."""
        names = [f"{prefix}-{number}" for number in range(self._asked.devices)]
        members = [Member(name, sign(name), self._way, name) for name in names]
        others = [
            Other(f"{prefix}-other-{n}", sign(f"{prefix}-other-{n}"), self._way) for n in range(_OTHERS)
        ]
        running = [asyncio.create_task(member.run()) for member in members]
        running += [asyncio.create_task(other.run()) for other in others]
        try:
            await _all_live(members, 0.0)
            await asyncio.sleep(_SETTLE_S)
            for member in members:
                member.away_s.clear()
            begun_s = time.monotonic()
            returned_s, away_s = await self._brought_about(fault)
            await _all_live(members, returned_s if fault != "renew" else 0.0)
            await asyncio.sleep(_SETTLE_S)
            for task in running:
                if task.done():
                    await task
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        during: Counter[str] = Counter()
        beyond: Counter[str] = Counter()
        for at_s, verdict in [error for other in others for error in other.errors]:
            within = begun_s <= at_s <= returned_s + _CALM_S
            (during if within else beyond)[verdict] += 1
        back = sorted(max(0.0, member.live_at_s - returned_s) for member in members)
        away = sorted(spell for member in members for spell in member.away_s)
        return Back(
            way=self._name,
            fault=fault,
            workers_away_s=away_s,
            p50_s=median(back),
            p95_s=back[int(len(back) * 0.95)],
            last_s=back[-1],
            away_p50_s=median(away),
            away_last_s=away[-1],
            errors_during=dict(during),
            errors_beyond=dict(beyond),
            faults=_audit(self._dsn, members, others),
        )

    async def _brought_about(self, fault: Fault) -> tuple[float, float]:
        """Returns when all workers let devices in again, and for how long none did."""
        serving = self._serving
        if fault == "renew":
            await serving.renew()
            return time.monotonic(), 0.0
        if fault == "stop":
            await serving.stop()
            ended_s = time.monotonic()
            await asyncio.sleep(self._asked.outage_s)
        else:
            await serving.kill()
            ended_s = time.monotonic()
        await serving.start()
        await serving.ready()
        return time.monotonic(), time.monotonic() - ended_s


async def _all_live(members: list[Member], since_s: float) -> None:
    """Wait until each device is live. Raises BenchError."""
    deadline_s = time.monotonic() + _BACK_S
    while missing := sum(not member.live for member in members):
        if time.monotonic() > deadline_s:
            refused = sum([member.failures for member in members], Counter[str]())
            raise BenchError(
                f"{missing} of {len(members)} devices are not live {time.monotonic() - since_s:.0f} s later;"
                f" refused so far: {dict(refused)}"
            )
        await asyncio.sleep(0.05)


def _audit(dsn: str, members: list[Member], others: list[Other]) -> list[str]:
    """Compare each record's version with the pushes that were answered."""
    expected = {member.name: member.pushed for member in members}
    expected |= {other.name: other.answered for other in others}
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT id, version FROM records")
        found: dict[str, int] = dict(cursor.fetchall())
    wrong = [
        f"{name}: {count} answered, version {found.get(name, 0)}"
        for name, count in expected.items()
        # one that was under way in the end may have been stored without its answer
        if not count <= found.get(name, 0) <= count + 1
    ]
    return wrong + [f"{member.name}: {member.rejected} not applied" for member in members if member.rejected]


def _medians(backs: list[Back]) -> list[Back]:
    """Make one row of the rounds of each fault on each way."""
    rows: list[Back] = []
    for way, fault in dict.fromkeys((back.way, back.fault) for back in backs):
        runs = [back for back in backs if (back.way, back.fault) == (way, fault)]

        def middle(name: str, runs: list[Back] = runs) -> float:
            return float(median(getattr(run, name) for run in runs))

        rows.append(
            Back(
                way=way,
                fault=fault,
                workers_away_s=middle("workers_away_s"),
                p50_s=middle("p50_s"),
                p95_s=middle("p95_s"),
                last_s=middle("last_s"),
                away_p50_s=middle("away_p50_s"),
                away_last_s=middle("away_last_s"),
                errors_during=dict(sum([Counter(run.errors_during) for run in runs], Counter[str]())),
                errors_beyond=dict(sum([Counter(run.errors_beyond) for run in runs], Counter[str]())),
                faults=[fault for run in runs for fault in run.faults],
            )
        )
    return rows


_HEADING: Final = (
    "way",
    "fault",
    "workers away s",
    "live again p50/p95/last s",
    "a device away p50/last s",
    "others' errors during",
    "beyond",
    "audit",
)


def _cells(back: Back, asked: Asked) -> tuple[str, ...]:
    return (
        back.way,
        FAULTS[back.fault].format(outage_s=asked.outage_s),
        f"{back.workers_away_s:.1f}",
        f"{back.p50_s:.1f}/{back.p95_s:.1f}/{back.last_s:.1f}",
        f"{back.away_p50_s:.1f}/{back.away_last_s:.1f}",
        _counted(back.errors_during),
        _counted(back.errors_beyond),
        f"{len(back.faults)} faults",
    )


def _counted(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(errors.items())) or "0"


def missed(rows: list[Back], heads: list[Head]) -> list[str]:
    """Name the missed bars: those of nginx, and of what is stored on both ways."""
    found = [f"{row.way}, {row.fault}: {fault}" for row in rows for fault in row.faults]
    for row in rows:
        if row.way == "nginx" and row.last_s > _BAR_S:
            found.append(f"{row.fault}: the last was live after {row.last_s:.1f} s, the bar is {_BAR_S:g} s")
        if row.way == "nginx" and row.errors_beyond:
            found.append(f"{row.fault}: others were refused: {_counted(row.errors_beyond)}")
    found += [
        f"{head.what}: {head.status}, others' errors {_counted(head.errors)}"
        for head in heads
        if head.status not in head.wanted or head.errors
    ]
    return found


async def _run(asked: Asked, chosen: Settings, ways: list[Literal["nginx", "direct"]]) -> list[str]:
    secret = secrets.token_urlsafe(48)
    sign = partial(
        Target(port=0, secret=secret, tenants=[TENANT], audience=chosen.auth.audience).token, TENANT
    )
    with fresh(chosen) as environment:
        dsn = environment.database("behind_nginx")
        add_tenants(dsn, [TENANT])
        backs, heads = await _measured(asked, environment, dsn, secret, sign, ways)
    rows = _medians(backs)
    for line in table([_HEADING, *(_cells(row, asked) for row in rows)]):
        click.echo(line)
    if heads:
        click.echo()
        lines = [("largest", "request's head", "answer's head", "status", "others' errors")]
        for head in heads:
            sizes = (f"{head.request_bytes:,}", f"{head.answer_bytes:,}")
            lines.append((head.what, *sizes, str(head.status), _counted(head.errors)))
        for line in table(lines):
            click.echo(line)
    return missed(rows, heads)


async def _measured(
    asked: Asked,
    environment: Environment,
    dsn: str,
    secret: str,
    sign: Sign,
    ways: list[Literal["nginx", "direct"]],
) -> tuple[list[Back], list[Head]]:
    backs: list[Back] = []
    heads: list[Head] = []
    async with AsyncExitStack() as stack:
        serving = await stack.enter_async_context(_serving(environment, dsn, secret))
        await serving.ready()
        found: dict[str, Way] = {"direct": Way(serving.port)}
        if "nginx" in ways:
            home = environment.home / "nginx"
            home.mkdir()
            front = _front(serving, home)
            found["nginx"] = await stack.enter_async_context(front)
            heads = await largest_heads(found["nginx"], sign)
        for number in range(asked.rounds):
            for fault in FAULTS:
                for name in ways if number % 2 == 0 else reversed(ways):
                    run = Run(name, found[name], serving, dsn, asked)
                    back = await run.under(fault, sign, f"{name}-{fault}-{number}")
                    click.echo("  ".join([f"round {number + 1}", *_cells(back, asked)]), err=True)
                    backs.append(back)
    return backs, heads


@click.command(epilog="Example: python -m bench.tools.behind_nginx --devices 500 --rounds 3 --outage 10")
@click.option("--devices", type=click.IntRange(1, 5000), default=500, show_default=True, metavar="N")
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Medians count."
)
@click.option(
    "--outage", "outage_s", type=click.FloatRange(0), default=10.0, show_default=True, metavar="S",
    help="Seconds from the server's end to its next start, in the fault `stop`.",
)  # fmt: skip
@click.option("--only", type=click.Choice(["nginx", "direct"]), help="One way alone.  [default: both]")
@click.option("--data-dir", metavar="DIR", help="Where embedded services are kept while this runs.")
def main(
    devices: int, rounds: int, outage_s: float, only: Literal["nginx", "direct"] | None, data_dir: str | None
) -> None:
    """Measure how long devices take to be live again behind nginx, and past it.

    Live is a device whose push was answered. Seconds count from the moment at which every worker lets devices
    in again. Devices wait as the guide says: a random time between 0 and a bound that doubles from 0.5 s to
    60 s, on top of what they were asked for. Beside them ten others sync over HTTP twice a second. The exit
    status is 1 for a missed bar.
    """
    try:
        chosen = read_settings(None, data_dir)
        ways: list[Literal["nginx", "direct"]] = ["nginx", "direct"] if only is None else [only]
        found = asyncio.run(_run(Asked(devices, rounds, outage_s), chosen, ways))
    except (BenchError, EmbeddedError, SettingsError) as error:
        raise click.ClickException(str(error)) from None
    for sentence in found:
        click.echo(f"MISSED: {sentence}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
