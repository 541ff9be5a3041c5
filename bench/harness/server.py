"""Servers as child processes: the product, and the bare ones that the limits are measured on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from bench.harness.child import ROOT
from bench.harness.environment import BenchError, Environment
from compose.configuration import DEFAULTS, VARIABLE

_START_S: Final = 60.0
_STOP_S: Final = 40.0
#: Where ports for several workers are looked for: below those that the system gives to clients.
_PORTS: Final = range(20_000, 32_000)
_TRIES: Final = 100

#: What a benchmark lifts in the server that it starts: one device, and one tenant, may send as much as the
#: server can take, and may be silent for as long as a slow schedule leaves it.
LIFTED: Final[Mapping[str, str]] = {
    "TIDEMARK__LIMITS__MESSAGES_PER_MINUTE": "1000000000",
    "TIDEMARK__LIMITS__TENANT_MESSAGES_PER_MINUTE": "1000000000",
    "TIDEMARK__SERVER__IDLE_S": "86400",
    "TIDEMARK__LOG__FORMAT": "json",
}


class Server(msgspec.Struct):
    """A server that listens on loopback. ``logged`` counts its events of level warning and above.

    ``pid`` is the worker's where there is one, else the supervisor's. ``workers`` are the processes of
    several workers by their numbers; worker n listens on ``port`` + n, too.
    """

    pid: int
    port: int
    logged: Counter[str]
    workers: dict[int, int] = {}

    @property
    def ports(self) -> list[int]:
        """The ports that workers have to themselves; none where there is one worker."""
        return [self.port + worker for worker in sorted(self.workers)]


@asynccontextmanager
async def product(
    environment: Environment, dsn: str, secret: str, config: Path | None = None, workers: int = 1
) -> AsyncIterator[Server]:
    """Run the product on a database of ``environment``. Raises BenchError."""
    port = 0 if workers == 1 else free_ports(workers + 1)
    command = [str(ROOT / "run.py"), "serve", "--port", str(port), "--workers", str(workers)]
    async with started(command, variables(environment, dsn, secret, config), workers) as server:
        yield server


def variables(environment: Environment, dsn: str, secret: str, config: Path | None) -> dict[str, str]:
    """Return the environment of a server on ``environment``, whatever services the settings name."""
    return {
        **LIFTED,
        # Without one it would take the settings of this machine, which are of another server.
        VARIABLE: str(config or os.environ.get(VARIABLE) or DEFAULTS),
        "TIDEMARK__POSTGRES__DSN": dsn,
        "TIDEMARK__POSTGRES__DSN_FILE": "",
        "TIDEMARK__REDIS__URL": environment.redis_url,
        "TIDEMARK__REDIS__URL_FILE": "",
        "TIDEMARK__AUTH__SECRET": secret,
        "TIDEMARK__AUTH__SECRET_FILE": "",
        "TIDEMARK__AUTH__KEY_FILE": "",
        "TIDEMARK__DATA__DIR": str(environment.home),
    }


#: Not seeded: processes of the tests that start from one seed would all try the same ports at the same time.
_random: Final = random.SystemRandom()


def free_ports(count: int) -> int:
    """Find so many ports in a row, and give the first. Raises BenchError."""
    for _ in range(_TRIES):
        first = _random.randrange(_PORTS.start, _PORTS.stop - count)
        with ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise BenchError(
        f"no {count} free ports in a row on 127.0.0.1: end other servers, or give fewer --workers"
    )


@asynccontextmanager
async def started(
    command: list[str],
    variables: Mapping[str, str],
    workers: int = 1,
    program: str = sys.executable,
    root: Path = ROOT,
) -> AsyncIterator[Server]:
    """Run a program that says ``listening`` with its port in a line of JSON, as each worker does.

    ``root`` is where it runs.

    Raises BenchError.
    """
    process = await asyncio.create_subprocess_exec(
        program,
        *command,
        cwd=root,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    server = Server(process.pid, 0, Counter())
    reader = asyncio.create_task(_read(process.stdout, server, listening, workers))
    try:
        async with asyncio.timeout(_START_S):
            server.port = await listening
        yield server
    except TimeoutError:
        raise BenchError(f"{' '.join(command)} does not listen after {_START_S:.0f} s") from None
    finally:
        await end(process, _STOP_S)
        await reader


async def end(process: asyncio.subprocess.Process, patience_s: float) -> None:
    """Tell a process to stop, and kill one that takes longer."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(patience_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _read(
    lines: asyncio.StreamReader, server: Server, listening: asyncio.Future[int], workers: int
) -> None:
    left = workers
    async for line in lines:
        entry = json.loads(line)
        if entry["event"] == "worker_started" and workers > 1:
            server.workers[entry["worker"]] = entry["pid"]
        elif entry["event"] == "worker_started":
            server.pid = entry["pid"]
        if entry["event"] == "listening":
            left -= 1
            if not left:
                listening.set_result(entry["port"])
        if entry.get("level") in ("warning", "error", "critical"):
            server.logged[entry["event"]] += 1
    if not listening.done():
        listening.set_exception(BenchError("the server ended before it listened: its last words are above"))
