"""The protocol of a connection: unauthenticated ones are bounded in time, bytes and number.

aiohttp's protocol waits 75 s for headers, accepts 8 MB of them, and waits for ever for a client that does not
read. Only this file, ``handlers/http/malformed.py`` and ``handlers/sync/frames.py`` use names of aiohttp that
are not public.

The parser keeps a header twice, as bytes and as text. The library keeps the head of the last request of a
connection that stays open. Therefore reads are small until a request is admitted
(``handlers/http/read_buffers.py``), waiting bytes are counted after each read, and a connection with a large
head is closed with its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import StreamReader, web, web_protocol
from aiohttp.http import WebSocketReader

from engine.runtime.loop_scheduler import Slot
from engine.runtime.metered import metered
from engine.runtime.open_requests import Ticket
from engine.runtime.rate_limit import retry_soon_ms
from engine.wire.errors import SyncError
from handlers.http.errors import early_answer
from handlers.http.loop.metering import Bill, Payer
from handlers.http.malformed import TypedRefusals
from handlers.http.read_buffers import BoundedReads, default_read_ahead, discard, limit_read_ahead
from handlers.http.unauthenticated import SMALL_HEAD_BYTES, UnauthenticatedConnections, head_bytes

#: Requests that may wait on one connection behind the present one. The library would keep 32 heads.
web_protocol.MAX_MSG_QUEUE_SIZE = 4


class EdgeProtocol(TypedRefusals):
    """aiohttp's protocol, bounded by ``UnauthenticatedConnections``."""

    __slots__ = (
        "_address",
        "_began",
        "_behind_bytes",
        "_bill",
        "_body",
        "_clock_s",
        "_head_bytes",
        "_head_timer",
        "_heads",
        "_kept",
        "_large",
        "_last",
        "_lost",
        "_made_s",
        "_next",
        "_reads",
        "_rest",
        "_unauthenticated",
        "_unread_timer",
        "_waiting_bytes",
    )

    def __init__(
        self, manager: web.Server, unauthenticated: UnauthenticatedConnections, **options: Any
    ) -> None:
        self._clock_s = unauthenticated.clock_s
        began_s = unauthenticated.clock_s()
        super().__init__(manager, **options)
        self._unauthenticated = unauthenticated
        self._bill = Bill(unauthenticated.scheduler, unauthenticated.clock_s)
        self._address: str | None = None  # of the client, until it has shown a valid token
        self._began = False  # whether the library was told of the connection
        self._next: Slot | None = None  # for a turn of the loop
        self._rest = b""  # bytes that came before that turn
        self._head_bytes = 0  # of an incomplete head
        self._head_timer: asyncio.TimerHandle | None = None
        self._heads = 0  # complete ones so far
        self._body: StreamReader | None = None  # of the last complete head
        self._unread_timer: asyncio.TimerHandle | None = None
        self._lost = False
        self._reads: BoundedReads | None = None
        self._behind_bytes = 0  # that wait behind the largest number of requests
        self._waiting_bytes = 0  # as they are counted in ``UnauthenticatedConnections``
        self._large = False  # whether a complete head may have been larger than SMALL_HEAD_BYTES
        self._kept: Ticket | None = None
        self._last = False  # whether the connection ends with the next answer
        self._made_s = unauthenticated.clock_s() - began_s

    def mark_authenticated(self) -> None:
        """Note a valid token: from now on the bounds of its device and its tenant apply."""
        if self._address is not None:
            waiting_bytes = self._waiting_bytes
            self._wait(0)
            self._unauthenticated.leave(self._address)
            self._address = None
            self._bill.unauthenticated = False
            self._wait(waiting_bytes)

    def count_for_device(self, ticket: Ticket) -> None:
        """Note that a device's request was admitted.

        The connection counts for its device. It ends with the answer if the device has too many connections.
        """
        device_connections = self._unauthenticated.device_connections
        if device_connections is None or self._kept == ticket:
            return
        self._stop_counting()
        try:
            device_connections.enter(ticket)
        except SyncError:
            self._last = True
        else:
            self._kept = ticket

    def charge_request_to(self, payer: Payer) -> None:
        """Charge a device for the present request, with its head and its answer."""
        self._bill.charge_to(payer)

    def read_on(self) -> None:
        """Read the rest of a body at full speed."""
        if self._reads is not None:
            self._reads.grow()

    def _stop_counting(self) -> None:
        if self._kept is not None and self._unauthenticated.device_connections is not None:
            self._unauthenticated.device_connections.leave(self._kept)
            self._kept = None

    # -- as the library calls it ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count a connection, or refuse it."""
        peer = transport.get_extra_info("peername")
        try:
            self._address = self._unauthenticated.enter(peer[0] if isinstance(peer, tuple) else None)
        except SyncError as error:
            self._force_close = True
            transport.write(early_answer(503, error))  # type: ignore[attr-defined]  # it is a socket's
            transport.close()
            return
        self._bill.begin(self._address)
        self.transport = transport  # type: ignore[assignment]  # the same
        self._reads = BoundedReads(self, self._unauthenticated.buffers)
        transport.set_protocol(self._reads)
        self._head_timer = self._loop.call_later(self._unauthenticated.limits.head_s, self._head_is_late)
        if not self._waits():
            self._begin()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop counting it."""
        self._lost = True
        self._forget()
        self._bill.settle()
        self.mark_authenticated()
        self._stop_counting()
        _cancel(self._head_timer)
        _cancel(self._unread_timer)
        if self._began:
            super().connection_lost(exc)
        else:
            self.transport = None

    def data_received(self, data: bytes) -> None:
        """Pass frames on; count the bytes of heads until they are complete."""
        parser = self._payload_parser
        if parser is not None and self._data_received_cb is None:
            if not (self._force_close or self._close):
                over, _ = parser.feed_data(data)
                if over:
                    self.close()
            return
        if data and (self._next is not None or self._waits()):
            self._rest += data
            self._pause_transport_reading()
            self._bound()
            return
        self._take_in(data)

    def _take_in(self, data: bytes) -> None:
        began_s = self._clock_s()
        in_body = self._body is not None and not self._body.is_eof()  # it may end with this data
        super().data_received(data)
        if self._upgraded or self._force_close or self._close:
            self._head_is_complete()  # also of an upgrade, which the library does not count as a request
        elif self._request_count != self._heads:
            self._heads = self._request_count
            self._body = self._messages[-1][1] if self._messages else None
            if self._body is not None and not self._body.is_eof():
                limit_read_ahead(self._body)
            self._large = self._large or self._head_bytes + len(data) > SMALL_HEAD_BYTES
            self._head_is_complete()
            if self._reads is not None:
                self._reads.shrink()
        elif not in_body:
            self._count_head(len(data))
        elif self._reads is not None and self._body is not None and self._body.is_eof():
            self._reads.shrink()
        full = len(self._messages) >= self._max_msg_queue_size
        self._behind_bytes = self._behind_bytes + len(data) if full else 0
        self._bound()
        self._bill.worked(self._clock_s() - began_s)
        if self._head_bytes:  # the device of an incomplete head is not known
            self._bill.settle()

    def set_parser(self, parser: WebSocketReader, data_received_cb: Callable[[], None] | None = None) -> None:
        """Read an open WebSocket with the loop's own buffers."""
        super().set_parser(parser, data_received_cb)
        transport = self.transport
        if transport is None:
            return
        if is_reading := transport.is_reading():
            transport.pause_reading()  # the loop asks for the protocol when reading begins
        transport.set_protocol(self)
        if is_reading:
            transport.resume_reading()

    def pause_writing(self) -> None:
        """Watch whether an answer is read; a socket's outbox does so itself."""
        super().pause_writing()
        if self._payload_parser is None:
            self._watch_reader()

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """Handle a request; its time is charged to its device, or to the address that showed no token."""
        handling = super()._handle_request(request, start_time, request_handler)
        try:
            return await metered(handling, self._clock_s, self._bill.worked)
        finally:
            self._bill.over()

    def on_malformed(self, error: SyncError) -> None:
        """Count bytes that are no request."""
        self._unauthenticated.refuse_head(self._address, error)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write the rest of an answer, and watch whether it is read."""
        transport = self.transport
        if self._last or (self._large and head_bytes(request) > SMALL_HEAD_BYTES):
            resp.force_close()
        self._large = False
        if not request.content.is_eof():
            discard(request.content)
            self.read_on()
        finished = await super().finish_response(request, resp, start_time)
        if transport is not None and self._payload_parser is None and transport.get_write_buffer_size():
            self._watch_reader(transport)
        return finished

    # -- waiting ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        assert self.transport is not None
        began_s = self._clock_s()
        self._began = True
        super().connection_made(self.transport)
        self._bill.worked(self._clock_s() - began_s + self._made_s)

    def _waits(self) -> bool:
        """Return whether the connection has to wait for a turn; if so, request one."""
        waits = self._bill.waits()
        if waits and self._address is not None:
            self._next = self._unauthenticated.scheduler.take(self._address, self._go_on)
        return waits

    def _go_on(self) -> None:
        """Handle the bytes that waited for a turn."""
        self._next = None
        if not self._began:
            self._begin()
        data, self._rest = self._rest, b""
        if data:
            self._take_in(data)
            if not self._reading_paused and not self._buffer_paused:
                self._resume_transport_reading()

    def _resume_transport_reading(self) -> None:
        if self._next is None:
            super()._resume_transport_reading()

    # -- heads ----------------------------------------------------------------------------------

    def _count_head(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        limits = self._unauthenticated.limits
        if self._head_bytes > limits.head_bytes:
            sentence = f"the headers: the limit is {limits.head_bytes} bytes for all of them"
            error = SyncError("too_large", sentence)
            self._unauthenticated.refuse_head(self._address, error)
            self._refuse(413, error)
        elif self._head_timer is None and size_bytes:
            self._head_timer = self._loop.call_later(limits.head_s, self._head_is_late)

    def _head_is_complete(self) -> None:
        self._head_bytes = 0
        _cancel(self._head_timer)
        self._head_timer = None

    def _bound(self) -> None:
        """Count waiting bytes. Past the bounds refuse heads that are larger than ``SMALL_HEAD_BYTES``."""
        before_bytes = self._waiting_bytes
        waiting_bytes = self._head_bytes + self._behind_bytes + len(self._rest)
        if waiting_bytes == before_bytes:
            return
        fits = self._wait(waiting_bytes)
        if not fits and waiting_bytes > max(before_bytes, SMALL_HEAD_BYTES):
            sentence = "too many bytes of incomplete headers: send smaller ones, and without pauses"
            error = SyncError("overloaded", sentence, retry_after_ms=retry_soon_ms())
            self._unauthenticated.refuse_head(self._address, error)
            self._refuse(503, error)

    def _wait(self, waiting_bytes: int) -> bool:
        more_bytes, self._waiting_bytes = waiting_bytes - self._waiting_bytes, waiting_bytes
        return not more_bytes or self._unauthenticated.wait(self._address, more_bytes)

    def _forget(self) -> None:
        """Free the bytes at once, and let go of ``_reads``: a full collection may be hours away."""
        self._wait(0)
        self._messages.clear()
        self._body = self._reads = None
        self._rest = b""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        self._unauthenticated.late += 1
        if not self._head_bytes:
            self.force_close()
            return
        self._unauthenticated.note_late_head(self._address)
        sentence = f"the headers did not come within {self._unauthenticated.limits.head_s:g} s"
        self._refuse(408, SyncError("unavailable", sentence, retry_after_ms=retry_soon_ms()))

    def _refuse(self, status: int, error: SyncError) -> None:
        """End the connection, with an answer unless another one is being written."""
        self._head_is_complete()
        transport = self.transport
        if transport is not None and not self._request_in_progress and not self._messages:
            transport.write(early_answer(status, error))
            self._watch_reader()
        self.force_close()
        self._forget()
        self._parser = None

    # -- answers --------------------------------------------------------------------------------

    def _watch_reader(self, transport: asyncio.Transport | None = None) -> None:
        transport = transport or self.transport
        if transport is None or self._lost:
            return
        _cancel(self._unread_timer)
        self._unread_timer = self._loop.call_later(
            self._unauthenticated.limits.write_patience_s,
            self._look_at_reader,
            transport,
            transport.get_write_buffer_size(),
        )

    def _look_at_reader(self, transport: asyncio.Transport, before_bytes: int) -> None:
        self._unread_timer = None
        waiting_bytes = transport.get_write_buffer_size()
        if waiting_bytes and waiting_bytes >= before_bytes:
            self._unauthenticated.unread += 1
            transport.abort()
        elif waiting_bytes:
            self._watch_reader(transport)


def mark_authenticated(request: web.Request) -> None:
    """Note that a request has shown a valid token."""
    if isinstance(request.protocol, EdgeProtocol):
        request.protocol.mark_authenticated()


def charge_request_to(request: web.Request, payer: Payer) -> None:
    """Charge a device for the loop time of a request."""
    if isinstance(request.protocol, EdgeProtocol):
        request.protocol.charge_request_to(payer)


def count_for_device(request: web.Request, tenant_id: int, device_id: str) -> None:
    """Count the connection of a request for its device."""
    if isinstance(request.protocol, EdgeProtocol):
        request.protocol.count_for_device(Ticket(tenant_id, device_id, 0))
        if not request.content.is_eof():
            default_read_ahead(request.content)
            request.protocol.read_on()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
