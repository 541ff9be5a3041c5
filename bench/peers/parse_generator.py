"""The load generator for Parse Server: ``python -m bench.peers.parse_generator`` with a Plan on stdin.

The same devices push the same tasks at the same times, as batches of saves over HTTP. A device has one
connection that stays, and one request under way on it: further ones wait their turn, which counts as latency.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Final, cast

import msgspec

from bench.load import http_client
from bench.load.child_process import main
from bench.load.generator import CONNECTING, GRACE_S, Generator, drive
from bench.load.plan import Plan, Ready
from bench.load.websocket_client import CUT_OFF, reason_of
from bench.load.workload import Answer, Tasks, data_of, key_of, record_id

_KEY: Final = b'{"method":"POST","path":"/parse/classes/SyncKey","body":{"objectId":"%b"}}'
_NEW: Final = (
    b'{"method":"POST","path":"/parse/classes/Task","body":{"objectId":"%b","device":"%b","version":1,'
    b'"data":%b,"ACL":{"%b":{"read":true,"write":true}}}}'
)
_CHANGED: Final = (
    b'{"method":"PUT","path":"/parse/classes/Task/%b","body":{"device":"%b",'
    b'"version":{"__op":"Increment","amount":1},"data":%b}}'
)
_BATCH: Final = b'{"transaction":true,"requests":[%b,%b]}'
_HEAD: Final = (
    b"POST /parse/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"X-Parse-Application-Id: bench\r\nX-Parse-Session-Token: %b\r\nContent-Length: %d\r\n\r\n"
)


class _Object(msgspec.Struct):
    id: str | None = msgspec.field(default=None, name="objectId")
    version: float | None = None


class _Saved(msgspec.Struct):
    success: _Object


_saved = msgspec.json.Decoder(tuple[_Saved, _Saved]).decode


class Saves(Tasks):
    """The work of a run: each sync is a save of a task and of its key, in one transaction."""

    def __init__(self, plan: Plan, unit: Callable[[], float]) -> None:
        super().__init__(plan.prefix, plan.devices, unit)
        self._key_of = partial(key_of, plan.prefix)
        self._signed = [token.encode().partition(b":")[::2] for token in plan.tokens]
        self._under_way: list[deque[int]] = [deque() for _ in plan.devices]

    def sync(self, device: int, number: int) -> bytes:
        """Write the request that saves the next task of a device."""
        record, base = self.choose(device)
        user, session = self._signed[device]
        name, task = self._names[device], record_id(self._devices[device], record).encode()
        data = data_of(record, number)
        save = _CHANGED % (task, name, data) if base else _NEW % (task, name, data, user)
        body = _BATCH % (save, _KEY % self._key_of(number).encode())
        self._under_way[device].append(number)
        return _HEAD % (session, len(body)) + body

    def answered(self, device: int, answer: http_client.Answer) -> tuple[int, Answer]:
        """Read the answer to the oldest sync of a device. Returns its number, and what the product says."""
        number = self._under_way[device].popleft()
        if answer.status != 200:
            return number, Answer("error", code=f"http_{answer.status}")
        task, key = (one.success for one in _saved(answer.body))
        record, base = self.record[number], self.base[number]
        right = key.id == self._key_of(number) and (
            task.version == base + 1 if base else task.id == record_id(self._devices[device], record)
        )
        if not right:
            return number, Answer("error", code="wrong_result")
        self._workers[device].acknowledged(record, base + 1)
        return number, Answer("synced")

    def verdict(self, *_: object) -> str:
        """Return ``synced``: what is not as asked for is no such answer."""
        return "synced"


class _Connection(asyncio.Protocol):
    """One connection to the server."""

    def __init__(
        self, on_answer: Callable[[http_client.Answer], None], on_end: Callable[[int], None]
    ) -> None:
        self._on_answer = on_answer
        self._on_end = on_end
        self._transport: asyncio.Transport
        self._waiting: deque[bytes] = deque()
        self._busy = False
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        """Report the end."""
        self._on_end(CUT_OFF)

    def send(self, text: bytes) -> None:
        """Send a request, after those that were to be sent before it."""
        self._waiting.append(text)
        if not self._busy:
            self._next()

    def close(self) -> None:
        """Close."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Give an answer that is whole to the generator."""
        self._data += data
        answer = http_client.parse(self._data)
        if answer is not None:
            self._data.clear()
            self._busy = False
            if self._waiting:
                self._next()
            self._on_answer(answer)

    def _next(self) -> None:
        self._busy = True
        self._transport.write(self._waiting.popleft())


class ParseGenerator(Generator):
    """One run at Parse Server."""

    _work: Saves

    def _work_of(self, plan: Plan) -> Saves:
        return Saves(plan, self._random.random)

    async def connect(self) -> Ready:
        """Open the connections."""
        began_s, turns = perf_counter(), asyncio.Semaphore(CONNECTING)
        refusals: Counter[str] = Counter()
        await asyncio.gather(*(self._reach(index, turns, refusals) for index in range(len(self._sockets))))
        return Ready(len(self._sockets) - self._sockets.count(None), perf_counter() - began_s, dict(refusals))

    async def _reach(self, index: int, turns: asyncio.Semaphore, refusals: Counter[str]) -> None:
        plan, loop = self._plan, asyncio.get_running_loop()
        made = partial(_Connection, partial(self._saved, index), partial(self._lost, index))
        async with turns:
            try:
                async with asyncio.timeout(GRACE_S):
                    _, self._sockets[index] = await loop.create_connection(made, plan.host, plan.ports[index])
            except OSError as error:
                refusals[reason_of(error)] += 1

    def _saved(self, index: int, answer: http_client.Answer) -> None:
        now_us = self._now_us()
        try:
            number, read = self._work.answered(index, answer)
        except (msgspec.DecodeError, IndexError):
            self._ended["not_understood"] += 1
            return
        self._answered(index, number, read, now_us)


if __name__ == "__main__":
    main(Plan, partial(drive, ParseGenerator))
