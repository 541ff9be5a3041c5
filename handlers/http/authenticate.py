"""From the headers of a request to a session, for sockets and for HTTP."""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec
from aiohttp import web

from engine.cache.device_health import Device
from engine.cache.devices import DeviceCache
from engine.cache.revocations import Revocations
from engine.cache.tenants import TenantCache
from engine.commit.admission import Admission, Kind
from engine.commit.validation import Session
from engine.runtime.open_requests import OpenRequests, Ticket
from engine.runtime.read_limiter import Reader
from engine.wire.codec import Codec
from engine.wire.errors import SyncError
from handlers.http.draining import Draining
from handlers.http.edge_protocol import charge_request_to, count_for_device, mark_authenticated
from handlers.http.loop.charges import LoopCharges
from handlers.http.refusals import CLAIMS
from handlers.http.tokens import Verifier, device_claims, token_of

#: The request as it is counted while it is open; the application ends the count with the request.
TICKET: Final = web.RequestKey[Ticket]("ticket")
#: The tenant of the request, once its token was verified.
TENANT_ID: Final = web.RequestKey[int]("tenant_id")


class Authenticator(msgspec.Struct, frozen=True):
    """Makes sessions of tokens."""

    verifier: Verifier
    tenants: TenantCache
    devices: DeviceCache
    revocations: Revocations
    loop: LoopCharges

    async def authenticate(self, request: web.Request, codec: Codec) -> Session:
        """Check origin, token and tenant.

        Args:
            request: The request, or the handshake of a socket.
            codec: The encoding of its messages.

        Returns:
            A session without an id, which only a socket needs. The device has been read from the store, if
            the store answers.

        Raises:
            SyncError: ``unauthenticated`` or ``forbidden``.
            StoreError: The tenant has to be read first, and the store is away.
        """
        verifier = self.verifier
        verifier.check_origin(request.headers.get("Origin"))
        claims = verifier.verify(token_of(request.headers))
        request[CLAIMS] = claims
        tenant_name, device_id = device_claims(claims)
        tenant = await self.tenants.find(tenant_name)
        if tenant is None:
            raise SyncError("forbidden", "there is no such tenant: check the tid of the token")
        verifier.check_tenant(claims, tenant)
        request[TENANT_ID] = tenant.tenant_id
        mark_authenticated(request)
        session = Session(
            tenant=tenant,
            device_id=device_id,
            session_id="",
            supervisor=claims.role == "supervisor",
            user=claims.user,
            issued_at_s=claims.issued_at_s,
            codec=codec,
            token_id=claims.token_id,
            expires_at_s=claims.expires_at_s,
        )
        self.check_valid(session)
        await self.devices.load(tenant.tenant_id, device_id)
        return session

    def check_valid(self, session: Session) -> None:
        """Raise SyncError ``unauthenticated`` if a session's token was revoked or has expired."""
        key = session.tenant.tenant_id, session.device_id
        if self.revocations.refuses(key, session.token_id, session.issued_at_s):
            raise SyncError("unauthenticated", "this device or its token was revoked")
        if session.expires_at_s <= self.loop.clock.now_us() / 1_000_000:
            raise SyncError("unauthenticated", "the token has expired")

    def charged_device(self, session: Session, request: web.Request) -> Device:
        """Return the device of a request, which from now on is charged for all of it.

        That includes its head and its answer.
        """
        loop = self.loop
        device = self.devices.get(session.tenant.tenant_id, session.device_id, loop.clock.monotonic_s())
        device.user_id = session.user
        charge_request_to(request, partial(loop.charge, device, f"{request.method} {request.path}"))
        return device


class RequestGate(msgspec.Struct, frozen=True):
    """Lets requests over HTTP in: authenticated, within the rates, and counted while they are open."""

    authenticator: Authenticator
    draining: Draining
    admission: Admission
    open_requests: OpenRequests

    async def authenticate_request(
        self, request: web.Request, codec: Codec, kind: Kind, most_body_bytes: int = 0
    ) -> tuple[Session, Device]:
        """Let a request in; it counts for the rates as a message does.

        Args:
            request: The request.
            codec: The encoding of its message.
            kind: What it is to the admission.
            most_body_bytes: How much of its body is kept in memory; 0 if it is written as it comes.

        Raises:
            SyncError: As ``authenticate``; ``rate_limited``, ``overloaded``, or ``unavailable`` while this
                process drains.
            StoreError: As ``authenticate``.
        """
        session = await self.authenticator.authenticate(request, codec)
        tenant_id, device_id = session.tenant.tenant_id, session.device_id
        device = self.authenticator.charged_device(session, request)
        count_for_device(request, tenant_id, device_id)
        self.draining.check_staying()
        loop = self.authenticator.loop
        now_s = loop.clock.monotonic_s()
        loop.shares.note_active(tenant_id, now_s)
        self.admission.check(kind, tenant_id, device, now_s)
        length_bytes = request.content_length if request.body_exists else 0
        body_bytes = most_body_bytes if length_bytes is None else min(length_bytes, most_body_bytes)
        ticket = Ticket(tenant_id, device_id, body_bytes)
        self.open_requests.enter(ticket)
        request[TICKET] = ticket
        await loop.scheduler.within_share(tenant_id, device)
        return session, device


def reader_of(session: Session) -> Reader:
    """Return whose turn a read of a session takes."""
    return Reader(session.tenant.tenant_id, session.device_id)
