"""Conflicts as operators settle them, and the reads of the conflict queue."""

from __future__ import annotations

import json
from typing import Protocol

import msgspec

from engine.commit.validation import MessageValidator, Session
from engine.model.audit import Actor
from engine.model.rows import Conflict, Record
from engine.model.tenants import Tenant
from engine.operate.rows import ConflictCase
from engine.plan.work import Resolution
from engine.wire.codec import JSON
from engine.wire.errors import SyncError
from engine.wire.floats import finite
from engine.wire.messages import Choice, Resolve

#: Stands in place of a device's id. For every device, a version that settles a conflict is another device's.
OPERATOR = "operator"


def as_resolution(
    case: ConflictCase,
    choice: Choice,
    version: int,
    merged: bytes | None,
    validator: MessageValidator,
    now_us: int,
    account: Actor,
    changes: int | None = None,
) -> Resolution:
    """Make the resolution that a supervisor's device would send. Raises SyncError."""
    message: dict[str, object] = {
        "type": "resolve",
        "id": "1",
        "conflict_id": case.conflict.conflict_id,
        "choice": choice,
        "version": version,
        "changes": changes,
    }
    if merged is not None:
        JSON.check_depth(merged)
        try:
            message["data"] = json.loads(merged, parse_float=finite)
        except ValueError as error:
            raise SyncError("invalid_message", f"data: not JSON: {error}") from None
    resolve = JSON.decode(json.dumps(message).encode())
    assert isinstance(resolve, Resolve)
    session = Session(
        tenant=Tenant(case.conflict.tenant_id, case.tenant),
        device_id=OPERATOR,
        session_id="",
        supervisor=True,
        account=account,
    )
    return validator.resolution(resolve, session, case.conflict, now_us)


class ConflictWithRecord(msgspec.Struct, frozen=True):
    """An open conflict beside the record as it stands now (None only if it never existed)."""

    conflict: Conflict
    record: Record | None


class ConflictPage(msgspec.Struct, frozen=True):
    """Some of the queue, in its order; ``more`` says that others follow."""

    found: list[ConflictWithRecord]
    more: bool


class ConflictStore(Protocol):
    """Reads of the conflict queue."""

    async def open_conflicts(
        self, tenant_id: int, device_id: str | None, after: str | None, limit: int, max_bytes: int
    ) -> ConflictPage:
        """List open conflicts of a device (of all with None), oldest first, after a conflict_id.

        At most ``limit``. The last one is that with which their data pass ``max_bytes``.
        """

    async def conflict(self, tenant_id: int, conflict_id: str) -> Conflict | None:
        """Find one conflict, settled or not."""
