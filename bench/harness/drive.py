"""Runs the load generator as a process of its own and measures what the servers use meanwhile."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

import jwt
import msgspec

from bench.harness.environment import BenchError
from bench.harness.processes import Trees, machine_cpu_ms
from bench.harness.server import ROOT
from bench.load.plan import Mark, Mode, Outcome, Plan

_SAMPLE_S: Final = 1.0
_TOKEN_S: Final = 86_400
#: One line holds every acknowledged item.
_LINE_BYTES: Final = 1 << 30

_decode = msgspec.json.Decoder(Mark | Outcome).decode


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server to measure. ``watched`` are the roots of its process trees by name, ``server`` among them.

    ``ports`` are those that its workers have to themselves and ``workers`` their processes; one process alone
    has neither.
    """

    port: int
    secret: str
    tenants: Sequence[str]
    host: str = "127.0.0.1"
    audience: str = "tidemark"
    watched: Mapping[str, int] = {}
    ports: Sequence[int] = ()
    workers: Sequence[int] = ()


class Usage(msgspec.Struct, frozen=True):
    """What the servers used in the measured phase: CPU by the names of ``Target.watched``.

    ``machine_cpu_ms`` is what everything on the machine used, the generator and strangers included.
    ``worker_cpu_ms`` is what each of several workers used, a part of the server's.
    Memory is the server's: before the first connection, at the end, and at most (sampled every second).
    """

    cpu_ms: dict[str, float]
    machine_cpu_ms: float
    rss_before_bytes: int
    rss_end_bytes: int
    rss_peak_bytes: int
    worker_cpu_ms: Sequence[float] = ()


class Run(msgspec.Struct, frozen=True):
    """One run with all that is known of it."""

    name: str
    plan: Plan
    tenants: Sequence[str]
    outcome: Outcome
    usage: Usage | None

    def tenant_of(self, device: int) -> str:
        """Name the tenant of a device by its place in the plan."""
        return self.tenants[device % len(self.tenants)]


async def drive(
    name: str,
    target: Target,
    mode: Mode,
    connections: int,
    duration_s: float,
    *,
    rate_per_s: float = 0.0,
    warmup_s: float = 0.0,
    deflate: bool = False,
) -> Run:
    """Send one run's load at a server and say on stderr that it is under way. Raises BenchError."""
    say(f"{name}: {warmup_s + duration_s:.0f} s")
    prefix = secrets.token_hex(4)
    devices = [f"{prefix}-{index}" for index in range(connections)]
    tenants = target.tenants
    plan = Plan(
        host=target.host,
        port=target.port,
        ports=spread(target.ports, connections, len(tenants)),
        devices=devices,
        tokens=[token(target, tenants[index % len(tenants)], device) for index, device in enumerate(devices)],
        mode=mode,
        duration_s=duration_s,
        rate_per_s=rate_per_s,
        warmup_s=warmup_s,
        deflate=deflate,
    )
    outcome, usage = await _run(plan, target)
    if mode != "idle" and not outcome.completed:
        reasons = ", ".join([*outcome.refusals, *outcome.errors]) or "silence"
        raise BenchError(
            f"{name}: {outcome.connected} of {connections} connected and nothing was answered: {reasons}"
        )
    return Run(name, plan, tenants, outcome, usage)


def spread(ports: Sequence[int], connections: int, tenants: int) -> list[int]:
    """Give each connection a port, evenly, and each tenant's connections too; none where there is no choice.

    Connection n is of tenant n modulo ``tenants``.
    """
    if not ports:
        return []
    return [ports[(index // tenants + index % tenants) % len(ports)] for index in range(connections)]


def say(progress: str) -> None:
    """Tell a person who waits what is going on."""
    sys.stderr.write(progress + "\n")
    sys.stderr.flush()


def token(target: Target, tenant: str, device: str) -> str:
    """Sign a device's token."""
    claims = {
        "tid": tenant,
        "did": device,
        "aud": target.audience,
        "jti": device,
        "exp": int(time.time()) + _TOKEN_S,
    }
    return jwt.encode(claims, target.secret, algorithm="HS256")


async def _run(plan: Plan, target: Target) -> tuple[Outcome, Usage | None]:
    meter = _Meter(target.watched, target.workers) if target.watched else None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.load.generator",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    sampling = asyncio.create_task(meter.sample()) if meter is not None else None
    outcome: Outcome | None = None
    try:
        process.stdin.write(msgspec.json.encode(plan))
        process.stdin.close()
        async for line in process.stdout:
            message = _decode(line)
            if isinstance(message, Outcome):
                outcome = message
            elif meter is not None:
                meter.mark()
        await process.wait()
    finally:
        if sampling is not None:
            sampling.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()
    if outcome is None:
        raise BenchError("the load generator ended before it was done: its last words are above")
    return outcome, None if meter is None else meter.usage()


class _Meter:
    def __init__(self, watched: Mapping[str, int], workers: Sequence[int]) -> None:
        self._trees = Trees(watched)
        # Of their own, for a tree inside another one does not count there.
        self._workers = Trees({str(place): pid for place, pid in enumerate(workers)})
        self._marks: list[tuple[dict[str, float], float, dict[str, float]]] = []
        self._before = self._peak = self._end = self._trees.rss_bytes("server")

    def mark(self) -> None:
        """Read the CPU times where the measured phase begins or ends."""
        self._marks.append((self._trees.cpu_ms(), machine_cpu_ms(), self._workers.cpu_ms()))
        self._take()

    def _take(self) -> None:
        self._end = self._trees.rss_bytes("server")
        self._peak = max(self._peak, self._end)

    async def sample(self) -> None:
        """Look for the peak of memory until cancelled."""
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self._take()

    def usage(self) -> Usage | None:
        """Sum up; None where nothing was measured."""
        if len(self._marks) != 2:
            return None
        (begin, machine_begin, each_begin), (end, machine_end, each_end) = self._marks
        cpu_ms = {name: end[name] - begin[name] for name in end}
        each_ms = [each_end[worker] - each_begin[worker] for worker in each_end]
        return Usage(cpu_ms, machine_end - machine_begin, self._before, self._end, self._peak, each_ms)
