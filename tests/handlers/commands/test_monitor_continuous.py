"""``run.py monitor --continuous``: it goes on through outages, and Ctrl-C ends it with the last status."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bench.harness.clusters import role_variables
from storage.embedded.servers import Services
from tests.harness.in_process_server import Serve
from tests.harness.services import execute, outage
from tests.harness.ws_device import Json, put

_ROOT = Path(__file__).parents[3]
_PATIENCE_S = 30.0


class Monitor:
    """A monitor as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def judgement(self) -> Json:
        """Wait for the next line on stdout."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), _PATIENCE_S)
        judged: Json = json.loads(line)
        return judged

    async def judged(self, status: str) -> Json:
        """Wait for a judgement with a status."""
        while (judged := await self.judgement())["status"] != status:
            pass
        return judged

    async def complaint(self) -> str:
        """Wait for the next line on stderr."""
        assert self._process.stderr is not None
        return (await asyncio.wait_for(self._process.stderr.readline(), _PATIENCE_S)).decode()

    async def interrupted(self) -> int:
        """Press Ctrl-C; return the exit status."""
        self._process.send_signal(signal.SIGINT)
        return await asyncio.wait_for(self._process.wait(), _PATIENCE_S)


@asynccontextmanager
async def monitor(dsn: str, *arguments: str) -> AsyncIterator[Monitor]:
    """Run a monitor that judges every second."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "run.py", "monitor", "--continuous", "--interval", "1", "--json", *arguments),
        cwd=_ROOT,
        env={**os.environ, **role_variables(dsn)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # A process that a shell runs in the background ignores it, and so would this one.
        preexec_fn=_interruptible,
    )
    try:
        yield Monitor(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
async def test_monitor_continuous_interrupted_exits_with_the_last_status(serve: Serve) -> None:
    server = await serve()
    phone = await server.device()
    async with monitor(server.dsn) as watch:
        assert (await watch.judgement())["status"] == "unknown"
        for number in range(3):
            await phone.push(put(f"r{number}", None))
        await server.drained()
        judged = await watch.judged("healthy")
        assert [report["tenant"] for report in judged["reports"]] == [None, "acme", "globex"]
        assert await watch.interrupted() == 0


@pytest.mark.parametrize("damage", ["database", "table"])
async def test_monitor_continuous_goes_on_after_a_check_that_could_not_be_made(
    serve: Serve, services: Services, damage: str
) -> None:
    server = await serve()
    phone = await server.device()
    for number in range(3):
        await phone.push(put(f"r{number}", None))
    await server.drained()
    async with monitor(server.dsn, "--tenant", "acme") as watch:
        assert (await watch.judgement())["status"] == "healthy"
        if damage == "database":
            with outage(services, server.dsn):
                assert (await watch.complaint()).startswith("no check could be made: ")
        else:
            execute(server.dsn, "ALTER TABLE sync_minutes RENAME TO minutes")
            assert (await watch.complaint()).startswith("no check could be made: ")
            execute(server.dsn, "ALTER TABLE minutes RENAME TO sync_minutes")
        assert (await watch.judged("healthy"))["status"] == "healthy"


@pytest.mark.slow
async def test_monitor_continuous_interrupted_during_an_outage_exits_3(
    serve: Serve, services: Services
) -> None:
    server = await serve()
    phone = await server.device()
    await phone.push(put("r", None))
    await server.drained()
    async with monitor(server.dsn) as watch:
        assert (await watch.judgement())["status"] == "healthy"
        with outage(services, server.dsn):
            await watch.complaint()
            assert await watch.interrupted() == 3
