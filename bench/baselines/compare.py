"""The product against limit (c), the simplest durable pipeline, by turns on one PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import median
from typing import Final, Literal

import msgspec

from bench.harness.audit import Auditor
from bench.harness.drive import Target, drive
from bench.harness.environment import Ground
from bench.harness.stage import Options, Stage, bare_stage
from bench.report.results import Figure, Row, row_of

WARMUP_S: Final = 1.5

#: Syncs a second of (c) on a 2-core machine with nothing else to do, by connections.
TABLE_C: Final = {1: 1_200, 100: 17_300, 1_000: 16_400}
#: Below this share of the table, (c) was held back, and with it what is measured against it.
FAIR: Final = 0.9


class Turn(msgspec.Struct, frozen=True):
    """One run of one side."""

    side: Literal["c", "product"]
    connections: int
    row: Row


@asynccontextmanager
async def limit_c(ground: Ground, options: Options) -> AsyncIterator[Target]:
    """Run (c) on a database of its own. Raises BenchError, StoreError."""
    dsn = ground.database("limit_c", migrated=False)
    async with bare_stage(ground, options, "bench.baselines.simplest_pipeline", dsn) as target:
        yield target


async def duel(
    stage: Stage, rival: Target, sizes: Sequence[int], rounds: int, duration_s: float
) -> list[Turn]:
    """Let both sides answer a closed loop at each number of connections; who begins changes by round."""
    turns: list[Turn] = []
    for number in range(1, rounds + 1):
        for connections in sizes:
            sides: list[Literal["c", "product"]] = ["c", "product"]
            for side in sides if number % 2 else reversed(sides):
                name = f"{side} at {connections}, round {number}"
                target = rival if side == "c" else stage.target
                auditor = Auditor(stage.dsn) if side == "product" else None
                run = await drive(name, target, "closed", connections, duration_s, warmup_s=WARMUP_S)
                found = None if auditor is None else auditor.audit(run)
                turns.append(Turn(side, connections, row_of(run, found)))
    return turns


def figures(turns: Sequence[Turn]) -> list[Figure]:
    """Sum up a duel: both sides' medians, and the median of the product's ratios of (c), round by round."""
    found: list[Figure] = []
    for connections in dict.fromkeys(turn.connections for turn in turns):
        rivals, ours = _rates(turns, "c", connections), _rates(turns, "product", connections)
        ratios = [our / rival for our, rival in zip(ours, rivals, strict=True)]
        rival = median(rivals)
        table = TABLE_C.get(connections)
        beside = f"{rival / table:.2f} of {table:,}/s" if table else ""
        cpu = _cpu_ms(turns, "product", connections), _cpu_ms(turns, "c", connections)
        found += [
            Figure(f"(c) simplest durable pipeline at {connections}", rival, "syncs/s", beside),
            Figure(f"product at {connections}", median(ours), "syncs/s"),
            Figure(
                f"product as a ratio of (c) at {connections}",
                median(ratios),
                "",
                f"by rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
            ),
            Figure(
                f"CPU of a sync, (c) over product, at {connections}",
                cpu[1] / cpu[0],
                "",
                f"server and PostgreSQL: {cpu[1]:.3f} ms over {cpu[0]:.3f} ms",
            ),
        ]
    return found


def remarks(turns: Sequence[Turn]) -> list[str]:
    """Say where (c) itself was too slow to be a measure."""
    said: list[str] = []
    for connections, table in TABLE_C.items():
        rates = _rates(turns, "c", connections)
        if rates and median(rates) < FAIR * table:
            said.append(
                f"(c) itself reached {median(rates):,.0f} syncs/s at {connections}, below {FAIR}"
                f" of {table:,}: this machine was busy or is slow, and only the ratio tells of the product"
            )
    return said


def _cpu_ms(turns: Sequence[Turn], side: str, connections: int) -> float:
    """Median of what the server and PostgreSQL use for a sync; less moved by other work than the rate is."""
    return median(
        turn.row.cpu_ms["server"] + turn.row.cpu_ms["postgres"]
        for turn in turns
        if turn.side == side and turn.connections == connections
    )


def _rates(turns: Sequence[Turn], side: str, connections: int) -> list[float]:
    """Give a side's rate of each round."""
    return [turn.row.syncs_per_s for turn in turns if turn.side == side and turn.connections == connections]
