"""tus-js-client, as it is on its registry, in a process of its own."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ws_device import Json

_HOME = Path(__file__).parents[2] / "clients" / "node"
_PATIENCE_S = 60
#: As package.json says.
_OLDEST_NODE = (20, 19)


class TusJs:
    """Runs ``upload.mjs``; its head says what can be told."""

    #: Where programs find the client.
    home = _HOME

    async def run(self, *uploads: Json) -> list[Json]:
        """Upload all of these at once; gives what happened, in order."""
        process = await asyncio.create_subprocess_exec(
            *("node", str(_HOME / "upload.mjs")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_PATIENCE_S):
                told = json.dumps({"uploads": uploads}).encode()
                out, errors = await process.communicate(told)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert (process.returncode, errors.decode()) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    async def ended(self, upload: Json) -> Json:
        """Upload one file; gives what happened last."""
        return (await self.run(upload))[-1]


def events(happened: list[Json], event: str, **fields: Any) -> list[Json]:
    """Those of a kind."""
    return [one for one in happened if one["event"] == event and fields.items() <= one.items()]


def _node_version() -> tuple[int, ...]:
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S607
    return tuple(int(part) for part in said.strip().removeprefix("v").split("."))


@pytest.fixture(scope="session")
def node_packages() -> Path:
    """The folder of the programs in JavaScript, with the packages of its lock."""
    npm = shutil.which("npm")
    if npm is None or _node_version() < _OLDEST_NODE:
        pytest.skip(
            "clients in JavaScript need node 20.19 or later with npm: make node, then"
            ' PATH="$PWD/.venv-node/bin:$PATH"'
        )
    installed = _HOME / "node_modules" / ".package-lock.json"
    lock = _HOME / "package-lock.json"
    with (_HOME / "package.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process of the tests may be installing
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            subprocess.run(
                [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=_HOME,
                check=True,
                stdout=subprocess.DEVNULL,
            )
    return _HOME


@pytest.fixture(scope="session")
def tus_js(node_packages: Path) -> TusJs:
    """The client, installed from its lock."""
    del node_packages
    return TusJs()
