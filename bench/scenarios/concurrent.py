"""Scenario ``concurrent``: many devices on open sockets, each syncing now and then.

An open loop at a fixed rate, or with ``--saturate`` as many syncs as the server takes. With ``--fill`` the
same load goes by turns to an empty database and to one that holds many records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.baselines.compare import by_turns, figures, remarks, simplest_pipeline
from bench.harness.audit import Auditor
from bench.harness.environment import Environment, fresh
from bench.harness.load_run import Target, run_tasks
from bench.harness.preload import fill
from bench.harness.stage import NOT_OURS, Options, add_tenants, product_stage, remote, serving
from bench.load.workload import MIX
from bench.report.results import Bar, Figure, Report, Row, connected_bar, lost_bar, median_latency
from bench.report.summary import row_of

DURATION_S: Final = 60.0
_WARMUP_S: Final = 5.0
_REFERENCE_S: Final = 5.0
_FILL_ROUNDS: Final = 3

#: What the open loop must show, in milliseconds.
P50_MS, P95_MS, P99_MS = 5.0, 15.0, 40.0
#: How much slower a filled database may be than an empty one.
FILLED_RATIO: Final = 1.3


async def concurrent(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    report = Report(scenario="concurrent", work=_work(options))
    if options.url is not None:
        await _remote(options, report)
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


async def _remote(options: Options, report: Report) -> None:
    """Measure a server that runs already and was started with the same settings."""
    assert options.url is not None
    with remote(options, options.url) as (target, dsn):
        for number in range(1, (options.rounds or 1) + 1):
            report.rows.append(await _round(f"round {number}", target, dsn, options))
    report.bars = _bars(report.rows, options)
    report.remarks.append(NOT_OURS)


async def _own(environment: Environment, options: Options, report: Report) -> None:
    workers = options.workers or 1
    async with (
        product_stage(environment, options, "product", workers) as stage,
        simplest_pipeline(environment, options) as rival,
    ):
        for number in range(1, (options.rounds or 1) + 1):
            report.rows.append(await _round(f"round {number}", stage.target, stage.dsn, options))
        report.bars = _bars(report.rows, options)
        turns = await by_turns(stage, rival, [options.connections], 1, _REFERENCE_S)
        report.rows += [turn.row for turn in turns]
        report.figures = figures(turns)
        report.remarks += remarks(turns)
        report.logged = dict(stage.server.logged)


async def _filled(environment: Environment, options: Options, report: Report) -> None:
    dsns = {name: environment.database(name) for name in ("empty", "filled")}
    for dsn in dsns.values():
        add_tenants(dsn, options.tenant_names)
    fill(dsns["filled"], options.tenant_names, options.fill_records)
    rows: dict[str, list[Row]] = {"empty": [], "filled": []}
    workers = options.workers or 1
    async with (
        serving(environment, options, dsns["empty"], workers) as empty,
        serving(environment, options, dsns["filled"], workers) as full,
    ):
        stages = [("empty", empty), ("filled", full)]
        for number in range(1, (options.rounds or _FILL_ROUNDS) + 1):
            for name, stage in stages if number % 2 else reversed(stages):
                row = await _round(f"{name}, round {number}", stage.target, stage.dsn, options)
                rows[name].append(row)
                report.rows.append(row)
        report.logged = dict(empty.server.logged + full.server.logged)
    report.bars = _bars(rows["empty"], options)
    for name in ("p50", "p95"):
        before, after = (getattr(median_latency(rows[side]), f"{name}_ms") for side in rows)
        report.figures.append(Figure(f"{name}, empty database", before, "ms"))
        report.figures.append(Figure(f"{name}, {options.fill_records:,} records", after, "ms"))
        bar = Bar(f"{name} filled over {name} empty", after / before, "at most", FILLED_RATIO, "times")
        report.bars.append(bar)


async def _round(name: str, target: Target, dsn: str, options: Options) -> Row:
    duration_s = options.duration_s or DURATION_S
    auditor = Auditor(dsn)
    run = await run_tasks(
        *(name, target, "closed" if options.saturate else "open", options.connections, duration_s),
        per_s=options.rate_per_s,
        warmup_s=min(_WARMUP_S, duration_s),
    )
    return row_of(run, auditor.audit(run))


def _bars(rows: Sequence[Row], options: Options) -> list[Bar]:
    bars = [connected_bar(rows), lost_bar(rows)]
    if options.saturate:
        return bars
    latency = median_latency(rows)
    return [
        *bars,
        Bar("p50", latency.p50_ms, "at most", P50_MS, "ms"),
        Bar("p95", latency.p95_ms, "at most", P95_MS, "ms"),
        Bar("p99", latency.p99_ms, "at most", P99_MS, "ms"),
    ]
