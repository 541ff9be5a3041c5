"""What the figures of ``overload`` are held against."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

from bench.overload.drive import Loaded
from bench.overload.summary import back_to_normal_s
from bench.report.results import OFFERED, Bar, Figure, Load, Report, median_of

CAPACITY: Final = "capacity"
BEFORE: Final = "normal before"
AFTER: Final = "normal after"
QUIET_ALONE: Final = "quiet alone"
QUIET_BESIDE: Final = "quiet beside"

#: From so much more stored at some load than in the closed loop on, capacity was taken too low.
MORE_RATIO: Final = 1.1
#: How much of its capacity the server still stores at the highest load.
GOODPUT_RATIO: Final = 0.8
#: How soon whoever is refused knows.
REFUSAL_P99_MS: Final = 50.0
#: How much more memory than at capacity the highest load takes.
MEMORY_RATIO: Final = 2.0
BACK_TO_NORMAL_S: Final = 2.0
#: How much slower a quiet tenant may get beside another one's flood.
QUIET_RATIO: Final = 2.0


def oddities(run: Loaded) -> list[str]:
    """Say what of a run was neither stored nor refused, and whom the server sent away."""
    happened, name = run.happened, run.plan.steps[-1].name
    sentences = []
    silent = sum(
        sent_us >= 0 and not code for sent_us, code in zip(happened.sent_us, happened.code, strict=True)
    )
    if silent:
        sentences.append(f"run of {name}: {silent:,} syncs were never answered")
    if happened.ended:
        counts = ", ".join(f"{what} {count}" for what, count in sorted(happened.ended.items()))
        sentences.append(f"run of {name}: said without being asked: {counts}")
    return sentences


def judge(report: Report) -> None:
    """Add figures and bars to a report that has its loads, windows and remarks."""
    ladder = [load for load in report.loads if load.times is not None]
    short = [load for load in report.loads if not load.offered]
    report.remarks += [
        f"{load.name}: {load.offered_per_s:,.0f} of {load.wanted_per_s:,.0f} syncs/s were really offered:"
        " the row does not count as measured"
        for load in short
    ]
    least = min((load.offered_per_s / load.wanted_per_s for load in ladder if load.wanted_per_s), default=0.0)
    report.bars.append(Bar("of each load at least offered", 100 * least, "at least", 100 * OFFERED, "%"))
    _capacity(report)
    top = ladder[-1]
    report.figures.append(Figure(f"generator's CPU for one sync at {top.name}", top.frame_us, "µs"))
    if top.offered:
        _top(report, ladder, top)
    _quiet(report)


def _named(report: Report, name: str) -> list[Load]:
    return [load for load in report.loads if load.name.startswith(name)]


def _capacity(report: Report) -> None:
    before, after = _named(report, CAPACITY)
    report.figures.append(
        Figure("capacity", before.stored_per_s, "syncs/s", f"{after.stored_per_s:,.0f}/s at the end")
    )
    ladder = [load for load in report.loads if load.times is not None]
    most = max(ladder, key=lambda load: load.stored_per_s)
    if most.stored_per_s > MORE_RATIO * before.stored_per_s:
        report.remarks.append(
            f"{most.name}: {most.stored_per_s:,.0f}/s were stored, so capacity was taken too low,"
            " as is every load"
        )


def _top(report: Report, ladder: Sequence[Load], top: Load) -> None:
    capacity, at_capacity = _named(report, CAPACITY)[0], next(load for load in ladder if load.times == 1)
    report.bars.append(
        Bar(
            f"stored at {top.name} capacity, over capacity",
            top.stored_per_s / capacity.stored_per_s,
            "at least",
            GOODPUT_RATIO,
            "times",
        )
    )
    if top.refused_per_s:
        report.bars.append(
            Bar(f"p99 of refusals at {top.name}", top.refusal.p99_ms, "at most", REFUSAL_P99_MS, "ms")
        )
    else:
        report.remarks.append(f"{top.name}: nothing was refused")
    if top.rss_peak_mib is not None and at_capacity.rss_peak_mib:
        ratio = top.rss_peak_mib / at_capacity.rss_peak_mib
        report.bars.append(
            Bar(f"memory at {top.name}, over 1 times", ratio, "at most", MEMORY_RATIO, "times")
        )
    _recovery(report)


def _recovery(report: Report) -> None:
    # By windows, for the last syncs before the highest load were answered in it.
    usual = [window.p95_ms for window in report.windows if window.at_s < report.began_s and window.p95_ms]
    before_ms = median(usual) if usual else 0.0
    back_s = back_to_normal_s(report.windows, report.over_s, before_ms)
    report.figures.append(Figure(f"p95 of a tenth of a second, {BEFORE}", before_ms, "ms", "median"))
    if back_s is None:
        back_s = report.windows[-1].at_s - report.over_s
        report.remarks.append(f"latency was not back to normal within {back_s:.1f} s")
    report.bars.append(Bar("back to normal after", back_s, "at most", BACK_TO_NORMAL_S, "s"))


def _quiet(report: Report) -> None:
    alone, beside = (_named(report, name) for name in (QUIET_ALONE, QUIET_BESIDE))
    without, with_it = (median_of([load.stored for load in loads]) for loads in (alone, beside))
    report.figures += [
        Figure(f"{name} of a quiet tenant beside a flood", there_ms, "ms", f"{alone_ms:.2f} ms alone")
        for name, there_ms, alone_ms in (
            ("p50", with_it.p50_ms, without.p50_ms),
            ("p95", with_it.p95_ms, without.p95_ms),
            ("p99", with_it.p99_ms, without.p99_ms),
        )
    ]
    refused = sum(sum(load.refused.values()) for load in beside)
    report.bars.append(Bar("syncs of the quiet tenant refused beside a flood", refused, "at most", 0, ""))
    if without.p99_ms and all(load.stored.p99_ms for load in beside):
        ratio = with_it.p99_ms / without.p99_ms
        report.bars.append(
            Bar("p99 of a quiet tenant beside a flood, over alone", ratio, "at most", QUIET_RATIO, "times")
        )
    else:
        report.remarks.append("in some round nothing of the quiet tenant was stored")
