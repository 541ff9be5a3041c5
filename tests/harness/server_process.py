"""A server in a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from bench.harness.clusters import role_variables
from tests.harness.ws_device import SECRET, Json

_ROOT = Path(__file__).parents[2]


class ServerProcess:
    """``run.py serve`` with one worker on a database; ``url`` is known once it listens."""

    def __init__(self, dsn: str, redis_url: str, home: Path, **environment: str) -> None:
        self._environment = {
            **os.environ,
            **role_variables(dsn),
            "TIDEMARK__REDIS__URL": redis_url,
            "TIDEMARK__AUTH__SECRET": SECRET.decode(),
            "TIDEMARK__DATA__DIR": str(home),
            **environment,
        }
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._worker_pid = 0
        self.port = 0
        self.events: list[str] = []
        self.lines: list[Json] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of its worker."""
        return self._worker_pid

    async def start(self) -> None:
        """Start and wait until it listens, on the port of the time before."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(_ROOT / "run.py"),
            "serve",
            "--port",
            str(self.port),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
        )
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(self._process, listening))
        self.port = await asyncio.wait_for(listening, 60)

    async def _read(self, process: asyncio.subprocess.Process, listening: asyncio.Future[int]) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            event = json.loads(line)
            self.events.append(event["event"])
            self.lines.append(event)
            if event["event"] == "worker_started":
                self._worker_pid = event["pid"]
            if event["event"] == "listening" and not listening.done():
                listening.set_result(event["port"])
        if not listening.done():
            listening.set_exception(RuntimeError("the server ended before it listened"))

    def tell(self, number: signal.Signals) -> None:
        """Send the supervisor a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        with suppress(ProcessLookupError):
            os.kill(self._worker_pid, signal.SIGKILL)
        await self.ended()

    async def terminate(self) -> int:
        """Ask it to drain; gives its exit status."""
        self.tell(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end; gives its exit status."""
        assert self._process is not None
        assert self._reader is not None
        status = await self._process.wait()
        await self._reader
        return status

    async def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._process is not None and self._process.returncode is None:
            await self.kill()
