"""Scenario ``concurrent``: many devices on open sockets, each syncing now and then.

An open loop at a fixed rate, or with ``--saturate`` as many syncs as the server takes. With ``--fill`` the
same load goes by turns to an empty database and to one that holds many records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from bench.baselines.compare import duel, figures, limit_c, remarks
from bench.harness.audit import Auditor
from bench.harness.drive import Target, drive
from bench.harness.environment import Ground, fresh
from bench.harness.preload import fill
from bench.harness.stage import NOT_OURS, Options, Stage, add_tenants, product_stage, remote, serving
from bench.load.workload import MIX
from bench.report.results import Bar, Figure, Report, Row, median_latency, row_of, this_machine

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
    report = Report(scenario="concurrent", work=_work(options), machine=this_machine())
    if options.url is not None:
        await _remote(options, report)
        return report
    with fresh(options.settings) as ground:
        if options.fill_records:
            await _filled(ground, options, report)
        else:
            await _own(ground, options, report)
    return report


def _work(options: Options) -> str:
    loop = (
        "closed loop, one sync under way on each"
        if options.saturate
        else f"open loop, {options.rate_per_s:g} syncs/s, Poisson arrivals on connections drawn at random"
    )
    workers = f" and {options.workers} workers" if options.workers else ""
    return (
        f"{options.connections:,} connections over {options.tenants} tenants{workers}, {loop};"
        f" one item a sync, a task of about 200 bytes, {MIX}"
    )


async def _remote(options: Options, report: Report) -> None:
    """Measure a server that runs already and was started with the same settings."""
    assert options.url is not None
    with remote(options, options.url) as (target, dsn):
        for number in range(1, (options.rounds or 1) + 1):
            report.rows.append(await _round(f"round {number}", target, dsn, options))
    report.bars = _bars(report.rows, options)
    report.remarks.append(NOT_OURS)


async def _own(ground: Ground, options: Options, report: Report) -> None:
    workers = options.workers or 1
    async with product_stage(ground, options, "product", workers) as stage, limit_c(ground, options) as rival:
        for number in range(1, (options.rounds or 1) + 1):
            report.rows.append(await _round(f"round {number}", stage.target, stage.dsn, options))
        report.bars = _bars(report.rows, options)
        turns = await duel(stage, rival, [options.connections], 1, _REFERENCE_S)
        report.rows += [turn.row for turn in turns]
        report.figures = figures(turns)
        report.remarks += remarks(turns)
        report.logged = dict(stage.server.logged)


async def _filled(ground: Ground, options: Options, report: Report) -> None:
    dsns = {name: ground.database(name) for name in ("empty", "filled")}
    for dsn in dsns.values():
        add_tenants(dsn, options.tenant_names)
    fill(dsns["filled"], options.tenant_names, options.fill_records)
    rows: dict[str, list[Row]] = {"empty": [], "filled": []}
    workers = options.workers or 1
    async with (
        serving(ground, options, dsns["empty"], workers) as empty,
        serving(ground, options, dsns["filled"], workers) as full,
    ):
        stages: list[tuple[str, Stage]] = [("empty", empty), ("filled", full)]
        for number in range(1, (options.rounds or _FILL_ROUNDS) + 1):
            for name, stage in stages if number % 2 else reversed(stages):
                row = await _round(f"{name}, round {number}", stage.target, stage.dsn, options)
                rows[name].append(row)
                report.rows.append(row)
        report.logged = dict(empty.server.logged + full.server.logged)
    report.bars = [*_bars(rows["empty"], options), *_ratios(rows["empty"], rows["filled"], options, report)]


def _ratios(empty: list[Row], filled: list[Row], options: Options, report: Report) -> list[Bar]:
    bars: list[Bar] = []
    for name in ("p50", "p95"):
        before, after = (getattr(median_latency(rows), f"{name}_ms") for rows in (empty, filled))
        report.figures.append(Figure(f"{name}, empty database", before, "ms"))
        report.figures.append(Figure(f"{name}, {options.fill_records:,} records", after, "ms"))
        bars.append(Bar(f"{name} filled over {name} empty", after / before, "at most", FILLED_RATIO, "times"))
    return bars


async def _round(name: str, target: Target, dsn: str, options: Options) -> Row:
    duration_s = options.duration_s or DURATION_S
    auditor = Auditor(dsn)
    run = await drive(
        name,
        target,
        "closed" if options.saturate else "open",
        options.connections,
        duration_s,
        rate_per_s=options.rate_per_s,
        warmup_s=min(_WARMUP_S, duration_s),
    )
    return row_of(run, auditor.audit(run))


def _bars(rows: Sequence[Row], options: Options) -> list[Bar]:
    connected = 100 * min(row.connected / row.asked for row in rows)
    lost = sum((Counter(row.errors) for row in rows), Counter[str]()).total() + sum(
        row.unanswered for row in rows
    )
    bars = [
        Bar("connected", connected, "at least", 100, "%"),
        Bar("syncs refused or not answered", lost, "at most", 0, ""),
    ]
    if options.saturate:
        return bars
    latency = median_latency(rows)
    return [
        *bars,
        Bar("p50", latency.p50_ms, "at most", P50_MS, "ms"),
        Bar("p95", latency.p95_ms, "at most", P95_MS, "ms"),
        Bar("p99", latency.p99_ms, "at most", P99_MS, "ms"),
    ]
