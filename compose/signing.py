"""Tokens that are signed for no command of their own: of the demo tenant, and of simulated devices."""

from __future__ import annotations

from collections.abc import Callable

from engine.model.audit import AuditRow
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from handlers.commands.deployment import DeploymentError
from handlers.commands.token import described
from handlers.http.tokens import Key, issue_token
from handlers.operate.printing import say
from storage.stores.audit import signed_event


def signed_for_device(
    key: Key,
    settings: Settings,
    note: Callable[[AuditRow], None],
    tenant: str,
    device_id: str,
    number: int | None = None,
) -> str:
    """Sign a device's token, and write its event. If the database is away, a line on stderr says so.

    Args:
        key: The key that signs.
        settings: Those of the servers that are to accept it.
        note: Appends an event to the audit log. May raise DeploymentError or StoreError.
        tenant: The name of the tenant.
        device_id: The device.
        number: The number of the tenant; None if it is not known.
    """
    token = issue_token(
        key,
        audience=settings.audience,
        ttl_s=settings.auth.token_ttl_s,
        tenant=tenant,
        number=number,
        device_id=device_id,
    )
    try:
        note(signed_event(described(token)))
    except (DeploymentError, StoreError) as error:
        say(f"signed without an event in the audit log: {error}", err=True)
    return token
