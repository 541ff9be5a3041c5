"""Installs the servers of others for a benchmark, as their lock files have them, and keeps them.

Each has a directory of its own under ``data.dir``. Nothing of it comes into the product's installation.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Final

from bench.harness.child import ROOT
from bench.harness.environment import BenchError
from bench.harness.progress import progress
from engine.runtime.settings import Settings

_PATIENCE_S: Final = 300.0
_NPM: Final = ("ci", "--omit=optional", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund")
_PIP: Final = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes")


def check_node() -> None:
    """Check that Node.js and npm are installed, before anything is measured. Raises BenchError."""
    for name in ("node", "npm"):
        program(name)


def program(name: str) -> str:
    """Find Node.js or npm. Raises BenchError."""
    found = shutil.which(name)
    if found is None:
        raise BenchError(
            f"{name} is not installed, and a server that is measured beside this one needs it: install"
            " Node.js 20.19 or later with npm"
        )
    return found


def cache_of(chosen: Settings) -> Path:
    """Return the directory that installations are kept in."""
    return Path(chosen.data.dir).resolve() / "bench-peers"


async def installed(name: str, cache: Path) -> Path:
    """Install what a folder of ``bench/peers`` names, unless it is there already.

    Returns:
        A copy of the folder, with ``node_modules`` beside its ``package-lock.json``, or with a virtual
        environment ``venv`` beside its ``requirements.txt``.

    Raises:
        BenchError: A package manager did not do it.
    """
    sources = ROOT / "bench" / "peers" / name
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources.iterdir())))
    place = cache / f"{name}-{digest.hexdigest()[:12]}"
    if (place / "installed").exists():
        return place
    progress(f"install bench/peers/{name} into {place}")
    await asyncio.to_thread(_copy, sources, place)
    if (place / "package-lock.json").exists():
        await _run(name, place, program("npm"), *_NPM)
    else:
        await _run(name, place, sys.executable, "-m", "venv", "venv")
        await _run(name, place, str(python_of(place)), *_PIP, "-r", "requirements.txt")
    (place / "installed").touch()
    return place


def _copy(sources: Path, place: Path) -> None:
    """Copy a folder, in place of what is there of another version, or by halves."""
    for old in place.parent.glob(f"{sources.name}-*"):
        shutil.rmtree(old)
    shutil.copytree(sources, place)


def python_of(place: Path) -> Path:
    """Return the interpreter of an installation of Python packages."""
    return place / "venv" / "bin" / "python"


async def _run(name: str, place: Path, *command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=place, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    remedy = "see that its registry is reachable"
    try:
        async with asyncio.timeout(_PATIENCE_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise BenchError(
            f"{command[0]} did not install bench/peers/{name} within {_PATIENCE_S:.0f} s: {remedy}"
        ) from None
    if process.returncode:
        words = said.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise BenchError(f"{command[0]} did not install bench/peers/{name}: {words[-1]}: {remedy}")
