"""Scenario ``uploads``: a hundred files at once, and syncs beside them.

The product takes turns with (a), plain aiohttp that writes bodies to the same disk and waits for it, and (b),
the tus server of Node, which does not; all three are sent the same by the same client.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec
import psutil

from bench.harness.child import child
from bench.harness.environment import BenchError, Environment, fresh
from bench.harness.load_run import Target
from bench.harness.meter import Meter, Usage
from bench.harness.progress import progress
from bench.harness.stage import Options, add_tenants, bare_stage, product_stage
from bench.load.workload import MIX
from bench.peers.installation import cache_of, installed
from bench.peers.stages import tus_server
from bench.report.results import Figure, Report, Row, Transfer
from bench.report.summary import MIB, audited
from bench.uploads.criteria import PLAIN, PRODUCT, TUS, judge
from bench.uploads.damaged import DAMAGED, damaged_refused
from bench.uploads.generator import UploadPlan

UPLOADERS: Final = 100
FILE_BYTES: Final = 5_242_880
CHUNK_BYTES: Final = 262_144
#: A file of the turn that goes before all others and does not count.
WARMUP_BYTES: Final = 1_048_576
DURATION_S: Final = 10.0
_ROUNDS: Final = 3
#: The tenant whose devices upload; those that sync are of others.
_TENANT: Final = "bench-uploads"
#: Where each side has files to download.
_FILES: Final[Mapping[str, str]] = {PLAIN: "/v1/files", PRODUCT: "/v1/files", TUS: "/v1/uploads"}


async def uploads(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    if options.workers is not None:
        raise BenchError("uploads are measured on a server of one worker: leave --workers out")
    quick = options.suite == "quick"
    work = (
        f"{UPLOADERS} uploads at once of {FILE_BYTES:,} bytes in chunks of {CHUNK_BYTES:,}, each uploader"
        f" sending the next when the last is acknowledged; then {options.rate_per_s:g} syncs/s over"
        f" {options.connections:,} connections, an open loop, alone and beside uploads that go on; {MIX}"
    )
    report = Report(scenario="uploads", work=work)
    rounds = range(1, (options.rounds or _ROUNDS) + 1)
    alone: list[Row] = []
    beside: list[Row] = []
    goes_on: list[Transfer] = []
    with fresh(options.settings) as environment:
        async with AsyncExitStack() as stack:
            stage = product_stage(environment, options, "product", report.logged)
            product = await stack.enter_async_context(stage)
            add_tenants(product.dsn, [_TENANT])
            idle_mib = psutil.Process(product.watched["server"]).memory_info().rss / MIB
            async with AsyncExitStack() as others:
                servers = {PRODUCT: product}
                if not quick:
                    servers |= await _others(environment, options, others)
                sides = await _turns(servers, rounds, report)
            refused = await damaged_refused((product.host, product.port), product.token(_TENANT, "damaging"))
            report.figures.append(Figure("damaged chunks refused", refused, "%", f"of {DAMAGED}"))
            for number in () if quick else rounds:
                for uploaded in (False, True) if number % 2 else (True, False):
                    if uploaded:
                        row, transfer = await _beside(options, product, number)
                        beside.append(row)
                        goes_on.append(transfer)
                    else:
                        row = await _sync(options, product, f"syncs alone, round {number}", {})
                        alone.append(row)
                    report.rows.append(row)
            report.transfers += goes_on
            judge(report, sides, idle_mib, alone, beside, goes_on)
    return report


async def _others(environment: Environment, options: Options, stack: AsyncExitStack) -> dict[str, Target]:
    """Start the servers that the product is compared with."""
    node = await installed("tus", cache_of(options.settings))
    files = [str(environment.home / side) for side in (PLAIN, TUS)]
    bare = bare_stage(environment, options, "bench.baselines.plain_uploads", files[0])
    plain = await stack.enter_async_context(bare)
    tus = await stack.enter_async_context(tus_server(node, files[1]))
    watched = {**plain.watched, "server": tus.pid}
    return {PLAIN: plain, TUS: msgspec.structs.replace(plain, port=tus.port, watched=watched)}


async def _turns(servers: Mapping[str, Target], rounds: range, report: Report) -> dict[str, list[Transfer]]:
    """Let the servers take turns; who does not wait for the disk has it to itself at the end of its own."""
    sides: dict[str, list[Transfer]] = {side: [] for side in _FILES if side in servers}
    for number in (0, *rounds):
        for side, turns in sides.items():
            name = f"{side}, round {number}" if number else f"{side}, warm-up"
            progress(name)
            file_bytes = FILE_BYTES if number else WARMUP_BYTES
            turn = await upload(
                *(name, servers[side]), files=_FILES[side], records=side == PRODUCT, file_bytes=file_bytes
            )
            if number:
                turns.append(turn)
                report.transfers.append(turn)
            await asyncio.to_thread(os.sync)
    return sides


async def _sync(options: Options, product: Target, name: str, watched: Mapping[str, int]) -> Row:
    target = msgspec.structs.replace(product, watched={**product.watched, **watched})
    _, row = await audited(
        *(name, target, "open", options.connections, options.duration_s or DURATION_S),
        per_s=options.rate_per_s,
    )
    return row


async def _beside(options: Options, product: Target, number: int) -> tuple[Row, Transfer]:
    """Send syncs while uploads go on: they are begun before and end after."""
    rows: list[Row] = []

    async def sync(pid: int) -> None:
        rows.append(await _sync(options, product, f"syncs beside uploads, round {number}", {"uploads": pid}))

    name = f"product beside syncs, round {number}"
    transfer = await upload(name, product, files=_FILES[PRODUCT], records=True, beside=sync)
    return rows[0], transfer


async def upload(
    name: str,
    target: Target,
    *,
    files: str,
    records: bool,
    uploaders: int = UPLOADERS,
    file_bytes: int = FILE_BYTES,
    chunk_bytes: int = CHUNK_BYTES,
    beside: Callable[[int], Awaitable[Any]] | None = None,
) -> Transfer:
    """Upload from devices that nobody used before, in a process of their own, and compare the files.

    With ``beside``, which is given the id of that process, uploads go on until it is over. Raises BenchError.
    """
    prefix = secrets.token_hex(4)
    plan = UploadPlan(
        host=target.host,
        port=target.port,
        files=files,
        prefix=prefix,
        tokens=[target.token(_TENANT, f"{prefix}-{index}") for index in range(uploaders)],
        file_bytes=file_bytes,
        chunk_bytes=chunk_bytes,
        records=records,
        goes_on=beside is not None,
    )
    async with (
        child("the uploading client", "bench.uploads.generator", plan) as client,
        Meter(target.watched) as meter,
    ):
        await client.read(str)
        meter.mark()
        client.tell()
        if beside is not None:
            await beside(client.pid)
            client.tell()
        await client.read(str)
        spent = meter.mark()
        client.tell()
        return transfer_of(name, await client.read(Transfer), spent, others=beside is None)


def transfer_of(name: str, came: Transfer, spent: Usage, *, others: bool = True) -> Transfer:
    """Add to what the client says what servers used; ``others`` adds what else kept the machine busy."""
    cpus = came.cpus | {tree: used_ms / 1000 / came.elapsed_s for tree, used_ms in spent.cpu_ms.items()}
    busy = spent.machine_cpu_ms / 1000 / came.elapsed_s
    return msgspec.structs.replace(
        came,
        name=name,
        cpus=cpus,
        other_cpus=max(0.0, busy - sum(cpus.values())) if others else None,
        rss_peak_mib=(spent.rss_peak_bytes or 0) / MIB,
    )
