"""The one view of a conflict: for its device on the wire, and for a person at the command line."""

from __future__ import annotations

import json

import msgspec
from msgspec import UNSET, UnsetType

from engine.model.merge import Fields, decode_fields, encode_fields, same_value
from engine.model.rows import Conflict, Quarantined, Record
from engine.operate.rows import ConflictCase
from engine.plan.conflict import client_side
from engine.plan.held_changes import applied, changes_of, op_of
from engine.wire.floats import json_decoder
from engine.wire.messages import ClientSide, Item, OpenConflict, ServerSide
from engine.wire.timestamps import to_text, to_us

_decode_item = json_decoder(Item).decode


class RecordView(msgspec.Struct, frozen=True):
    """The record as it stands now; ``data`` is null if it is deleted."""

    version: int
    at: str
    device_id: str | None
    data: msgspec.Raw | None


class ChangeView(msgspec.Struct, frozen=True):
    """One change of the device; ``data`` is the whole record of a put, or the patch, null for a delete."""

    op: str
    base: int | None
    at: str
    data: msgspec.Raw | None


class ClientView(msgspec.Struct, frozen=True):
    """The side of the device.

    ``data`` is the record as it would be if the device won. ``held`` are the changes in order, ``changes`` is
    how many the device made. ``op`` is what they amount to, ``base`` is that of the first change and ``at``
    that of the last one. ``sent`` is the data of a change that is held alone.
    """

    device_id: str
    op: str
    base: int | None
    at: str
    sent: msgspec.Raw | None
    data: msgspec.Raw | None
    changes: int
    held: list[ChangeView]


class Difference(msgspec.Struct, frozen=True):
    """A top-level field that differs; missing on a side without that field."""

    field: str
    server: object | UnsetType
    client: object | UnsetType


class RetryView(msgspec.Struct, frozen=True):
    """A rejected item beside the record that won against it."""

    record: RecordView
    client: ClientView
    differences: list[Difference]


class SettlementView(msgspec.Struct, frozen=True):
    """How a person settled a conflict."""

    choice: str
    by: str
    at: str
    version: int
    seq: int


class ConflictView(msgspec.Struct, frozen=True):
    """One conflict.

    ``record`` is the record as it stands now, and ``differences`` are those between it and the device's side.
    ``server`` has the fields that the change replaced or would have replaced, of the version that it met.
    ``held_in`` is the conflict that the change became a part of.
    """

    tenant: str
    conflict_id: str
    domain: str
    record_id: str
    policy: str
    outcome: str
    opened_at: str
    record: RecordView | None
    server: ServerSide
    client: ClientView
    differences: list[Difference]
    settled: SettlementView | None
    held_in: str | None


def conflict_view(case: ConflictCase) -> ConflictView:
    """Return a conflict as a person sees it."""
    conflict, record = case.conflict, case.record
    client, wanted = _client_view(conflict, record)
    return ConflictView(
        case.tenant,
        conflict.conflict_id,
        conflict.domain,
        conflict.record_id,
        conflict.policy,
        conflict.outcome,
        to_text(conflict.opened_at_us),
        None if record is None else _record_view(record),
        ServerSide(conflict.server_version, _raw(conflict.server_data)),
        client,
        differences(_fields(record), wanted),
        _settlement(conflict),
        conflict.held_in,
    )


def open_conflict(conflict: Conflict, record: Record | None) -> OpenConflict:
    """Return an open conflict as devices see it."""
    client, _ = _client_view(conflict, record)
    server = ServerSide(0, None) if record is None else ServerSide(record.version, _raw(record.data))
    return OpenConflict(
        conflict.conflict_id,
        conflict.domain,
        conflict.record_id,
        conflict.policy,
        server,
        ClientSide(client.base, client.at, client.device_id, client.data, client.op, client.changes),
        to_text(conflict.opened_at_us),
    )


def retry_view(row: Quarantined, data: bytes | None, record: Record) -> RetryView:
    """Return a rejected item beside a record, with ``data`` in place of its own if given."""
    item = _decode_item(row.item)
    sent = None if item.op == "delete" else item.data if data is None else json.loads(data)
    patched = None if record.patch_base is None else decode_fields(record.patch_base)
    wanted = client_side(item.op, sent, patched)
    at = to_text(row.at_us if item.at is None else to_us(item.at))
    raw = _raw_fields(sent)
    change = ChangeView(item.op, item.base, at, raw)
    client = ClientView(row.device_id, item.op, item.base, at, raw, _raw_fields(wanted), 1, [change])
    return RetryView(_record_view(record), client, differences(_fields(record), wanted))


def differences(server: Fields | None, client: Fields | None) -> list[Difference]:
    """List the fields that differ, by name. A deleted record has no fields."""
    left, right = server or {}, client or {}
    return [
        Difference(field, left.get(field, UNSET), right.get(field, UNSET))
        for field in sorted(left.keys() | right.keys())
        if field not in left or field not in right or not same_value(left[field], right[field])
    ]


def _client_view(conflict: Conflict, record: Record | None) -> tuple[ClientView, Fields | None]:
    """Return the side of the device, and the fields of the record if it won (None: deleted)."""
    held = changes_of(conflict)
    wanted = applied(held, None if record is None else record.patch_base)
    view = ClientView(
        conflict.device_id,
        op_of(held),
        held[0].base,
        to_text(held[-1].at_us),
        _raw(held[0].data) if len(held) == 1 else None,
        _raw_fields(wanted),
        conflict.client_count,
        [ChangeView(one.op, one.base, to_text(one.at_us), _raw(one.data)) for one in held],
    )
    return view, wanted


def _settlement(conflict: Conflict) -> SettlementView | None:
    if conflict.settled_at_us is None:
        return None
    assert conflict.settled_by is not None
    assert conflict.settled_version is not None
    assert conflict.settled_seq is not None
    return SettlementView(
        conflict.outcome,
        conflict.settled_by,
        to_text(conflict.settled_at_us),
        conflict.settled_version,
        conflict.settled_seq,
    )


def _record_view(record: Record) -> RecordView:
    return RecordView(record.version, to_text(record.at_us), record.device_id, _raw(record.data))


def _fields(record: Record | None) -> Fields | None:
    return None if record is None or record.data is None else decode_fields(record.data)


def _raw(data: bytes | None) -> msgspec.Raw | None:
    return None if data is None else msgspec.Raw(data)


def _raw_fields(fields: Fields | None) -> msgspec.Raw | None:
    return None if fields is None else msgspec.Raw(encode_fields(fields))
