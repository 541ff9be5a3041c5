"""Refused requests and connections as security events of the audit log."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from engine.commit.validation import Session
from engine.model.audit import Actor, AuditRow, EventName
from engine.operate.audit_trail import AuditTrail
from engine.wire.close_codes import CloseCode
from engine.wire.errors import SyncError
from handlers.http.client_address import Networks, client_address
from handlers.http.errors import shown
from handlers.http.tokens import Claims

#: The claims of the request's token, once it was verified.
CLAIMS: Final = web.RequestKey[Claims]("claims")
_EVENTS: Final[dict[str, EventName]] = {
    "unauthenticated": "token_refused",
    "forbidden": "access_forbidden",
    "rate_limited": "rate_limited",
}
#: True for a request whose body did not come in time.
BODY_LATE: Final = web.RequestKey[bool]("body_late")
#: What no device does that keeps to the protocol.
_MISUSE: Final = {
    int(code): code.meaning
    for code in (
        CloseCode.PROTOCOL_ERROR,
        CloseCode.NOT_UTF8,
        CloseCode.TOO_LARGE,
        CloseCode.BAD_FRAMES,
        CloseCode.RATE_IGNORED,
    )
}
_TARGET_CHARS: Final = 100


class Refusals:
    """Notes what was refused for security.

    Args:
        trail: Takes the events.
        trusted: The proxies that are believed when they name a client.
    """

    def __init__(self, trail: AuditTrail, trusted: Networks) -> None:
        self._trail = trail
        self._trusted = trusted

    def request(self, request: web.Request, error: SyncError) -> None:
        """Note a request that was refused for its token, origin, rights, rate or body; leave others alone."""
        event: EventName | None = "body_late" if request.get(BODY_LATE) else _EVENTS.get(error.code)
        if event is None:
            return
        forwarded = request.headers.getall("X-Forwarded-For", ())
        address = client_address(request.remote, forwarded, self._trusted) or ""
        claims = request.get(CLAIMS)
        cause = _storable(error.message)
        details = {"address": address, "message": cause}
        target = _storable(f"{request.method} {request.path}"[:_TARGET_CHARS])
        if claims is None:
            actor, tenant = Actor("address", address), None
        else:
            details["jti"] = _storable(claims.token_id[:_TARGET_CHARS])
            actor, tenant = _actor(claims), claims.tenant
        self._trail.note(AuditRow(event, actor, target, tenant, None, details), cause)

    def closed(self, session: Session, code: int) -> None:
        """Note a socket that this side closes for what its device sent; others are left alone."""
        meaning = _MISUSE.get(code)
        if meaning is None:
            return
        details = {"message": meaning, "jti": _storable(session.token_id[:_TARGET_CHARS])}
        tenant = session.tenant
        row = AuditRow("socket_closed", session.actor, str(code), tenant.name, tenant.tenant_id, details)
        self._trail.note(row, meaning)

    def connection(self, event: EventName, address: str | None, cause: str) -> None:
        """Note a connection that was refused."""
        self._trail.note(AuditRow(event, Actor("address", address or ""), cause), cause)


def note_limited(trail: AuditTrail, session: Session) -> None:
    """Note messages of a socket that are refused for its rate."""
    cause = "too many messages"
    details = {"message": cause, "jti": _storable(session.token_id[:_TARGET_CHARS])}
    tenant = session.tenant
    trail.note(AuditRow("rate_limited", session.actor, "", tenant.name, tenant.tenant_id, details), cause)


def _actor(claims: Claims) -> Actor:
    if claims.user is not None:
        return Actor("user", claims.user)
    return Actor("device", claims.device_id or "")


def _storable(text: str) -> str:
    return shown(text).replace("\0", "\\0")
