"""Runs subscribers as processes of their own beside a load."""

from __future__ import annotations

import asyncio
import resource
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from bench.harness.drive import Target, token
from bench.harness.environment import BenchError
from bench.harness.server import ROOT
from bench.live.plan import Seen, Watching, WatchPlan

_LINE_BYTES: Final = 1 << 30
#: Connections that come from one loopback address: the system gives each of them a port of its own.
_FROM_ONE_ADDRESS: Final = 10_000

_decode = msgspec.json.Decoder(Watching | Seen).decode


class Watchers:
    """Subscribers that are all connected; connection n is of ``tenants[n]``."""

    def __init__(self, tenants: Sequence[str], processes: Sequence[asyncio.subprocess.Process]) -> None:
        self.tenants = tenants
        self._processes = processes

    @property
    def pids(self) -> list[int]:
        """The processes that they are in."""
        return [process.pid for process in self._processes]

    def begin(self) -> None:
        """Have them note what comes."""
        for process in self._processes:
            _tell(process, b"begin")

    async def finish(self, seqs: Sequence[int]) -> list[Seen]:
        """Have each wait for a seq, and give what they saw: connections count on from process to process.

        Raises BenchError.
        """
        parts = _parts(len(seqs), len(self._processes))
        for process, part in zip(self._processes, parts, strict=True):
            _tell(process, msgspec.json.encode(seqs[part]))
        return [
            _shifted(await _seen(process), part.start)
            for process, part in zip(self._processes, parts, strict=True)
        ]


@asynccontextmanager
async def watching(
    target: Target, tenants: Sequence[str], connections: int, processes: int, *, heartbeats: bool = False
) -> AsyncIterator[Watchers]:
    """Subscribe, connection n for tenant n modulo these, spread over the target's ports.

    Raises BenchError.
    """
    prefix = secrets.token_hex(4)
    mine = [tenants[index % len(tenants)] for index in range(connections)]
    ports = list(target.ports) or [target.port]
    plan = WatchPlan(
        host=target.host,
        ports=[ports[index % len(ports)] for index in range(connections)],
        tokens=[token(target, tenant, f"{prefix}-{index}") for index, tenant in enumerate(mine)],
        sources=sources(connections),
        heartbeats=heartbeats,
    )
    started: list[asyncio.subprocess.Process] = []
    try:
        for part in _parts(connections, processes):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bench.live.subscribers",
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_BYTES,
            )
            started.append(process)
            _tell(process, msgspec.json.encode(_part(plan, part)))
        said = [await _watching(process) for process in started]
        subscribed = sum(one.subscribed for one in said)
        if subscribed < connections:
            reasons = ", ".join({reason for one in said for reason in one.refusals}) or "silence"
            raise BenchError(f"{subscribed:,} of {connections:,} subscribers came up: {reasons}")
        yield Watchers(mine, started)
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()


def sources(connections: int) -> list[str]:
    """Give each connection an address of this machine to come from; none where they all may come from one."""
    if connections <= _FROM_ONE_ADDRESS:
        return []
    return [f"127.0.0.{2 + index // _FROM_ONE_ADDRESS}" for index in range(connections)]


def check_files(connections: int, processes: int, workers: int, own: int) -> None:
    """See that each process of both sides may open its connections, and ``own`` files more.

    Raises BenchError.
    """
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = -(-connections // min(processes, workers)) + own
    if files < needed:
        raise BenchError(
            f"a process of this account may open {files:,} files and {needed:,} are needed for"
            f" {connections:,} connections: raise the limit (ulimit -Hn {needed}), or give more --workers"
            " or fewer --connections"
        )


def _parts(count: int, processes: int) -> list[slice]:
    size = -(-count // processes)
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def _part(plan: WatchPlan, part: slice) -> WatchPlan:
    return msgspec.structs.replace(
        plan, ports=plan.ports[part], tokens=plan.tokens[part], sources=plan.sources[part]
    )


def _shifted(seen: Seen, first: int) -> Seen:
    return msgspec.structs.replace(
        seen,
        connection=[first + index for index in seen.connection],
        short=[first + index for index in seen.short],
    )


def _tell(process: asyncio.subprocess.Process, line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line + b"\n")


async def _said(process: asyncio.subprocess.Process) -> Watching | Seen:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise BenchError("subscribers ended before they were done: their last words are above")
    said: Watching | Seen = _decode(line)
    return said


async def _watching(process: asyncio.subprocess.Process) -> Watching:
    said = await _said(process)
    assert isinstance(said, Watching)
    return said


async def _seen(process: asyncio.subprocess.Process) -> Seen:
    said = await _said(process)
    assert isinstance(said, Seen)
    return said
