"""A server of two workers on ports that stay the same: stopped, killed, renewed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from typing import Final, Self

import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout

from bench.harness.child import ROOT
from bench.harness.environment import BenchError, Environment
from bench.harness.server import end, free_ports, variables

_READY_S: Final = 60.0
_STOP_S: Final = 60.0
_LOOK_S: Final = 0.02
_LINE_BYTES: Final = 1 << 20


class Serving:
    """A context that serves; nothing else may be on its ports while it is stopped."""

    workers: Final = 2

    def __init__(self, environment: Environment, dsn: str, secret: str) -> None:
        self.dsn = dsn
        self.port = free_ports(self.workers + 2)
        self.environment = {**os.environ, **variables(environment, dsn, secret, None)}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._renewed = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Start. Raises BenchError."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the server if it runs."""
        await self.stop()

    async def start(self) -> None:
        """Start, and wait until every worker lets devices in. Raises BenchError."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(ROOT / "run.py"), "serve"),
            *("--port", str(self.port), "--workers", str(self.workers)),
            cwd=ROOT,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
        )
        self._reading = asyncio.create_task(self._read(self._process))
        try:
            async with asyncio.timeout(_READY_S), ClientSession(timeout=ClientTimeout(total=2)) as session:
                for port in range(self.port + 1, self.port + self.workers + 1):
                    while not await _is_ready(session, port):
                        if self._process.returncode is not None:
                            raise BenchError("the server ended: its last words are above")
                        await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise BenchError(f"the workers do not let devices in after {_READY_S:.0f} s") from None

    async def stop(self) -> None:
        """Have it drain, and wait for its end."""
        if self._process is not None and self._reading is not None:
            await end(self._process, _STOP_S)
            await self._reading

    async def kill(self) -> None:
        """Kill all its processes at once, the one that would start workers again first."""
        assert self._process is not None
        assert self._reading is not None
        workers = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        await self._process.wait()
        await self._reading

    async def renew(self) -> None:
        """Have every worker replaced, one by one, and wait for the last. Raises BenchError."""
        assert self._process is not None
        self._renewed.clear()
        self._process.send_signal(signal.SIGHUP)
        try:
            async with asyncio.timeout(self.workers * _READY_S):
                await self._renewed.wait()
        except TimeoutError:
            raise BenchError("the workers were not renewed") from None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            with suppress(json.JSONDecodeError):  # one that is killed leaves half a line
                if json.loads(line).get("event") == "workers_renewed":
                    self._renewed.set()


async def _is_ready(session: ClientSession, port: int) -> bool:
    try:
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            return response.status == 200
    except (ClientError, OSError, TimeoutError):
        return False
