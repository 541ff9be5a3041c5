"""Scenario ``overload``: more than the server can take, and whether it stays useful.

Many devices come back at once and send what they did offline, a batch of changes in one sync each. First the
capacity is measured, the most such syncs a second that are stored; then up to ten times as many are offered.
"""

from __future__ import annotations

from typing import Any, Final

from bench.harness.audit import Auditor
from bench.harness.child import progress
from bench.harness.environment import BenchError
from bench.harness.load_run import Run, Target, planned, run_load
from bench.harness.stage import Options, staged
from bench.load.plan import Step
from bench.load.workload import OFFLINE, ONLINE
from bench.overload.criteria import AFTER, BEFORE, CAPACITY, QUIET_ALONE, QUIET_BESIDE, judge, oddities
from bench.report.results import Report
from bench.report.summary import row_of

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
    report = Report(
        scenario="overload",
        work=f"{options.connections:,} connections over {options.tenants} tenants; a sync has {OFFLINE.items}"
        f" items, {OFFLINE.new_records} new tasks and {OFFLINE.changes} changes of these, as a device sends"
        " that was offline; open loop with Poisson arrivals, after a closed one for capacity",
    )
    async with staged(options, report.logged) as stage:
        await _Overload(options, stage.target, report).run(stage.dsn)
    return report


class _Overload:
    def __init__(self, options: Options, target: Target, report: Report) -> None:
        self._options = options
        self._target = target
        self._report = report
        self._duration_s = options.duration_s or DURATION_S
        self._warmup_s = min(_WARMUP_S, self._duration_s)
        self._runs: list[Run] = []

    async def run(self, dsn: str) -> None:
        """Measure all of it, audit, judge."""
        auditor = Auditor(dsn)
        capacity = await self._capacity(CAPACITY)
        for times in LADDER:
            await self._load(self._all(f"{times:g} times", times * capacity), times=times)
        await self._top(capacity)
        for number in range(1, (self._options.rounds or _QUIET_ROUNDS) + 1):
            await self._quiet(capacity, number)
        await self._capacity(f"{CAPACITY} again")
        progress("audit")
        self._report.audit = auditor.audit(*self._runs)
        judge(self._report)

    async def _capacity(self, name: str) -> float:
        """Keep every connection busy. Returns the syncs that are stored a second."""
        under_way = max(1, _UNDER_WAY // self._options.connections)
        await self._load(self._all(name, 0.0, loop="closed", under_way=under_way))
        return self._report.rows[-1].stored_per_s

    async def _top(self, capacity: float) -> None:
        """Offer the most, between two stretches of a normal load."""
        normal_per_s = _NORMAL * capacity
        steps = [
            Step("warm-up", normal_per_s, self._warmup_s),
            Step(BEFORE, normal_per_s, self._duration_s),
            Step(f"{TOP:g} times", TOP * capacity, self._duration_s),
            Step(AFTER, normal_per_s, max(self._duration_s, _AFTER_S)),
        ]
        (run,) = await self._run(self._planned(steps))
        for place, times in ((1, None), (2, TOP), (3, None)):
            self._report.rows.append(row_of(run, place=place, times=times))

    async def _quiet(self, capacity: float, number: int) -> None:
        """Let a few devices of one tenant sync now and then, alone and beside another tenant's flood."""
        quiet, noisy = self._target.tenants[:2]

        def few(name: str) -> Run:
            steps = self._steps(f"{name}, round {number}", QUIET_PER_S, 2)
            return planned(self._target, QUIET_DEVICES, steps, [quiet], backlog=ONLINE, seed=number)

        await self._load(few(QUIET_ALONE))
        flood = self._steps(f"flood of {FLOOD:g} times, round {number}", FLOOD * capacity, 2)
        await self._load(few(QUIET_BESIDE), self._planned(flood, tenants=[noisy]))

    def _steps(self, name: str, per_s: float, times_as_long: int = 1) -> list[Step]:
        measured = Step(name, per_s, times_as_long * self._duration_s)
        return [Step("warm-up", per_s, self._warmup_s), measured]

    def _all(self, name: str, per_s: float, **more: Any) -> Run:
        return self._planned(self._steps(name, per_s), **more)

    def _planned(self, steps: list[Step], **more: Any) -> Run:
        seed = len(self._runs) + 100
        return planned(self._target, self._options.connections, steps, backlog=OFFLINE, seed=seed, **more)

    async def _load(self, *runs: Run, times: float | None = None) -> None:
        for run in await self._run(*runs):
            self._report.rows.append(row_of(run, times=times))

    async def _run(self, *runs: Run) -> list[Run]:
        steps = runs[-1].plan.steps
        progress(f"{steps[-1].name}: {sum(step.duration_s for step in steps):.0f} s")
        done = await run_load(self._target, *runs)
        for run in done:
            connected, asked = run.ready.connected, len(run.plan.devices)
            if connected < asked:
                reasons = ", ".join(run.ready.refusals) or "silence"
                raise BenchError(f"{connected} of {asked} devices connected: {reasons}")
            self._report.remarks += oddities(run)
        self._runs += done
        return done
