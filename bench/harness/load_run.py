"""Runs the load generator beside a server, and measures what each step of its plan uses.

Several generators may load one server: all begin at the same time, on the clock that processes share.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any, Final

import jwt
import msgspec

from bench.harness.child import child
from bench.harness.environment import BenchError
from bench.harness.meter import Meter, Usage
from bench.harness.progress import progress
from bench.load.plan import Loop, Outcome, Plan, Ready, Step

#: What goes before that which is measured, so that nothing is done for the first time in it.
WARMUP_S: Final = 1.5
_TOKEN_S: Final = 86_400
#: From when a generator is told to begin until it does.
_LEAD_S: Final = 0.1


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server to measure. ``watched`` are the roots of its process trees by name, ``server`` among them.

    ``dsn`` is of the database that is audited, empty of a bare server. ``ports`` are those that its workers
    have to themselves and ``workers`` their processes; a single worker has neither. ``generator`` is the
    module of a load generator that speaks as the server does.
    """

    port: int
    secret: str
    tenants: Sequence[str]
    host: str = "127.0.0.1"
    audience: str = "tidemark"
    watched: Mapping[str, int] = {}
    dsn: str = ""
    ports: Sequence[int] = ()
    workers: Sequence[int] = ()
    generator: str = "bench.load.generator"

    def token(self, tenant: str, device: str, **claims: str) -> str:
        """Sign a device's token."""
        expires = int(time.time()) + _TOKEN_S
        known = {"tid": tenant, "did": device, "aud": self.audience, "jti": device, "exp": expires}
        return jwt.encode({**known, **claims}, self.secret, algorithm="HS256")


class Run(msgspec.Struct, frozen=True):
    """One run of a generator with all that is known of it; ``usage`` goes with the steps of its plan."""

    plan: Plan
    tenants: Sequence[str]
    ready: Ready
    outcome: Outcome
    usage: Sequence[Usage] = ()
    began_s: float = 0.0

    def tenant_of(self, device: int) -> str:
        """Name the tenant of a device by its place in the plan."""
        return self.tenants[device % len(self.tenants)]

    @property
    def codes(self) -> list[str]:
        """What each sync was answered, by its number."""
        return [self.outcome.codes[code] for code in self.outcome.code]


def planned(
    target: Target,
    connections: int,
    steps: Sequence[Step],
    tenants: Sequence[str] | None = None,
    identities: Mapping[str, str] | None = None,
    **more: Any,
) -> Run:
    """Make a run of devices that nobody used before, with records of its own.

    Args:
        target: The server.
        connections: How many devices connect.
        steps: What they send.
        tenants: The tenants that they are spread over, by default those of the target.
        identities: Devices of earlier runs in place of new ones, with their tokens.
        more: Further fields of the plan.
    """
    prefix = secrets.token_hex(4)
    owners = target.tenants if tenants is None else tenants
    devices = [f"{prefix}-{index}" for index in range(connections)]
    plan = Plan(
        host=target.host,
        ports=spread(target.ports or [target.port], connections, len(owners)),
        prefix=prefix,
        devices=devices,
        tokens=list((identities or signed(target, owners, devices)).values()),
        identities=list(identities or ()),
        steps=list(steps),
        **more,
    )
    nothing = Outcome(device=[], due_us=[], sent_us=[], done_us=[], code=[])
    return Run(plan, owners, Ready(0, 0.0, {}), nothing)


def signed(target: Target, tenants: Sequence[str], devices: Sequence[str]) -> dict[str, str]:
    """Sign a token for each device; they are spread over the tenants in turn."""
    return {
        device: target.token(tenants[index % len(tenants)], device) for index, device in enumerate(devices)
    }


def spread(ports: Sequence[int], connections: int, tenants: int) -> list[int]:
    """Give connections ports, evenly, those of each tenant too: connection n is of tenant n modulo these."""
    return [ports[(index // tenants + index % tenants) % len(ports)] for index in range(connections)]


async def run_load(target: Target, *runs: Run) -> list[Run]:
    """Send the load of all runs at once, until all is answered. Raises BenchError where nobody connected."""
    async with AsyncExitStack() as stack:
        generators = [
            await stack.enter_async_context(child("the load generator", target.generator, run.plan))
            for run in runs
        ]
        pids = [generator.pid for generator in generators]
        meters = [
            await stack.enter_async_context(Meter(_trees(target, pids, place), target.workers))
            for place in range(len(runs))
        ]
        ready = [await generator.read(Ready) for generator in generators]
        for run, connected in zip(runs, ready, strict=True):
            if not connected.connected:
                reasons = ", ".join(connected.refusals) or "silence"
                raise BenchError(f"0 of {len(run.plan.devices)} devices connected: {reasons}")
        start_s = perf_counter() + _LEAD_S
        plans = [run.plan for run in runs]
        measuring = asyncio.gather(*(_measure(*one, start_s) for one in zip(meters, plans, strict=True)))
        try:
            for generator in generators:
                generator.tell(start_s)
            outcomes = [await generator.read(Outcome) for generator in generators]
            usage = await measuring
        finally:
            measuring.cancel()
    return [
        Run(run.plan, run.tenants, *found, start_s)
        for run, found in zip(runs, zip(ready, outcomes, usage, strict=True), strict=True)
    ]


def _trees(target: Target, pids: Sequence[int], place: int) -> dict[str, int]:
    others = {f"generator {other}": pid for other, pid in enumerate(pids) if other != place}
    return {"generator": pids[place], **target.watched, **others}


async def _measure(meter: Meter, plan: Plan, start_s: float) -> list[Usage]:
    """Read what each step uses where it ends."""
    await asyncio.sleep(start_s - perf_counter())
    meter.mark()
    usage: list[Usage] = []
    for _, end_us in plan.bounds_us:
        await asyncio.sleep(start_s + end_us / 1e6 - perf_counter())
        usage.append(meter.mark())
    return usage


async def run_tasks(
    name: str,
    target: Target,
    loop: Loop,
    connections: int,
    duration_s: float,
    *,
    per_s: float = 0.0,
    warmup_s: float | None = None,
    identities: Mapping[str, str] | None = None,
) -> Run:
    """Send one task a sync, ``per_s`` over all connections in an open loop. Raises BenchError.

    The warm-up is ``WARMUP_S`` unless told otherwise, and never longer than what is measured.
    """
    warmup_s = min(WARMUP_S if warmup_s is None else warmup_s, duration_s)
    progress(f"{name}: {warmup_s + duration_s:.0f} s")
    steps = [Step("warm-up", per_s, warmup_s), Step(name, per_s, duration_s)]
    plan = planned(target, connections, steps, loop=loop, identities=identities)
    (run,) = await run_load(target, plan)
    if "synced" not in run.codes:
        reasons = ", ".join([*run.ready.refusals, *run.outcome.codes[2:], *run.outcome.ended]) or "silence"
        raise BenchError(
            f"{name}: {run.ready.connected} of {connections} connected and nothing was stored: {reasons}"
        )
    return run
