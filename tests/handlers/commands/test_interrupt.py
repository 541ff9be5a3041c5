"""Ctrl-C ends a command at once, also where it asks: commands await their stores in an event loop."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness.clusters import role_variables
from handlers.commands.deployment import run_async
from tests.harness.admin import add_tenants
from tests.harness.services import rows

_ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("_interruptible")


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Have SIGINT interrupt, here and in what is started here.

    A process that a shell runs in the background ignores it, and so does all that it starts. An earlier test
    of this process may have left a handler, too.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupted(process: subprocess.Popen[bytes]) -> int:
    """Press Ctrl-C as a person does; return the exit status.

    Python misses a signal that comes just before it waits for the terminal, so a person presses again.
    """
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(timeout=4)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("five times Ctrl-C did not end it")


def test_command_interrupted_at_its_question_ends_at_once_and_changes_nothing(dsn: str) -> None:
    add_tenants(dsn, "acme")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "run.py", "device", "revoke", "--tenant", "acme", "never-seen"],
        cwd=_ROOT,
        env={**os.environ, **role_variables(dsn)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        said = b""
        while b"Revoke that id all the same?" not in said:
            said += os.read(ours, 1024)
        assert _interrupted(process) == 1
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert rows(dsn, "SELECT device_id FROM devices") == []


def test_run_async_interrupt_closes_what_the_command_opened() -> None:
    closed: list[str] = []

    async def command() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            closed.append("connection")

    with pytest.raises(KeyboardInterrupt):
        run_async(command())
    assert closed == ["connection"]
