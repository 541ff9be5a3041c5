"""``GET /v1/sync``: from handshake to an open connection. What is refused here is plain HTTP."""

from __future__ import annotations

import logging
import uuid
from typing import Final

from aiohttp import WSMsgType, web

from engine.cache.device_health import Device
from engine.commit.overload import overloaded
from engine.commit.validation import Session
from engine.runtime.ports import StoreError
from engine.runtime.rate_limit import TokenBucket, retry_later_ms
from engine.wire.close_codes import CloseCode
from engine.wire.codec import JSON, MSGPACK, Codec
from engine.wire.errors import SyncError
from handlers.http.authenticate import admitted, paying
from handlers.http.context import Core
from handlers.http.errors import as_sync_error, error_body
from handlers.http.response_headers import answer
from handlers.http.tokens import offered_subprotocols
from handlers.sync.connection import Connection
from handlers.sync.connections import Connections
from handlers.sync.device_socket import CLOSING_S, DeviceSocket
from handlers.sync.frames import Upgrade
from handlers.sync.outbox import Outbox

#: Handshakes that are seen to while what was accepted has to wait.
NEWCOMERS_PER_MINUTE: Final = 3000
#: Handshakes of one device, all of which may come at once. Each takes the loop a millisecond or so, and the
#: socket that it replaces stays for up to two seconds.
HANDSHAKES_PER_MINUTE: Final = 300

# aiohttp warns of subprotocols that it does not know, in full; one of them may carry the token.
logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)


class SyncSocket:
    """The route's handler."""

    def __init__(self, core: Core, connections: Connections) -> None:
        self._core = core
        self._connections = connections
        self._newcomers = TokenBucket(0.0, core.clock.monotonic_s())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection to its end. Raises SyncError where the handshake is refused."""
        core = self._core
        asked_at_s = core.clock.monotonic_s()
        try:
            codec = _codec(request)
            self._connections.draining.check_staying()
            session = await admitted(core, request, codec)
            session.session_id = uuid.uuid4().hex
            session.retries_over = False
            device = paying(core, session, request)
            # Before it is counted: who is over its share comes back no faster than that allows.
            await core.turns.within_share(session.tenant.tenant_id, device)
            self._check_device(session, device)
            # Not before the token is known to be one: anybody could use the places up.
            self._check_overload(session.tenant.tenant_id)
            self._connections.draining.check_staying()  # the goodbye may have been said meanwhile
        except StoreError as error:
            return await self._refuse_on_socket(request, codec, as_sync_error(error))
        except SyncError as error:
            if error.code in ("unavailable", "overloaded"):
                return await self._refuse_on_socket(request, codec, error)
            core.traffic.refused_handshakes += 1
            core.refusals.refused(request, error, core.clock.monotonic_s())
            raise
        socket = Upgrade(
            core.clock,
            protocols=(codec.subprotocol,),
            compress=core.limits.compress,
            max_msg_size=core.limits.frame_bytes + 1,  # aiohttp refuses this size, the contract the next
        )
        try:
            stream = await socket.prepare(request)
        except web.HTTPBadRequest as refusal:
            answer(request, {"Sec-WebSocket-Version": "13"})
            raise SyncError("malformed", f"no handshake of a WebSocket: {refusal.text}") from None
        transport = request.transport
        if transport is None:
            return socket
        device_socket = DeviceSocket(
            session,
            socket.frames,
            transport,
            clock=core.clock,
            traffic=core.traffic,
            partial_messages=core.partial_messages,
            frame_bytes=core.limits.frame_bytes,
            start=self._connections.start,
        )
        outbox = Outbox(
            transport,
            stream,
            request.protocol,
            device_socket,
            binary=codec.binary,
            deflate_bits=int(socket.compress),
            max_bytes=core.limits.outbox_bytes,
            patience_s=core.limits.write_patience_s,
        )
        await self._serve(device_socket, outbox, asked_at_s)
        return socket

    async def _serve(self, socket: DeviceSocket, outbox: Outbox, asked_at_s: float) -> None:
        """Serve an open connection to its end."""
        connection = Connection(self._core, self._connections, socket, asked_at_s)
        socket.open(outbox, connection)
        try:
            connection.welcome()
            self._connections.add(socket)
            self._core.bus.opened(*socket.key, socket.session.session_id, socket.opened_at_us)
            socket.read()
            await socket.over
        finally:
            connection.end()
            self._connections.remove(socket)

    def _check_device(self, session: Session, device: Device) -> None:
        """Count a handshake of a device, and bound its tenant's sockets. Raises SyncError."""
        core, tenant_id = self._core, session.tenant.tenant_id
        now_s = core.clock.monotonic_s()
        if device.handshakes is None:
            device.handshakes = TokenBucket(float(HANDSHAKES_PER_MINUTE), now_s)
        if wait_ms := device.handshakes.take(HANDSHAKES_PER_MINUTE, now_s):
            raise SyncError("rate_limited", "too many handshakes", retry_after_ms=wait_ms)
        comes_back = (tenant_id, session.device_id) in self._connections
        if not comes_back and self._connections.count_of(tenant_id) >= core.limits.tenant_connections:
            raise SyncError(
                "rate_limited", "too many connections of this tenant", retry_after_ms=retry_later_ms()
            )

    def _check_overload(self, tenant_id: int) -> None:
        """Let few come back while those who are here have to wait. Raises SyncError ``overloaded``."""
        committer = self._core.committer
        if not committer.over_target(tenant_id):
            return
        per_minute = NEWCOMERS_PER_MINUTE
        if self._newcomers.take(per_minute, self._core.clock.monotonic_s(), most=per_minute / 60):
            raise overloaded(committer.retry_after_ms())

    async def _refuse_on_socket(
        self, request: web.Request, codec: Codec, error: SyncError
    ) -> web.StreamResponse:
        """Say that the server cannot serve now in a way that a browser's client sees, too."""
        socket = web.WebSocketResponse(timeout=CLOSING_S, protocols=(codec.subprotocol,))
        await socket.prepare(request)
        opcode = WSMsgType.BINARY if codec.binary else WSMsgType.TEXT
        await socket.send_frame(codec.encode(error_body(error, None)), opcode)
        await socket.close(code=CloseCode.UNAVAILABLE, message=error.code.encode())
        self._core.traffic.closed(CloseCode.UNAVAILABLE)
        return socket


def _codec(request: web.Request) -> Codec:
    """Choose the encoding: the first offered that is known, JSON when none is offered."""
    offered = [name for name in offered_subprotocols(request.headers) if not name.startswith("bearer.")]
    if not offered:
        return JSON
    for name in offered:
        for codec in (JSON, MSGPACK):
            if name == codec.subprotocol:
                return codec
    raise SyncError(
        "invalid_message",
        f"Sec-WebSocket-Protocol: {JSON.subprotocol} or {MSGPACK.subprotocol} is required",
    )


async def without_context_takeover(_: web.Request, response: web.StreamResponse) -> None:
    """Complete a negotiated permessage-deflate: neither side keeps its window between messages."""
    agreed = response.headers.get("Sec-WebSocket-Extensions")
    if agreed is not None:
        for parameter in ("server_no_context_takeover", "client_no_context_takeover"):
            if parameter not in agreed:
                agreed += f"; {parameter}"
        response.headers["Sec-WebSocket-Extensions"] = agreed
