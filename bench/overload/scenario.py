"""Scenario ``overload``: more than the server can take, and whether it stays useful.

Many devices come back at once and send what they did offline, a batch of changes in one sync each. How many
such syncs a second are stored at most is measured first; then up to ten times as many are offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.harness.drive import Target, say
from bench.harness.environment import BenchError, fresh
from bench.harness.stage import NOT_OURS, Options, product_stage, remote
from bench.overload.audit import OverloadAuditor
from bench.overload.criteria import AFTER, BEFORE, CAPACITY, QUIET_ALONE, QUIET_BESIDE, judge, oddities
from bench.overload.drive import Loaded, planned, pour
from bench.overload.plan import Step
from bench.overload.summary import load_of, windows_of
from bench.overload.workload import OFFLINE, ONLINE, Backlog
from bench.report.results import Report, this_machine

DURATION_S: Final = 5.0
_WARMUP_S: Final = 1.0
#: How long there is to get back to normal.
_AFTER_S: Final = 5.0
#: Syncs that the closed loop keeps under way over all connections: enough for any batch to be full.
_UNDER_WAY: Final = 400

LADDER: Final = (0.5, 1.0, 2.0, 4.0)
TOP: Final = 10.0
_NORMAL: Final = 0.5

FLOOD: Final = 4.0
QUIET_DEVICES, QUIET_PER_S = 5, 50.0
_QUIET_ROUNDS: Final = 3


async def overload(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    if options.tenants < 2:
        raise BenchError("a quiet tenant beside a flooding one takes two: give --tenants 2 at least")
    report = Report(scenario="overload", work=_work(options), machine=this_machine())
    if options.url is not None:
        with remote(options, options.url) as (target, dsn):
            await _Overload(options, target, report).run(dsn)
        report.remarks.append(NOT_OURS)
        return report
    with fresh(options.settings) as ground:
        async with product_stage(ground, options, "product") as stage:
            await _Overload(options, stage.target, report).run(stage.dsn)
            report.logged = dict(stage.server.logged)
    return report


def _work(options: Options) -> str:
    return (
        f"{options.connections:,} connections over {options.tenants} tenants; a sync has {OFFLINE.items}"
        f" items, {OFFLINE.new_records} new tasks and {OFFLINE.changes} changes of these, as a device sends"
        " that was offline; open loop with Poisson arrivals, after a closed one for capacity"
    )


class _Overload:
    def __init__(self, options: Options, target: Target, report: Report) -> None:
        self._options = options
        self._target = target
        self._report = report
        self._duration_s = options.duration_s or DURATION_S
        self._warmup_s = min(_WARMUP_S, self._duration_s)
        self._runs: list[Loaded] = []

    async def run(self, dsn: str) -> None:
        """Measure all of it, audit, judge."""
        auditor = OverloadAuditor(dsn)
        capacity = await self._capacity(CAPACITY)
        for times in LADDER:
            await self._rung(times, capacity)
        await self._top(capacity)
        for number in range(1, (self._options.rounds or _QUIET_ROUNDS) + 1):
            await self._quiet(capacity, number)
        await self._capacity(f"{CAPACITY} again")
        say("audit")
        self._report.audit = auditor.audit(self._runs)
        judge(self._report)

    async def _capacity(self, name: str) -> float:
        """Keep every connection busy; gives what is stored a second."""
        connections = self._options.connections
        steps = [Step("warm-up", 0.0, self._warmup_s), Step(name, 0.0, self._duration_s)]
        run = self._plan(OFFLINE, steps, pipelined=max(1, _UNDER_WAY // connections))
        (run,) = await self._pour(run)
        self._note(run, name, None)
        return self._report.loads[-1].stored_per_s

    async def _rung(self, times: float, capacity: float) -> None:
        name, per_s = f"{times:g} times", times * capacity
        steps = [Step("warm-up", per_s, self._warmup_s), Step(name, per_s, self._duration_s)]
        (run,) = await self._pour(self._plan(OFFLINE, steps))
        self._note(run, name, times)

    async def _top(self, capacity: float) -> None:
        """Offer the most, between two stretches of what is normal."""
        name, normal_per_s = f"{TOP:g} times", _NORMAL * capacity
        steps = [
            Step("warm-up", normal_per_s, self._warmup_s),
            Step(BEFORE, normal_per_s, self._duration_s),
            Step(name, TOP * capacity, self._duration_s),
            Step(AFTER, normal_per_s, max(self._duration_s, _AFTER_S)),
        ]
        (run,) = await self._pour(self._plan(OFFLINE, steps))
        self._note(run, BEFORE, None)
        self._note(run, name, TOP)
        self._note(run, AFTER, None)
        self._report.windows = windows_of(run.happened)
        self._report.began_s, self._report.over_s = (bound / 1e6 for bound in run.plan.bounds_us[2])

    async def _quiet(self, capacity: float, number: int) -> None:
        """Let a few devices of one tenant sync now and then, alone and beside another tenant's flood."""
        quiet, noisy = self._target.tenants[:2]
        seconds = 2 * self._duration_s

        def steps(name: str, per_s: float) -> list[Step]:
            return [Step("warm-up", per_s, self._warmup_s), Step(name, per_s, seconds)]

        alone = steps(f"{QUIET_ALONE}, round {number}", QUIET_PER_S)
        beside = steps(f"{QUIET_BESIDE}, round {number}", QUIET_PER_S)
        flood = steps(f"flood of {FLOOD:g} times, round {number}", FLOOD * capacity)
        (run,) = await self._pour(self._few(quiet, alone))
        self._note(run, alone[1].name, None)
        runs = await self._pour(self._few(quiet, beside), self._plan(OFFLINE, flood, tenants=[noisy]))
        for run, name in zip(runs, (beside[1].name, flood[1].name), strict=True):
            self._note(run, name, None)

    def _few(self, tenant: str, steps: list[Step]) -> Loaded:
        return planned(self._target, [tenant], QUIET_DEVICES, ONLINE, steps)

    def _plan(
        self, backlog: Backlog, steps: list[Step], *, tenants: Sequence[str] | None = None, pipelined: int = 0
    ) -> Loaded:
        chosen = self._target.tenants if tenants is None else tenants
        return planned(self._target, chosen, self._options.connections, backlog, steps, pipelined=pipelined)

    async def _pour(self, *runs: Loaded) -> list[Loaded]:
        last = runs[-1].plan.steps
        say(f"{last[-1].name}: {sum(step.duration_s for step in last):.0f} s")
        done = await pour(self._target, *runs)
        self._runs += done
        for run in done:
            self._report.remarks += oddities(run)
        return done

    def _note(self, run: Loaded, name: str, times: float | None) -> None:
        """Put one step of a run into the report."""
        place = next(place for place, step in enumerate(run.plan.steps) if step.name == name)
        used = None if run.used is None else run.used[place]
        self._report.loads.append(load_of(times, run.plan, place, run.happened, used))
