"""Starts workers, restarts one that died, and stops or renews them one after the other.

The supervisor owns processes and no other state: workers share the port by themselves. A worker gets its
orders on its standard input, which stays open: its end tells the worker that the supervisor died. Over a pipe
it writes one line: an empty one when it accepts devices, or a sentence on why it cannot.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, NamedTuple

import anyio
import structlog
from anyio.abc import TaskGroup

#: A worker that lived for longer is restarted without a pause: its death is no repetition of the last one.
_WELL_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
#: How long a worker may take until it accepts devices.
START_S: Final = 60.0
#: Time of a worker besides draining, to close and to write the last lines of its log.
LAST_WORDS_S: Final = 10.0

_log = structlog.get_logger()


class WorkersFailedError(Exception):
    """The workers cannot be started; the text says why."""


class Orders(NamedTuple):
    """The orders of workers. ``told`` returns the line for standard input, by a worker's index and pipe."""

    told: Callable[[int, int], bytes]
    drain_s: float


class _Worker:
    """One worker process. ``said`` is its line on the pipe, empty bytes if it ended without one.

    It is killed ten seconds after ``drain_s``.
    """

    def __init__(
        self, index: int, process: asyncio.subprocess.Process, said: asyncio.Task[bytes], drain_s: float
    ) -> None:
        self.index = index
        self.process = process
        self.said = said
        self.stop_s = drain_s + LAST_WORDS_S
        self.started_s = asyncio.get_running_loop().time()
        self._told_to_stop = False

    def tell_to_stop(self, by: signal.Signals) -> None:
        """Make it drain and end; one that does not accept devices yet just ends."""
        if not self._told_to_stop and self.process.returncode is None:
            self._told_to_stop = True
            self.process.send_signal(by)

    async def failure(self) -> str | None:
        """Wait until it accepts devices; return None, or a sentence on why it does not."""
        try:
            async with asyncio.timeout(START_S):
                line = await asyncio.shield(self.said)
                if line:
                    return line.decode(errors="replace").strip() or None
                status = await self.process.wait()
        except TimeoutError:
            return (
                f"worker {self.index} did not come up within {START_S:.0f} s: see that the database answers"
            )
        return f"worker {self.index} ended with status {status} at the start: its last words are above"


class Supervisor:
    """Keeps a number of workers running.

    Args:
        workers: How many.
        command: Starts a worker.
        orders: What workers read on their standard input.
        started: Called when all workers accept devices.
        reread: Called before a renewal. Returns the orders of new workers, or None, after it logged the
            reason, for no renewal.
    """

    def __init__(
        self,
        workers: int,
        command: Sequence[str],
        orders: Orders,
        started: Callable[[], None] = lambda: None,
        reread: Callable[[], Orders | None] | None = None,
    ) -> None:
        self._command = command
        self._orders = orders
        self._started = started
        self._reread = reread or (lambda: orders)
        # Held while a process is put in the place of a worker.
        self._locks = {index: asyncio.Lock() for index in range(1, workers + 1)}
        self._workers: dict[int, _Worker] = {}
        self._living: set[_Worker] = set()
        self._renewal = asyncio.Event()
        self._failure: str | None = None

    async def run(self) -> bool:
        """Keep the workers running until told to stop by SIGTERM or SIGINT; SIGHUP renews them one by one.

        A terminal that is closed sends SIGHUP too, and stops them. A SIGINT while they drain, as of a second
        Ctrl-C, kills them.

        Returns:
            Whether they were killed by such a SIGINT.

        Raises:
            WorkersFailedError: One of them does not come up at the start.
        """
        on_terminal = os.isatty(0)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._keep, group.cancel_scope)
                    async for received in signals:
                        if received is signal.SIGHUP and not (on_terminal and not os.isatty(0)):
                            self._renewal.set()
                            continue
                        _log.info("workers_stopping", signal=received.name)
                        group.cancel_scope.cancel()
            finally:
                with anyio.CancelScope(shield=True):
                    interrupted = await self._stop_all(signals)
        if self._failure is not None:
            raise WorkersFailedError(self._failure)
        return interrupted

    async def _stop_all(self, signals: AsyncIterator[signal.Signals]) -> bool:
        """Make all workers drain; return whether a SIGINT cut that short."""
        interrupted = False

        async def cut_short() -> None:
            nonlocal interrupted
            async for received in signals:
                if received is signal.SIGINT:
                    interrupted = True
                    for worker in self._living:
                        worker.process.kill()

        async with anyio.create_task_group() as group:
            group.start_soon(cut_short)
            await asyncio.gather(*map(self._stop, list(self._living)))
            group.cancel_scope.cancel()
        return interrupted

    async def _keep(self, everything: anyio.CancelScope) -> None:
        for index in self._locks:
            try:
                self._workers[index] = await self._start(index, self._orders)
            except OSError as error:
                self._failure = f"worker {index} cannot be started: {error.strerror}"
                everything.cancel()
                return
        for up in asyncio.as_completed([worker.failure() for worker in self._workers.values()]):
            self._failure = await up
            if self._failure is not None:
                everything.cancel()
                return
        self._started()
        async with anyio.create_task_group() as group:
            for index in self._locks:
                group.start_soon(self._look_after, index)
            while True:
                await self._renewal.wait()
                self._renewal.clear()  # any number of requests during a renewal leads to one more
                await self._renew(group)

    async def _start(self, index: int, orders: Orders) -> _Worker:
        """Start a worker. Raises OSError if the system has no resources for it."""
        reading, writing = os.pipe()
        pipe = os.fdopen(reading, "rb", 0)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, pass_fds=(writing,), start_new_session=True
            )
        except BaseException:
            pipe.close()
            raise
        finally:
            told = orders.told(index, writing)
            os.close(writing)
        worker = _Worker(index, process, asyncio.create_task(_line(pipe)), orders.drain_s)
        self._living.add(worker)
        assert process.stdin is not None
        process.stdin.write(told + b"\n")
        _log.info("worker_started", worker=index, pid=process.pid)
        return worker

    async def _look_after(self, index: int) -> None:
        """Restart a worker that ended by itself, until a renewal replaces it."""
        pause_s = 0.0
        while True:
            worker = self._workers[index]
            status = await worker.process.wait()
            async with self._locks[index]:
                if self._workers[index] is not worker:  # a renewal replaced it, and watches the new one
                    return
                self._living.discard(worker)
                lived_s = asyncio.get_running_loop().time() - worker.started_s
                again_s = 0.0 if lived_s >= _WELL_S else pause_s * 2
                pause_s = min(max(again_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
                _log.error("worker_died", worker=index, status=status, restart_after_s=pause_s)
                again = self._workers[index] = await self._start_again(index, pause_s)
                reason = await again.failure()
                if reason is not None:
                    _log.error("worker_not_up", worker=index, reason=reason)
                    await self._end(again)

    async def _start_again(self, index: int, pause_s: float) -> _Worker:
        """Start a worker after a pause, and try until that succeeds; the others go on."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                return await self._start(index, self._orders)
            except OSError as error:
                _log.error("worker_not_up", worker=index, reason=error.strerror)
                pause_s = _LONGEST_PAUSE_S

    async def _renew(self, group: TaskGroup) -> None:
        """Replace each worker: the old one drains when the new one accepts devices.

        New orders are in force when the first worker started with them; until then one that dies is restarted
        with the old orders.
        """
        orders = self._reread()
        if orders is None:
            return
        for index, lock in self._locks.items():
            async with lock:
                old = self._workers[index]
                try:
                    new = await self._start(index, orders)
                except OSError as error:
                    _log.error("renewal_abandoned", worker=index, reason=error.strerror)
                    return
                reason = await new.failure()
                if reason is not None:
                    _log.error("renewal_abandoned", worker=index, reason=reason)
                    await self._end(new)
                    return
                self._orders = orders
                self._workers[index] = new
                group.start_soon(self._look_after, index)
            await self._stop(old, signal.SIGUSR1)  # its devices get the reason `restart`
        _log.info("workers_renewed")

    async def _stop(self, worker: _Worker, by: signal.Signals = signal.SIGTERM) -> None:
        """Make a worker drain; one that takes too long is killed."""
        worker.tell_to_stop(by)
        try:
            async with asyncio.timeout(worker.stop_s):
                await worker.process.wait()
        except TimeoutError:
            _log.error("worker_killed", worker=worker.index, pid=worker.process.pid)
        await self._end(worker)

    async def _end(self, worker: _Worker) -> None:
        """Kill a worker that still lives, and wait for its end."""
        if worker.process.returncode is None:
            worker.process.kill()
        await worker.process.wait()
        worker.said.cancel()
        self._living.discard(worker)


async def _line(pipe: object) -> bytes:
    """Read one line from a pipe, or all until its end, and close it."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        return await reader.readline()
    finally:
        transport.close()
