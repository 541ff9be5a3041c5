"""``run.py bench --compare``: this version beside another one, by turns, and whether it is better or worse.

The other version is a commit, whose server is started from its own files with its own migrations, or what the
report of an earlier comparison has of the version that was this one then.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from bench.baselines.compare import LEAST_MS
from bench.harness.environment import BenchError, fresh
from bench.harness.load_run import Target, run_tasks
from bench.harness.product import HERE, checked_out
from bench.harness.stage import Options, product_stage
from bench.load.plan import Loop
from bench.load.workload import MIX
from bench.report.results import Bar, Figure, Report, Row, lost_bar
from bench.report.statistics import ratio_of
from bench.report.summary import row_of
from bench.report.written import reports_of

DURATION_S: Final = 5.0
_ROUNDS: Final = 10
_LOOPS: Final[tuple[Loop, ...]] = ("closed", "open")
NOW, BEFORE = "now", "before"


def _cpu_ms(row: Row) -> float:
    return max(row.cpu_ms["server"] + row.cpu_ms["postgres"], LEAST_MS)


#: Name, unit, loop that it is measured in, whether more is better, and where a row has it.
_METRICS: Final[tuple[tuple[str, str, Loop, bool, Callable[[Row], float]], ...]] = (
    ("throughput", "syncs/s", "closed", True, lambda row: row.stored_per_s),
    ("CPU of a sync", "ms", "closed", False, _cpu_ms),
    ("p95", "ms", "open", False, lambda row: row.latency.p95_ms),
)


async def compare(options: Options) -> Report:
    """Run the comparison. Raises BenchError, EmbeddedError, StoreError."""
    assert options.compare is not None
    report = Report(
        scenario="compare",
        work=f"this version beside {options.compare}, by turns: {options.connections:,} connections over"
        f" {options.tenants} tenants, a closed loop and an open one of {options.rate_per_s:g} syncs/s; {MIX}",
    )
    earlier = rows_of(Path(options.compare))
    with fresh(options.settings) as environment:
        async with AsyncExitStack() as stack:
            versions = {NOW: HERE}
            if not earlier:
                tree = environment.home / "before"
                versions[BEFORE] = await asyncio.to_thread(checked_out, options.compare, tree)
            targets: dict[str, Target] = {}
            for name, version in versions.items():
                logged = report.logged if name == NOW else {}
                stage = product_stage(environment, options, name, logged, version=version)
                targets[name] = await stack.enter_async_context(stage)
            for number in range(1, (options.rounds or _ROUNDS) + 1):
                for name, target in targets.items() if number % 2 else reversed(targets.items()):
                    for loop in _LOOPS:
                        run = await run_tasks(
                            *(f"{name}, {loop}, round {number}", target, loop, options.connections),
                            options.duration_s or DURATION_S,
                            per_s=options.rate_per_s,
                        )
                        report.rows.append(row_of(run))
    judge(report, report.rows + earlier, options.margin, paired=not earlier)
    return report


def rows_of(file: Path) -> list[Row]:
    """Read rows of an earlier comparison as those of the version before, if it is one. Raises BenchError."""
    reports = reports_of(file)
    rows = [row for one in reports or () for row in one.rows if row.name.startswith(f"{NOW}, ")]
    if reports is not None and not rows:
        raise BenchError(
            f"--compare {file}: no comparison is in it: make it with --compare COMMIT --json FILE"
        )
    return [msgspec.structs.replace(row, name=BEFORE + row.name.removeprefix(NOW)) for row in rows]


def judge(report: Report, rows: Sequence[Row], margin: float, *, paired: bool) -> None:
    """Add the figures and bars: each metric is not worse past the margin."""
    sides: defaultdict[tuple[str, Loop], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: int(row.name.rpartition(" ")[2])):
        sides[row.name.partition(",")[0], row.loop].append(row)
    for name, unit, loop, rate, value in _METRICS:
        before, now = ([value(row) for row in sides[side, loop]] for side in (BEFORE, NOW))
        ratio = ratio_of(before, now, rate=rate, paired=paired)
        verdict = ratio.verdict(margin)
        old, new = (sorted(values)[len(values) // 2] for values in (before, now))
        beside = f"{old:,.0f} over {new:,.0f} {unit}" if rate else f"{new:,.3f} over {old:,.3f} {unit}"
        report.figures.append(Figure(f"cost by {name}, now over before", ratio.value, "times", beside))
        told = f"{verdict}, {ratio.told(margin)}"
        report.bars.append(Bar(f"{name} is not worse", float(verdict != "worse"), "at least", 1, "", told))
    report.bars.append(lost_bar(report.rows))
    report.remarks.append(f"worse is a cost of more than {1 + margin:g} times with an interval above 1")
