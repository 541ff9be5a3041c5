"""Scenario ``faults``: rounds of faults under load, and whether anything was lost or came twice.

The seed decides which faults come, how, and what devices send; when they send it, the clock.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from random import Random
from statistics import median
from string import ascii_lowercase
from typing import Any, Final

from bench.faults.cell import DEVICES, LATE, MOST_AT_ONCE, PATIENCE_S, PER_S, REFERENCES, TENANTS, Cell
from bench.faults.check import Found
from bench.faults.device import HARMS
from bench.faults.history import Answered, Closed, Event, Refused, only
from bench.faults.inject import FAULTS
from bench.harness.audit import Audit
from bench.harness.clusters import Cluster
from bench.harness.environment import fresh_on_tcp
from bench.harness.progress import progress
from bench.harness.stage import Options, add_tenants
from bench.report.results import Bar, Figure, Report

ROUNDS: Final = 50
CALM_S: Final = (1.0, 2.0)
#: Two waits are measured once in so many rounds: for a tenant that a stopped worker holds, and for a policy
#: to be in force.
_ROUNDS_A_WAIT: Final = 5
_POLICIES_IN_TURN: Final = ("manual", "client_wins")


async def faults(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError, OSError."""
    rounds = options.rounds or ROUNDS
    several = f"in each of {options.cells} cells of one database " if options.cells > 1 else ""
    work = (
        f"{rounds} rounds, seed {options.seed}; {several}{DEVICES} devices of {len(TENANTS)} tenants, each"
        f" {PER_S:g} times a second with 1 to {MOST_AT_ONCE} edits of records that all share; half of them"
        " pipeline syncs; 5 % of syncs delayed, 1 % doubled, 0.1 % lost, 0.1 % malformed; beside them"
        f" {REFERENCES} devices without that"
    )
    report = Report(scenario="faults", work=work)
    with fresh_on_tcp(options.settings) as (environment, postgres):
        # The first cell is that of the settings, which have none where there are several.
        names = [f"cell_{letter}" for letter in ascii_lowercase[: options.cells]] if several else [""]
        dsns = environment.cells("product", names)
        cells = [Cell(options, environment, dsn, name) for dsn, name in zip(dsns, names, strict=True)]
        for dsn in dsns:
            add_tenants(dsn, list(TENANTS))
        run = _Run(options, postgres, cells, report)
        try:
            await run.rounds(rounds)
            run.judge()
        finally:
            if options.history is not None:
                for cell in cells:
                    cell.write_history(options.history)
    return report


def order(random: Random, count: int) -> list[str]:
    """Draw faults so that each comes about equally often."""
    names: list[str] = []
    while len(names) < count:
        names += random.sample(list(FAULTS), len(FAULTS))
    return names[:count]


class _Run:
    def __init__(self, options: Options, postgres: Cluster, cells: Sequence[Cell], report: Report) -> None:
        self._postgres = postgres
        self._cells = cells
        self._turns = itertools.cycle(cells)
        self._report = report
        self._random = Random(options.seed)

    async def rounds(self, count: int) -> None:
        """Inject ``count`` faults, then let all devices finish."""
        async with AsyncExitStack() as stack:
            for cell in self._cells:
                await stack.enter_async_context(cell.serving(self._postgres, self._random))
            group = await stack.enter_async_context(asyncio.TaskGroup())
            working = [
                group.create_task(cell.work(member)) for cell in self._cells for member in cell.crew.members
            ]
            await asyncio.sleep(CALM_S[1])
            for number, name in enumerate(order(self._random, count), 1):
                await self._round(number, name, next(self._turns))
            times = max(1, count // _ROUNDS_A_WAIT)
            behind = [await next(self._turns).behind_stopped_s(self._random) for _ in range(times)]
            self._add_waits("behind a stopped worker", behind)
            for task in working:
                task.cancel()
            await self._finish(times)
        logged = sum((cell.site.server.logged for cell in self._cells), Counter[str]())
        self._report.logged = dict(logged)
        cuts = sum(cell.site.proxy.cuts for cell in self._cells)
        self._report.remarks.append(f"{cuts} connections were cut in mid-frame")

    async def _round(self, number: int, name: str, hit: Cell) -> None:
        """Inject one fault, and report how long devices take after it.

        Faults of PostgreSQL and Redis hit all cells, the others one.
        """
        began_s = time.monotonic()
        self._mark(number, name, "begins")
        try:
            await FAULTS[name](hit.site)
            for cell in self._cells:
                await cell.site.server.ready()
        except TimeoutError:
            hit.found.append(Found(LATE, f"round {number}, {name}: the server did not come back"))
            self._mark(number, name, "abandoned")
            return
        over_s = time.monotonic()
        self._mark(number, name, "over")
        for cell, late in zip(
            self._cells, await asyncio.gather(*(cell.answered() for cell in self._cells)), strict=True
        ):
            if late:
                after = f"round {number}, {name}: not acknowledged after {PATIENCE_S:.0f} s"
                cell.found.append(Found(LATE, f"{after}: {', '.join(late)}"))
        self._mark(number, name, "answered")
        self._add(
            f"round {number}: {name}",
            time.monotonic() - over_s,
            "s until all was acknowledged",
            f"the fault{f' in {hit.name}' if hit.name else ''} took {over_s - began_s:.1f} s",
        )
        await asyncio.sleep(self._random.uniform(*CALM_S))

    def _mark(self, number: int, name: str, phase: str) -> None:
        for cell in self._cells:
            cell.mark(number, name, phase)

    def _add(self, name: str, value: float, unit: str, beside: str) -> None:
        self._report.figures.append(Figure(name, value, unit, beside))
        progress(f"{name}: {beside}, {value:.2f} {unit}")

    def _add_waits(self, name: str, waits_s: list[float]) -> None:
        self._add(name, median(waits_s), "s", f"median of {len(waits_s)}, the longest {max(waits_s):.2f} s")

    async def _finish(self, times: int) -> None:
        """Wait until queues are empty and devices agree with the tables, then let them pull everything."""
        began_s = time.monotonic()
        await asyncio.gather(*(cell.converge() for cell in self._cells))
        progress(f"all queues empty and all devices up to date after {time.monotonic() - began_s:.2f} s")
        # Each cell has every policy in turn: one that it has already would be in force at once.
        policies = itertools.cycle(itertools.product(_POLICIES_IN_TURN, self._cells))

        async def in_force_s() -> float:
            policy, cell = next(policies)
            return await cell.in_force_s(policy)

        self._add_waits("a policy in force", [await in_force_s() for _ in range(times)])
        async with self._cells[0].site.without_redis():
            self._add_waits("a policy in force without Redis", [await in_force_s()])
        await asyncio.gather(*(cell.pull_all() for cell in self._cells))

    def judge(self) -> None:
        """Compare what the devices of each cell saw with its tables. Raises StoreError."""
        progress("check")
        audits = [cell.judge() for cell in self._cells]
        for cell, audit in zip(self._cells, audits, strict=True):
            # Without one of each harm nothing is known of it.
            met = [cell.history.harms[harm] for harm in HARMS]
            found = audit.fault_count if all(met) else math.nan
            beside = ", ".join(f"{count} {harm}" for harm, count in zip(HARMS, met, strict=True))
            name = f"{cell.heading}lost, applied twice or otherwise wrong"
            self._report.bars.append(Bar(name, found, "at most", 0, "faults", f"syncs: {beside}", must=True))
            self._report.remarks += (cell.heading + remark for remark in _remarks(cell.history.events))
        self._report.audit = Audit(
            items=sum(audit.items for audit in audits),
            records=sum(audit.records for audit in audits),
            tenants=sum(audit.tenants for audit in audits),
            fault_count=sum(audit.fault_count for audit in audits),
            faults=[line for audit in audits for line in audit.faults],
        )


def _remarks(events: list[Event]) -> Iterator[str]:
    """Write what devices met that is no fault by itself."""
    refused = Counter(event.code for event in only(Refused, events))
    closed = Counter(event.code for event in only(Closed, events))
    answers = only(Answered, events)
    statuses = Counter(result.status for event in answers for result in event.results)
    replayed = sum(event.replayed for event in answers)
    yield f"results of items: {_counts(statuses)}; {replayed} answers were given again"
    yield f"errors that asked to come back: {_counts(refused)}"
    yield f"connections ended, by close code: {_counts(closed)}"


def _counts(counts: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
