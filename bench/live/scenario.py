"""The scenarios of subscribers.

``live``: how soon devices on one worker see what devices on another one push. First few subscribers a tenant,
by turns with the same load without any; then so many that far more changes are to be delivered than one by
one could be, and pages have to grow.

``connections``: very many devices that are subscribed and idle, and a few that sync.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Final

import msgspec

from bench.harness.load_run import Target
from bench.harness.meter import Trees
from bench.harness.progress import progress
from bench.harness.stage import Options, add_tenants, staged
from bench.live.delivery import Delivered, check_files, delivered, tables_of, watching
from bench.live.subscribers import Seen
from bench.load.workload import MIX
from bench.report.results import IDLE_KIB, Bar, Figure, Report, Row, lost_bar, median_latency
from bench.report.statistics import median_of, over, percentile
from bench.report.summary import audited

DURATION_S: Final = 10.0
WORKERS: Final = 2
_ROUNDS: Final = 2
#: Devices that push, over all tenants.
PUSHERS: Final = 200
#: Processes that subscribers are in.
_PROCESSES: Final = 2
#: Files that a process holds besides its connections.
_OWN_FILES: Final = 400

#: Tenants where each has few subscribers, and where each has many.
WIDE, DENSE = 200, 20

#: From the acknowledgement at the device that pushed to the page at one that is subscribed.
FROM_ACK_P95_MS: Final = 20.0
#: How much slower a sync may get by those who are told of it.
SYNC_RATIO: Final = 1.5
#: How much more memory the server may take where many more changes are to be delivered.
MEMORY_RATIO: Final = 2.0
_NAMED: Final = 5

#: Connections of ``connections`` unless told otherwise, the processes that they are in, and the syncs beside.
CONNECTIONS: Final = 15_000
_IDLE_PROCESSES: Final = 3
SYNCS_PER_S: Final = 200.0
P95_MS: Final = 15.0


async def live(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    workers = options.workers or WORKERS
    check_files(options.connections, _PROCESSES, max(1, workers - 1), _OWN_FILES)
    report = Report(
        scenario="live",
        work=f"{options.connections:,} subscribers over {WIDE} tenants and then over {DENSE}, beside an open"
        f" loop of {options.rate_per_s:g} syncs/s of {PUSHERS} other devices; {workers} workers, those who"
        f" push on the first one and subscribers on the others; {MIX}",
    )
    alone: list[tuple[Row, Delivered]] = []
    beside: list[tuple[Row, Delivered]] = []
    async with staged(options, report.logged, workers) as product:
        for number in range(1, (options.rounds or _ROUNDS) + 1):
            for told in (False, True) if number % 2 else (True, False):
                name = f"subscribers over {WIDE} tenants" if told else "no subscribers"
                subscribers = options.connections if told else 0
                found = await _push(options, product, report, f"{name}, round {number}", WIDE, subscribers)
                (beside if told else alone).append(found)
        name = f"subscribers over {DENSE} tenants"
        dense = await _push(options, product, report, name, DENSE, options.connections)
    rows, seen = zip(*beside, strict=True)
    judge(report, options, [row for row, _ in alone], rows, seen, *dense)
    if workers == 1:
        report.remarks.append("one worker: what is pushed does not cross over to another one")
    return report


async def _push(
    options: Options, product: Target, report: Report, name: str, tenants: int, subscribers: int
) -> tuple[Row, Delivered]:
    """Push to tenants that nobody used before, beside so many subscribers on the other workers."""
    names = [f"live-{len(report.rows)}-{index:03}" for index in range(tenants)]
    add_tenants(product.dsn, names)
    target = msgspec.structs.replace(product, tenants=names, ports=product.ports[:1])
    elsewhere = msgspec.structs.replace(target, ports=product.ports[1:])
    progress(f"{name}: subscribe")
    async with watching(elsewhere, names, subscribers, _PROCESSES) as watchers:
        watchers.begin()
        run, row = await audited(
            *(name, watchers.watched(target), "open", PUSHERS, options.duration_s or DURATION_S),
            per_s=options.rate_per_s,
        )
        tables = tables_of(product.dsn, names)
        seen = await watchers.finish(tables.seqs)
    report.rows.append(row)
    return row, delivered(run, seen, watchers.tenants, tables)


def judge(
    report: Report,
    options: Options,
    alone: Sequence[Row],
    beside: Sequence[Row],
    seen: Sequence[Delivered],
    dense_row: Row,
    dense: Delivered,
) -> None:
    """Add figures, bars and remarks to a report of what was measured."""
    from_ack = median_of([one.from_ack for one in seen])
    _figures(report, WIDE, options, seen)
    _figures(report, DENSE, options, [dense])
    without, with_them = median_latency(alone), median_latency(beside)
    report.figures += [
        Figure("p95 of a sync without subscribers", without.p95_ms, "ms"),
        Figure(f"p95 of a sync with subscribers over {WIDE} tenants", with_them.p95_ms, "ms"),
        Figure(f"p95 of a sync with subscribers over {DENSE} tenants", dense_row.latency.p95_ms, "ms"),
    ]
    faults = [fault for one in (*seen, dense) for fault in one.faults]
    slower = over(with_them.p95_ms, without.p95_ms)
    report.bars += [
        lost_bar([*alone, *beside, dense_row]),
        Bar("p95 from acknowledgement to subscriber", from_ack.p95_ms, "at most", FROM_ACK_P95_MS, "ms"),
        Bar("p95 of a sync with subscribers, over without", slower, "at most", SYNC_RATIO, "times"),
        Bar("faults found in what subscribers hold", len(faults), "at most", 0, "", must=True),
    ]
    usual = max(row.rss_peak_mib or 0.0 for row in beside)
    if usual and dense_row.rss_peak_mib is not None:
        name, ratio = (
            f"memory with subscribers over {DENSE} tenants, over {WIDE}",
            dense_row.rss_peak_mib / usual,
        )
        report.bars.append(Bar(name, ratio, "at most", MEMORY_RATIO, "times"))
    report.remarks += faults[:_NAMED]


def _figures(report: Report, tenants: int, options: Options, seen: Sequence[Delivered]) -> None:
    wanted = options.rate_per_s * options.connections / tenants
    where = f"over {tenants} tenants"
    for what, latency in (
        ("acknowledgement", median_of([one.from_ack for one in seen])),
        ("sending", median_of([one.from_sending for one in seen])),
    ):
        name = f"p95 from {what} to subscriber, {where}"
        beside = f"p50 {latency.p50_ms:.2f}, p99 {latency.p99_ms:.2f}, at most {latency.max_ms:.1f} ms"
        report.figures.append(Figure(name, latency.p95_ms, "ms", beside))
    last = seen[-1]
    late = f"timers late by p99 {last.lag_p99_ms:.1f} ms"
    report.figures += [
        Figure(f"delivered, {where}", last.per_s, "changes/s", f"{wanted:,.0f}/s were to be"),
        Figure(f"changes of a page, {where}", last.changes_per_page, "", f"{last.pages_per_s:,.0f} pages/s"),
        Figure(f"subscribers' own CPUs, {where}", last.cpus, "", late),
    ]


async def connections(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    workers = options.workers or WORKERS
    check_files(options.connections, _IDLE_PROCESSES, workers, _OWN_FILES)
    report = Report(
        scenario="connections",
        work=f"{options.connections:,} subscribed connections over {options.tenants} tenants and {workers}"
        f" workers, idle but for heartbeats as often as the server asks; beside them {SYNCS_PER_S:g}"
        f" syncs/s of {PUSHERS} devices, an open loop; {MIX}",
    )
    async with staged(options, report.logged, workers) as target:
        await _measure(options, target, report)
    return report


async def _measure(options: Options, target: Target, report: Report) -> None:
    count = options.connections
    idle = [f"idle-{index:02}" for index in range(options.tenants)]
    add_tenants(target.dsn, idle)
    trees = Trees(target.watched)
    before_bytes = trees.rss_bytes("server")

    def grown_kib() -> float:
        return (trees.rss_bytes("server") - before_bytes) / 1024 / count

    progress(f"{count:,} connections")
    began_s = perf_counter()
    async with watching(target, idle, count, _IDLE_PROCESSES, heartbeats=True) as watchers:
        opened_s = perf_counter() - began_s
        open_kib = grown_kib()
        watchers.begin()
        _, row = await audited(
            *("syncs beside them", watchers.watched(target), "open", PUSHERS),
            options.duration_s or DURATION_S,
            per_s=SYNCS_PER_S,
        )
        end_kib = grown_kib()
        seen = await watchers.finish(tables_of(target.dsn, idle).seqs)
    report.rows.append(row)
    report.figures += [
        Figure("connections opened and subscribed", count / opened_s, "a second", f"in {opened_s:.1f} s"),
        Figure("an idle subscribed connection once open", open_kib, "KiB"),
        Figure("an idle subscribed connection at the end", end_kib, "KiB", "heartbeats and syncs went on"),
    ]
    judge_connections(report, row, seen, open_kib)


def judge_connections(report: Report, row: Row, seen: Seen, grown_kib: float) -> None:
    """Add figures and bars to a report of what was measured; ``watching`` saw that all are connected."""
    late = f"their timers late by p99 {percentile(sorted(seen.lag_us), 99) / 1000:.1f} ms"
    silent = seen.heartbeats - seen.heartbeats_answered
    report.figures += [
        Figure("heartbeats", seen.heartbeats, "", f"{seen.heartbeats_answered:,} answered"),
        Figure("subscribers' own CPUs", seen.cpus, "", late),
    ]
    report.bars += [
        Bar(
            "connections cut off or told of an error", sum(seen.errors.values()), "at most", 0, "", must=True
        ),
        Bar("heartbeats not answered", silent, "at most", 0, "", f"of {seen.heartbeats:,}", must=True),
        lost_bar([row]),
        Bar("p95 of a sync", median_latency([row]).p95_ms, "at most", P95_MS, "ms"),
        Bar("an idle subscribed connection", grown_kib, "at most", IDLE_KIB, "KiB"),
    ]
