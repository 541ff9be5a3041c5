"""One server process that outlives whoever started it, and is found again by whoever comes next.

The process inherits a locked file, so that the lock is held exactly as long as it or one of its
children lives: no stale pid file, recycled pid or crash of the machine can make it look alive.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil

from storage.embedded_account import Account, EmbeddedError

_POLL_S: Final = 0.01


class ServerProcess:
    """A server that holds ``lock_file``, was started with ``mark`` as one of its arguments and wrote its pid."""

    def __init__(self, name: str, account: Account, lock_file: Path, mark: str, pid_file: Path) -> None:
        self.name = name
        self._account = account
        self._lock_file = lock_file
        self._mark = mark
        self._pid_file = pid_file

    def alive(self) -> bool:
        """Tell whether the process, or a child it left behind, lives."""
        lock = self._lock()
        if lock is None:
            return True
        os.close(lock)
        return False

    def spawn(self, command: Sequence[str | Path], clear: Callable[[], None]) -> None:
        """Start the process in a session of its own, after ``clear`` has removed what a dead one left.

        Does nothing if it lives already. Raises EmbeddedError, OSError.
        """
        lock = self._lock()
        if lock is None:
            return
        try:
            if (stranger := self.process()) is not None:
                raise EmbeddedError(
                    f"{self.name} was started by hand on this data directory: stop process {stranger.pid}"
                )
            clear()
            # The shell goes at once, so that init reaps the server whoever of its users is left.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": os.defpath, "HOME": "/", "LC_ALL": "C"},
                pass_fds=[lock],
                start_new_session=True,
                check=True,
                **self._account.spawning,
            )
        finally:
            os.close(lock)

    def wait_until_dead(self, patience_s: float) -> bool:
        """Wait until neither the process nor a child of it lives; tell whether that came to pass."""
        return wait_until(lambda: not self.alive(), patience_s)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it is there and surely ours."""
        process = self.process()
        if process is not None:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                return

    def process(self) -> psutil.Process | None:
        """Find the process by its pid file; a pid that is somebody else's by now is not taken for it."""
        try:
            pid = int(self._pid_file.read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
            ours = process.uids().real == self._account.uid and self._mark in process.cmdline()
        except (OSError, ValueError, psutil.Error):
            return None
        return process if ours and process.status() != psutil.STATUS_ZOMBIE else None

    def _lock(self) -> int | None:
        descriptor = lock_file(self._lock_file, self._account)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


def lock_file(path: Path, account: Account) -> int:
    """Open a file to lock, creating it as its directory's owner would. Raises OSError."""
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o600)
        if path.parent.stat().st_uid == account.uid:
            account.own(descriptor)
        return descriptor


def wait_until(condition: Callable[[], bool], patience_s: float) -> bool:
    """Wait for another process to come so far; tell whether it did."""
    deadline_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True
