"""A connection before it is known whose it is: bounded in time, bytes and number.

aiohttp's protocol waits 75 s for headers, 8 MB of them, and for ever for a reader of its answers. Names of it
that are not public are used here and in ``handlers/frames.py`` alone.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from aiohttp import StreamReader, web, web_protocol
from aiohttp.web_protocol import RequestHandler

from engine.errors import SyncError, retry_soon_ms
from handlers.errors import error_body
from handlers.peer import Networks, address_of, is_trusted

#: Requests that wait on one connection behind the one that is handled; the library keeps 32 heads.
web_protocol.MAX_MSG_QUEUE_SIZE = 4
_REASONS: Final = {408: "Request Timeout", 413: "Content Too Large", 503: "Service Unavailable"}


class DoorLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a connection that has shown no valid token.

    Args:
        head_s: A request's headers have to come within this.
        head_bytes: All headers of one request, and its first line.
        address_connections: Of one address; once a connection has shown a valid token it does not count.
        write_patience_s: Who takes nothing of an answer for this long is cut off.
        trusted: Proxies, whose connections are many people's and are not counted.
    """

    head_s: float
    head_bytes: int
    address_connections: int
    write_patience_s: float
    trusted: Networks


class Doors:
    """Counts connections that have shown no valid token, by address."""

    def __init__(self, limits: DoorLimits) -> None:
        self.limits = limits
        self.refused = 0
        self.late = 0
        self.unread = 0
        self._strangers: dict[str, int] = {}

    @property
    def strangers(self) -> int:
        """How many connections there are without a valid token, those of proxies apart."""
        return sum(self._strangers.values())

    def enter(self, peer: str | None) -> str | None:
        """Count a connection.

        Returns:
            What ``leave`` is due for, or None for what is not counted.

        Raises:
            SyncError: ``overloaded``; the address has too many.
        """
        address = address_of(peer or "")
        if address is None or is_trusted(address, self.limits.trusted):
            return None
        name = str(address)
        count = self._strangers.get(name, 0)
        if count >= self.limits.address_connections:
            self.refused += 1
            raise SyncError(
                "overloaded", "too many connections of this address wait", retry_after_ms=retry_soon_ms()
            )
        self._strangers[name] = count + 1
        return name

    def leave(self, name: str) -> None:
        """Count a connection no more: it is gone, or has shown a valid token."""
        left = self._strangers[name] - 1
        if left:
            self._strangers[name] = left
        else:
            del self._strangers[name]


class EdgeProtocol(RequestHandler):
    """aiohttp's protocol, bounded by ``Doors``."""

    __slots__ = (
        "_body",
        "_doors",
        "_head_bytes",
        "_head_timer",
        "_heads",
        "_lost",
        "_stranger",
        "_unread_timer",
    )

    def __init__(self, manager: web.Server, doors: Doors, **options: Any) -> None:
        super().__init__(manager, **options)
        self._doors = doors
        self._stranger: str | None = None
        self._head_bytes = 0  # of a head that is not whole
        self._head_timer: asyncio.TimerHandle | None = None
        self._heads = 0  # that were whole
        self._body: StreamReader | None = None  # of the last of them
        self._unread_timer: asyncio.TimerHandle | None = None
        self._lost = False

    def prove(self) -> None:
        """Take note of a valid token: from here on bounds go by its device and tenant."""
        if self._stranger is not None:
            self._doors.leave(self._stranger)
            self._stranger = None

    # -- as the library calls it ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count a connection, or refuse it."""
        peer = transport.get_extra_info("peername")
        try:
            self._stranger = self._doors.enter(peer[0] if isinstance(peer, tuple) else None)
        except SyncError as error:
            self._force_close = True
            transport.write(_answer(503, error))  # type: ignore[attr-defined]  # it is a socket's
            transport.close()
            return
        super().connection_made(transport)
        self._head_timer = self._loop.call_later(self._doors.limits.head_s, self._head_is_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count it no more."""
        self._lost = True
        self.prove()
        _cancel(self._head_timer)
        _cancel(self._unread_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came: frames go straight on, heads are counted until they are whole."""
        parser = self._payload_parser
        if parser is not None and self._data_received_cb is None:
            if not (self._force_close or self._close):
                over, _ = parser.feed_data(data)
                if over:
                    self.close()
            return
        # Asked before: the body may end with what came.
        in_body = self._body is not None and not self._body.is_eof()
        super().data_received(data)
        if self._upgraded or self._force_close or self._close:
            self._head_is_whole()  # of an upgrade, too, which the library does not count among its requests
            return
        if self._request_count != self._heads:
            self._heads = self._request_count
            self._body = self._messages[-1][1] if self._messages else None
            self._head_is_whole()
        elif not in_body:
            self._count_head(len(data))

    def pause_writing(self) -> None:
        """Watch whether an answer is read; a socket's outbox does so itself."""
        super().pause_writing()
        if self._payload_parser is None:
            self._watch_reader()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the rest of an answer, and watch whether it is read."""
        transport = self.transport
        finished = await super().finish_response(request, resp, start_time)
        if transport is not None and self._payload_parser is None and transport.get_write_buffer_size():
            self._watch_reader(transport)
        return finished

    # -- heads ----------------------------------------------------------------------------------

    def _count_head(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        limits = self._doors.limits
        if self._head_bytes > limits.head_bytes:
            sentence = f"the headers: the limit is {limits.head_bytes} bytes for all of them"
            self._refuse(413, SyncError("too_large", sentence))
        elif self._head_timer is None and size_bytes:
            self._head_timer = self._loop.call_later(limits.head_s, self._head_is_late)

    def _head_is_whole(self) -> None:
        self._head_bytes = 0
        _cancel(self._head_timer)
        self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        self._doors.late += 1
        if not self._head_bytes:
            self.force_close()
            return
        sentence = f"the headers did not come within {self._doors.limits.head_s:g} s"
        self._refuse(408, SyncError("unavailable", sentence, retry_after_ms=retry_soon_ms()))

    def _refuse(self, status: int, error: SyncError) -> None:
        """Say what is wrong, unless an answer is under way, and end the connection."""
        self._head_is_whole()
        transport = self.transport
        if transport is not None and not self._request_in_progress and not self._messages:
            transport.write(_answer(status, error))
            self._watch_reader()
        self.force_close()

    # -- answers --------------------------------------------------------------------------------

    def _watch_reader(self, transport: asyncio.Transport | None = None) -> None:
        transport = transport or self.transport
        if transport is None or self._lost:
            return
        _cancel(self._unread_timer)
        self._unread_timer = self._loop.call_later(
            self._doors.limits.write_patience_s,
            self._look_at_reader,
            transport,
            transport.get_write_buffer_size(),
        )

    def _look_at_reader(self, transport: asyncio.Transport, before_bytes: int) -> None:
        self._unread_timer = None
        waiting_bytes = transport.get_write_buffer_size()
        if waiting_bytes and waiting_bytes >= before_bytes:
            self._doors.unread += 1
            transport.abort()
        elif waiting_bytes:
            self._watch_reader(transport)


def prove(request: web.Request) -> None:
    """Take note that a request has shown a valid token."""
    if isinstance(request.protocol, EdgeProtocol):
        request.protocol.prove()


class EdgeRunner(web.AppRunner):
    """Runs an application behind ``Doors``."""

    __slots__ = ("_doors",)

    def __init__(self, app: web.Application, doors: Doors, **options: Any) -> None:
        super().__init__(app, **options)
        self._doors = doors

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        doors = self._doors

        class EdgeServer(type(server)):  # type: ignore[misc]  # that of the library, whichever it is
            def __call__(self) -> RequestHandler:
                return EdgeProtocol(self, doors, loop=self._loop, **self._kwargs)

        server.__class__ = EdgeServer
        return server


def _answer(status: int, error: SyncError) -> bytes:
    body = error_body(error, None)
    retry = ""
    if isinstance(wait_ms := error.details.get("retry_after_ms"), int):
        retry = f"Retry-After: {-(-wait_ms // 1000)}\r\n"
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + body


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
