"""The figures and bars of ``uploads``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from bench.report.results import Bar, Figure, Report, Row, Transfer, lost_bar, median_latency
from bench.report.statistics import listed, over

PLAIN: Final = "a"
PRODUCT: Final = "product"
TUS: Final = "b"
_WHAT: Final = {
    PLAIN: "(a) plain aiohttp, each chunk on the disk",
    PRODUCT: "product, every chunk with its checksum",
    TUS: "(b) @tus/server, which does not wait for the disk",
}

#: How near the product comes to a server that only writes and waits for the disk.
PLAIN_RATIO: Final = 0.7
#: How much more memory than idle the product takes.
GROWN_MIB: Final = 100.0
#: How much slower a sync may get beside uploads.
SYNC_RATIO: Final = 2.0


def judge(
    report: Report,
    sides: Mapping[str, Sequence[Transfer]],
    idle_mib: float,
    alone: Sequence[Row],
    beside: Sequence[Row],
    goes_on: Sequence[Transfer],
) -> None:
    """Add figures and bars to a report: of the turns, and of syncs alone and beside uploads that go on.

    The other sides, and the syncs, may be left out.
    """
    rates = {side: [turn.mb_per_s for turn in turns] for side, turns in sides.items()}
    for side, turns in sides.items():
        costs = [_cpu_ms(turn) for turn in turns]
        report.figures += [
            Figure(_WHAT[side], median(rates[side]), "MB/s", listed(rates[side], 0)),
            Figure(f"CPU of a MB, {side}", median(costs), "ms", listed(costs, 1)),
        ]
    ours = [*sides[PRODUCT], *goes_on]
    whole = 100 * sum(turn.whole for turn in ours) / sum(turn.begun for turn in ours)
    begun = f"of {sum(turn.begun for turn in ours):,}"
    faults = sum(turn.fault_count for turn in report.transfers)
    peak_mib = max(turn.rss_peak_mib for turn in sides[PRODUCT])
    report.figures.append(
        Figure("server when idle", idle_mib, "MiB", f"{peak_mib:.0f} MiB at most over uploads")
    )
    report.bars += [
        Bar("uploads whole, every chunk and file verified", whole, "at least", 100, "%", begun, must=True),
        Bar("faults of any side", faults, "at most", 0, "", must=True),
        Bar("memory over uploads, more than idle", peak_mib - idle_mib, "at most", GROWN_MIB, "MiB"),
    ]
    for other, least in ((PLAIN, PLAIN_RATIO), (TUS, 1)):
        if other in sides:
            ratios = [our / their for our, their in zip(rates[PRODUCT], rates[other], strict=True)]
            report.figures.append(
                Figure(f"product as a ratio of ({other})", median(ratios), "", listed(ratios))
            )
            name = f"product over ({other}), by rounds"
            report.bars.append(Bar(name, median(ratios), "at least", least, "times"))
    if beside:
        _judge_syncs(report, alone, beside, goes_on)


def _judge_syncs(
    report: Report, alone: Sequence[Row], beside: Sequence[Row], goes_on: Sequence[Transfer]
) -> None:
    without_ms, with_ms = (median_latency(rows).p95_ms for rows in (alone, beside))
    slower = over(with_ms, without_ms)
    in_that_time = f"{median(turn.mb_per_s for turn in goes_on):.1f} MB/s in that time"
    report.figures += [
        Figure("p95 of a sync without uploads", without_ms, "ms"),
        Figure("p95 of a sync beside uploads", with_ms, "ms", in_that_time),
    ]
    report.bars += [
        lost_bar([*alone, *beside]),
        Bar("p95 of a sync beside uploads, over without", slower, "at most", SYNC_RATIO, "times"),
    ]


def _cpu_ms(turn: Transfer) -> float:
    """Return the CPU time of a MB in server and PostgreSQL, which other work on the machine moves less."""
    return 1000 * (sum(turn.cpus.values()) - turn.cpus["client"]) / turn.mb_per_s
