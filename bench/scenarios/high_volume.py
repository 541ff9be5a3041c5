"""Scenario ``high_volume``: 10,000 items in a minute, 100 in each sync, at even intervals."""

from __future__ import annotations

from typing import Final

from bench.harness.audit import Auditor
from bench.harness.child import progress
from bench.harness.load_run import planned, run_load
from bench.harness.stage import Options, staged
from bench.load.plan import Step
from bench.load.workload import Backlog
from bench.report.results import Bar, Figure, Report, connected_bar, lost_bar
from bench.report.summary import row_of

ITEMS: Final = 10_000
BATCH: Final = Backlog(100, 0)
DURATION_S: Final = 60.0
DEVICES: Final = 10


async def high_volume(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    duration_s = options.duration_s or DURATION_S
    items = round(ITEMS * duration_s / DURATION_S)
    work = f"{items:,} items in {duration_s:g} s, {BATCH.items} a sync at even intervals, {DEVICES} devices"
    report = Report(scenario="high_volume", work=work)
    async with staged(options, report.logged) as target:
        progress(f"{items:,} items: {duration_s:.0f} s")
        auditor = Auditor(target.dsn)
        steps = [Step("high volume", items / BATCH.items / duration_s, duration_s)]
        (run,) = await run_load(target, planned(target, DEVICES, steps, backlog=BATCH, even=True))
        audit = auditor.audit(run)
    row = row_of(run, audit)
    times_us = zip(run.outcome.due_us, run.outcome.done_us, run.codes, strict=True)
    latencies_us = [done_us - due_us for due_us, done_us, code in times_us if code == "synced"]
    average_ms = sum(latencies_us) / len(latencies_us) / 1000 if latencies_us else 0.0
    report.rows.append(row)
    report.figures += [
        Figure("average of a sync", average_ms, "ms", f"of {BATCH.items} items"),
        Figure("p95 of a sync", row.latency.p95_ms, "ms", f"of {BATCH.items} items"),
    ]
    report.bars += [
        connected_bar([row]),
        lost_bar([row]),
        Bar("items stored", 100 * audit.records / items, "at least", 100, "%"),
    ]
    return report
