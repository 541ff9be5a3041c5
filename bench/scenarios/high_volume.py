"""Scenario ``high_volume``: 10,000 items in a minute, 100 in each sync, at even intervals."""

from __future__ import annotations

from typing import Final

from bench.harness.audit import Auditor
from bench.harness.child import progress
from bench.harness.environment import fresh
from bench.harness.load_run import Target, planned, run_load
from bench.harness.stage import NOT_OURS, Options, product_stage, remote
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
    if options.url is not None:
        with remote(options, options.url) as (target, dsn):
            await _measure(target, dsn, items, duration_s, report)
        report.remarks.append(NOT_OURS)
        return report
    with fresh(options.settings) as environment:
        async with product_stage(environment, options, "product") as stage:
            await _measure(stage.target, stage.dsn, items, duration_s, report)
            report.logged = dict(stage.server.logged)
    return report


async def _measure(target: Target, dsn: str, items: int, duration_s: float, report: Report) -> None:
    progress(f"{items:,} items: {duration_s:.0f} s")
    auditor = Auditor(dsn)
    steps = [Step("high volume", items / BATCH.items / duration_s, duration_s)]
    (run,) = await run_load(target, planned(target, DEVICES, steps, backlog=BATCH, even=True))
    row = row_of(run, auditor.audit(run))
    report.rows.append(row)
    latencies_ms = [
        (done_us - due_us) / 1000
        for due_us, done_us, code in zip(run.outcome.due_us, run.outcome.done_us, run.codes, strict=True)
        if code == "synced"
    ]
    average_ms = sum(latencies_ms) / len(latencies_ms) if latencies_ms else 0.0
    report.figures += [
        Figure("average of a sync", average_ms, "ms", f"of {BATCH.items} items"),
        Figure("p95 of a sync", row.latency.p95_ms, "ms", f"of {BATCH.items} items"),
    ]
    stored = row.audit.records if row.audit is not None else 0
    report.bars += [
        connected_bar([row]),
        lost_bar([row]),
        Bar("items stored", 100 * stored / items, "at least", 100, "%"),
    ]
