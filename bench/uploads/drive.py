"""Runs the client of ``uploads`` as a process of its own, and measures what servers use meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import psutil

from bench.harness.drive import Target, token
from bench.harness.environment import BenchError
from bench.harness.processes import Trees, machine_cpu_ms
from bench.harness.server import ROOT
from bench.uploads.plan import Ready, Sent, Transferred, UploadPlan

#: How often memory is looked at: uploads take a few seconds.
_SAMPLE_S: Final = 0.05
_LINE_BYTES: Final = 1 << 24

_decode = msgspec.json.Decoder(Ready | Sent | Transferred).decode


class Spent(msgspec.Struct, frozen=True):
    """What was used while files were uploaded: CPU of trees by name, of all the machine, and memory."""

    cpu_ms: dict[str, float]
    machine_cpu_ms: float
    rss_peak_bytes: int


def planned(
    target: Target,
    uploaders: int,
    file_bytes: int,
    chunk_bytes: int,
    *,
    files: str,
    records: bool,
    goes_on: bool = False,
) -> UploadPlan:
    """Make a run of devices that nobody used before, all of the target's first tenant."""
    prefix = secrets.token_hex(4)
    return UploadPlan(
        host=target.host,
        port=target.port,
        files=files,
        prefix=prefix,
        tokens=[token(target, target.tenants[0], f"{prefix}-{index}") for index in range(uploaders)],
        file_bytes=file_bytes,
        chunk_bytes=chunk_bytes,
        records=records,
        goes_on=goes_on,
    )


class Uploading:
    """Uploaders that are connected and wait to be told."""

    def __init__(self, process: asyncio.subprocess.Process, target: Target) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._trees = Trees(target.watched)
        self._server = psutil.Process(target.watched["server"])
        self._peak_bytes = 0
        self._began: tuple[dict[str, float], float] = ({}, 0.0)
        self._sampling: asyncio.Task[None] | None = None
        self.pid = process.pid

    def begin(self) -> None:
        """Have them upload."""
        self._sampling = asyncio.create_task(self._sample())
        self._began = (self._trees.cpu_ms(), machine_cpu_ms())
        self._tell()

    def end(self) -> None:
        """Have those that go on finish what they are at."""
        self._tell()

    async def sent(self) -> Spent:
        """Wait until all is uploaded, and say what that took. Raises BenchError."""
        await self.said()
        cpu_ms, machine_ms = self._trees.cpu_ms(), machine_cpu_ms()
        await self.stop()
        began_ms, machine_began_ms = self._began
        used_ms = {name: cpu_ms[name] - began_ms[name] for name in cpu_ms}
        return Spent(used_ms, machine_ms - machine_began_ms, self._peak_bytes)

    async def checked(self) -> Transferred:
        """Have the files downloaded and compared, and give what came of it all. Raises BenchError."""
        self._tell()
        said = await self.said()
        assert isinstance(said, Transferred)
        return said

    async def said(self) -> Ready | Sent | Transferred:
        """Wait for what the client says next. Raises BenchError."""
        line = await self._stdout.readline()
        if not line:
            raise BenchError("the uploading client ended before it was done: its last words are above")
        said: Ready | Sent | Transferred = _decode(line)
        return said

    async def stop(self) -> None:
        """Look at memory no more."""
        if self._sampling is not None:
            self._sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sampling

    def _tell(self) -> None:
        self._stdin.write(b"\n")

    async def _sample(self) -> None:
        while True:
            self._peak_bytes = max(self._peak_bytes, self._server.memory_info().rss)
            await asyncio.sleep(_SAMPLE_S)


@asynccontextmanager
async def uploading(plan: UploadPlan, target: Target) -> AsyncIterator[Uploading]:
    """Start uploaders and wait until all are connected. Raises BenchError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.uploads.generator",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(plan) + b"\n")
    uploads = Uploading(process, target)
    try:
        await uploads.said()
        yield uploads
    finally:
        await uploads.stop()
        if process.returncode is None:
            process.kill()
        await process.wait()
