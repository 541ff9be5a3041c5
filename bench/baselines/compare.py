"""The product against limit (c), the simplest durable pipeline, by turns on one PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from statistics import median
from typing import Final, Literal

import msgspec

from bench.harness.environment import Environment
from bench.harness.load_run import Target
from bench.harness.stage import Options, bare_stage
from bench.report.results import Figure, Row
from bench.report.statistics import listed
from bench.report.summary import audited

#: Syncs a second of (c) on a 2-core machine with nothing else to do, by connections.
TABLE_C: Final = {1: 1_200, 100: 17_300, 1_000: 16_400}
#: Below this share of the table, (c) was held back, and with it what is measured against it.
FAIR: Final = 0.9
#: CPU time is counted in ticks of 10 ms, so a short run may show none.
LEAST_MS: Final = 1e-6


class Turn(msgspec.Struct, frozen=True):
    """One run of one side."""

    side: Literal["c", "product"]
    connections: int
    row: Row


def simplest_pipeline(environment: Environment, options: Options) -> AbstractAsyncContextManager[Target]:
    """Run (c) on a database of its own. Raises BenchError, StoreError."""
    dsn = environment.database("limit_c", migrated=False)
    return bare_stage(environment, options, "bench.baselines.simplest_pipeline", dsn)


async def by_turns(
    ours: Target, rival: Target, sizes: Sequence[int], rounds: int, duration_s: float
) -> list[Turn]:
    """Let both sides answer a closed loop at each number of connections; who begins changes by round."""
    turns: list[Turn] = []
    for number in range(1, rounds + 1):
        for connections in sizes:
            sides: list[Literal["c", "product"]] = ["c", "product"]
            for side in sides if number % 2 else reversed(sides):
                name = f"{side} at {connections}, round {number}"
                target = rival if side == "c" else ours
                _, row = await audited(name, target, "closed", connections, duration_s)
                turns.append(Turn(side, connections, row))
    return turns


def figures(turns: Sequence[Turn]) -> list[Figure]:
    """Sum up the turns: both sides' medians, and the median over rounds of the product's ratio of (c)."""
    found: list[Figure] = []
    for connections in dict.fromkeys(turn.connections for turn in turns):
        theirs, ours = (_rows(turns, side, connections) for side in ("c", "product"))
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
        found += [
            Figure(f"(c) simplest durable pipeline at {connections}", rate, "syncs/s", beside),
            Figure(f"product at {connections}", median(row.stored_per_s for row in ours), "syncs/s"),
            Figure(f"product as a ratio of (c) at {connections}", median(ratios), "", listed(ratios)),
            Figure(f"CPU of a sync, (c) over product, at {connections}", cost, "", costs),
        ]
    return found


def remarks(turns: Sequence[Turn]) -> list[str]:
    """Name the numbers of connections where (c) itself was too slow to be a measure."""
    found = {size: [row.stored_per_s for row in _rows(turns, "c", size)] for size in TABLE_C}
    return [
        f"(c) itself reached {median(rates):,.0f} syncs/s at {size}, below {FAIR} of {TABLE_C[size]:,}: this"
        " machine was busy or is slow, and only the ratio tells of the product"
        for size, rates in found.items()
        if rates and median(rates) < FAIR * TABLE_C[size]
    ]


def _rows(turns: Sequence[Turn], side: str, connections: int) -> list[Row]:
    return [turn.row for turn in turns if turn.side == side and turn.connections == connections]
