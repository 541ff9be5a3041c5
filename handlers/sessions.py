"""Who asks: from the headers of a request to a session, for sockets and HTTP alike."""

from __future__ import annotations

import uuid

from aiohttp import web

from engine.codec import Codec
from engine.errors import SyncError
from engine.intake import Session
from handlers.auth import device_claims, token_of
from handlers.core import Core


async def admitted(core: Core, request: web.Request, codec: Codec) -> tuple[Session, int]:
    """Check origin, token and tenant; give the session and the second at which its token expires.

    The device is read by then, if the store answers. Raises SyncError ``unauthenticated`` or ``forbidden``,
    StoreError for a tenant that must be read first.
    """
    core.verifier.check_origin(request.headers.get("Origin"))
    claims = core.verifier.verify(token_of(request.headers))
    tenant_name, device_id = device_claims(claims)
    tenant = await core.policies.admit(tenant_name)
    if tenant is None:
        raise SyncError("forbidden", "there is no such tenant")
    check_not_revoked(core, tenant.tenant_id, device_id)
    await core.devices.load(tenant.tenant_id, device_id)
    session = Session(
        tenant=tenant,
        device_id=device_id,
        session_id=uuid.uuid4().hex,
        supervisor=claims.role == "supervisor",
        user=claims.user,
        codec=codec,
    )
    return session, claims.expires_at_s


def check_not_revoked(core: Core, tenant_id: int, device_id: str) -> None:
    """Raise SyncError where a device was revoked."""
    if (tenant_id, device_id) in core.revocations:
        raise SyncError("unauthenticated", "this device was revoked")
