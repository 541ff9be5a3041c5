"""One process per core: starts workers, restarts one that died, and stops or renews them in turn.

The supervisor owns processes only, no socket and no state: workers share the port by themselves. Each is told
what it is on its standard input, which stays open as its line of life: its end tells a worker that nobody
looks after it any more. A worker tells over a pipe that it lets devices in.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from typing import Final

import anyio
import structlog

#: A worker that lives for as long is well: the next death is no repetition of the last one.
_WELL_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
#: How long a worker may take until it lets devices in.
_START_S: Final = 60.0
#: What a worker needs besides draining: closing, the last lines of its log.
_LAST_WORDS_S: Final = 10.0

_log = structlog.get_logger()


class WorkersFailedError(Exception):
    """The workers cannot be started; they have said why."""


class _Worker:
    """One running worker process."""

    def __init__(self, index: int, process: asyncio.subprocess.Process, ready: asyncio.Task[bool]) -> None:
        self.index = index
        self.process = process
        self.ready = ready
        self.started_s = asyncio.get_running_loop().time()
        self.expected_to_end = False

    def tell_to_stop(self) -> None:
        """Have it drain and end."""
        self.expected_to_end = True
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)


class Supervisor:
    """``command`` starts a worker; ``told`` gives what its standard input says, for its index and pipe."""

    def __init__(
        self,
        workers: int,
        command: Sequence[str],
        told: Callable[[int, int], bytes],
        drain_s: float,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        self._command = command
        self._told = told
        self._stop_s = drain_s + _LAST_WORDS_S
        self._started = started
        self._indexes = range(1, workers + 1)
        self._workers: dict[int, _Worker] = {}
        self._stopping = asyncio.Event()
        self._renewing = asyncio.Lock()

    async def run(self) -> None:
        """Keep the workers running until told to stop by SIGTERM or SIGINT; SIGHUP renews them one by one.

        Raises WorkersFailedError when they do not come up at the start.
        """
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with anyio.create_task_group() as group:
                try:
                    for index in self._indexes:
                        self._workers[index] = await self._start(index)
                    if not all([await worker.ready for worker in self._workers.values()]):
                        raise WorkersFailedError
                    self._started()
                    for index in self._indexes:
                        group.start_soon(self._look_after, index)
                    async for received in signals:
                        if received is not signal.SIGHUP:
                            _log.info("workers_stopping", signal=received.name)
                            break
                        group.start_soon(self._renew)
                finally:
                    self._stopping.set()
                    with anyio.CancelScope(shield=True):
                        await asyncio.gather(*map(self._stop, self._workers.values()))
                    group.cancel_scope.cancel()

    async def _start(self, index: int) -> _Worker:
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, pass_fds=(writing,), start_new_session=True
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            told = self._told(index, writing)
            os.close(writing)
        assert process.stdin is not None
        process.stdin.write(told + b"\n")
        worker = _Worker(index, process, asyncio.create_task(_is_ready(reading)))
        _log.info("worker_started", worker=index, pid=process.pid)
        return worker

    async def _look_after(self, index: int) -> None:
        """Start a worker again that ended though nobody told it to."""
        pause_s = _FIRST_PAUSE_S
        while True:
            worker = self._workers[index]
            status = await worker.process.wait()
            if self._stopping.is_set():
                return
            if self._workers[index] is not worker or worker.expected_to_end:
                await asyncio.sleep(_FIRST_PAUSE_S)  # another has taken its place, or is about to
                continue
            lived_s = asyncio.get_running_loop().time() - worker.started_s
            pause_s = _FIRST_PAUSE_S if lived_s >= _WELL_S else min(pause_s * 2, _LONGEST_PAUSE_S)
            _log.error("worker_died", worker=index, status=status, restart_after_s=pause_s)
            await asyncio.sleep(pause_s)
            async with self._renewing:
                if self._stopping.is_set() or self._workers[index] is not worker:
                    continue
                self._workers[index] = again = await self._start(index)
                if not await again.ready and again.process.returncode is None:
                    again.process.kill()

    async def _renew(self) -> None:
        """Put a new worker in the place of each, the old one going once the new one lets devices in."""
        async with self._renewing:
            for index in self._indexes:
                old = self._workers[index]
                new = await self._start(index)
                if not await new.ready:
                    _log.error("renewal_abandoned", worker=index)
                    await self._stop(new)
                    return
                old.expected_to_end = True
                self._workers[index] = new
                await self._stop(old)
            _log.info("workers_renewed")

    async def _stop(self, worker: _Worker) -> None:
        """Have a worker drain; one that takes too long is killed."""
        worker.tell_to_stop()
        try:
            async with asyncio.timeout(self._stop_s):
                await worker.process.wait()
        except TimeoutError:
            _log.error("worker_killed", worker=worker.index)
            worker.process.kill()
            await worker.process.wait()
        worker.ready.cancel()


async def _is_ready(reading: int) -> bool:
    """Whether a worker said so over its pipe, before it ended and before too long."""
    loop = asyncio.get_running_loop()
    said: asyncio.Future[bytes] = loop.create_future()

    def readable() -> None:
        if not said.done():
            said.set_result(os.read(reading, 1))

    loop.add_reader(reading, readable)
    try:
        async with asyncio.timeout(_START_S):
            return bool(await said)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(reading)
        os.close(reading)
