"""The load generator, a process of its own: ``python -m bench.load.generator`` with a Plan on stdin.

It sends and notes when which answer came; summing up is left to the reader of its Outcome. All send times of
an open loop are fixed before the first message leaves, and latency counts from them, so that a server that
stalls cannot hide the waiting (no coordinated omission). Arrivals are Poisson, each on a connection drawn at
random. A sync that is refused is not sent again.
"""

from __future__ import annotations

import asyncio
import gc
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import Final, Protocol

import msgspec

from bench.load.child_process import Lines, main, say, ticking
from bench.load.plan import Outcome, Plan, Ready
from bench.load.precise_timer import PreciseTimer
from bench.load.simple_device import SimpleDevice
from bench.load.websocket_client import reason_of
from bench.load.workload import Answer, Backlogs, Tasks

#: How many handshakes are under way at once.
CONNECTING: Final = 1000
#: How long answers may take that are missing at the end.
GRACE_S: Final = 60.0
_LOOK_S: Final = 0.02
#: After so many sends in a row incoming messages are read first.
_BURST: Final = 32
#: How often the generator measures how late its own loop is.
_TICK_S: Final = 0.01
#: Syncs that the live line takes its percentile of.
_SAMPLED: Final = 500
#: A closed loop goes on after a refusal as soon as it is told to, but not faster than this.
_AFTER_REFUSAL_S: Final = 0.1

_HELLO: Final = b'{"type":"hello","app_version":"bench","clock":"%b"}'


class Connection(Protocol):
    """What a generator needs of an open connection."""

    def send(self, text: bytes) -> None:
        """Send one sync."""

    def close(self) -> None:
        """Close it."""


class Generator:
    """One run from the first handshake to the last answer."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._ended: Counter[str] = Counter()
        self._work = self._work_of(plan)
        self._outcome = Outcome(record=self._work.record, base=self._work.base)
        self._codes = {name: place for place, name in enumerate(self._outcome.codes)}
        self._seqs: dict[int, list[int]] = {}
        self._sockets: list[Connection | None] = [None] * len(plan.devices)
        self._start_s = 0.0
        self._waiting = 0
        self._refused = 0
        self._again = False

    def _work_of(self, plan: Plan) -> Tasks | Backlogs:
        if plan.backlog is None:
            return Tasks(plan.prefix, plan.devices, self._random.random)
        return Backlogs(plan.prefix, plan.backlog)

    async def connect(self) -> Ready:
        """Open the connections."""
        began_s, turns = perf_counter(), asyncio.Semaphore(CONNECTING)
        refusals: Counter[str] = Counter()
        everyone = range(len(self._sockets))
        devices = await asyncio.gather(*(self._connect(index, turns, refusals) for index in everyone))
        connect_s = perf_counter() - began_s
        for index, device in enumerate(devices):
            if device.socket is not None and device.ended.done():
                self._ended[f"closed_{device.ended.result()}"] += 1
            elif device.socket is not None:
                device.socket.on_text = partial(self._received, index)
                device.socket.on_end = partial(self._lost, index)
                self._sockets[index] = device.socket
        return Ready(len(devices) - self._sockets.count(None), connect_s, refusals)

    async def _connect(self, index: int, turns: asyncio.Semaphore, refusals: Counter[str]) -> SimpleDevice:
        plan, device = self._plan, SimpleDevice(answer_s=GRACE_S)
        where = plan.host, plan.ports[index], plan.tokens[index]
        async with turns:
            try:
                welcome = await device.open(*where)
            except OSError as error:
                refusals[reason_of(error)] += 1
                device.close()
                return SimpleDevice()
        # As the guide asks for; the bare servers name no session and know no such message.
        if device.socket is not None and "session" in welcome:
            device.socket.send(_HELLO % datetime.now(UTC).isoformat().encode())
        return device

    async def run(self, start_s: float) -> Outcome:
        """Run the plan from a time of ``perf_counter`` on."""
        self._start_s = start_s
        end_s = start_s + self._plan.bounds_us[-1][1] / 1e6
        gc.collect()
        gc.freeze()
        gc.disable()
        lag = asyncio.create_task(self._tick(end_s))
        telling = asyncio.create_task(ticking(self._live))
        await (self._open() if self._plan.loop == "open" else self._closed(end_s))
        await lag
        give_up_s = perf_counter() + GRACE_S
        # An event would have to be set or cleared with every message.
        while self._waiting and perf_counter() < give_up_s:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        telling.cancel()
        outcome = self._outcome
        outcome.codes = list(self._codes)
        outcome.seqs = [seq for number in sorted(self._seqs) for seq in self._seqs[number]]
        outcome.ended = dict(self._ended)  # without the connections that are closed now
        for socket in filter(None, self._sockets):
            socket.close()
        return outcome

    def _now_us(self) -> int:
        """Return the time of the run; timers may go off a little early, but then the run has begun."""
        return max(0, int((perf_counter() - self._start_s) * 1e6))

    async def _tick(self, end_s: float) -> None:
        """Note how late the loop is: it sends and reads as late as that."""
        at_s = self._start_s
        while at_s < end_s:
            await asyncio.sleep(at_s - perf_counter())
            now_s = perf_counter()
            self._outcome.lag_us.append(int((now_s - at_s) * 1e6))
            at_s = max(at_s, now_s) + _TICK_S

    def _live(self) -> str:
        """Write in a line how it goes, of a sample of the last second: sorting all would delay sends."""
        outcome, now_us = self._outcome, self._now_us()
        first = bisect_left(outcome.due_us, now_us - 1_000_000)
        count = len(outcome.due_us) - first
        sample = range(first, len(outcome.due_us), max(1, count // _SAMPLED))
        took_us = sorted(outcome.done_us[one] - outcome.due_us[one] for one in sample if outcome.code[one])
        p95_ms = took_us[len(took_us) * 95 // 100] / 1000 if took_us else 0.0
        place = bisect_right([end_us for _, end_us in self._plan.bounds_us[:-1]], now_us)
        left_s = max(0, self._plan.bounds_us[-1][1] - now_us) // 1_000_000
        name = self._plan.steps[place].name
        return f"{name}: {count:,}/s, p95 {p95_ms:.1f} ms, {self._refused:,} errors, {left_s} s left"

    async def _open(self) -> None:
        due = self._schedule()
        sent_all: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def send() -> None:
            left = _BURST
            now_us = self._now_us()
            while due and due[-1][0] <= now_us and left:
                self._send(*due.pop())
                left -= 1
            if due:
                timer.set(self._start_s + due[-1][0] / 1e6)
            else:
                sent_all.set_result(None)

        timer = PreciseTimer(send)
        send()
        await sent_all
        timer.close()

    def _schedule(self) -> list[tuple[int, int]]:
        """Fix when each sync leaves and on which connection, the last first."""
        draw, connections = self._random, len(self._sockets)
        due: list[tuple[int, int]] = []
        for step, (begin_us, end_us) in zip(self._plan.steps, self._plan.bounds_us, strict=True):
            if self._plan.even:
                count = round(step.per_s * step.duration_s)
                times = [begin_us + place * (end_us - begin_us) / count for place in range(count)]
                due += [(int(at_us), place % connections) for place, at_us in enumerate(times)]
                continue
            at_us = float(begin_us)
            while step.per_s and (at_us := at_us + draw.expovariate(step.per_s) * 1e6) < end_us:
                due.append((int(at_us), int(draw.random() * connections)))
        due.reverse()
        return due

    async def _closed(self, end_s: float) -> None:
        await asyncio.sleep(self._start_s - perf_counter())
        self._again = True
        for index in range(len(self._sockets)):
            for _ in range(self._plan.under_way):
                self._resume(index)
        await asyncio.sleep(end_s - perf_counter())
        self._again = False

    def _resume(self, index: int) -> None:
        if self._again and self._sockets[index] is not None:
            self._send(self._now_us(), index)

    def _send(self, due_us: int, index: int) -> None:
        outcome, socket = self._outcome, self._sockets[index]
        text = self._work.sync(index, len(outcome.due_us))
        outcome.device.append(index)
        outcome.due_us.append(due_us)
        outcome.sent_us.append(-1 if socket is None else self._now_us())
        outcome.done_us.append(-1)
        outcome.code.append(0)
        if socket is not None:
            socket.send(text)
            self._waiting += 1

    def _received(self, index: int, text: bytes) -> None:
        now_us = self._now_us()
        try:
            answer = self._work.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._ended["not_understood"] += 1
            return
        if answer.id is not None and answer.id.isdecimal():
            self._answered(index, int(answer.id), answer, now_us)
        elif answer.type == "goodbye":
            self._ended[f"goodbye_{answer.reason}"] += 1
        elif answer.type != "changes":
            self._ended[answer.code or answer.type] += 1

    def _answered(self, index: int, number: int, answer: Answer, now_us: int) -> None:
        outcome = self._outcome
        if number >= len(outcome.code) or outcome.code[number] or outcome.device[number] != index:
            self._ended["answer_to_nothing"] += 1
            return
        code = answer.code
        if answer.type == "synced":
            code = "item_replayed" if answer.replayed else self._work.verdict(index, number, answer.results)
            if code == "synced":
                self._seqs[number] = [result.seq or 0 for result in answer.results]
        self._waiting -= 1
        self._refused += code != "synced"
        outcome.done_us[number] = now_us
        outcome.code[number] = self._codes.setdefault(code, len(self._codes))
        if self._again:
            if code == "synced":
                self._resume(index)
            else:
                after_s = max(_AFTER_REFUSAL_S, (answer.retry_after_ms or 0) / 1000)
                asyncio.get_running_loop().call_later(after_s, self._resume, index)

    def _lost(self, index: int, code: int) -> None:
        self._sockets[index] = None
        self._ended[f"closed_{code}"] += 1
        outcome = self._outcome
        for number, device in enumerate(outcome.device):
            if device == index and not outcome.code[number] and outcome.sent_us[number] >= 0:
                self._waiting -= 1


async def drive(kind: type[Generator], plan: Plan, lines: Lines) -> None:
    """Connect, say so, and run when told to."""
    generator = kind(plan)
    say(await generator.connect())
    if line := await lines.next():
        say(await generator.run(float(line)))
        await lines.next()  # until the parent has read how much CPU this process used


if __name__ == "__main__":
    main(Plan, partial(drive, Generator))
