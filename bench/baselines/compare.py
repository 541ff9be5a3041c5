"""The product against limit (c), the simplest durable pipeline, by turns on one PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from statistics import median
from typing import Final

from bench.harness.environment import Environment
from bench.harness.load_run import Target
from bench.harness.stage import Options, bare_stage
from bench.report.results import Figure, Report, Row
from bench.report.statistics import listed
from bench.report.summary import audited

#: Syncs a second of (c) on a 2-core machine with nothing else to do, by connections.
TABLE_C: Final = {1: 1_200, 100: 17_300, 1_000: 16_400}
#: Below this share of the table, (c) was held back, and with it what is measured against it.
FAIR: Final = 0.9
#: CPU time is counted in ticks of 10 ms, so a short run may show none.
LEAST_MS: Final = 1e-6


def simplest_pipeline(environment: Environment, options: Options) -> AbstractAsyncContextManager[Target]:
    """Run (c) on a database of its own. Raises BenchError, StoreError."""
    dsn = environment.database("limit_c", migrated=False)
    return bare_stage(environment, options, "bench.baselines.simplest_pipeline", dsn)


async def by_turns(
    report: Report, ours: Target, rival: Target, sizes: Sequence[int], rounds: int, duration_s: float
) -> None:
    """Let both sides answer a closed loop at each number of connections, and add to a report what they did.

    Who begins changes by round.
    """
    found: dict[int, dict[str, list[Row]]] = {size: {"c": [], "product": []} for size in sizes}
    sides = [("c", rival), ("product", ours)]
    for number in range(1, rounds + 1):
        for size in sizes:
            for side, target in sides if number % 2 else reversed(sides):
                _, row = await audited(
                    f"{side} at {size}, round {number}", target, "closed", size, duration_s
                )
                found[size][side].append(row)
                report.rows.append(row)
    for size in sizes:
        sum_up(report, size, found[size]["c"], found[size]["product"])


def sum_up(report: Report, connections: int, theirs: Sequence[Row], ours: Sequence[Row]) -> None:
    """Add both sides' medians, the product's ratio of (c) by rounds, and a remark where (c) was held back."""
    ratios = [our.stored_per_s / their.stored_per_s for our, their in zip(ours, theirs, strict=True)]
    rate = median(row.stored_per_s for row in theirs)
    # CPU of server and PostgreSQL, which other work on the machine moves less than the rate.
    their_ms, our_ms = (
        median(row.cpu_ms["server"] + row.cpu_ms["postgres"] for row in rows) for rows in (theirs, ours)
    )
    expected = TABLE_C.get(connections)
    beside = f"{rate / expected:.2f} of {expected:,}/s" if expected else ""
    costs = f"server and PostgreSQL: {their_ms:.3f} ms over {our_ms:.3f} ms"
    cost = their_ms / max(our_ms, LEAST_MS)
    report.figures += [
        Figure(f"(c) simplest durable pipeline at {connections}", rate, "syncs/s", beside),
        Figure(f"product at {connections}", median(row.stored_per_s for row in ours), "syncs/s"),
        Figure(f"product as a ratio of (c) at {connections}", median(ratios), "", listed(ratios)),
        Figure(f"CPU of a sync, (c) over product, at {connections}", cost, "", costs),
    ]
    if expected and rate < FAIR * expected:
        report.remarks.append(
            f"(c) itself reached {rate:,.0f} syncs/s at {connections}, below {FAIR} of {expected:,}: this"
            " machine was busy or is slow, and only the ratio tells of the product"
        )
