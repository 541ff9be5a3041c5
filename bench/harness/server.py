"""Servers as child processes: the product, and the bare ones that the limits are measured on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import psutil
from aiohttp import ClientError, ClientSession, ClientTimeout

from bench.harness.child import ROOT
from bench.harness.environment import BenchError

_START_S: Final = 60.0
_STOP_S: Final = 60.0
_LOOK_S: Final = 0.02
_LINE_BYTES: Final = 1 << 20
#: Where ports for several workers are looked for: below those that the system gives to clients.
_PORTS: Final = range(20_000, 32_000)
_TRIES: Final = 100


class Server:
    """A server that writes JSON lines to stdout, one of the event ``listening`` from each worker.

    It runs ``program`` in ``root``, with ``variables`` besides the environment of this process. ``logged``
    counts its events of level warning and above, which ``on_warning`` is called with. ``workers`` are the
    processes of several workers by their numbers; worker n listens on ``port`` + n, too. ``pid`` is the
    worker's if there is one, else the supervisor's.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        workers: int = 1,
        *,
        program: str = sys.executable,
        root: Path = ROOT,
        on_warning: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._command = (program, *command)
        self.environment = {**os.environ, **variables}
        self._count = workers
        self._root = root
        self._on_warning = on_warning
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._renewed = asyncio.Event()
        self.pid = 0
        self.port = 0
        self.logged: Counter[str] = Counter()
        self.workers: dict[int, int] = {}

    async def __aenter__(self) -> Self:
        """Start. Raises BenchError."""
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the server if it runs."""
        await self.stop()

    async def start(self) -> None:
        """Start, and wait until every worker listens. Raises BenchError."""
        self._listening = asyncio.get_running_loop().create_future()
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, cwd=self._root, env=self.environment, stdout=pipe, limit=_LINE_BYTES
        )
        self.pid = self._process.pid
        self._reading = asyncio.create_task(self._read(self._process))
        try:
            async with asyncio.timeout(_START_S):
                self.port = await self._listening
        except TimeoutError:
            raise BenchError(f"{' '.join(self._command)} does not listen after {_START_S:.0f} s") from None

    async def stop(self) -> None:
        """Have it drain, and wait for its end. Workers whose supervisor was killed notice, and end."""
        if self._process is not None and self._reading is not None:
            await end(self._process, _STOP_S)
            await self._reading

    async def kill(self) -> None:
        """Kill all its processes at once, the one that would start workers again first."""
        workers = psutil.Process(self.running.pid).children(recursive=True)
        self.running.kill()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        await self.stop()

    async def renew(self) -> None:
        """Have every worker replaced, one by one, and wait for the last. Raises BenchError."""
        self._renewed.clear()
        self.running.send_signal(signal.SIGHUP)
        try:
            async with asyncio.timeout(self._count * _START_S):
                await self._renewed.wait()
        except TimeoutError:
            raise BenchError("the workers were not renewed") from None
        await self.ready()

    async def ready(self) -> None:
        """Wait until every worker lets devices in. Raises TimeoutError, BenchError."""
        async with asyncio.timeout(_START_S), ClientSession(timeout=ClientTimeout(total=2)) as session:
            for port in self.own_ports:
                while not await _is_ready(session, port):
                    if not self.alive:
                        raise BenchError("the server ended: its last words are above")
                    await asyncio.sleep(_LOOK_S)

    @property
    def running(self) -> asyncio.subprocess.Process:
        """The process of the server, or of its supervisor."""
        assert self._process is not None
        return self._process

    @property
    def alive(self) -> bool:
        """Whether the server, or its supervisor, lives."""
        return self.running.returncode is None

    @property
    def own_ports(self) -> list[int]:
        """The port of each worker alone, which is the server's if there is one worker."""
        several = range(self.port + 1, self.port + 1 + self._count)
        return [self.port] if self._count == 1 else list(several)

    def pids(self) -> list[int]:
        """Return the workers' processes, the oldest first; a single process is the server itself."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.running.pid).children()
            return [child.pid for child in sorted(found, key=lambda child: child.create_time())]
        return []

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Read the log until it ends."""
        assert process.stdout is not None
        left = self._count
        async for line in process.stdout:
            try:
                entry: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.DecodeError:
                continue  # a worker that is killed while it writes leaves half a line
            event = entry["event"]
            if event == "worker_started":
                if self._count > 1:
                    self.workers[entry["worker"]] = entry["pid"]
                else:
                    self.pid = entry["pid"]
            elif event == "workers_renewed":
                self._renewed.set()
            elif event == "listening":
                left -= 1
                if not left:
                    self._listening.set_result(entry["port"])
            if entry.get("level") in {"warning", "error", "critical"}:
                self.logged[event] += 1
                self._on_warning(entry)
        if not self._listening.done():
            ended = BenchError("the server ended before it listened: its last words are above")
            self._listening.set_exception(ended)


async def _is_ready(session: ClientSession, port: int) -> bool:
    with contextlib.suppress(ClientError, OSError, TimeoutError):
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            return response.status == 200
    return False


async def end(process: asyncio.subprocess.Process, patience_s: float) -> None:
    """Tell a process to stop, and kill one that takes longer."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(patience_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


#: Not seeded: processes of the tests that start from one seed would all try the same ports at the same time.
_random: Final = random.SystemRandom()


def free_ports(count: int) -> int:
    """Find so many ports in a row, and give the first. Raises BenchError."""
    for _ in range(_TRIES):
        first = _random.randrange(_PORTS.start, _PORTS.stop - count)
        with ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise BenchError(
        f"no {count} free ports in a row on 127.0.0.1: end other servers, or give fewer --workers"
    )
