"""Scenario ``scaling``: what several workers give on one machine, and what they cost.

All servers run at the same time on databases of their own in one PostgreSQL, and are loaded by turns, so that
a machine that gets slower is slower for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from statistics import median
from typing import Final

import msgspec

from bench.baselines.compare import LEAST_MS
from bench.harness.environment import BenchError, fresh
from bench.harness.stage import Options, product_stage
from bench.load.plan import Loop
from bench.load.workload import MIX
from bench.report.results import Bar, Figure, Report, Row, connected_bar, lost_bar, median_latency
from bench.report.statistics import over
from bench.report.summary import audited

DURATION_S: Final = 5.0
_ROUNDS: Final = 3

#: So many workers that any lock that they all wait for in turn shows.
MANY: Final = 8
#: What two workers must give of one, at saturation.
TWO_RATIO: Final = 1.0
#: How much slower two workers may be at a rate that one takes with ease.
P95_RATIO: Final = 1.1
#: What one tenant whose devices are on both workers must reach of as many devices over many tenants.
HOT_RATIO: Final = 0.8
#: What many workers over the same tenants must reach of two.
MANY_RATIO: Final = 0.7

_CORES: Final = (4, 8, 16)
_SATURATED_1, _SATURATED_2 = "1 worker saturated", "2 workers saturated"
_OPEN_1, _OPEN_2 = "1 worker", "2 workers"
_HOT: Final = "2 workers, one tenant"
_CONVOY: Final = f"{MANY} workers saturated"


class Turn(msgspec.Struct, frozen=True):
    """A load that comes once a round."""

    name: str
    workers: int
    loop: Loop
    hot: bool = False


TURNS: Final = (
    Turn(_SATURATED_1, 1, "closed"),
    Turn(_SATURATED_2, 2, "closed"),
    Turn(_HOT, 2, "closed", hot=True),
    Turn(_CONVOY, MANY, "closed"),
    Turn(_OPEN_1, 1, "open"),
    Turn(_OPEN_2, 2, "open"),
)
#: What the rate of one turn must be of another's.
_RATIOS: Final = (
    ("2 workers over 1, saturated", _SATURATED_2, _SATURATED_1, TWO_RATIO),
    ("one tenant on 2 workers, over many tenants", _HOT, _SATURATED_2, HOT_RATIO),
    (f"{MANY} workers over 2, saturated", _CONVOY, _SATURATED_2, MANY_RATIO),
)


async def scaling(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    if options.workers is not None:
        raise BenchError("scaling starts servers of one, two and more workers: leave --workers out")
    report = Report(
        scenario="scaling",
        work=f"{options.connections:,} connections over {options.tenants} tenants, spread evenly over the"
        f" workers; closed loops, and open ones of {options.rate_per_s:g} syncs/s; {MIX}",
    )
    rows: dict[str, list[Row]] = {turn.name: [] for turn in TURNS}
    with fresh(options.settings) as environment:
        async with AsyncExitStack() as stack:
            targets = {
                workers: await stack.enter_async_context(
                    product_stage(environment, options, f"workers_{workers}", report.logged, workers)
                )
                for workers in (1, 2, MANY)
            }
            for number in range(1, (options.rounds or _ROUNDS) + 1):
                for turn in TURNS if number % 2 else reversed(TURNS):
                    target = targets[turn.workers]
                    if turn.hot:
                        target = msgspec.structs.replace(target, tenants=target.tenants[:1])
                    _, row = await audited(
                        *(f"{turn.name}, round {number}", target, turn.loop, options.connections),
                        options.duration_s or DURATION_S,
                        per_s=options.rate_per_s,
                    )
                    rows[turn.name].append(row)
                    report.rows.append(row)
    judge(report, rows, options.rate_per_s)
    return report


def judge(report: Report, rows: Mapping[str, Sequence[Row]], rate_per_s: float) -> None:
    """Add figures, bars and remarks to a report, of the rows by the turns' names."""
    rates = {name: median(row.stored_per_s for row in of_turn) for name, of_turn in rows.items()}
    for name in (_SATURATED_1, _SATURATED_2, _HOT, _CONVOY):
        report.figures.append(Figure(name, rates[name], "syncs/s", _costs(rows[name])))
    p95_ms = {name: median_latency(rows[name]).p95_ms for name in (_OPEN_1, _OPEN_2)}
    report.figures += [
        Figure(f"p95 of {name} at {rate_per_s:g} syncs/s", took_ms, "ms", _costs(rows[name]))
        for name, took_ms in p95_ms.items()
    ]
    every = [row for of_turn in rows.values() for row in of_turn]
    report.bars += [connected_bar(every), lost_bar(every)]
    report.bars += [
        Bar(what, rates[name] / rates[other], "at least", ratio, "times")
        for what, name, other, ratio in _RATIOS
    ]
    slower = over(p95_ms[_OPEN_2], p95_ms[_OPEN_1])
    report.bars.append(Bar("p95 of 2 workers, over 1", slower, "at most", P95_RATIO, "times"))
    _predict(report, rows)


def cost_ms(rows: Sequence[Row], tree: str) -> float:
    """Return the median CPU time of a sync in a process tree, in milliseconds.

    It is never 0, as the meter tells it if a process had no turn in a short run.
    """
    return max(median(row.cpu_ms[tree] for row in rows), LEAST_MS)


def _costs(rows: Sequence[Row]) -> str:
    server, postgres = cost_ms(rows, "server"), cost_ms(rows, "postgres")
    return f"CPU of a sync: server {server:.3f} ms, PostgreSQL {postgres:.3f} ms"


def _predict(report: Report, rows: Mapping[str, Sequence[Row]]) -> None:
    """Compute the bound that the CPU time of a sync sets on more cores; it is no measurement."""
    some, many = rows[_SATURATED_2], rows[_CONVOY]
    server_ms, postgres_ms = cost_ms(some, "server"), cost_ms(some, "postgres")
    dear_ms = cost_ms(many, "server") + cost_ms(many, "postgres")
    for cores in _CORES:
        name = f"bound by CPU on {cores} cores, generator elsewhere"
        beside = f"{cores * 1000 / dear_ms:,.0f} at the CPU that a sync takes with {MANY} workers"
        report.figures.append(Figure(name, cores * 1000 / (server_ms + postgres_ms), "syncs/s", beside))
    report.figures.append(Figure("bound of one worker by its core", 1000 / server_ms, "syncs/s"))
    limit = "the workers" if server_ms > postgres_ms else "PostgreSQL's processes"
    report.remarks += [
        (
            f"{report.machine.cpus} cores were shared by generator, workers and PostgreSQL: more workers than"
            " one can win here only what one process leaves idle; bounds by CPU are computed, not measured,"
            " and take commits, locks and the disk for free"
        ),
        (
            f"of {server_ms + postgres_ms:.3f} ms CPU that a sync takes with 2 workers {limit} take the most:"
            f" with {postgres_ms / server_ms:.1f} cores of PostgreSQL for each worker's core both are full at"
            " once, and from there on the limit is PostgreSQL, which more workers do not move"
        ),
    ]
