"""A server of several workers to do harm to: where it listens, which processes it has, what it logs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout

from bench.faults.history import History, Logged
from bench.harness.child import ROOT
from bench.harness.environment import BenchError, Environment
from bench.harness.server import end, free_ports, variables

WORKERS: Final = 2
_READY_S: Final = 60.0
_STOP_S: Final = 60.0
_LOOK_S: Final = 0.05
#: A worker killed while it writes leaves half a line.
_LINE_BYTES: Final = 1 << 20


class Workers:
    """A running server. ``logged`` counts its warnings and worse; ``renewals`` the rolling restarts."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, count: int, history: History) -> None:
        self._process = process
        self._count = count
        self._history = history
        self.port = port
        self.logged: Counter[str] = Counter()
        self.renewed = asyncio.Event()

    @property
    def own_ports(self) -> list[int]:
        """The port of each worker alone; the one port where there is one process."""
        if self._count == 1:
            return [self.port]
        return [self.port + index for index in range(1, self._count + 1)]

    @property
    def running(self) -> bool:
        """Whether the server, or its supervisor, lives."""
        return self._process.returncode is None

    def pids(self) -> list[int]:
        """Give the workers' processes, oldest first; a single process is the server itself, and has none."""
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self._process.pid).children()
            return [child.pid for child in sorted(found, key=lambda child: child.create_time())]
        return []

    def signal(self, number: signal.Signals) -> None:
        """Tell the supervisor something."""
        self._process.send_signal(number)

    async def ready(self) -> None:
        """Wait until every worker lets devices in. Raises TimeoutError, BenchError."""
        async with asyncio.timeout(_READY_S), ClientSession(timeout=ClientTimeout(total=2)) as session:
            for port in self.own_ports:
                while not await _is_ready(session, port):
                    if self._process.returncode is not None:
                        raise BenchError("the server ended: its last words are above")
                    await asyncio.sleep(_LOOK_S)

    async def read(self) -> None:
        """Take in the log until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                entry: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                continue
            if entry.get("event") == "workers_renewed":
                self.renewed.set()
            if entry.get("level") in {"warning", "error", "critical"}:
                self.logged[entry["event"]] += 1
                self._history.events.append(Logged(at_s=self._history.now_s(), entry=entry))


async def _is_ready(session: ClientSession, port: int) -> bool:
    try:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            return response.status == 200
    except (ClientError, OSError, TimeoutError):
        return False


@asynccontextmanager
async def workers(
    environment: Environment,
    dsn: str,
    secret: str,
    config: Path | None,
    history: History,
    count: int = WORKERS,
) -> AsyncIterator[Workers]:
    """Run the product with ``count`` workers. Raises BenchError."""
    port = free_ports(count + 1)
    command = [str(ROOT / "run.py"), "serve", "--port", str(port), "--workers", str(count)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        cwd=ROOT,
        env={**os.environ, **variables(environment, dsn, secret, config)},
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    server = Workers(process, port, count, history)
    reading = asyncio.create_task(server.read())
    try:
        await server.ready()
        yield server
    except TimeoutError:
        raise BenchError(f"the workers do not let devices in after {_READY_S:.0f} s") from None
    finally:
        await end(process, _STOP_S)  # workers whose supervisor is killed notice, and end
        await reading
