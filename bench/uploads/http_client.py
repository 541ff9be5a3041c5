"""An HTTP client that costs next to nothing: one request at a time on a connection that stays.

The client of a benchmark shares its machine with what it measures, so it is written straight on asyncio's
protocols, sends bodies as they lie in memory, and looks at no more of an answer than it is asked to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, cast

import msgspec

Part = bytes | memoryview
#: Takes the body of an answer piece by piece, in place of ``Answer.body``.
Sink = Callable[[bytes], object]

_CHUNKED: Final = b"chunked"
_WITHOUT_BODY: Final = (204, 304)


class Answer(msgspec.Struct):
    """What came back. Names of headers are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes = b""


class HttpConnection(asyncio.Protocol):
    """One connection. ``over`` says why there is nothing more to be had of it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._waiting: asyncio.Future[Answer] | None = None
        self.over: str | None = None
        self._forget()

    def _forget(self) -> None:
        """Forget the last answer."""
        self._rest = b""
        self._answer: Answer | None = None
        self._left: int | None = None
        self._chunked = False
        self._headless = False
        self._body: list[bytes] = []
        self._sink: Sink = self._body.append

    async def request(self, head: bytes, body: Sequence[Part] = (), sink: Sink | None = None) -> Answer:
        """Send a request whose head is written already, and wait for the answer. Raises ConnectionError."""
        if self.over is not None:
            raise ConnectionError(self.over)
        self._forget()
        self._headless = head.startswith(b"HEAD ")
        if sink is not None:
            self._sink = sink
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.writelines([head, *body])
        return await self._waiting

    def close(self) -> None:
        """End the connection."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that waits."""
        self.over = str(exc) if exc is not None else "the server closed the connection"
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(self.over))

    def data_received(self, data: bytes) -> None:
        """Parse an answer as it arrives."""
        if self._answer is None:
            head, found, data = (self._rest + data).partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return
            self._rest = b""
            self._answer = _answer(head)
            headers = self._answer.headers
            self._chunked = headers.get(b"transfer-encoding") == _CHUNKED
            self._left = int(headers.get(b"content-length", b"0"))
            if self._headless or self._answer.status in _WITHOUT_BODY:
                self._chunked, self._left = False, 0
        if self._chunked:
            self._take_chunks(data)
        elif self._left is not None:
            if data:
                self._sink(data)
            self._left -= len(data)
            if self._left <= 0:
                self._done()

    def _take_chunks(self, data: bytes) -> None:
        data = self._rest + data
        while True:
            line, found, after = data.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16) if found else 0
            if not found or len(after) < size + 2:
                self._rest = data
                return
            if not size:
                self._done()
                return
            self._sink(after[:size])
            data = after[size + 2 :]

    def _done(self) -> None:
        assert self._answer is not None
        self._answer.body = b"".join(self._body)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(self._answer)


def _answer(head: bytes) -> Answer:
    first, *lines = head.split(b"\r\n")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return Answer(int(first.split(b" ", 2)[1]), headers)


async def dial(host: str, port: int) -> HttpConnection:
    """Open a connection. Raises OSError."""
    _, line = await asyncio.get_running_loop().create_connection(HttpConnection, host, port)
    return line
