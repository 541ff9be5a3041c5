"""Scenario ``limits``: what this machine can do at all, and how near the product comes.

(a) decode and acknowledge without storing, (b) the group commit without sockets, (c) the simplest durable
pipeline by turns with the product, and the memory of idle connections.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Final

from bench.baselines.commit_only import Measured, Task
from bench.baselines.compare import by_turns, simplest_pipeline
from bench.harness.child import child
from bench.harness.environment import Environment, fresh
from bench.harness.load_run import run_tasks
from bench.harness.meter import Trees
from bench.harness.progress import progress
from bench.harness.stage import Options, add_tenants, bare_stage, product_stage, tenant_ids
from bench.live.delivery import watching
from bench.load.workload import MIX
from bench.report.results import IDLE_KIB, Bar, Figure, Report, lost_bar
from bench.report.summary import row_of

SIZES: Final = (1, 100, 1_000)
TABLE_A: Final = {1: 9_500, 100: 70_000, 1_000: 37_000}
_ROUNDS: Final = 3
_TURN_S: Final = 5.0

IDLE_CONNECTIONS: Final = 10_000
_IDLE_S: Final = 5.0
#: Files that a server holds besides its connections.
_OWN_FILES: Final = 200


async def limits(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    work = f"closed loop, one sync under way on each connection, {options.tenants} tenants; {MIX}"
    report = Report(scenario="limits", work=work)
    duration_s = options.duration_s or _TURN_S
    with fresh(options.settings) as environment:
        await _decode_only(environment, options, duration_s, report)
        await _commit_only(environment, options, duration_s, report)
        async with (
            product_stage(environment, options, "product", report.logged) as product,
            simplest_pipeline(environment, options) as rival,
        ):
            await by_turns(report, product, rival, SIZES, options.rounds or _ROUNDS, duration_s)
        for deflate in (False, True):
            await _idle(environment, options, report, deflate=deflate)
    report.bars.append(lost_bar(report.rows))
    return report


async def _decode_only(environment: Environment, options: Options, duration_s: float, report: Report) -> None:
    async with bare_stage(environment, options, "bench.baselines.bare_server") as target:
        for size in SIZES:
            row = row_of(await run_tasks(f"a at {size}", target, "closed", size, duration_s))
            report.rows.append(row)
            beside = f"{row.stored_per_s / TABLE_A[size]:.2f} of {TABLE_A[size]:,}/s"
            name = f"(a) decode and acknowledge at {size}"
            report.figures.append(Figure(name, row.stored_per_s, "syncs/s", beside))


async def _commit_only(environment: Environment, options: Options, duration_s: float, report: Report) -> None:
    dsn = environment.database("limit_b")
    add_tenants(dsn, options.tenant_names)
    task = Task(
        dsn=dsn,
        tenant_ids=tenant_ids(dsn),
        in_flight=list(SIZES),
        duration_s=duration_s,
        settings=options.settings,
    )
    progress(f"b at {', '.join(map(str, SIZES))}: {len(SIZES) * duration_s:.0f} s")
    async with child("the group commit", "bench.baselines.commit_only", task) as committing:
        for _ in SIZES:
            found = await committing.read(Measured)
            name, beside = f"(b) group commit alone at {found.in_flight}", f"{found.batch_messages:.1f}"
            report.figures.append(Figure(name, found.per_s, "syncs/s", f"{beside} syncs a batch"))


async def _idle(environment: Environment, options: Options, report: Report, *, deflate: bool) -> None:
    """Subscribe on many connections of a fresh server and see by how much its memory grew."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = min(IDLE_CONNECTIONS, files - _OWN_FILES)
    if connections < IDLE_CONNECTIONS and not deflate:
        report.remarks.append(
            f"this account may open {files:,} files: {connections:,} idle connections were measured"
        )
    kind = "with compression" if deflate else "without compression"
    progress(f"{connections:,} idle connections {kind}")
    database = f"idle_{'deflate' if deflate else 'plain'}"
    async with product_stage(environment, options, database, report.logged) as target:
        trees = Trees(target.watched)
        before_bytes = trees.rss_bytes("server")
        async with watching(target, target.tenants, connections, 1, deflate=deflate):
            await asyncio.sleep(_IDLE_S)
            grown_kib = (trees.rss_bytes("server") - before_bytes) / 1024 / connections
    name = f"idle subscribed connection {kind}"
    report.figures.append(Figure(name, grown_kib, "KiB", f"{connections:,} of them"))
    if not deflate:
        report.bars.append(Bar(f"idle connection {kind}", grown_kib, "at most", IDLE_KIB, "KiB"))
