"""A device on one socket that asks and waits for the answer, for whatever needs few messages."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec

from bench.load.websocket_client import Socket, connect

Message = dict[str, Any]
_CLOSED: Final[Message] = {"type": "error", "code": "closed"}


class SimpleDevice:
    """A device. ``ended`` has the close code once its connection is over.

    Args:
        on_message: Called with every message of the server that answers no question.
        answer_s: How long an answer may take.
    """

    def __init__(
        self, on_message: Callable[[Message], None] = lambda _: None, *, answer_s: float = 30.0
    ) -> None:
        self._on_message = on_message
        self._answer_s = answer_s
        self._numbers = itertools.count(1)
        self._asked: dict[str, asyncio.Future[Message]] = {}
        self._welcomed: asyncio.Future[Message]
        self.socket: Socket | None = None
        self.ended: asyncio.Future[int]

    async def open(self, host: str, port: int, token: str, **options: Any) -> Message:
        """Connect and wait for the welcome, which is returned; ``options`` are those of ``connect``.

        Raises OSError: the server refused the connection, or there is none, or it is silent.
        """
        loop = asyncio.get_running_loop()
        self._welcomed, self.ended = loop.create_future(), loop.create_future()
        self.socket = await connect(host, port, token, self._received, self._lost, **options)
        async with asyncio.timeout(self._answer_s):
            welcome = await self._welcomed
        if welcome is _CLOSED:
            raise ConnectionError(f"closed with {self.ended.result()} in place of a welcome")
        return welcome

    async def ask(self, type: str, **fields: Any) -> Message:  # noqa: A002  # as the contract has it
        """Send a message of a type and wait for its answer: an error of the code ``closed`` without one.

        Raises TimeoutError.
        """
        if self.socket is None or self.ended.done():
            return _CLOSED
        request_id = fields.setdefault("id", str(next(self._numbers)))
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._asked[request_id] = answer
        self.socket.send(msgspec.json.encode({"type": type, **fields}))
        try:
            async with asyncio.timeout(self._answer_s):
                return await answer
        finally:
            del self._asked[request_id]

    async def sync(self, key: str, *items: Message) -> Message:
        """Push items under a key, again and again while the server asks to come back."""
        while True:
            answer = await self.ask("sync", key=key, items=items)
            if not answer.get("retry_after_ms"):
                return answer
            await asyncio.sleep(answer["retry_after_ms"] / 1000)

    def close(self) -> None:
        """Leave."""
        if self.socket is not None:
            self.socket.close()

    def _received(self, text: bytes) -> None:
        message: Message = msgspec.json.decode(text)
        waiting = self._asked.get(message.get("id") or "")
        if message["type"] == "welcome":
            waiting = self._welcomed
        if waiting is not None and not waiting.done():
            waiting.set_result(message)
        else:
            self._on_message(message)

    def _lost(self, code: int) -> None:
        self.ended.set_result(code)
        for waiting in (*self._asked.values(), self._welcomed):
            if not waiting.done():
                waiting.set_result(_CLOSED)


def statuses(answer: Message) -> Counter[str]:
    """Count the statuses of an answer to ``sync``; its error code where it was refused."""
    if answer["type"] != "synced":
        return Counter([answer["code"]])
    return Counter(result["status"] for result in answer["results"])
