"""Scenario ``peers``: the same pushes on what people run today, by turns with the product.

In each round every server answers a closed loop. Then each of the others takes the load that it carries as an
open loop, and so does the product.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from statistics import median
from typing import Final, Literal, NamedTuple

import msgspec

from bench.harness.environment import fresh_on_tcp
from bench.harness.load_run import Target
from bench.harness.stage import Options, product_stage
from bench.load.plan import Loop
from bench.load.workload import MIX
from bench.peers.installation import cache_of, installed
from bench.peers.stages import PEERS, Peer, counted
from bench.report.results import OFFERED, Bar, Figure, Report, Row, connected_bar, lost_bar, median_latency
from bench.report.statistics import listed, over
from bench.report.summary import audited
from storage.postgres.blocking import connected

#: The part of its throughput that a server is sent as an open loop: above it most of the latency is a queue.
CARRIED: Final = 0.8
PRODUCT: Final = "product"
#: What the criteria are about: the deployment that the product replaces, as it does best.
REPLACED: Final = ("channels", "channels-threads")
_ROUNDS: Final = 3
_DURATION_S: Final = 5.0
_WARMUP_S: Final = 2.0


class Metric(NamedTuple):
    """A figure of a row of ``loop``, and what the product's part of the other's has to be."""

    name: str
    loop: Loop
    unit: str
    value: Callable[[Row], float]
    bound: Literal["at most", "at least"] = "at most"
    limit: float | None = None


def _cpu_ms(row: Row) -> float:
    return row.cpu_ms["server"] + row.cpu_ms["postgres"]


METRICS: Final = (
    Metric("throughput", "closed", "syncs/s", lambda row: row.stored_per_s, "at least", 40),
    Metric("p95 at equal load", "open", "ms", lambda row: median_latency([row]).p95_ms, "at most", 1 / 10),
    Metric("CPU of a sync", "closed", "ms", _cpu_ms, "at most", 1 / 20),
    Metric("CPU of a sync in the server", "closed", "ms", lambda row: row.cpu_ms["server"]),
    Metric("CPU of a sync in PostgreSQL", "closed", "ms", lambda row: row.cpu_ms["postgres"]),
    Metric("CPU of a sync at equal load", "open", "ms", _cpu_ms),
    Metric("memory", "closed", "MiB", lambda row: row.rss_peak_mib or 0.0),
)
#: Rows of the product and of another server, of the same rounds, by the other's name and the loop.
Pairs = defaultdict[tuple[str, str], list[tuple[Row, Row]]]


async def peers(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    names = options.peers or tuple(PEERS)
    workers = options.workers or 1
    report = Report(
        scenario="peers",
        work=f"{options.connections:,} connections over {options.tenants} tenants, each server of {workers}"
        f" process(es), by turns: a closed loop, then an open one of {CARRIED:.0%} of what the other stored;"
        f" {MIX}",
    )
    with fresh_on_tcp(options.settings) as (environment, _):
        report.remarks.append(_durability(environment.dsn))
        async with AsyncExitStack() as stack:
            stage = product_stage(environment, options, PRODUCT, report.logged, workers)
            sides: dict[str, Target | Peer] = {PRODUCT: await stack.enter_async_context(stage)}
            for name in names:
                start, folder = PEERS[name]
                place = await installed(folder, cache_of(options.settings))
                sides[name] = await stack.enter_async_context(start(environment, options, place))
            # Compilers at run time, pools and caches: nothing is done for the first time in what counts.
            for name in sides:
                await _run(f"{name}, warm-up", name, options, sides, None)
            pairs: Pairs = defaultdict(list)
            for number in range(1, (options.rounds or _ROUNDS) + 1):
                await _round(number, options, sides, pairs, report)
    judge(report, pairs)
    return report


def _durability(dsn: str) -> str:
    """Read whether a commit waits for the disk. Raises StoreError."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version'), current_setting('fsync'),"
            " current_setting('synchronous_commit')"
        )
        ((version, fsync, commit),) = cursor.fetchall()
    return f"all store in one PostgreSQL {version} on TCP, with fsync {fsync} and synchronous_commit {commit}"


async def _round(
    number: int, options: Options, sides: dict[str, Target | Peer], pairs: Pairs, report: Report
) -> None:
    turn = 1 if number % 2 else -1
    closed = {}
    for name in list(sides)[::turn]:
        closed[name] = await _run(f"{name}, round {number}", name, options, sides, None)
        report.rows.append(closed[name])
    for name in [name for name in sides if name != PRODUCT][::turn]:
        pairs[name, "closed"].append((closed[PRODUCT], closed[name]))
        per_s = CARRIED * closed[name].stored_per_s
        opened = {}
        for label in (name, PRODUCT)[::turn]:
            title = f"{label} at the load of {name}, round {number}"
            opened[label] = await _run(title, label, options, sides, per_s)
            report.rows.append(opened[label])
        pairs[name, "open"].append((opened[PRODUCT], opened[name]))


def _settle(sides: Mapping[str, Target | Peer]) -> None:
    """Have PostgreSQL do now what earlier turns left to it, at the cost of none. Raises StoreError."""
    for side in sides.values():
        with connected(side.dsn) as connection, connection.cursor() as cursor:
            cursor.execute("VACUUM (ANALYZE)")
            cursor.execute("CHECKPOINT")


async def _run(
    name: str, label: str, options: Options, sides: Mapping[str, Target | Peer], per_s: float | None
) -> Row:
    """Send a load, closed without a rate, and count what was stored. Raises BenchError, StoreError."""
    await asyncio.to_thread(_settle, sides)
    side = sides[label]
    target = side.target if isinstance(side, Peer) else side
    loop: Loop = "closed" if per_s is None else "open"
    run, row = await audited(
        *(name, target, loop, options.connections, options.duration_s or _DURATION_S),
        per_s=per_s or 0.0,
        warmup_s=_WARMUP_S,
    )
    return msgspec.structs.replace(row, audit=counted(side, run)) if isinstance(side, Peer) else row


def _compared(metric: Metric, name: str, pairs: Pairs) -> Figure:
    found = [tuple(map(metric.value, pair)) for pair in pairs[name, metric.loop]]
    ratios = [over(our, their) for our, their in found]
    our, their = (median(side) for side in zip(*found, strict=True))
    beside = f"{our:,.4g} over {their:,.4g} {metric.unit}; {listed(ratios, 1 if median(ratios) > 1 else 3)}"
    return Figure(f"{metric.name}, product over {name}", median(ratios), "times", beside)


def judge(report: Report, pairs: Pairs) -> None:
    """Add the ratio of each metric to each of the others, and the criteria."""
    names = list(dict.fromkeys(name for name, _ in pairs))
    for name in names:
        part = min(their.stored_per_s / (their.wanted_per_s or 1) for _, their in pairs[name, "open"])
        report.bars.append(Bar(f"part of its load that {name} stored", part, "at least", OFFERED, ""))
        report.figures += [_compared(metric, name, pairs) for metric in METRICS]
    for metric in METRICS:
        found = [_compared(metric, name, pairs) for name in names if name in REPLACED]
        if metric.limit is not None and found:
            # The better of them is the one that the product surpasses by less.
            least = min if metric.bound == "at least" else max
            one = least(found, key=lambda figure: figure.value or 0.0)
            report.bars.append(Bar(one.name, one.value, metric.bound, metric.limit, "times", one.beside))
    report.bars += [connected_bar(report.rows), lost_bar(report.rows)]
