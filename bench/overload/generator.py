"""The load generator of ``overload``, a process of its own: ``python -m bench.overload.generator``.

It only sends, and notes when what came back; summing up is left to who reads it, after the run. Every send
time is fixed before the first message leaves. A sync that is refused is not sent again.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
from array import array
from collections import Counter
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Final

import msgspec
import uvloop

from bench.load.precise_timer import Alarm
from bench.load.websocket_client import HandshakeError, Socket, connect
from bench.overload.plan import CODES, Happened, LoadPlan, Ready
from bench.overload.workload import Frames

#: How many handshakes are under way at once.
CONNECTING: Final = 100
#: How long the answers may take that are missing at the end.
GRACE_S: Final = 60.0
_LOOK_S: Final = 0.02
#: After so many sends what came in is read first.
_BURST: Final = 32
#: How often the generator looks whether its own loop is late.
_TICK_S: Final = 0.01
#: A closed loop goes on after a refusal when it is told to, but not faster than this.
_AFTER_REFUSAL_S: Final = 0.1

_SYNCED: Final = CODES.index("synced")


class _Result(msgspec.Struct, gc=False):
    status: str
    version: int | None = None
    seq: int | None = None


class _Answer(msgspec.Struct, gc=False):
    type: str
    id: str | None = None
    code: str = ""
    reason: str = ""
    retry_after_ms: int | None = None
    replayed: bool = False
    results: tuple[_Result, ...] = ()


_decode = msgspec.json.Decoder(_Answer).decode


class OverloadLoad:
    """One run from the first handshake to the last answer."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._stamped = Frames(plan.prefix, plan.backlog).stamped
        self._versions = plan.backlog.versions
        self._sockets: list[Socket | None] = [None] * len(plan.devices)
        self._greeted: list[asyncio.Future[None]] = []
        self._start_s = 0.0
        self._waiting = 0
        self._again = False
        self._ended: Counter[str] = Counter()
        self._codes = {name: place for place, name in enumerate(CODES)}
        self._device = array("l")
        self._due_us = array("q")
        self._sent_us = array("q")
        self._done_us = array("q")
        self._code = array("h")
        self._seqs: dict[int, list[int]] = {}
        self._lag_us = array("q")

    async def connect(self) -> Ready:
        """Open the connections."""
        refusals: Counter[str] = Counter()
        handshakes = asyncio.Semaphore(CONNECTING)
        loop = asyncio.get_running_loop()
        self._greeted = [loop.create_future() for _ in self._sockets]
        await asyncio.gather(
            *(self._connect(index, handshakes, refusals) for index in range(len(self._sockets)))
        )
        return Ready(sum(socket is not None for socket in self._sockets), dict(refusals))

    async def _connect(self, index: int, handshakes: asyncio.Semaphore, refusals: Counter[str]) -> None:
        plan = self._plan
        received, ended = partial(self._received, index), partial(self._lost, index)
        async with handshakes:
            try:
                socket = await connect(plan.host, plan.port, plan.tokens[index], received, ended)
            except HandshakeError as error:
                refusals[str(error)] += 1
            except OSError as error:  # TimeoutError is one
                refusals[error.strerror or type(error).__name__] += 1
            else:
                self._sockets[index] = socket
                await self._greeted[index]

    async def run(self, start_s: float) -> Happened:
        """Do what the plan says from a time of ``perf_counter`` on."""
        self._start_s = start_s
        end_s = start_s + self._plan.bounds_us[-1][1] / 1e6
        gc.collect()
        gc.freeze()
        gc.disable()
        ticking = asyncio.create_task(self._tick(end_s))
        if self._plan.pipelined:
            await self._closed(end_s)
        else:
            await self._open()
        await ticking
        give_up_s = perf_counter() + GRACE_S
        # An event would have to be looked after with every message.
        while self._waiting and perf_counter() < give_up_s:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        for socket in self._sockets:
            if socket is not None:
                socket.close()
        return self._happened()

    def _now_us(self) -> int:
        """Give the time of the run; timers may go off a little early, but the run has begun then."""
        return max(0, int((perf_counter() - self._start_s) * 1e6))

    async def _tick(self, end_s: float) -> None:
        """Note how late the loop is: what it is late with sending it may be late with reading."""
        at_s = self._start_s
        while at_s < end_s:
            await asyncio.sleep(at_s - perf_counter())
            now_s = perf_counter()
            self._lag_us.append(int((now_s - at_s) * 1e6))
            at_s = max(at_s, now_s) + _TICK_S

    async def _open(self) -> None:
        due = self._schedule()
        sent_all: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        start_s = self._start_s

        def send() -> None:
            room = _BURST
            now_us = self._now_us()
            while due and due[-1][0] <= now_us and room:
                self._send(*due.pop())
                room -= 1
            if due:
                alarm.set(start_s + due[-1][0] / 1e6)
            else:
                sent_all.set_result(None)

        alarm = Alarm(send)
        send()
        await sent_all
        alarm.close()

    def _schedule(self) -> list[tuple[int, int]]:
        """Fix when each sync leaves and on which connection, the last first."""
        draw, connections = random.Random(self._plan.seed), len(self._sockets)
        due: list[tuple[int, int]] = []
        for step, (begin_us, end_us) in zip(self._plan.steps, self._plan.bounds_us, strict=True):
            at_us = float(begin_us)
            while step.per_s and (at_us := at_us + draw.expovariate(step.per_s) * 1e6) < end_us:
                due.append((int(at_us), int(draw.random() * connections)))
        due.reverse()
        return due

    async def _closed(self, end_s: float) -> None:
        await asyncio.sleep(self._start_s - perf_counter())
        self._again = True
        for index in range(len(self._sockets)):
            for _ in range(self._plan.pipelined):
                self._resume(index)
        await asyncio.sleep(end_s - perf_counter())
        self._again = False

    def _resume(self, index: int) -> None:
        if self._again and self._sockets[index] is not None:
            self._send(self._now_us(), index)

    def _send(self, due_us: int, index: int) -> None:
        number = len(self._due_us)
        self._device.append(index)
        self._due_us.append(due_us)
        self._done_us.append(-1)
        self._code.append(0)
        socket = self._sockets[index]
        if socket is None:
            self._sent_us.append(-1)
            return
        socket.write(self._stamped(number))
        self._waiting += 1
        self._sent_us.append(self._now_us())

    def _received(self, index: int, text: bytes) -> None:
        now_us = self._now_us()
        answer = _decode(text)
        if answer.type == "welcome":
            self._greeted[index].set_result(None)
        elif answer.type == "goodbye":
            self._ended[f"goodbye_{answer.reason}"] += 1
        elif answer.id is None or not answer.id.isdecimal():
            self._ended[answer.code or answer.type] += 1
        else:
            self._answered(index, int(answer.id), answer, now_us)

    def _answered(self, index: int, number: int, answer: _Answer, now_us: int) -> None:
        if self._code[number] or self._device[number] != index:
            self._ended["answer_to_nothing"] += 1
            return
        code = answer.code
        if answer.type == "synced":
            seqs = self._acknowledged(answer)
            code = "synced" if seqs else "answered_otherwise"
            if seqs:
                self._seqs[number] = seqs
        self._waiting -= 1
        self._done_us[number] = now_us
        self._code[number] = self._codes.setdefault(code, len(self._codes))
        if self._again:
            if code == "synced":
                self._resume(index)
            else:
                after_s = max(_AFTER_REFUSAL_S, (answer.retry_after_ms or 0) / 1000)
                asyncio.get_running_loop().call_later(after_s, self._resume, index)

    def _acknowledged(self, answer: _Answer) -> list[int]:
        """Give the seqs of a sync that was applied as asked; none where it was not."""
        results = answer.results
        if answer.replayed or [result.version for result in results] != self._versions:
            return []
        seqs = [result.seq for result in results if result.status == "applied" and result.seq is not None]
        return seqs if len(seqs) == len(results) else []

    def _lost(self, index: int, code: int) -> None:
        self._sockets[index] = None
        self._ended[f"closed_{code}"] += 1
        if not self._greeted[index].done():
            self._greeted[index].set_result(None)
        for number, device in enumerate(self._device):
            if device == index and not self._code[number] and self._sent_us[number] >= 0:
                self._waiting -= 1

    def _happened(self) -> Happened:
        return Happened(
            device=self._device.tolist(),
            due_us=self._due_us.tolist(),
            sent_us=self._sent_us.tolist(),
            done_us=self._done_us.tolist(),
            code=self._code.tolist(),
            codes=list(self._codes),
            seqs=[seq for number in sorted(self._seqs) for seq in self._seqs[number]],
            lag_us=self._lag_us.tolist(),
            ended=dict(self._ended),
        )


def say(message: Ready | Happened) -> None:
    """Say one line."""
    # Not sys.stdout: under PYTHONUNBUFFERED it is the bare file, which may write the first part alone.
    with open(1, "wb", closefd=False) as out:
        out.write(msgspec.json.encode(message) + b"\n")


async def _run(plan: LoadPlan, told: Callable[[], bytes]) -> None:
    load = OverloadLoad(plan)
    say(await load.connect())
    loop = asyncio.get_running_loop()
    if line := await loop.run_in_executor(None, told):
        say(await load.run(float(line)))
        # Until nobody wants to know any more how much CPU this process used.
        await loop.run_in_executor(None, told)


def main() -> None:
    """Read the plan, connect, begin when told, say what happened, and end when stdin does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Without read-ahead, which would take what it is told later.
    with os.fdopen(os.dup(0), "rb") as lines:
        plan = msgspec.json.decode(lines.readline(), type=LoadPlan)
        uvloop.run(_run(plan, lines.readline))


if __name__ == "__main__":
    main()
