"""``run.py serve`` with several workers: a supervisor and its processes, to be killed one by one."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from bench.harness.clusters import role_variables
from bench.harness.server import free_ports
from storage.embedded.servers import Services
from tests.harness.admin import ensure_tenant
from tests.harness.numbered_edits import TENANTS
from tests.harness.ws_device import SECRET, Json

_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 60


class Supervised:
    """A supervisor with its workers; ``lines`` is the log of all, ``written`` the same as text.

    ``said`` is what is on stderr, and ``checkout`` has the ``run.py`` that is run.
    """

    def __init__(self, workers: int, environment: dict[str, str]) -> None:
        self.workers = workers
        self.port = free_ports(workers + 1)
        self.lines: list[Json] = []
        self.written: list[str] = []
        self.said = ""
        self.checkout = _ROOT
        self._environment = {**os.environ, **environment}
        self._news = asyncio.Condition()

    @property
    def url(self) -> str:
        """The port that all share."""
        return f"http://127.0.0.1:{self.port}"

    def url_of(self, worker: int) -> str:
        """A worker's own port."""
        return f"http://127.0.0.1:{self.port + worker}"

    def pid_of(self, worker: int) -> int:
        """The process that was started last as a worker."""
        return int([line["pid"] for line in self.told("worker_started") if line["worker"] == worker][-1])

    def told(self, event: str, **fields: object) -> list[Json]:
        """The lines of an event so far."""
        return [line for line in self.lines if line["event"] == event and fields.items() <= line.items()]

    async def launch(self) -> None:
        """Start it, without waiting for anything."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(self.checkout / "run.py"), "serve"),
            *("--port", str(self.port), "--workers", str(self.workers)),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.gather(self._read_log(), self._read_words())

    async def until(self, event: str, count: int = 1, **fields: object) -> None:
        """Wait until an event was logged so often."""
        async with asyncio.timeout(_PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.told(event, **fields)) >= count)

    async def ended(self) -> int:
        """Wait for the end of all processes; gives the supervisor's exit status."""
        async with asyncio.timeout(_PATIENCE_S):
            status = await self.process.wait()
            await self._reading
        return status

    async def terminate(self) -> int:
        """Tell it to stop, and wait for the end of all."""
        self.process.terminate()
        return await self.ended()

    async def stop(self) -> None:
        """End it, whatever state it is in: without their supervisor the workers end as well."""
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    async def _read_log(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._news:
                self.lines.append(json.loads(line))
                self.written.append(line.decode().rstrip("\n"))
                self._news.notify_all()

    async def _read_words(self) -> None:
        assert self.process.stderr is not None
        self.said = (await self.process.stderr.read()).decode()


Supervise = Callable[..., Awaitable[Supervised]]


@pytest.fixture
async def supervise(dsn: str, services: Services, tmp_path: Path) -> AsyncIterator[Supervise]:
    """Start so many workers on the tests' services, with some of the environment set."""
    for tenant in TENANTS:
        ensure_tenant(dsn, tenant)
    async with AsyncExitStack() as stack:

        async def start(workers: int = 2, **environment: str) -> Supervised:
            site = {
                **role_variables(dsn),
                "TIDEMARK__REDIS__URL": services.redis_url,
                "TIDEMARK__AUTH__SECRET": SECRET.decode(),
                "TIDEMARK__DATA__DIR": str(tmp_path),
            }
            supervised = Supervised(workers, site | environment)
            await supervised.launch()
            stack.push_async_callback(supervised.stop)
            await supervised.until("listening", workers)
            return supervised

        yield start
