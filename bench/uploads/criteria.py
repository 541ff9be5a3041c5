"""The figures and bars of ``uploads``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from bench.report.results import Bar, Figure, Report, Row, Transfer, lost_bar, median_latency
from bench.report.statistics import listed

PLAIN: Final = "a"
PRODUCT: Final = "product"
TUS: Final = "b"
_WHAT: Final = {
    PLAIN: "(a) plain aiohttp, each chunk on the disk",
    PRODUCT: "product",
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
    """Add figures and bars to a report: of the turns, and of syncs alone and beside uploads that go on."""
    rates = {side: [turn.mb_per_s for turn in turns] for side, turns in sides.items()}
    for side, turns in sides.items():
        costs = [_cpu_ms(turn) for turn in turns]
        report.figures += [
            Figure(_WHAT[side], median(rates[side]), "MB/s", listed(rates[side], 0)),
            Figure(f"CPU of a MB, {side}", median(costs), "ms", listed(costs, 1)),
        ]
    over_plain, over_tus = (
        [our / their for our, their in zip(rates[PRODUCT], rates[other], strict=True)]
        for other in (PLAIN, TUS)
    )
    ours = [*sides[PRODUCT], *goes_on]
    whole = 100 * sum(turn.whole for turn in ours) / sum(turn.begun for turn in ours)
    faults = sum(turn.fault_count for turn in report.transfers)
    peak_mib = max(turn.rss_peak_mib for turn in sides[PRODUCT])
    grown_mib = peak_mib - idle_mib
    without_ms, with_ms = (median_latency(rows).p95_ms for rows in (alone, beside))
    in_that_time = f"{median(turn.mb_per_s for turn in goes_on):.1f} MB/s in that time"
    report.figures += [
        Figure("product as a ratio of (a)", median(over_plain), "", listed(over_plain)),
        Figure("product as a ratio of (b)", median(over_tus), "", listed(over_tus)),
        Figure("server when idle", idle_mib, "MiB", f"{peak_mib:.0f} MiB at most over uploads"),
        Figure("p95 of a sync without uploads", without_ms, "ms"),
        Figure("p95 of a sync beside uploads", with_ms, "ms", in_that_time),
    ]
    slower = with_ms / without_ms
    report.bars += [
        Bar("uploads whole, every chunk and file verified", whole, "at least", 100, "%"),
        Bar("faults of any side", faults, "at most", 0, ""),
        Bar("product over (a), by rounds", median(over_plain), "at least", PLAIN_RATIO, "times"),
        Bar("product over (b), by rounds", median(over_tus), "at least", 1, "times"),
        Bar("memory over uploads, more than idle", grown_mib, "at most", GROWN_MIB, "MiB"),
        lost_bar([*alone, *beside]),
        Bar("p95 of a sync beside uploads, over without", slower, "at most", SYNC_RATIO, "times"),
    ]


def _cpu_ms(turn: Transfer) -> float:
    """Return the CPU time of a MB in server and PostgreSQL, which other work on the machine moves less."""
    return 1000 * (sum(turn.cpus.values()) - turn.cpus["client"]) / turn.mb_per_s
