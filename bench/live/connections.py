"""Scenario ``connections``: very many devices that are subscribed and idle, and a few that sync."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Final

from bench.harness.audit import Auditor
from bench.harness.child import progress
from bench.harness.environment import BenchError, fresh
from bench.harness.load_run import run_tasks
from bench.harness.processes import Trees
from bench.harness.stage import Options, Stage, add_tenants, product_stage
from bench.live.subscribers import Seen
from bench.live.summary import tables_of
from bench.live.watching import check_files, watching
from bench.load.workload import MIX
from bench.report.results import Bar, Figure, Report, Row, lost_bar
from bench.report.statistics import percentile
from bench.report.summary import row_of

#: How many there are unless told otherwise.
CONNECTIONS: Final = 15_000
DURATION_S: Final = 10.0
WARMUP_S: Final = 1.5
WORKERS: Final = 2
#: Devices that sync beside them, in tenants of their own, so that the others stay idle.
PUSHERS: Final = 200
SYNCS_PER_S: Final = 200.0
_PROCESSES: Final = 3
_OWN_FILES: Final = 400

P95_MS: Final = 15.0
#: What an idle, subscribed connection may hold of the server's memory.
IDLE_KIB: Final = 25.0


async def connections(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    if options.url is not None:
        raise BenchError("connections are counted against a server's memory: leave --url out")
    workers = options.workers or WORKERS
    check_files(options.connections, _PROCESSES, workers, _OWN_FILES)
    report = Report(scenario="connections", work=_work(options, workers))
    with fresh(options.settings) as environment:
        async with product_stage(environment, options, "product", workers) as stage:
            await _measure(options, stage, report)
            report.logged = dict(stage.server.logged)
    return report


def _work(options: Options, workers: int) -> str:
    return (
        f"{options.connections:,} subscribed connections over {options.tenants} tenants and {workers}"
        f" workers, idle but for heartbeats as often as the server asks; beside them {SYNCS_PER_S:g}"
        f" syncs/s of {PUSHERS} devices, an open loop; {MIX}"
    )


async def _measure(options: Options, stage: Stage, report: Report) -> None:
    count, target = options.connections, stage.target
    idle = [f"idle-{index:02}" for index in range(options.tenants)]
    add_tenants(stage.dsn, idle)
    trees = Trees({"server": stage.server.pid})
    before_bytes = trees.rss_bytes("server")
    progress(f"{count:,} connections")
    began_s = perf_counter()
    async with watching(target, idle, count, _PROCESSES, heartbeats=True) as watchers:
        opened_s = perf_counter() - began_s
        grown_kib = (trees.rss_bytes("server") - before_bytes) / 1024 / count
        watchers.begin()
        duration_s = options.duration_s or DURATION_S
        auditor = Auditor(stage.dsn)
        run = await run_tasks(
            *("syncs beside them", watchers.watched(target), "open", PUSHERS, duration_s),
            per_s=SYNCS_PER_S,
            warmup_s=min(WARMUP_S, duration_s),
        )
        row = row_of(run, auditor.audit(run))
        end_kib = (trees.rss_bytes("server") - before_bytes) / 1024 / count
        seqs = tables_of(stage.dsn, idle).seqs
        seen = await watchers.finish([seqs[tenant] for tenant in watchers.tenants])
    report.rows.append(row)
    report.figures += [
        Figure("connections opened and subscribed", count / opened_s, "a second", f"in {opened_s:.1f} s"),
        Figure("an idle subscribed connection once open", grown_kib, "KiB"),
        Figure("an idle subscribed connection at the end", end_kib, "KiB", "heartbeats and syncs went on"),
    ]
    judge(report, row, seen, grown_kib)


def judge(report: Report, row: Row, seen: Sequence[Seen], grown_kib: float) -> None:
    """Add figures and bars to a report of what was measured; ``watching`` saw that all are connected."""
    sent = sum(part.heartbeats for part in seen)
    answered = sum(part.heartbeats_answered for part in seen)
    lag_us = sorted(lag for part in seen for lag in part.lag_us)
    report.figures += [
        Figure("heartbeats", sent, "", f"{answered:,} answered"),
        Figure(
            "subscribers' own CPUs",
            sum(part.cpus for part in seen),
            "",
            f"their timers late by p99 {percentile(lag_us, 99) / 1000:.1f} ms",
        ),
    ]
    cut_off = sum(sum(part.errors.values()) for part in seen)
    report.bars += [
        Bar("connections cut off or told of an error", cut_off, "at most", 0, ""),
        Bar("heartbeats not answered", sent - answered, "at most", 0, ""),
        lost_bar([row]),
        Bar("p95 of a sync", row.latency.p95_ms, "at most", P95_MS, "ms"),
        Bar("an idle subscribed connection", grown_kib, "at most", IDLE_KIB, "KiB"),
    ]
