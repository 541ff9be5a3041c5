"""Processes that are forked instead of started, with all imported that takes most of a start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests.harness.scratch import scratch

_SERVER: Final = Path(__file__).with_name("fork_server.py")
_ROOT: Final = Path(__file__).parents[2]


class Ended(NamedTuple):
    """A process that has run."""

    status: int
    out: str
    err: str


class Forks:
    """A process that has imported ``modules``, and runs one fork after the other."""

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, _SERVER, *modules],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        program: list[str],
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        given: str = "",
        patience_s: int = 120,
    ) -> Ended:
        """Do as ``python PROGRAM``, where the program is a file or ``-m`` and a module.

        Args:
            program: The program with its arguments.
            cwd: The directory that it runs in.
            environment: Its environment; None for the one of these processes.
            given: Its input.
            patience_s: How long it may take.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with scratch("tidemark-fork-") as home:
            files = [home / name for name in ("in", "out", "err")]
            files[0].write_text(given)
            run = {
                "program": program,
                "cwd": str(cwd),
                "environment": None if environment is None else dict(environment),
                "files": [str(file) for file in files],
                "patience_s": patience_s,
            }
            self._process.stdin.write(json.dumps(run) + "\n")
            self._process.stdin.flush()
            status = int(self._process.stdout.readline())
            return Ended(status, files[1].read_text(), files[2].read_text())

    def stop(self) -> None:
        """Let it end."""
        self._process.communicate()
