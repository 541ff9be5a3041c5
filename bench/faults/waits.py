"""How long the others wait: for a tenant that a stopped worker holds, and for a policy to be in force.

``python -m bench.faults.waits`` runs a server with two workers on services of its own. A worker stopped in
the middle of a transaction holds the tenants in it until PostgreSQL ends its session. A policy is in force in
every worker once each has polled the number that grows with it; telling them over Redis is only faster.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import secrets
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final

import msgspec

from bench.harness.environment import BenchError, Environment, fresh, read_settings
from bench.harness.load_run import Target
from bench.harness.product import product
from bench.harness.server import Server
from bench.harness.stage import add_tenants
from bench.load.simple_device import Message, SimpleDevice
from engine.model.domains import DomainPolicy, Domains
from storage.embedded.servers import servers
from storage.postgres.commands import command_database
from storage.stores.policies import PostgresPolicies

TENANT: Final = "acme"
_PUSHERS: Final = 8
#: How long a worker stays stopped: longer than anybody may have to wait for it.
_STOPPED_S: Final = 4.0
_TOLD_S: Final = 30.0
_POLICIES: Final = ("manual", "client_wins")


class _Device(SimpleDevice):
    """One device of the tenant, on one worker."""

    def __init__(self, name: str) -> None:
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        super().__init__(self._told.put_nowait)
        self._name = name
        self.answered_s: list[float] = []

    async def push(self) -> None:
        """Send one sync after the other, until cancelled."""
        for number in itertools.count():
            record_id = f"{self._name}-{number % 50}"
            item = {"domain": "journal", "id": record_id, "op": "put", "data": {"n": number}}
            await self.sync(f"{self._name}-{number}", item)
            self.answered_s.append(time.monotonic())

    async def hears(self, policy: str) -> float:
        """Wait until told that tasks follow a policy. Returns when."""
        while (await self._told.get()).get("policies", {}).get("task") != policy:
            pass
        return time.monotonic()


class _Stage:
    def __init__(self, server: Server, target: Target) -> None:
        self.server = server
        self._target = target

    @asynccontextmanager
    async def device(self, name: str, worker: int) -> AsyncIterator[_Device]:
        """Connect a device to a worker, from 0."""
        device = _Device(name)
        signed = self._target.token(TENANT, name)
        await device.open("127.0.0.1", self.server.own_ports[worker], signed)
        try:
            yield device
        finally:
            device.close()


async def held(stage: _Stage, times: int, random: Random) -> list[float]:
    """Stop the first worker under load again and again; give the other's longest waits, in seconds."""
    longest_s: list[float] = []
    stopped = stage.server.pids()[0]
    for turn in range(times):
        async with stage.device(f"far-{turn}", 1) as far, asyncio.TaskGroup() as group:
            near = [group.create_task(_near(stage, f"near-{turn}-{index}")) for index in range(_PUSHERS)]
            pushing = group.create_task(far.push())
            await asyncio.sleep(0.5 + random.random() * 0.1)
            begun_s = time.monotonic()
            os.kill(stopped, signal.SIGSTOP)
            try:
                await asyncio.sleep(_STOPPED_S)
            finally:
                os.kill(stopped, signal.SIGCONT)
            for task in (*near, pushing):
                task.cancel()
        at_s = [begun_s, *(one for one in far.answered_s if one > begun_s), begun_s + _STOPPED_S]
        longest_s.append(max(later - earlier for earlier, later in pairwise(at_s)))
        await stage.server.ready()
    return longest_s


async def _near(stage: _Stage, name: str) -> None:
    async with stage.device(name, 0) as device:
        await device.push()


async def changed(stage: _Stage, policies: PostgresPolicies, policy: str) -> float:
    """Set a policy, telling no worker; give the seconds until devices of both are told."""
    async with stage.device("one", 0) as one, stage.device("two", 1) as two:
        chosen = msgspec.convert({"policy": policy}, DomainPolicy)
        await policies.set(TENANT, "task", chosen)
        begun_s = time.monotonic()
        async with asyncio.timeout(_TOLD_S):
            return max(await asyncio.gather(one.hears(policy), two.hears(policy))) - begun_s


async def changed_without_redis(
    stage: _Stage, policies: PostgresPolicies, policy: str, environment: Environment
) -> float:
    """Do the same while Redis is down, and start it again."""
    redis = servers(environment.home).redis
    await asyncio.to_thread(redis.stop, signal.SIGKILL)
    try:
        return await changed(stage, policies, policy)
    finally:
        await asyncio.to_thread(redis.start)


async def measure(config: Path | None, data_dir: str | None, times: int, seed: int) -> dict[str, Any]:
    """Measure both. Raises BenchError, EmbeddedError, StoreError."""
    settings = read_settings(config, data_dir)
    with fresh(settings) as environment:
        dsn = environment.database("product")
        add_tenants(dsn, [TENANT])
        secret = secrets.token_urlsafe(48)
        async with (
            command_database(dsn) as database,
            product(environment, dsn, secret, config, 2) as server,
        ):
            await server.ready()
            policies = PostgresPolicies(database, Domains(settings.domains).default_policies)
            target = Target(
                port=server.port, secret=secret, tenants=[TENANT], audience=settings.auth.audience
            )
            stage = _Stage(server, target)
            polled_s = [await changed(stage, policies, _POLICIES[turn % 2]) for turn in range(times)]
            away_s = [
                await changed_without_redis(stage, policies, _POLICIES[turn % 2], environment)
                for turn in range(times, times + max(1, times // 4))
            ]
            held_s = await held(stage, times, Random(seed))
    return {
        "policy_in_force_s": _summed(polled_s),
        "policy_in_force_without_redis_s": _summed(away_s),
        "held_by_a_stopped_worker_s": _summed(held_s),
    }


def _summed(waits_s: list[float]) -> dict[str, float]:
    return {"times": len(waits_s), "median": statistics.median(waits_s), "longest": max(waits_s)}


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults.waits",
        description="How long others wait for a stopped worker, and for a policy.",
        epilog="Example: python -m bench.faults.waits --times 20",
    )
    parser.add_argument("--times", type=int, default=20, help="How often each is tried.")
    parser.add_argument("--seed", type=int, default=1, help="When a worker is stopped.")
    parser.add_argument("--config", type=Path, help="TOML file of settings that differ from config.toml.")
    parser.add_argument("--data-dir", help="Where embedded services are kept while this runs.")
    given = parser.parse_args()
    try:
        found = asyncio.run(measure(given.config, given.data_dir, given.times, given.seed))
    except BenchError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
