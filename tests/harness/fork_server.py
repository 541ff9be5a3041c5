"""Runs Python programs in forks of a process that has imported their modules.

That takes half a second, and most of the programs that tests run take less.
Its arguments are the modules. It reads a run as a JSON object a line (``tests.harness.forks.Forks.run``), and
writes the exit status of each.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import traceback


def _become(
    program: list[str], cwd: str, environment: dict[str, str] | None, files: list[str], patience_s: int
) -> None:
    """Be the process of ``python PROGRAM``, and end after ``patience_s`` at the latest."""
    signal.alarm(patience_s)
    os.chdir(cwd)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, (file, how) in enumerate(zip(files, flags, strict=True)):
        os.dup2(os.open(file, how, 0o600), descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # the old one has read ahead
    if program[0] == "-m":
        sys.argv, sys.path[0] = program[1:], cwd
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = program, os.path.dirname(program[0])  # noqa: PTH120  # as Python sets it
        runpy.run_path(program[0], run_name="__main__")


def _status(ended: SystemExit) -> int:
    """The exit status that an interpreter gives for it."""
    match ended.code:
        case None:
            return 0
        case int(code):
            return code
        case said:
            sys.stderr.write(f"{said}\n")
            return 1


def main() -> None:
    """Fork for each line until the input ends."""
    sys.path[0] = os.getcwd()  # noqa: PTH109  # a path of text, as Python sets it
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        run = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _become(**run)
                status = 0
            except SystemExit as ended:
                status = _status(ended)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, how = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(how)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
