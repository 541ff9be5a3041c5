"""The audit log: read by commands. Changes append to it in their own transaction (``Transaction.note``)."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final

from engine.model.audit import Actor, AuditRow, EventName
from engine.operate.rows import AuditEntry, SignedToken
from engine.wire.floats import json_decoder
from storage.postgres.blocking import connected
from storage.postgres.pool import Database
from storage.postgres.transactions import AUDIT, LOCAL_SETTINGS, audit_values

_decode: Final = json_decoder().decode
_READ: Final = (
    "SELECT at, event, actor_kind, actor, tenant, tenant_number, target, details::text, times FROM audit_log"
    " WHERE at >= %(since)s AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)"
    " AND (%(actor)s::text IS NULL OR actor = %(actor)s) ORDER BY at DESC, audit_id DESC LIMIT %(most)s"
)

_FORGET: Final = (
    "DELETE FROM audit_log WHERE audit_id IN (SELECT audit_id FROM audit_log"
    " WHERE at < to_timestamp(%(before)s / 1000000.0) ORDER BY at LIMIT %(limit)s) RETURNING 1"
)


@cache
def process_account() -> Actor:
    """Return the system's account that this process runs as, and its host."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:  # an account of a container need not have a name
        name = str(number)
    return Actor("account", f"{name}@{socket.gethostname()}")


def bus_rejection(reason: str) -> AuditRow:
    """Return the event of a message on the bus that this server did not believe. Its sender is unknown."""
    return AuditRow("bus_message_rejected", Actor("server", socket.gethostname()), reason)


def by_account(
    event: EventName,
    target: str,
    tenant: str | None = None,
    tenant_number: int | None = None,
    details: Mapping[str, object] | None = None,
) -> AuditRow:
    """Return an event of a command: its actor is the account of this process."""
    return AuditRow(event, process_account(), target, tenant, tenant_number, details)


def signed_event(token: SignedToken) -> AuditRow:
    """Return the event of a token that was signed."""
    known = {
        "role": token.role,
        "expires_at": token.expires_at,
        "device_id": token.device_id,
        "user": token.user,
    }
    details = {name: value for name, value in known.items() if value is not None}
    return by_account("token_signed", token.token_id, token.tenant, token.tenant_number, details)


def append_now(dsn: str, row: AuditRow) -> None:
    """Append one event outside an event loop. Raises StoreError."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(AUDIT.text, audit_values([row]))


class PostgresAudit:
    """``engine.operate.ports.AuditReads`` and ``engine.operate.audit_trail.AuditStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, rows: list[AuditRow]) -> None:
        """Append events."""
        await self._database.execute(AUDIT, audit_values(rows))

    async def forget(self, before_us: int, limit: int) -> int:
        """Delete events that are older than an instant, at most ``limit``; return how many."""
        values = {"before": before_us, "limit": limit}
        return len(await self._database.execute(_FORGET, values, LOCAL_SETTINGS))

    async def entries(
        self, tenant: str | None, actor: str | None, since: datetime, most: int
    ) -> list[AuditEntry]:
        """Read the latest events since an instant, the earliest first."""
        values = {"tenant": tenant, "actor": actor, "since": since, "most": most}
        rows = await self._database.query(_READ, values)
        return [_entry(*row) for row in reversed(rows)]


def _entry(*columns: Any) -> AuditEntry:
    *before, details, times = columns
    decoded = None if details is None else _decode(details)
    return AuditEntry(*(*before, decoded, times))
