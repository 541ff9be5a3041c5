"""The load generator, a process of its own: ``python -m bench.load.generator`` with a Plan on stdin.

Open loop: every send time is fixed before the first message leaves, and latency counts from that time, so
that a server that stalls cannot hide the waiting (no coordinated omission). Arrivals are Poisson, each on
a connection drawn at random.
"""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import sys
import time
from array import array
from collections import Counter, defaultdict
from time import perf_counter
from typing import Final

import msgspec
import uvloop

from bench.load.device import Device, Tally
from bench.load.histogram import histogram
from bench.load.plan import Acks, Mark, Outcome, Plan, Second
from bench.load.precise_timer import Alarm
from bench.load.websocket_client import HandshakeError, connect
from bench.load.workload import Worker

#: How many handshakes are under way at once.
CONNECTING: Final = 1000
#: How many subscriptions are being opened at once: each reads the database.
SUBSCRIBING: Final = 100
#: How long the answers may take that are missing at the end.
GRACE_S: Final = 15.0
_LEAD_S: Final = 0.05
_LOOK_S: Final = 0.05


class Load:
    """One run from the first handshake to the last answer."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._tally = Tally()
        self._devices = [
            Device(index, name, Worker(name, self._random.random), self._tally)
            for index, name in enumerate(plan.devices)
        ]
        self._cpu_s = 0.0

    async def run(self) -> Outcome:
        """Do what the plan says."""
        plan = self._plan
        refusals: Counter[str] = Counter()
        began_s = perf_counter()
        handshakes = asyncio.Semaphore(CONNECTING)
        await asyncio.gather(
            *(self._connect(index, handshakes, refusals) for index in range(len(self._devices)))
        )
        connected = sum(device.socket is not None for device in self._devices)
        outcome = Outcome(
            asked=len(self._devices),
            connected=connected,
            connect_s=perf_counter() - began_s,
            refusals=dict(refusals),
        )
        if connected:
            gc.collect()
            gc.freeze()
            gc.disable()
            match plan.mode:
                case "open":
                    start_s = await self._open()
                case "closed":
                    start_s = await self._closed()
                case "idle":
                    start_s = await self._idle()
            await self._last_answers()
            self._sum_up(outcome, start_s)
        for device in self._devices:
            if device.socket is not None:
                device.socket.close()
        return outcome

    async def _connect(self, index: int, handshakes: asyncio.Semaphore, refusals: Counter[str]) -> None:
        plan, device = self._plan, self._devices[index]
        async with handshakes:
            try:
                device.socket = await connect(
                    plan.host,
                    plan.ports[index] if plan.ports else plan.port,
                    plan.tokens[index],
                    device.received,
                    device.ended,
                    deflate=plan.deflate,
                )
                await device.greeted
                device.introduce()
            except HandshakeError as error:
                refusals[str(error)] += 1
            except OSError as error:  # TimeoutError is one
                refusals[error.strerror or type(error).__name__] += 1

    async def _open(self) -> float:
        plan, draw = self._plan, self._random
        due: list[tuple[float, Device]] = []
        at_s = -plan.warmup_s
        while (at_s := at_s + draw.expovariate(plan.rate_per_s)) < plan.duration_s:
            due.append((at_s, self._devices[int(draw.random() * len(self._devices))]))
        due.reverse()
        start_s = perf_counter() + _LEAD_S + plan.warmup_s
        sent_all = asyncio.get_running_loop().create_future()

        def send() -> None:
            while due and due[-1][0] <= perf_counter() - start_s:
                at_s, device = due.pop()
                device.send(start_s + at_s)
            if due:
                alarm.set(start_s + due[-1][0])
            else:
                sent_all.set_result(None)

        alarm = Alarm(send)
        send()
        await self._measure(start_s)
        await sent_all
        alarm.close()
        return start_s

    async def _closed(self) -> float:
        start_s = perf_counter() + self._plan.warmup_s
        for device in self._devices:
            device.again = True
            device.send(perf_counter())
        await self._measure(start_s)
        for device in self._devices:
            device.again = False
        return start_s

    async def _idle(self) -> float:
        turns = asyncio.Semaphore(SUBSCRIBING)
        await asyncio.gather(*(self._subscribe(device, turns) for device in self._devices))
        start_s = perf_counter()
        await self._measure(start_s)
        return start_s

    async def _subscribe(self, device: Device, turns: asyncio.Semaphore) -> None:
        async with turns:
            device.subscribe()
            await device.greeted

    async def _measure(self, start_s: float) -> None:
        """Wait for the measured phase to begin and to end, and say both."""
        await asyncio.sleep(start_s - perf_counter())
        _say(Mark("begins"))
        self._cpu_s = time.process_time()
        await asyncio.sleep(start_s + self._plan.duration_s - perf_counter())
        self._cpu_s = time.process_time() - self._cpu_s
        _say(Mark("ends"))

    async def _last_answers(self) -> None:
        give_up_s = perf_counter() + GRACE_S
        # An event would have to be looked after with every message.
        while any(device.under_way for device in self._devices) and perf_counter() < give_up_s:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)

    def _sum_up(self, outcome: Outcome, start_s: float) -> None:
        plan, tally = self._plan, self._tally
        end_s = start_s + plan.duration_s
        measured = array("Q")
        seconds: defaultdict[int, list[int]] = defaultdict(list)
        for due_s, latency_us in zip(tally.due_s, tally.latency_us, strict=True):
            if start_s <= due_s < end_s:
                measured.append(latency_us)
                seconds[int(due_s - start_s)].append(latency_us)
        outcome.sent = tally.sent
        outcome.answered = len(measured)
        outcome.completed = sum(start_s <= answered_s < end_s for answered_s in tally.answered_s)
        outcome.new_records = sum(version == 1 for version in tally.ack_version)
        outcome.errors = dict(tally.errors)
        outcome.unanswered = sum(device.under_way for device in self._devices)
        for device in self._devices:
            device.give_up()
        outcome.unsure = tally.unsure
        outcome.began_s = start_s
        outcome.duration_s = plan.duration_s
        outcome.histogram = histogram(measured).encode().decode()
        outcome.lateness = histogram(tally.lateness_us).encode().decode()
        outcome.seconds = [_second(seconds[index]) for index in range(int(plan.duration_s))]
        outcome.cpu_ms = self._cpu_s * 1000
        outcome.acks = Acks(
            tally.ack_device.tolist(),
            tally.ack_number.tolist(),
            tally.ack_record.tolist(),
            tally.ack_version.tolist(),
            tally.ack_seq.tolist(),
            [int(due_s * 1e6) for due_s in tally.due_s],
            [int(answered_s * 1e6) for answered_s in tally.answered_s],
        )


def _second(latencies_us: list[int]) -> Second:
    if not latencies_us:
        return Second(0, 0.0, 0.0)
    latencies_us.sort()
    count = len(latencies_us)
    return Second(count, latencies_us[count // 2] / 1000, latencies_us[count * 99 // 100] / 1000)


def _say(message: Mark | Outcome) -> None:
    # Not sys.stdout: under PYTHONUNBUFFERED it is the bare file, which may write the first part alone.
    with open(1, "wb", closefd=False) as out:
        out.write(msgspec.json.encode(message) + b"\n")


async def _run(plan: Plan) -> Outcome:
    return await Load(plan).run()


def main() -> None:
    """Read the plan, run it, say what came of it."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _say(uvloop.run(_run(plan)))


if __name__ == "__main__":
    main()
