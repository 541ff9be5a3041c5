"""``GET /v1/sync``: from handshake to an open connection. What is refused here is plain HTTP."""

from __future__ import annotations

import logging
import uuid

import msgspec
from aiohttp import WSMsgType, web

from engine.cache.device_health import Device
from engine.cluster.bus import Bus
from engine.commit.admission import Admission
from engine.commit.committer import Committer
from engine.commit.validation import MessageValidator
from engine.feed.feed import Feed
from engine.model.minutes import NO_TENANT
from engine.runtime.partial_messages import PartialMessages
from engine.runtime.ports import StoreError
from engine.wire.close_codes import CloseCode
from engine.wire.codec import JSON, MSGPACK, Codec
from engine.wire.errors import SyncError
from handlers.http.authenticate import TENANT_ID, Authenticator
from handlers.http.client_address import RefusedHandshakeLog
from handlers.http.counters import Traffic
from handlers.http.errors import as_sync_error, error_body
from handlers.http.limits import EdgeLimits
from handlers.http.loop.charges import LoopCharges
from handlers.http.refusals import Refusals
from handlers.http.response_headers import add_headers
from handlers.http.tokens import offered_subprotocols
from handlers.sync.connection import Connection
from handlers.sync.connections import Connections
from handlers.sync.device_socket import CLOSING_S, DeviceSocket
from handlers.sync.frames import Upgrade
from handlers.sync.operations import Operations
from handlers.sync.outbox import Outbox
from handlers.sync.push_counts import PushCounts
from handlers.sync.pushes import Pushes
from handlers.sync.reads import Reads

# aiohttp warns of subprotocols that it does not know, in full; one of them may carry the token.
logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)


class SyncSocket(msgspec.Struct, frozen=True, kw_only=True):
    """The route's handler."""

    authenticator: Authenticator
    admission: Admission
    connections: Connections
    operations: Operations
    validator: MessageValidator
    committer: Committer
    feed: Feed
    counts: PushCounts
    loop: LoopCharges
    bus: Bus
    traffic: Traffic
    partial_messages: PartialMessages
    limits: EdgeLimits
    refused_handshakes: RefusedHandshakeLog
    refusals: Refusals

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection to its end. Raises SyncError if the handshake is refused."""
        clock, limits = self.loop.clock, self.limits
        asked_at_s = clock.monotonic_s()
        try:
            codec = _codec(request)
            self.connections.draining.check_staying()
            session = await self.authenticator.authenticate(request, codec)
            session.session_id = uuid.uuid4().hex
            session.retries_over = False
            device = self.authenticator.charged_device(session, request)
            # Before it is counted: who is over its share comes back no faster than that allows.
            tenant_id = session.tenant.tenant_id
            await self.loop.scheduler.within_share(tenant_id, device)
            # Only after the token was verified: else anybody could use the places up.
            self.admission.check("handshake", tenant_id, device, clock.monotonic_s())
            self.connections.draining.check_staying()  # a drain may have begun since
        except StoreError as error:
            return await self._refuse_on_socket(request, codec, as_sync_error(error))
        except SyncError as error:
            if error.code in ("unavailable", "overloaded"):
                return await self._refuse_on_socket(request, codec, error)
            self.traffic.handshake_refused(error.code)
            self.refused_handshakes.log(request, error, clock.monotonic_s())
            raise
        socket = Upgrade(
            clock,
            protocols=(codec.subprotocol,),
            compress=limits.compress,
            max_msg_size=limits.frame_bytes + 1,  # aiohttp refuses this size, the contract the next
        )
        opened_at_us = clock.now_us()
        try:
            stream = await socket.prepare(request)
        except web.HTTPBadRequest as refusal:
            add_headers(request, {"Sec-WebSocket-Version": "13"})
            raise SyncError("malformed", f"no handshake of a WebSocket: {refusal.text}") from None
        transport = request.transport
        if transport is None:
            return socket
        device_socket = DeviceSocket(
            session,
            socket.frames,
            transport,
            clock=clock,
            traffic=self.traffic,
            minutes=self.counts.minutes,
            partial_messages=self.partial_messages,
            frame_bytes=limits.frame_bytes,
            start=self.connections.start,
        )
        outbox = Outbox(
            transport,
            stream,
            request.protocol,
            device_socket,
            binary=codec.binary,
            deflate_bits=int(socket.compress),
            max_bytes=limits.outbox_bytes,
            patience_s=limits.write_patience_s,
        )
        connection = self._connection(device_socket, device, asked_at_s)
        device_socket.open(outbox, connection, opened_at_us, self._confirmed)
        try:
            device_socket.say(self.operations.welcome(session))
            self.connections.add(device_socket)
            device_socket.read()
            await device_socket.over
        finally:
            connection.end()
            self.connections.remove(device_socket)
            self.refusals.closed(session, device_socket.close_code)
        return socket

    def _confirmed(self, socket: DeviceSocket) -> None:
        """Let a connection replace the device's older one, at all processes."""
        self.connections.confirm(socket)
        self.bus.device_connected(*socket.key, socket.session.session_id, socket.opened_at_us)

    def _connection(self, socket: DeviceSocket, device: Device, asked_at_s: float) -> Connection:
        pushes = Pushes(
            socket,
            device,
            validator=self.validator,
            committer=self.committer,
            counts=self.counts,
            loop=self.loop,
            clock=self.loop.clock,
        )
        reads = Reads(
            socket,
            device,
            operations=self.operations,
            feed=self.feed,
            loop=self.loop,
            submit=pushes.submit_resolution,
        )
        return Connection(
            socket,
            device,
            pushes,
            reads,
            connections=self.connections,
            admission=self.admission,
            loop=self.loop,
            operations=self.operations,
            asked_at_s=asked_at_s,
        )

    async def _refuse_on_socket(
        self, request: web.Request, codec: Codec, error: SyncError
    ) -> web.StreamResponse:
        """Say that the server cannot serve now in a way that a browser's client sees, too."""
        self.traffic.handshake_refused(error.code)
        self.counts.refused(request.get(TENANT_ID, NO_TENANT), error.code)
        socket = web.WebSocketResponse(timeout=CLOSING_S, protocols=(codec.subprotocol,))
        await socket.prepare(request)
        opcode = WSMsgType.BINARY if codec.binary else WSMsgType.TEXT
        await socket.send_frame(codec.encode(error_body(error, None)), opcode)
        await socket.close(code=CloseCode.UNAVAILABLE, message=error.code.encode())
        self.traffic.closed(CloseCode.UNAVAILABLE)
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
