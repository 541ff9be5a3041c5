"""A flame graph of a server's Python, drawn by py-spy from outside while a load runs."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.harness.environment import BenchError

PY_SPY: Final = Path(sys.executable).with_name("py-spy")
#: It draws once it is told to end; the graph of a large program takes a second.
_DRAW_S: Final = 30.0
_TITLE: Final = re.compile(r'(<text id="title"[^>]*>)[^<]*')


@asynccontextmanager
async def flame_graph(file: Path | None, pid: int, workers: int) -> AsyncIterator[None]:
    """Take samples of a server until the end of the block; without a file do nothing.

    Args:
        file: Where the SVG is written.
        pid: The server, or the supervisor of several workers.
        workers: How many processes serve.

    Raises:
        BenchError: py-spy is missing or may not read the server.
    """
    if file is None:
        yield
        return
    # Without a stop of the server for each sample: a stop would be in the latencies that are measured.
    command = [str(PY_SPY), "record", "--nonblocking", "--pid", str(pid), "--output", str(file)]
    if workers > 1:
        command.append("--subprocesses")
    try:
        pipe = asyncio.subprocess.PIPE
        spy = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
    except OSError:
        raise BenchError(
            f"no {PY_SPY}: install deploy/requirements-dev.txt, or leave --profile out"
        ) from None
    try:
        yield
    finally:
        if spy.returncode is None:
            spy.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(_DRAW_S):
                said, _ = await spy.communicate()
        except TimeoutError:
            spy.kill()
            said, _ = await spy.communicate()
    if spy.returncode:
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise BenchError(f"py-spy drew nothing ({reason}): run this as root, or leave --profile out")
    # Its title is the command, with paths of this machine.
    drawn = await asyncio.to_thread(file.read_text, "utf-8")
    await asyncio.to_thread(file.write_text, _TITLE.sub(r"\1Server under load", drawn), "utf-8")
