"""A conflict as a person sees it: both sides, the record as it stands now, and where they differ."""

from __future__ import annotations

import json
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from engine.commit.validation import MessageValidator, Session
from engine.model.merge import Fields, decode_fields, encode_fields, same_value
from engine.model.rows import Conflict, Quarantined, Record
from engine.model.tenants import Tenant
from engine.operate.ports import ConflictCase
from engine.plan.conflict import client_side
from engine.plan.held_changes import applied, changes_of, op_of
from engine.plan.work import Resolution
from engine.wire.codec import JSON
from engine.wire.errors import SyncError
from engine.wire.floats import finite, json_decoder
from engine.wire.messages import Choice, Item, Resolve, ServerSide
from engine.wire.timestamps import to_text, to_us

#: Stands where a device's id does; a version that settles a conflict is nobody's, whatever stands there.
OPERATOR = "operator"

_decode_item = json_decoder(Item).decode


class Standing(msgspec.Struct, frozen=True):
    """The record as it stands now; ``data`` is null for a tombstone."""

    version: int
    at: str
    device_id: str | None
    data: msgspec.Raw | None


class Sent(msgspec.Struct, frozen=True):
    """One change that is held; ``data`` is the put's record or the patch, null for a delete."""

    op: str
    base: int | None
    at: str
    data: msgspec.Raw | None


class Wanted(msgspec.Struct, frozen=True):
    """The device's side. ``data`` is the record as it would stand if it won.

    ``held`` are its changes in order, ``changes`` how many it made. ``op`` is what they come to, ``base`` is
    of the first, ``at`` of the last; ``sent`` is the data of a change that is held alone.
    """

    device_id: str
    op: str
    base: int | None
    at: str
    sent: msgspec.Raw | None
    data: msgspec.Raw | None
    changes: int
    held: list[Sent]


class Difference(msgspec.Struct, frozen=True):
    """A top-level field that differs; missing on the side that has no such field."""

    field: str
    server: object | UnsetType
    client: object | UnsetType


class Sides(msgspec.Struct, frozen=True):
    """An item in the quarantine beside the record that it loses to."""

    record: Standing
    client: Wanted
    differences: list[Difference]


class Settled(msgspec.Struct, frozen=True):
    """How a person settled it."""

    choice: str
    by: str
    at: str
    version: int
    seq: int


class Review(msgspec.Struct, frozen=True):
    """One conflict. ``record`` is what stands now, and what the differences are to.

    ``server`` has the fields of the record it met that the change replaced, or would have replaced.

    ``held_in`` is the conflict that the change became part of.
    """

    tenant: str
    conflict_id: str
    domain: str
    record_id: str
    policy: str
    outcome: str
    opened_at: str
    record: Standing | None
    server: ServerSide
    client: Wanted
    differences: list[Difference]
    settled: Settled | None
    held_in: str | None


def review(case: ConflictCase) -> Review:
    """Lay a conflict out for a person."""
    conflict, record = case.conflict, case.record
    standing = None if record is None or record.data is None else decode_fields(record.data)
    held = changes_of(conflict)
    wanted = applied(held, None if record is None else record.patch_base)
    settled = None
    if conflict.settled_at_us is not None:
        assert conflict.settled_by is not None
        assert conflict.settled_version is not None
        assert conflict.settled_seq is not None
        settled = Settled(
            conflict.outcome,
            conflict.settled_by,
            to_text(conflict.settled_at_us),
            conflict.settled_version,
            conflict.settled_seq,
        )
    return Review(
        case.tenant,
        conflict.conflict_id,
        conflict.domain,
        conflict.record_id,
        conflict.policy,
        conflict.outcome,
        to_text(conflict.opened_at_us),
        None if record is None else _standing(record),
        ServerSide(conflict.server_version, _raw(conflict.server_data)),
        Wanted(
            conflict.device_id,
            op_of(held),
            held[0].base,
            to_text(held[-1].at_us),
            _raw(held[0].data) if len(held) == 1 else None,
            None if wanted is None else _raw(encode_fields(wanted)),
            conflict.client_count,
            [Sent(one.op, one.base, to_text(one.at_us), _raw(one.data)) for one in held],
        ),
        differences(standing, wanted),
        settled,
        conflict.held_in,
    )


def sides(row: Quarantined, data: bytes | None, record: Record) -> Sides:
    """Lay an item out beside a record, with ``data`` in place of its own if given."""
    item = _decode_item(row.item)
    sent = None if item.op == "delete" else item.data if data is None else json.loads(data)
    standing = None if record.data is None else decode_fields(record.data)
    patched = None if record.patch_base is None else decode_fields(record.patch_base)
    wanted = client_side(item.op, sent, patched)
    at = to_text(row.at_us if item.at is None else to_us(item.at))
    raw = None if sent is None else _raw(encode_fields(sent))
    return Sides(
        _standing(record),
        Wanted(
            row.device_id,
            item.op,
            item.base,
            at,
            raw,
            None if wanted is None else _raw(encode_fields(wanted)),
            1,
            [Sent(item.op, item.base, at, raw)],
        ),
        differences(standing, wanted),
    )


def _standing(record: Record) -> Standing:
    return Standing(record.version, to_text(record.at_us), record.device_id, _raw(record.data))


def differences(server: Fields | None, client: Fields | None) -> list[Difference]:
    """List the fields that differ, by name; a tombstone has none."""
    left, right = server or {}, client or {}
    return [
        Difference(field, left.get(field, UNSET), right.get(field, UNSET))
        for field in sorted(left.keys() | right.keys())
        if field not in left or field not in right or not same_value(left[field], right[field])
    ]


def as_resolution(
    case: ConflictCase,
    choice: Choice,
    version: int,
    merged: bytes | None,
    intake: MessageValidator,
    now_us: int,
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
    )
    return intake.resolution(resolve, session, case.conflict, now_us)


def _raw(data: bytes | None) -> msgspec.Raw | None:
    return None if data is None else msgspec.Raw(data)


class HeldConflict(msgspec.Struct, frozen=True):
    """An open conflict beside the record as it stands now (None only if it never existed)."""

    conflict: Conflict
    record: Record | None


class HeldConflicts(msgspec.Struct, frozen=True):
    """Some of the queue, in its order; ``more`` says that others follow."""

    found: list[HeldConflict]
    more: bool


class ConflictStore(Protocol):
    """Reads of the conflict queue."""

    async def open_conflicts(
        self, tenant_id: int, device_id: str | None, after: str | None, limit: int, max_bytes: int
    ) -> HeldConflicts:
        """List open conflicts of a device (of all with None), oldest first, after a conflict_id.

        At most ``limit``. The last one is that with which their data pass ``max_bytes``.
        """

    async def conflict(self, tenant_id: int, conflict_id: str) -> Conflict | None:
        """Find one conflict, settled or not."""
