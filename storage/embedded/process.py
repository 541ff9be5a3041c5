"""A server process that outlives the process that started it, and is found again by the next one.

It inherits a locked file, so that the lock is held exactly as long as it or one of its children lives: no
stale pid file, reused pid or crash of the machine can make it look alive.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, NamedTuple

import psutil

from storage.embedded.account import Account, EmbeddedError

_POLL_S: Final = 0.01
_TELLING: Final = re.compile(r"FATAL|PANIC|ERROR|error:")
_LOG_TAIL_BYTES: Final = 16_384


class ProcessTraces(NamedTuple):
    """Where a server can be recognised from outside.

    ``lock`` is held by it and its children, ``mark`` is one of its arguments, ``pid`` is the file it
    writes its pid to; ``logs`` is a directory of files named ``log_prefix``….
    """

    lock: Path
    mark: str
    pid: Path
    logs: Path
    log_prefix: str


class ServerProcess:
    """The process of the server called ``name``; ``answers`` returns whether it serves."""

    def __init__(
        self, name: str, account: Account, traces: ProcessTraces, answers: Callable[[], bool]
    ) -> None:
        self._name = name
        self._account = account
        self._traces = traces
        self._answers = answers

    def start(self, command: Sequence[str | Path], leftovers: Iterable[Path], patience_s: float) -> None:
        """Return when the server answers, having started it if it does not live.

        ``leftovers`` are files of a dead one that would mislead the next. Raises EmbeddedError, OSError.
        """
        # It may still be starting or stopping, or be ending after its parent was killed.
        self._settle(patience_s)
        logged = self._newest_log()
        with TemporaryFile() as said:
            lock = self._lock()
            if lock is not None:
                try:
                    self._refuse_stranger()
                    for path in leftovers:
                        path.unlink(missing_ok=True)
                    self._spawn(command, lock, said.fileno())
                finally:
                    os.close(lock)
                self._settle(patience_s)
            if self.alive() and self._answers():
                return
            said.seek(0)
            text = said.read().decode(errors="replace")
        if self.alive():
            raise EmbeddedError(
                f"{self._name} lives but does not serve, see {self._traces.logs}: wait for its recovery"
                f" or end the processes that hold {self._traces.lock}"
            )
        newest = self._newest_log()
        if newest is not None and newest != logged:
            with newest[1].open("rb") as log:
                log.seek(max(0, newest[1].stat().st_size - _LOG_TAIL_BYTES))
                text += log.read().decode(errors="replace")
        raise failed(f"{self._name} did not start, see {self._traces.logs}", text)

    def stop(self, steps: Iterable[tuple[signal.Signals, float]]) -> None:
        """Send each signal and wait as long as it says, in seconds, until the server is no more.

        Raises EmbeddedError if it still lives after the last.
        """
        for number, patience_s in steps:
            if not self.alive():
                return
            process = self._process()
            if process is not None:
                with suppress(psutil.NoSuchProcess):  # it may just have ended by itself
                    process.send_signal(number)
            if wait_until(lambda: not self.alive(), patience_s):
                return
        raise EmbeddedError(
            f"{self._name} does not stop: end by hand the processes that hold {self._traces.lock}"
        )

    def alive(self) -> bool:
        """Return whether the process lives, or a child that it left behind."""
        lock = self._lock()
        if lock is None:
            return True
        os.close(lock)
        return False

    def _settle(self, patience_s: float) -> None:
        wait_until(lambda: not self.alive() or self._answers(), patience_s)

    def _spawn(self, command: Sequence[str | Path], lock: int, said: int) -> None:
        # The shell goes at once, so that init reaps the server whoever of its users is left.
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=[lock],
            start_new_session=True,
            check=True,
            **self._account.spawning,
        )

    def _refuse_stranger(self) -> None:
        process = self._process()
        if process is not None:
            raise EmbeddedError(
                f"{self._name} was started by other means on this data directory: stop process {process.pid}"
            )

    def _process(self) -> psutil.Process | None:
        """Find the process by its pid file, unless the pid now belongs to another process."""
        try:
            pid = int(self._traces.pid.read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
            ours = process.uids().real == self._account.uid and self._traces.mark in process.cmdline()
        except (OSError, ValueError, psutil.Error):
            return None
        return process if ours else None

    def _lock(self) -> int | None:
        """Take the lock, which proves that the server does not live; None if it does."""
        descriptor = lock_file(self._traces.lock, self._account)
        if locked(descriptor):
            return descriptor
        os.close(descriptor)
        return None

    def _newest_log(self) -> tuple[int, Path] | None:
        logs = self._traces.logs.glob(f"{self._traces.log_prefix}*")
        return max(((path.stat().st_mtime_ns, path) for path in logs), default=None)


def lock_file(path: Path, account: Account) -> int:
    """Open a file to lock, creating it as its directory's owner would. Raises OSError."""
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
        if path.parent.stat().st_uid == account.uid:
            account.own(descriptor)
        return descriptor


def locked(descriptor: int) -> bool:
    """Try to lock an open file alone; return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_until(condition: Callable[[], bool], patience_s: float) -> bool:
    """Poll a condition of another process; return whether it became true in time."""
    deadline_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def failed(what: str, said: str) -> EmbeddedError:
    """Return the error for a program that failed, with the most telling line of its output."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line[match.start() :] for line in lines if (match := _TELLING.search(line))]
    words = (telling or lines or ["it said nothing"])[-1]
    remedy = "free some room on its disk" if os.strerror(errno.ENOSPC) in words else "put that right"
    return EmbeddedError(f"{what}: {words}: {remedy} or choose another --data-dir")
