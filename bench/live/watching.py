"""Runs subscribers in processes of their own beside a load."""

from __future__ import annotations

import resource
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import msgspec

from bench.harness.child import Child, child
from bench.harness.environment import BenchError
from bench.harness.load_run import Target
from bench.live.subscribers import Seen, Watching, WatchPlan

#: Connections that come from one loopback address: the system gives each of them a port of its own.
_FROM_ONE_ADDRESS: Final = 10_000


class Watchers:
    """Subscribers that are all connected; connection n is of ``tenants[n]``."""

    def __init__(self, tenants: Sequence[str], processes: Sequence[Child]) -> None:
        self.tenants = tenants
        self._processes = processes

    def watched(self, target: Target) -> Target:
        """Add their processes to those that are measured."""
        own = {f"subscribers {place}": one.pid for place, one in enumerate(self._processes, 1)}
        return msgspec.structs.replace(target, watched={**target.watched, **own})

    def begin(self) -> None:
        """Tell them to note what arrives."""
        for process in self._processes:
            process.tell()

    async def finish(self, seqs: Sequence[int]) -> list[Seen]:
        """Tell each to wait for a seq. Returns what they saw, connections counted on from process to process.

        Raises BenchError.
        """
        parts = _parts(len(seqs), len(self._processes))
        for process, part in zip(self._processes, parts, strict=True):
            process.tell(seqs[part])
        return [
            _shifted(await process.read(Seen), part.start)
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
        tokens=[target.token(tenant, f"{prefix}-{index}") for index, tenant in enumerate(mine)],
        sources=sources(connections),
        heartbeats=heartbeats,
    )
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(child("subscribers", "bench.live.subscribers", _part(plan, part)))
            for part in _parts(connections, processes)
        ]
        found = [await process.read(Watching) for process in started]
        subscribed = sum(one.subscribed for one in found)
        if subscribed < connections:
            reasons = ", ".join({reason for one in found for reason in one.refusals}) or "silence"
            raise BenchError(f"{subscribed:,} of {connections:,} subscribers came up: {reasons}")
        yield Watchers(mine, started)


def sources(connections: int) -> list[str]:
    """Give each connection an address of this machine to come from; none if they all may come from one."""
    if connections <= _FROM_ONE_ADDRESS:
        return []
    return [f"127.0.0.{2 + index // _FROM_ONE_ADDRESS}" for index in range(connections)]


def check_files(connections: int, processes: int, workers: int, own: int) -> None:
    """Check that each process of both sides may open its connections, and ``own`` files more.

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
