"""The main of each process of the benchmark: a plan and further lines on stdin, lines of JSON on stdout."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Callable, Coroutine
from typing import Any, BinaryIO, Final, TypeVar

import msgspec
import uvloop

Plan = TypeVar("Plan")

#: How a line begins that only tells how far the process is.
TICK: Final = b'{"tick":'
_TICK_S: Final = 1.0


def say(message: object) -> None:
    """Write one line of JSON to the parent."""
    # Not sys.stdout: under PYTHONUNBUFFERED it is the bare file, which may write the first part alone.
    with open(1, "wb", closefd=False) as out:
        out.write(msgspec.json.encode(message) + b"\n")


async def ticking(sentence: Callable[[], str]) -> None:
    """Tell the parent once a second how far this process is, if a person watches on a terminal."""
    while sys.stderr.isatty():
        await asyncio.sleep(_TICK_S)
        say({"tick": sentence()})


class Lines:
    """The lines that the parent writes after the plan."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def next(self) -> bytes:
        """Return the next line, empty once the parent has closed the pipe."""
        return await asyncio.to_thread(self._file.readline)


def main(plan_type: type[Plan], run: Callable[[Plan, Lines], Coroutine[Any, Any, None]]) -> None:
    """Read the plan and run it, with as many open files as this account may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Without read-ahead, which would take lines that come later.
    with os.fdopen(os.dup(0), "rb") as file:
        plan = msgspec.json.decode(file.readline(), type=plan_type)
        uvloop.run(run(plan, Lines(file)))
