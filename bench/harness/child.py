"""Processes of the benchmark that are told and write lines of JSON: the parent's side of the pipe."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from bench.harness.environment import BenchError
from bench.harness.progress import live
from bench.load.child_process import TICK

ROOT: Final = Path(__file__).parents[2]
#: One line holds every sync of a run.
_LINE_BYTES: Final = 1 << 30

Message = TypeVar("Message")


class Child:
    """A running process. ``name`` is what an error calls it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._name = name
        self._stdin = process.stdin
        self._stdout = process.stdout
        self.pid = process.pid

    def tell(self, message: object = "") -> None:
        """Write a line of JSON, which only has to be a line if it says nothing but to go on."""
        self._stdin.write(msgspec.json.encode(message) + b"\n")

    async def read(self, kind: type[Message]) -> Message:
        """Wait for the next line, and show those before it that tell how far the process is.

        Raises:
            BenchError: The process ended.
        """
        while (line := await self._stdout.readline()).startswith(TICK):
            live(msgspec.json.decode(line, type=dict[str, str])["tick"])
        if not line:
            raise BenchError(f"{self._name} ended before it was done: its last words are above")
        return msgspec.json.decode(line, type=kind)


@asynccontextmanager
async def child(name: str, module: str, plan: object) -> AsyncIterator[Child]:
    """Run a module with a plan in a process of its own, and kill it at the end."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module), cwd=ROOT, stdin=pipe, stdout=pipe, limit=_LINE_BYTES
    )
    try:
        running = Child(name, process)
        running.tell(plan)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
