"""Who asks: from the headers of a request to a session, for sockets and HTTP alike."""

from __future__ import annotations

from functools import partial
from typing import Final

from aiohttp import web

from engine.cache.device_health import Device
from engine.commit.validation import Session
from engine.runtime.open_requests import Ticket
from engine.runtime.read_limiter import Reader
from engine.wire.codec import Codec
from engine.wire.errors import SyncError
from handlers.http.context import Core
from handlers.http.draining import Draining
from handlers.http.metering import take_share
from handlers.http.strangers import keep, pay, prove
from handlers.http.tokens import device_claims, token_of


async def admitted(core: Core, request: web.Request, codec: Codec) -> Session:
    """Check origin, token and tenant; give the session.

    The session has no id, which none but a socket's needs. The device is read by then, if the store answers.
    Raises SyncError ``unauthenticated`` or ``forbidden``, StoreError for a tenant that must be read first.
    """
    core.verifier.check_origin(request.headers.get("Origin"))
    claims = core.verifier.verify(token_of(request.headers))
    tenant_name, device_id = device_claims(claims)
    tenant = await core.policies.admit(tenant_name)
    if tenant is None:
        raise SyncError("forbidden", "there is no such tenant")
    core.verifier.check_tenant(claims, tenant)
    prove(request)
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
    check_valid(core, session)
    await core.devices.load(tenant.tenant_id, device_id)
    return session


#: The request as it is counted while it is open; the application lets it go at its end.
TICKET: Final = web.RequestKey[Ticket]("ticket")


async def heard(
    core: Core, draining: Draining, request: web.Request, codec: Codec, most_body_bytes: int = 0
) -> tuple[Session, Device]:
    """Admit one request over HTTP, which counts for the rates as a message does.

    ``most_body_bytes`` of its body are kept in memory, 0 where it is written as it comes. Gives also the
    device. Raises as ``admitted``, and SyncError ``rate_limited`` or, while this process drains,
    ``unavailable``.
    """
    session = await admitted(core, request, codec)
    keep(request, session.tenant.tenant_id, session.device_id)
    device = paying(core, session, request)
    draining.check_staying()
    now_s = core.clock.monotonic_s()
    tenant_id = session.tenant.tenant_id
    core.shares.heard(tenant_id, now_s)
    wait_ms = device.bucket.take(core.limits.messages_per_minute, now_s)
    wait_ms = wait_ms or core.tenant_rates.take(tenant_id, device.bucket, now_s)
    if wait_ms:
        raise SyncError("rate_limited", "too many messages", retry_after_ms=wait_ms)
    length_bytes = request.content_length if request.body_exists else 0
    body_bytes = most_body_bytes if length_bytes is None else min(length_bytes, most_body_bytes)
    ticket = Ticket(tenant_id, session.device_id, body_bytes)
    core.open_requests.enter(ticket)
    request[TICKET] = ticket
    await core.turns.within_share(tenant_id, device)
    return session, device


def paying(core: Core, session: Session, request: web.Request) -> Device:
    """Charge a request's time, its head and its answer included, to its device; give that."""
    tenant_id = session.tenant.tenant_id
    device = core.devices.seen(tenant_id, session.device_id, core.clock.monotonic_s())
    pay(request, partial(take_share, core, device, f"{request.method} {request.path}"))
    return device


def check_valid(core: Core, session: Session) -> None:
    """Raise SyncError where a device's token is refused, or has expired."""
    key = session.tenant.tenant_id, session.device_id
    if core.revocations.refuses(key, session.token_id, session.issued_at_s):
        raise SyncError("unauthenticated", "this device or its token was revoked")
    if session.expires_at_s <= core.clock.now_us() / 1_000_000:
        raise SyncError("unauthenticated", "the token has expired")


def reader_of(session: Session) -> Reader:
    """Say whose turn a read of a session takes."""
    return Reader(session.tenant.tenant_id, session.device_id)
