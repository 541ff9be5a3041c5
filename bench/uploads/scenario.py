"""Scenario ``uploads``: a hundred files at once, and syncs beside them.

The product takes turns with (a), plain aiohttp that writes bodies to the same disk and waits for it, and (b),
the tus server of Node, which does not; all three are sent the same by the same client.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Final

import msgspec
import psutil

from bench.baselines.tus_server import install, tus_server
from bench.harness.audit import Auditor
from bench.harness.child import progress
from bench.harness.environment import BenchError, Environment, fresh
from bench.harness.load_run import Target, run_tasks
from bench.harness.server import Server
from bench.harness.stage import Options, Stage, add_tenants, bare_stage, product_stage
from bench.load.workload import MIX
from bench.report.results import Report, Row, Transfer
from bench.report.summary import row_of
from bench.uploads.criteria import PLAIN, PRODUCT, TUS, Sides, judge, transfer_of
from bench.uploads.drive import planned, uploading

UPLOADERS: Final = 100
FILE_BYTES: Final = 5_242_880
CHUNK_BYTES: Final = 262_144
#: A file of the turn that goes before all others and does not count.
WARMUP_BYTES: Final = 1_048_576
DURATION_S: Final = 10.0
WARMUP_S: Final = 1.5
_ROUNDS: Final = 3
#: The tenant whose devices upload; those that sync are of others.
_TENANT: Final = "bench-uploads"
#: Where each side has files to download.
_FILES: Final[Mapping[str, str]] = {PLAIN: "/v1/files", PRODUCT: "/v1/files", TUS: "/v1/uploads"}


async def uploads(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    if options.url is not None or options.workers is not None:
        raise BenchError("uploads are measured on a server of its own: leave --url and --workers out")
    report = Report(scenario="uploads", work=_work(options))
    with fresh(options.settings) as environment:
        progress("install @tus/server")
        await install(environment.home / "tus")
        async with product_stage(environment, options, "product") as stage:
            await _Uploads(options, stage, report).run(environment)
            report.logged = dict(stage.server.logged)
    return report


def _work(options: Options) -> str:
    return (
        f"{UPLOADERS} uploads at once of {FILE_BYTES:,} bytes in chunks of {CHUNK_BYTES:,}, each uploader"
        f" sending the next when the last is acknowledged; then {options.rate_per_s:g} syncs/s over"
        f" {options.connections:,} connections, an open loop, alone and beside uploads that go on;"
        f" {MIX}"
    )


class _Uploads:
    def __init__(self, options: Options, stage: Stage, report: Report) -> None:
        self._options = options
        self._stage = stage
        self._report = report
        self._rounds = options.rounds or _ROUNDS
        add_tenants(stage.dsn, [_TENANT])

    async def run(self, environment: Environment) -> None:
        """Measure all of it and judge."""
        idle_mib = psutil.Process(self._stage.server.pid).memory_info().rss / (1 << 20)
        sides = await self._turns(environment)
        alone: list[Row] = []
        beside: list[Row] = []
        goes_on: list[Transfer] = []
        for number in range(1, self._rounds + 1):
            for uploaded in (False, True) if number % 2 else (True, False):
                if uploaded:
                    row, transfer = await self._beside(number)
                    beside.append(row)
                    goes_on.append(transfer)
                else:
                    alone.append(await self._sync(f"syncs alone, round {number}", self._stage.target))
        judge(self._report, sides, idle_mib, alone, beside, goes_on)

    async def _turns(self, environment: Environment) -> Sides:
        """Let the three take turns; who does not wait for the disk has it to itself at the end of its own."""
        sides = Sides()
        files = [str(environment.home / side) for side in (PLAIN, TUS)]
        async with (
            bare_stage(environment, self._options, "bench.baselines.plain_uploads", files[0]) as plain,
            tus_server(environment.home / "tus", files[1]) as tus,
        ):
            targets = {PLAIN: plain, PRODUCT: self._target, TUS: _bare(tus, plain)}
            for number in range(self._rounds + 1):
                for side, target in targets.items():
                    name = f"{side}, round {number}" if number else f"{side}, warm-up"
                    turn = await self._turn(name, side, target, FILE_BYTES if number else WARMUP_BYTES)
                    if number:
                        sides[side].append(turn)
                        self._report.transfers.append(turn)
                    await asyncio.to_thread(os.sync)
        return sides

    @property
    def _target(self) -> Target:
        return msgspec.structs.replace(self._stage.target, tenants=[_TENANT])

    async def _turn(self, name: str, side: str, target: Target, file_bytes: int) -> Transfer:
        progress(name)
        plan = planned(
            target, UPLOADERS, file_bytes, CHUNK_BYTES, files=_FILES[side], records=side == PRODUCT
        )
        async with uploading(plan, target) as uploaders:
            uploaders.begin()
            spent = await uploaders.sent()
            return transfer_of(name, await uploaders.checked(), spent)

    async def _sync(self, name: str, target: Target) -> Row:
        duration_s = self._options.duration_s or DURATION_S
        auditor = Auditor(self._stage.dsn)
        run = await run_tasks(
            *(name, target, "open", self._options.connections, duration_s),
            per_s=self._options.rate_per_s,
            warmup_s=min(WARMUP_S, duration_s),
        )
        row = row_of(run, auditor.audit(run))
        self._report.rows.append(row)
        return row

    async def _beside(self, number: int) -> tuple[Row, Transfer]:
        """Send syncs while uploads go on: they are begun before and end after."""
        target = self._target
        plan = planned(
            target, UPLOADERS, FILE_BYTES, CHUNK_BYTES, files=_FILES[PRODUCT], records=True, goes_on=True
        )
        async with uploading(plan, target) as uploaders:
            uploaders.begin()
            watched = {**target.watched, "uploads": uploaders.pid}
            row = await self._sync(
                f"syncs beside uploads, round {number}",
                msgspec.structs.replace(self._stage.target, watched=watched),
            )
            uploaders.end()
            spent = await uploaders.sent()
            came = await uploaders.checked()
        transfer = transfer_of(f"product beside syncs, round {number}", came, spent, others=False)
        self._report.transfers.append(transfer)
        return row, transfer


def _bare(server: Server, like: Target) -> Target:
    watched = {**like.watched, "server": server.pid}
    return msgspec.structs.replace(like, port=server.port, watched=watched)
