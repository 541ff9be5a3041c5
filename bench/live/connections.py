"""Scenario ``connections``: very many devices that are subscribed and idle, and a few that sync."""

from __future__ import annotations

from time import perf_counter
from typing import Final

from bench.harness.child import progress
from bench.harness.environment import BenchError
from bench.harness.meter import Trees
from bench.harness.stage import Options, Stage, add_tenants, staged
from bench.live.delivery import check_files, tables_of, watching
from bench.live.subscribers import Seen
from bench.load.workload import MIX
from bench.report.results import Bar, Figure, Report, Row, lost_bar
from bench.report.statistics import percentile
from bench.report.summary import audited

#: How many there are unless told otherwise.
CONNECTIONS: Final = 15_000
DURATION_S: Final = 10.0
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
    report = Report(
        scenario="connections",
        work=f"{options.connections:,} subscribed connections over {options.tenants} tenants and {workers}"
        f" workers, idle but for heartbeats as often as the server asks; beside them {SYNCS_PER_S:g}"
        f" syncs/s of {PUSHERS} devices, an open loop; {MIX}",
    )
    async with staged(options, report.logged, workers) as stage:
        await _measure(options, stage, report)
    return report


async def _measure(options: Options, stage: Stage, report: Report) -> None:
    count, target = options.connections, stage.target
    idle = [f"idle-{index:02}" for index in range(options.tenants)]
    add_tenants(stage.dsn, idle)
    trees = Trees(target.watched)
    before_bytes = trees.rss_bytes("server")

    def grown_kib() -> float:
        return (trees.rss_bytes("server") - before_bytes) / 1024 / count

    progress(f"{count:,} connections")
    began_s = perf_counter()
    async with watching(target, idle, count, _PROCESSES, heartbeats=True) as watchers:
        opened_s = perf_counter() - began_s
        open_kib = grown_kib()
        watchers.begin()
        _, row = await audited(
            *(stage.dsn, "syncs beside them", watchers.watched(target), "open", PUSHERS),
            options.duration_s or DURATION_S,
            per_s=SYNCS_PER_S,
        )
        end_kib = grown_kib()
        seen = await watchers.finish(tables_of(stage.dsn, idle).seqs)
    report.rows.append(row)
    report.figures += [
        Figure("connections opened and subscribed", count / opened_s, "a second", f"in {opened_s:.1f} s"),
        Figure("an idle subscribed connection once open", open_kib, "KiB"),
        Figure("an idle subscribed connection at the end", end_kib, "KiB", "heartbeats and syncs went on"),
    ]
    judge(report, row, seen, open_kib)


def judge(report: Report, row: Row, seen: Seen, grown_kib: float) -> None:
    """Add figures and bars to a report of what was measured; ``watching`` saw that all are connected."""
    late = f"their timers late by p99 {percentile(sorted(seen.lag_us), 99) / 1000:.1f} ms"
    silent = seen.heartbeats - seen.heartbeats_answered
    report.figures += [
        Figure("heartbeats", seen.heartbeats, "", f"{seen.heartbeats_answered:,} answered"),
        Figure("subscribers' own CPUs", seen.cpus, "", late),
    ]
    report.bars += [
        Bar("connections cut off or told of an error", sum(seen.errors.values()), "at most", 0, ""),
        Bar("heartbeats not answered", silent, "at most", 0, ""),
        lost_bar([row]),
        Bar("p95 of a sync", row.latency.p95_ms, "at most", P95_MS, "ms"),
        Bar("an idle subscribed connection", grown_kib, "at most", IDLE_KIB, "KiB"),
    ]
