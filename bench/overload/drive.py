"""Runs the load generator of ``overload`` as processes of their own, and measures what each step uses.

Several may load one server at once: all begin at the same time, on the clock that processes share.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import Final

import msgspec

from bench.harness.drive import Target, token
from bench.harness.environment import BenchError
from bench.harness.processes import Trees, machine_cpu_ms
from bench.harness.server import ROOT
from bench.overload.plan import Happened, LoadPlan, Ready, Step
from bench.overload.summary import Used
from bench.overload.workload import Backlog

_SAMPLE_S: Final = 0.1
#: From when a run is told to begin until it does.
_LEAD_S: Final = 0.1
_LINE_BYTES: Final = 1 << 30

_decode = msgspec.json.Decoder(Ready | Happened).decode


class Loaded(msgspec.Struct, frozen=True):
    """A run with all that is known of it. ``used`` goes with its steps; None where nothing was watched."""

    plan: LoadPlan
    tenants: Sequence[str]
    happened: Happened
    used: list[Used] | None

    def tenant_of(self, device: int) -> str:
        """Name the tenant of a device by its place in the plan."""
        return self.tenants[device % len(self.tenants)]


def planned(
    target: Target,
    tenants: Sequence[str],
    connections: int,
    backlog: Backlog,
    steps: list[Step],
    *,
    pipelined: int = 0,
) -> Loaded:
    """Make a run of devices that nobody used before, with nothing happened yet."""
    prefix = secrets.token_hex(4)
    devices = [f"{prefix}-{index}" for index in range(connections)]
    plan = LoadPlan(
        host=target.host,
        port=target.port,
        prefix=prefix,
        devices=devices,
        tokens=[token(target, tenants[index % len(tenants)], name) for index, name in enumerate(devices)],
        backlog=backlog,
        steps=steps,
        pipelined=pipelined,
        seed=int(prefix, 16),
    )
    nothing = Happened(
        device=[], due_us=[], sent_us=[], done_us=[], code=[], codes=[], seqs=[], lag_us=[], ended={}
    )
    return Loaded(plan, tenants, nothing, None)


async def pour(target: Target, *runs: Loaded) -> list[Loaded]:
    """Send runs' loads at a server, all at once, until all is answered. Raises BenchError."""
    async with AsyncExitStack() as stack:
        generators = [await stack.enter_async_context(_generator(run)) for run in runs]
        for generator in generators:
            await generator.ready()
        start_s = perf_counter() + _LEAD_S
        pids = [generator.pid for generator in generators]
        measuring = [
            asyncio.create_task(_measure(target, run.plan, pids[place], pids, start_s))
            for place, run in enumerate(runs)
        ]
        try:
            for generator in generators:
                generator.begin(start_s)
            happened = [await generator.happened() for generator in generators]
            used = [await task for task in measuring]
        finally:
            for task in measuring:
                task.cancel()
    return [
        msgspec.structs.replace(run, happened=what, used=how)
        for run, what, how in zip(runs, happened, used, strict=True)
    ]


class _Generator:
    def __init__(self, plan: LoadPlan, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._plan = plan
        self._stdin = process.stdin
        self._stdout = process.stdout
        self.pid = process.pid
        self._stdin.write(msgspec.json.encode(plan) + b"\n")

    async def ready(self) -> None:
        """Wait until everybody is connected. Raises BenchError where somebody is not."""
        said, asked = await self._said(), len(self._plan.devices)
        if isinstance(said, Ready) and said.connected < asked:
            reasons = ", ".join(said.refusals) or "silence"
            raise BenchError(f"{said.connected} of {asked} devices connected: {reasons}")

    def begin(self, start_s: float) -> None:
        """Have it begin at a time of ``perf_counter``."""
        self._stdin.write(repr(start_s).encode() + b"\n")

    async def happened(self) -> Happened:
        """Wait for the end. Raises BenchError."""
        said = await self._said()
        assert isinstance(said, Happened)
        return said

    async def _said(self) -> Ready | Happened:
        line = await self._stdout.readline()
        if not line:
            raise BenchError("the load generator ended before it was done: its last words are above")
        said: Ready | Happened = _decode(line)
        return said


@asynccontextmanager
async def _generator(run: Loaded) -> AsyncIterator[_Generator]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.overload.generator",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    try:
        yield _Generator(run.plan, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _measure(
    target: Target, plan: LoadPlan, pid: int, pids: Sequence[int], start_s: float
) -> list[Used] | None:
    """Read CPU time where steps begin and end, and look for the peak of memory between."""
    if not target.watched:
        return None
    others = {f"generator {place}": other for place, other in enumerate(pids) if other != pid}
    trees = Trees({"generator": pid, **target.watched, **others})
    used: list[Used] = []
    await asyncio.sleep(start_s - perf_counter())
    cpu_ms, machine_ms = trees.cpu_ms(), machine_cpu_ms()
    for _, end_us in plan.bounds_us:
        peak_bytes = trees.rss_bytes("server")
        while (left_s := start_s + end_us / 1e6 - perf_counter()) > 0:
            await asyncio.sleep(min(left_s, _SAMPLE_S))
            peak_bytes = max(peak_bytes, trees.rss_bytes("server"))
        now_ms, machine_now_ms = trees.cpu_ms(), machine_cpu_ms()
        spent_ms = {name: now_ms[name] - cpu_ms[name] for name in now_ms}
        used.append(Used(spent_ms, machine_now_ms - machine_ms, peak_bytes))
        cpu_ms, machine_ms = now_ms, machine_now_ms
    return used
