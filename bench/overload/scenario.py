"""Scenario ``overload``: more than the server can take, and whether it stays useful.

Many devices come back at once and send what they did offline, a batch of changes in one sync each. First the
capacity is measured, the most such syncs a second that are stored; then up to ten times as many are offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from bench.harness.audit import Auditor
from bench.harness.environment import BenchError
from bench.harness.load_run import Run, Target, planned, run_load
from bench.harness.progress import progress
from bench.harness.stage import Options, staged
from bench.load.plan import Step
from bench.load.workload import OFFLINE, ONLINE
from bench.report.results import OFFERED, Bar, Figure, Report, Row, Window, median_latency
from bench.report.statistics import counts, over
from bench.report.summary import WINDOW_US, row_of, unanswered

DURATION_S: Final = 5.0
_WARMUP_S: Final = 1.0
#: How long there is to get back to normal.
_AFTER_S: Final = 5.0
#: Syncs that the closed loop keeps under way over all connections: enough for any batch to be full.
_UNDER_WAY: Final = 400

LADDER: Final = (0.5, 1.0, 2.0, 4.0)
TOP: Final = 10.0
_TIMES: Final = {f"{times:g} times": times for times in (*LADDER, TOP)}
_NORMAL: Final = 0.5

FLOOD: Final = 4.0
QUIET_DEVICES, QUIET_PER_S = 5, 50.0
_QUIET_ROUNDS: Final = 3

CAPACITY: Final = "capacity"
BEFORE: Final = "normal before"
AFTER: Final = "normal after"
QUIET_ALONE: Final = "quiet alone"
QUIET_BESIDE: Final = "quiet beside"

#: From so much more stored at some load than in the closed loop on, capacity was taken too low.
MORE_RATIO: Final = 1.1
#: How much of its capacity the server still stores at the highest load.
GOODPUT_RATIO: Final = 0.8
#: How soon a refused device knows of it.
REFUSAL_P99_MS: Final = 50.0
#: How much more memory than at capacity the highest load takes.
MEMORY_RATIO: Final = 2.0
BACK_TO_NORMAL_S: Final = 2.0
#: How much slower a quiet tenant may get beside another one's flood.
QUIET_RATIO: Final = 2.0

#: So many windows in a row make it normal again: one alone may be luck.
_WINDOWS: Final = 3
#: A p95 is normal within so many times, or so much above, the one before.
_NORMAL_TIMES, _NORMAL_MORE_MS = 1.5, 5.0


async def overload(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    if options.tenants < 2:
        raise BenchError("a quiet tenant beside a flooding one takes two: give --tenants 2 at least")
    report = Report(
        scenario="overload",
        work=f"{options.connections:,} connections over {options.tenants} tenants; a sync has {OFFLINE.items}"
        f" items, {OFFLINE.new_records} new tasks and {OFFLINE.changes} changes of these, as a device sends"
        " that was offline; open loop with Poisson arrivals, after a closed one for capacity",
    )
    async with staged(options, report.logged) as target:
        await _Overload(options, target, report).run()
    return report


class _Overload:
    def __init__(self, options: Options, target: Target, report: Report) -> None:
        self._options = options
        self._target = target
        self._report = report
        self._duration_s = options.duration_s or DURATION_S
        self._runs: list[Run] = []

    async def run(self) -> None:
        """Measure all of it, audit, judge."""
        auditor = Auditor(self._target.dsn)
        await self._capacity(CAPACITY)
        capacity = self._report.rows[-1].stored_per_s
        for times in LADDER:
            await self._load(self._all(Step(f"{times:g} times", times * capacity, self._duration_s)))
        await self._load(
            self._all(
                Step(BEFORE, _NORMAL * capacity, self._duration_s),
                Step(f"{TOP:g} times", TOP * capacity, self._duration_s),
                Step(AFTER, _NORMAL * capacity, max(self._duration_s, _AFTER_S)),
            )
        )
        for number in range(1, (self._options.rounds or _QUIET_ROUNDS) + 1):
            await self._quiet(capacity, number)
        await self._capacity(f"{CAPACITY} again")
        progress("audit")
        self._report.audit = auditor.audit(*self._runs)
        judge(self._report)

    async def _capacity(self, name: str) -> None:
        """Keep every connection busy."""
        under_way = max(1, _UNDER_WAY // self._options.connections)
        await self._load(self._all(Step(name, 0.0, self._duration_s), loop="closed", under_way=under_way))

    async def _quiet(self, capacity: float, number: int) -> None:
        """Let a few devices of one tenant sync now and then, alone and beside another tenant's flood."""
        quiet, noisy = self._target.tenants[:2]
        long_s = 2 * self._duration_s

        def few(name: str) -> Run:
            steps = self._warmed(Step(f"{name}, round {number}", QUIET_PER_S, long_s))
            return planned(self._target, QUIET_DEVICES, steps, [quiet], backlog=ONLINE, seed=number)

        flood = Step(f"flood of {FLOOD:g} times, round {number}", FLOOD * capacity, long_s)
        await self._load(few(QUIET_ALONE))
        await self._load(few(QUIET_BESIDE), self._all(flood, tenants=[noisy]))

    def _warmed(self, *steps: Step) -> list[Step]:
        return [Step("warm-up", steps[0].per_s, min(_WARMUP_S, self._duration_s)), *steps]

    def _all(self, *steps: Step, **more: Any) -> Run:
        """Plan a run of all devices."""
        connections, seed = self._options.connections, len(self._runs) + 100
        return planned(self._target, connections, self._warmed(*steps), backlog=OFFLINE, seed=seed, **more)

    async def _load(self, *runs: Run) -> None:
        """Run loads at once; each step after the warm-up is a row."""
        steps = runs[-1].plan.steps
        progress(f"{steps[-1].name}: {sum(step.duration_s for step in steps):.0f} s")
        for run in await run_load(self._target, *runs):
            connected, asked = run.ready.connected, len(run.plan.devices)
            if connected < asked:
                reasons = ", ".join(run.ready.refusals) or "silence"
                raise BenchError(f"{connected} of {asked} devices connected: {reasons}")
            self._report.remarks += oddities(run)
            self._report.rows += [
                row_of(run, place=place, times=_TIMES.get(step.name))
                for place, step in enumerate(run.plan.steps)
                if place
            ]
            self._runs.append(run)


def oddities(run: Run) -> list[str]:
    """Name the syncs of a run without an answer, and what the server sent without being asked."""
    name = run.plan.steps[-1].name
    silent, ended = unanswered(run), run.outcome.ended
    sentences = [f"run of {name}: {silent:,} syncs were never answered"] if silent else []
    return sentences + ([f"run of {name}: said without being asked: {counts(ended)}"] if ended else [])


def judge(report: Report) -> None:
    """Add figures and bars to a report that has its rows."""
    ladder = [row for row in report.rows if row.times is not None]
    report.remarks += [
        f"{row.name}: {row.offered_per_s:,.0f} of {row.wanted_per_s:,.0f} syncs/s were really offered:"
        " the row does not count as measured"
        for row in report.rows
        if not row.offered
    ]
    least = min((row.offered_per_s / row.wanted_per_s for row in ladder if row.wanted_per_s), default=0.0)
    report.bars.append(Bar("of each load at least offered", 100 * least, "at least", 100 * OFFERED, "%"))
    capacity, again = _named(report, CAPACITY)
    beside = f"{again.stored_per_s:,.0f}/s at the end"
    report.figures.append(Figure("capacity", capacity.stored_per_s, "syncs/s", beside))
    most = max(ladder, key=lambda row: row.stored_per_s)
    if most.stored_per_s > MORE_RATIO * capacity.stored_per_s:
        too_low = "so capacity was taken too low, as is every load"
        report.remarks.append(f"{most.name}: {most.stored_per_s:,.0f}/s were stored, {too_low}")
    top = ladder[-1]
    report.figures.append(Figure(f"generator's CPU for one sync at {top.name}", top.frame_us, "µs"))
    if top.offered:
        _top(report, capacity, next(row for row in ladder if row.times == 1), top)
        _recovery(report)
    _quiet(report)


def _named(report: Report, name: str) -> list[Row]:
    return [row for row in report.rows if row.name.startswith(name)]


def _top(report: Report, capacity: Row, once: Row, top: Row) -> None:
    ratio = top.stored_per_s / capacity.stored_per_s
    name = f"stored at {top.name} capacity, over capacity"
    report.bars.append(Bar(name, ratio, "at least", GOODPUT_RATIO, "times"))
    if top.refused_per_s:
        name = f"p99 of refusals at {top.name}"
        report.bars.append(Bar(name, top.refusal.p99_ms, "at most", REFUSAL_P99_MS, "ms"))
    else:
        report.remarks.append(f"{top.name}: nothing was refused")
    if top.rss_peak_mib is not None and once.rss_peak_mib:
        name, ratio = f"memory at {top.name}, over 1 times", top.rss_peak_mib / once.rss_peak_mib
        report.bars.append(Bar(name, ratio, "at most", MEMORY_RATIO, "times"))


def _recovery(report: Report) -> None:
    ((before,), (after,)) = (_named(report, name) for name in (BEFORE, AFTER))
    # By windows, since the last syncs before the highest load were answered in it.
    usual = [window.p95_ms for window in before.windows if window.p95_ms]
    before_ms = median(usual) if usual else 0.0
    back_s = back_to_normal_s(after.windows, before_ms)
    report.figures.append(Figure(f"p95 of a tenth of a second, {BEFORE}", before_ms, "ms", "median"))
    if back_s is None:
        back_s = max((window.at_s for window in after.windows), default=0.0)
        report.remarks.append(f"latency was not back to normal within {back_s:.1f} s")
    report.bars.append(Bar("back to normal after", back_s, "at most", BACK_TO_NORMAL_S, "s"))


def _quiet(report: Report) -> None:
    alone, beside = (_named(report, name) for name in (QUIET_ALONE, QUIET_BESIDE))
    without, with_it = median_latency(alone), median_latency(beside)
    for name in ("p50", "p95", "p99"):
        there_ms, alone_ms = (getattr(one, f"{name}_ms") for one in (with_it, without))
        figure = f"{name} of a quiet tenant beside a flood"
        report.figures.append(Figure(figure, there_ms, "ms", f"{alone_ms:.2f} ms alone"))
    refused = sum(sum(row.refused.values()) for row in beside)
    answered = all(row.latency.max_ms for row in beside)
    ratio = over(with_it.p99_ms, without.p99_ms) if answered else None
    report.bars += [
        Bar("syncs of the quiet tenant refused beside a flood", refused, "at most", 0, "", must=True),
        Bar("p99 of a quiet tenant beside a flood, over alone", ratio, "at most", QUIET_RATIO, "times"),
    ]


def back_to_normal_s(windows: Sequence[Window], before_p95_ms: float) -> float | None:
    """Return when the first of some normal windows in a row ends, None without these.

    In a normal window every sync is stored, with a normal p95.
    """
    limit_ms = max(_NORMAL_TIMES * before_p95_ms, before_p95_ms + _NORMAL_MORE_MS)
    in_a_row = 0
    for place, window in enumerate(windows):
        normal = not window.refused + window.unanswered and (window.p95_ms or 0.0) <= limit_ms
        in_a_row = in_a_row + 1 if normal else 0
        if in_a_row == _WINDOWS:
            return windows[place - _WINDOWS + 1].at_s + WINDOW_US / 1e6
    return None
