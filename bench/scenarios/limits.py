"""Scenario ``limits``: what this machine can do at all, and how near the product comes.

(a) decode and acknowledge without storing, (b) the group commit without sockets, (c) the simplest durable
pipeline by turns with the product, and the memory of idle connections.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from typing import Final

import msgspec

from bench.baselines.commit_only import Measured, Task
from bench.baselines.compare import WARMUP_S, duel, figures, limit_c, remarks
from bench.harness.drive import drive, say
from bench.harness.environment import BenchError, Ground, fresh
from bench.harness.server import ROOT
from bench.harness.stage import Options, add_tenants, bare_stage, product_stage
from bench.load.workload import MIX
from bench.report.results import Bar, Figure, Report, row_of, this_machine
from storage.postgres.blocking import connected

SIZES: Final = (1, 100, 1_000)
TABLE_A: Final = {1: 9_500, 100: 70_000, 1_000: 37_000}
_ROUNDS: Final = 3
_TURN_S: Final = 5.0

IDLE_CONNECTIONS: Final = 10_000
#: What an idle, subscribed connection may hold of the server's memory without compression.
IDLE_KIB: Final = 25.0
_IDLE_S: Final = 5.0
#: Files that a server holds besides its connections.
_OWN_FILES: Final = 200


async def limits(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    if options.url is not None:
        raise BenchError("limits are measured on servers of its own: leave --url out")
    report = Report(
        scenario="limits",
        work=f"closed loop, one sync under way on each connection, {options.tenants} tenants;"
        f" one item a sync, a task of about 200 bytes, {MIX}",
        machine=this_machine(),
    )
    duration_s = options.duration_s or _TURN_S
    with fresh(options.settings) as ground:
        await _limit_a(ground, options, duration_s, report)
        await _limit_b(ground, options, duration_s, report)
        async with product_stage(ground, options, "product") as stage, limit_c(ground, options) as rival:
            turns = await duel(stage, rival, SIZES, options.rounds or _ROUNDS, duration_s)
            report.rows += [turn.row for turn in turns]
            report.figures += figures(turns)
            report.remarks += remarks(turns)
            report.logged = dict(stage.server.logged)
        for deflate in (False, True):
            await _idle(ground, options, report, deflate=deflate)
    lost = sum(sum(row.errors.values()) + row.unanswered for row in report.rows)
    report.bars.append(Bar("syncs refused or not answered", lost, "at most", 0, ""))
    return report


async def _limit_a(ground: Ground, options: Options, duration_s: float, report: Report) -> None:
    async with bare_stage(ground, options, "bench.baselines.decode_only") as target:
        for connections in SIZES:
            name = f"a at {connections}"
            run = await drive(name, target, "closed", connections, duration_s, warmup_s=WARMUP_S)
            row = row_of(run, None)
            report.rows.append(row)
            beside = f"{row.syncs_per_s / TABLE_A[connections]:.2f} of {TABLE_A[connections]:,}/s"
            report.figures.append(
                Figure(
                    f"(a) decode and acknowledge at {connections}",
                    row.syncs_per_s,
                    "syncs/s",
                    beside,
                )
            )


async def _limit_b(ground: Ground, options: Options, duration_s: float, report: Report) -> None:
    dsn = ground.database("limit_b")
    add_tenants(dsn, options.tenant_names)
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id FROM tenants ORDER BY tenant_id")
        tenant_ids = [tenant_id for (tenant_id,) in cursor.fetchall()]
    task = Task(
        dsn=dsn,
        tenant_ids=tenant_ids,
        jobs=list(SIZES),
        duration_s=duration_s,
        settings=options.settings,
    )
    say(f"b at {', '.join(map(str, SIZES))}: {len(SIZES) * duration_s:.0f} s")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.baselines.commit_only",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate(msgspec.json.encode(task))
    if process.returncode:
        raise BenchError("the group commit ended before it was measured: its last words are above")
    for line in said.splitlines():
        measured = msgspec.json.decode(line, type=Measured)
        report.figures.append(
            Figure(
                f"(b) group commit alone at {measured.jobs}",
                measured.per_s,
                "syncs/s",
                f"{measured.batch_messages:.1f} syncs a batch",
            )
        )


async def _idle(ground: Ground, options: Options, report: Report, *, deflate: bool) -> None:
    """Subscribe on many connections of a fresh server and see what its memory grew by."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = min(IDLE_CONNECTIONS, files - _OWN_FILES)
    if connections < IDLE_CONNECTIONS and not deflate:
        report.remarks.append(
            f"this account may open {files:,} files: {connections:,} idle connections were measured"
        )
    kind = "with compression" if deflate else "without compression"
    async with product_stage(ground, options, f"idle_{'deflate' if deflate else 'plain'}") as stage:
        run = await drive(f"idle {kind}", stage.target, "idle", connections, _IDLE_S, deflate=deflate)
    assert run.usage is not None
    grown_kib = (run.usage.rss_end_bytes - run.usage.rss_before_bytes) / 1024 / max(1, run.outcome.connected)
    report.rows.append(row_of(run, None))
    report.figures.append(
        Figure(f"idle subscribed connection {kind}", grown_kib, "KiB", f"{run.outcome.connected:,} of them")
    )
    report.bars.append(
        Bar(f"connected, idle {kind}", 100 * run.outcome.connected / connections, "at least", 100, "%")
    )
    if not deflate:
        report.bars.append(Bar(f"idle connection {kind}", grown_kib, "at most", IDLE_KIB, "KiB"))
