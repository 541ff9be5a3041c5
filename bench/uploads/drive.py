"""Runs the client of ``uploads`` in a process of its own, and measures what servers use in that time."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.harness.child import Child, child
from bench.harness.load_run import Target
from bench.harness.meter import Meter, Usage
from bench.uploads.plan import Ready, Sent, Transferred, UploadPlan


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
        tokens=[target.token(target.tenants[0], f"{prefix}-{index}") for index in range(uploaders)],
        file_bytes=file_bytes,
        chunk_bytes=chunk_bytes,
        records=records,
        goes_on=goes_on,
    )


class Uploading:
    """Uploaders that are connected and wait to be told."""

    def __init__(self, uploaders: Child, meter: Meter) -> None:
        self._uploaders = uploaders
        self._meter = meter
        self.pid = uploaders.pid

    def begin(self) -> None:
        """Tell them to upload."""
        self._meter.mark()
        self._uploaders.tell()

    def end(self) -> None:
        """Tell those that go on to finish their last files."""
        self._uploaders.tell()

    async def sent(self) -> Usage:
        """Wait until all is uploaded. Returns what that used. Raises BenchError."""
        await self._uploaders.read(Sent)
        return self._meter.mark()

    async def checked(self) -> Transferred:
        """Have the files downloaded and compared. Returns what came of it all. Raises BenchError."""
        self._uploaders.tell()
        return await self._uploaders.read(Transferred)


@asynccontextmanager
async def uploading(plan: UploadPlan, target: Target) -> AsyncIterator[Uploading]:
    """Start uploaders and wait until all are connected. Raises BenchError."""
    async with (
        child("the uploading client", "bench.uploads.generator", plan) as uploaders,
        Meter(target.watched) as meter,
    ):
        await uploaders.read(Ready)
        yield Uploading(uploaders, meter)
