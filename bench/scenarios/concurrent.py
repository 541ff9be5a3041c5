"""Scenario ``concurrent``: many devices on open sockets, each syncing now and then.

An open loop at a fixed rate, or with ``--saturate`` as many syncs as the server takes. With ``--fill`` the
same load goes by turns to an empty database and to one that holds many records.

``high_volume``: 10,000 items in a minute or less, 100 in each sync, at even intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

import msgspec

from bench.baselines.compare import by_turns, simplest_pipeline
from bench.harness.audit import Auditor
from bench.harness.environment import Environment, fresh
from bench.harness.flame import flame_graph
from bench.harness.load_run import Target, planned, run_load
from bench.harness.progress import progress
from bench.harness.stage import Options, product_stage, staged
from bench.load.plan import Step
from bench.load.workload import MIX, Backlog
from bench.report.own_metrics import own_figures
from bench.report.results import PROFILED, Bar, Figure, Report, Row, connected_bar, lost_bar, median_latency
from bench.report.statistics import over
from bench.report.summary import audited, row_of

DURATION_S: Final = 60.0
WARMUP_S: Final = 5.0
PROFILED_S: Final = 15.0
_REFERENCE_S: Final = 5.0
_FILL_ROUNDS: Final = 3

#: What the open loop must show, in milliseconds.
P50_MS, P95_MS, P99_MS = 5.0, 15.0, 40.0
#: How much slower a filled database may be than an empty one.
FILLED_RATIO: Final = 1.3

#: Of ``high_volume``, in ``DURATION_S``.
ITEMS: Final = 10_000
BATCH: Final = Backlog(100, 0)
DEVICES: Final = 10


async def concurrent(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    report = Report(scenario="concurrent", work=_work(options))
    if options.url is not None:
        async with staged(options, report.logged) as target:
            await _rounds(target, options, report)
        return report
    with fresh(options.settings) as environment:
        await (_filled if options.fill_records else _own)(environment, options, report)
    return report


def _work(options: Options) -> str:
    loop = (
        "closed loop, one sync under way on each"
        if options.saturate
        else f"open loop, {options.rate_per_s:g} syncs/s, Poisson arrivals on connections drawn at random"
    )
    workers = f" and {options.workers} workers" if options.workers else ""
    return f"{options.connections:,} connections over {options.tenants} tenants{workers}, {loop}; {MIX}"


async def _rounds(target: Target, options: Options, report: Report) -> None:
    async with own_figures(target) as figures:
        for number in range(1, (options.rounds or 1) + 1):
            report.rows.append(await _round(f"round {number}", target, options))
    report.figures += [*stored_figures(report.rows), *figures]
    report.bars = _bars(report.rows, options)
    if options.flame_graph is not None:
        report.flame_graph = str(options.flame_graph)
        # A round of its own: samples cost the server time.
        async with flame_graph(options.flame_graph, target.watched["server"], options.workers or 1):
            shorter = min(PROFILED_S, options.duration_s or DURATION_S)
            report.rows.append(
                await _round(PROFILED, target, msgspec.structs.replace(options, duration_s=shorter))
            )


def stored_figures(rows: Sequence[Row]) -> list[Figure]:
    """Return what was stored, in its time and ever, of all that was due: a sync that was lost counts."""
    rates, due = [row.stored_per_s for row in rows], sum(row.due for row in rows)
    in_time = over(sum(rates), sum(row.wanted_per_s for row in rows))
    ever = over(sum(sum(row.histogram.counts) for row in rows), due)
    return [
        Figure("syncs stored a second", median(rates), "syncs/s"),
        Figure("syncs stored in time", 100 * in_time, "%", f"of {due:,} due"),
        Figure("success", 100 * ever, "%", f"of {due:,} due"),
    ]


async def _round(name: str, target: Target, options: Options) -> Row:
    _, row = await audited(
        *(name, target, "closed" if options.saturate else "open", options.connections),
        options.duration_s or DURATION_S,
        per_s=options.rate_per_s,
        warmup_s=WARMUP_S,
    )
    return row


async def _own(environment: Environment, options: Options, report: Report) -> None:
    async with (
        product_stage(environment, options, "product", report.logged, options.workers or 1) as target,
        simplest_pipeline(environment, options) as rival,
    ):
        await _rounds(target, options, report)
        if options.suite != "quick":
            await by_turns(report, target, rival, [options.connections], 1, _REFERENCE_S)


async def _filled(environment: Environment, options: Options, report: Report) -> None:
    rows: dict[str, list[Row]] = {"empty": [], "filled": []}
    workers = options.workers or 1
    async with (
        product_stage(environment, options, "empty", report.logged, workers) as empty,
        product_stage(
            environment, options, "filled", report.logged, workers, records=options.fill_records
        ) as filled,
    ):
        sides = [("empty", empty), ("filled", filled)]
        for number in range(1, (options.rounds or _FILL_ROUNDS) + 1):
            for name, target in sides if number % 2 else reversed(sides):
                rows[name].append(await _round(f"{name}, round {number}", target, options))
                report.rows.append(rows[name][-1])
    report.bars = _bars(rows["empty"], options)
    for name in ("p50", "p95"):
        empty_ms, filled_ms = (getattr(median_latency(rows[side]), f"{name}_ms") for side in rows)
        report.figures.append(Figure(f"{name}, empty database", empty_ms, "ms"))
        report.figures.append(Figure(f"{name}, {options.fill_records:,} records", filled_ms, "ms"))
        slower = over(filled_ms, empty_ms)
        report.bars.append(Bar(f"{name} filled over {name} empty", slower, "at most", FILLED_RATIO, "times"))


def _bars(rows: Sequence[Row], options: Options) -> list[Bar]:
    latency = median_latency(rows)
    limits = (
        ("p50", latency.p50_ms, P50_MS),
        ("p95", latency.p95_ms, P95_MS),
        ("p99", latency.p99_ms, P99_MS),
    )
    timed = [Bar(name, took_ms, "at most", limit_ms, "ms") for name, took_ms, limit_ms in limits]
    return [connected_bar(rows), lost_bar(rows), *([] if options.saturate else timed)]


async def high_volume(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    duration_s = options.duration_s or DURATION_S
    work = f"{ITEMS:,} items in {duration_s:g} s, {BATCH.items} a sync at even intervals, {DEVICES} devices"
    report = Report(scenario="high_volume", work=work)
    async with staged(options, report.logged) as target:
        progress(f"{ITEMS:,} items: {duration_s:.0f} s")
        auditor = Auditor(target.dsn)
        steps = [Step("high volume", ITEMS / BATCH.items / duration_s, duration_s)]
        (run,) = await run_load(target, planned(target, DEVICES, steps, backlog=BATCH, even=True))
        audit = auditor.audit(run)
    row = row_of(run, audit)
    times_us = zip(run.outcome.due_us, run.outcome.done_us, run.codes, strict=True)
    latencies_us = [done_us - due_us for due_us, done_us, code in times_us if code == "synced"]
    average_ms = over(sum(latencies_us) / 1000, len(latencies_us))
    report.rows.append(row)
    report.figures += [
        Figure("average of a sync", average_ms, "ms", f"of {len(latencies_us)} of {BATCH.items} items"),
        Figure("p95 of a sync", row.latency.p95_ms, "ms", f"of {BATCH.items} items"),
    ]
    report.bars += [
        connected_bar([row]),
        lost_bar([row]),
        Bar("items stored", 100 * audit.records / ITEMS, "at least", 100, "%", f"of {ITEMS:,}", must=True),
    ]
    return report
