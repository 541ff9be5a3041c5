"""The figures and bars of ``uploads``."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from bench.harness.meter import Usage
from bench.report.results import Bar, Figure, Report, Row, Transfer, lost_bar, median_latency
from bench.report.statistics import latency_of, listed
from bench.report.summary import MIB
from bench.uploads.plan import Transferred

PLAIN: Final = "a"
PRODUCT: Final = "product"
TUS: Final = "b"

#: How near the product comes to a server that only writes and waits for the disk.
PLAIN_RATIO: Final = 0.7
#: How much more memory than idle the product takes.
GROWN_MIB: Final = 100.0
#: How much slower a sync may get beside uploads.
SYNC_RATIO: Final = 2.0


def transfer_of(name: str, came: Transferred, spent: Usage, *, others: bool = True) -> Transfer:
    """Sum up a run; ``others`` says whether what else was busy is to be known."""
    elapsed_s = came.elapsed_s
    cpus = {tree: used_ms / 1000 / elapsed_s for tree, used_ms in spent.cpu_ms.items()}
    cpus = {"client": came.cpu_ms / 1000 / elapsed_s, **cpus}
    busy = spent.machine_cpu_ms / 1000 / elapsed_s
    return Transfer(
        name=name,
        begun=came.begun,
        whole=came.whole,
        chunks=came.chunks,
        elapsed_s=elapsed_s,
        mb_per_s=came.sent_bytes / elapsed_s / 1e6,
        download_mb_per_s=came.sent_bytes / came.download_s / 1e6,
        chunk=latency_of(came.chunk_us),
        retries=came.retries,
        cpus=cpus,
        other_cpus=max(0.0, busy - sum(cpus.values())) if others else None,
        rss_peak_mib=(spent.rss_peak_bytes or 0) / MIB,
        fault_count=came.fault_count,
        faults=came.faults,
    )


class Sides(dict[str, list[Transfer]]):
    """Each side's runs, round by round."""

    def __init__(self) -> None:
        super().__init__({PLAIN: [], PRODUCT: [], TUS: []})


def judge(
    report: Report,
    sides: Sides,
    idle_mib: float,
    alone: Sequence[Row],
    beside: Sequence[Row],
    goes_on: Sequence[Transfer],
) -> None:
    """Add figures and bars to a report: of the turns, and of syncs alone and beside uploads that go on."""
    for side, what in (
        (PLAIN, "(a) plain aiohttp, each chunk on the disk"),
        (PRODUCT, "product"),
        (TUS, "(b) @tus/server, which does not wait for the disk"),
    ):
        rates = [turn.mb_per_s for turn in sides[side]]
        costs = [_cpu_ms(turn) for turn in sides[side]]
        report.figures += [
            Figure(what, median(rates), "MB/s", listed(rates, 0)),
            Figure(f"CPU of a MB, {side}", median(costs), "ms", listed(costs, 1)),
        ]
    over_plain, over_tus = _ratios(sides, PLAIN), _ratios(sides, TUS)
    ours = [*sides[PRODUCT], *goes_on]
    peak_mib = max(turn.rss_peak_mib for turn in sides[PRODUCT])
    without, with_uploads = median_latency(alone), median_latency(beside)
    report.figures += [
        Figure("product as a ratio of (a)", median(over_plain), "", listed(over_plain)),
        Figure("product as a ratio of (b)", median(over_tus), "", listed(over_tus)),
        Figure("server when idle", idle_mib, "MiB", f"{peak_mib:.0f} MiB at most over uploads"),
        Figure("p95 of a sync without uploads", without.p95_ms, "ms"),
        Figure(
            "p95 of a sync beside uploads",
            with_uploads.p95_ms,
            "ms",
            f"{median(turn.mb_per_s for turn in goes_on):.1f} MB/s in that time",
        ),
    ]
    rows = [*alone, *beside]
    whole = 100 * sum(turn.whole for turn in ours) / sum(turn.begun for turn in ours)
    report.bars += [
        Bar("uploads whole, every chunk and file verified", whole, "at least", 100, "%"),
        Bar("faults of any side", sum(turn.fault_count for turn in report.transfers), "at most", 0, ""),
        Bar("product over (a), by rounds", median(over_plain), "at least", PLAIN_RATIO, "times"),
        Bar("product over (b), by rounds", median(over_tus), "at least", 1, "times"),
        Bar("memory over uploads, more than idle", peak_mib - idle_mib, "at most", GROWN_MIB, "MiB"),
        lost_bar(rows),
        Bar(
            "p95 of a sync beside uploads, over without",
            with_uploads.p95_ms / without.p95_ms,
            "at most",
            SYNC_RATIO,
            "times",
        ),
    ]


def _cpu_ms(turn: Transfer) -> float:
    """Return the CPU time of a MB in server and PostgreSQL, which other work on the machine moves less."""
    return 1000 * (sum(turn.cpus.values()) - turn.cpus["client"]) / turn.mb_per_s


def _ratios(sides: Sides, other: str) -> list[float]:
    """Return the product's rate over another side's, round by round."""
    return [our.mb_per_s / their.mb_per_s for our, their in zip(sides[PRODUCT], sides[other], strict=True)]
