"""The tus server that others use, ``@tus/server`` of Node, installed for a benchmark and started.

It keeps files in a directory and does not wait for the disk.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Final

from bench.harness.child import ROOT
from bench.harness.environment import BenchError
from bench.harness.server import Server

_SOURCES: Final = ROOT / "bench" / "baselines" / "node"
_PATIENCE_S: Final = 180.0
_INSTALL: Final = ("ci", "--omit=optional", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund")


def check_node() -> None:
    """Check that Node.js and npm are installed, before anything is measured. Raises BenchError."""
    for name in ("node", "npm"):
        _program(name)


async def install(place: Path) -> None:
    """Put the server and what it needs into a new directory, as the lock file names it. Raises BenchError."""
    npm = _program("npm")
    await asyncio.to_thread(shutil.copytree, _SOURCES, place)
    process = await asyncio.create_subprocess_exec(
        npm, *_INSTALL, cwd=place, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise BenchError(
            f"npm did not install @tus/server within {_PATIENCE_S:.0f} s: see that its registry is reachable"
        ) from None
    if process.returncode:
        words = said.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise BenchError(f"npm did not install @tus/server: {words[-1]}: see that its registry is reachable")


def tus_server(place: Path, files: str) -> Server:
    """Return the server, to be run where it is installed. Raises BenchError."""
    return Server([str(place / "server.mjs"), files], {"NODE_ENV": "production"}, program=_program("node"))


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BenchError(
            f"{name} is not installed, and @tus/server is measured beside this server: install Node.js 20.19"
            " or later with npm"
        )
    return found
