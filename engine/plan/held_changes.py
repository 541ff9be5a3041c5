"""The changes that one conflict holds: those of one device on one record, until a person decides.

Pure. In general two merge patches (RFC 7396) cannot be merged into one: ``{"a":null}``, then
``{"a":{"c":2}}`` leaves ``{"c":2}`` in ``a`` whatever was there, and no single patch does that. So the
changes are kept as a list and applied one after the other. Their order is that of ``at`` as sent; at the same
time, that of arrival. The list is merged only when it would exceed its limits. A merged change has the place
of its last part, so a late change that belongs between the parts is placed before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from engine.model.merge import Fields, decode_fields, encode_fields, same_content
from engine.model.rows import Conflict, HeldChange
from engine.wire.messages import Op

#: The most changes: each new change is compared with every one that is held, and writes the whole list again.
MAX_CHANGES: Final = 128

Changes = tuple[HeldChange, ...]


def changes_of(conflict: Conflict) -> Changes:
    """Return the changes of a conflict. A conflict that no later change joined is its own first change."""
    if conflict.client_changes is not None:
        return conflict.client_changes
    sent_at_us = conflict.client_sent_at_us
    return (
        HeldChange(
            conflict.client_op,
            conflict.client_base,
            conflict.client_at_us,
            conflict.client_at_us if sent_at_us is None else sent_at_us,
            conflict.client_data,
        ),
    )


def size_bytes(conflict: Conflict) -> int:
    """Return the bytes of the device's data in a conflict."""
    if conflict.client_changes is None:
        return len(conflict.client_data or b"")
    return _size_bytes(conflict.client_changes)


def op_of(changes: Changes) -> Op:
    """Return the op of all changes taken as one."""
    first = changes[0].op
    return "put" if first == "delete" and len(changes) > 1 else first


def applied(changes: Changes, server: bytes | None) -> Fields | None:
    """Return the record's data if the changes win; None is a tombstone.

    ``server`` are the record's stored data. They are decoded here, so that each patch is applied in place:
    copying the record for each of 128 patches would take tens of milliseconds.
    """
    fields = None if server is None else decode_fields(server)
    for change in changes:
        data = None if change.data is None else decode_fields(change.data)
        if change.op != "patch":
            fields = data
            continue
        if fields is None:
            fields = {}
        _patch(fields, data or {})
    return fields


def fold(held: Changes, change: HeldChange, limit_bytes: int) -> Changes | None:
    """Add a change at its place.

    A change that equals the one before its place is not added: applied again, it changes nothing. A put or a
    delete drops the changes before it.

    Returns:
        The changes, ``held`` itself if nothing was added, None if they would exceed the limits.
    """
    place = len(held)
    while place and held[place - 1].sent_at_us > change.sent_at_us:
        place -= 1
    if place and _same(held[place - 1], change):
        return held
    changes = _since_last_whole((*held[:place], change, *held[place:]))
    if _fits(changes, limit_bytes):
        return changes
    changes = compacted(changes)
    return changes if _fits(changes, limit_bytes) else None


def compacted(changes: Changes) -> Changes:
    """Merge two changes in a row if the merged change does the same to every record as the two.

    A put or a delete can only be the first of ``changes``.
    """
    merged: list[_Merged] = []
    for change in changes:
        fields = None if change.data is None else decode_fields(change.data)
        merged.append(_Merged(change.op, fields, change, change))
        while len(merged) > 1 and (both := _as_one(*merged[-2:])) is not None:
            merged[-2:] = [both]
    return tuple([one.change() for one in merged])


def compose(first: Fields, second: Fields) -> bool:
    """Make the first merge patch do what both patches do.

    For each field: if only one patch names it, its value is taken. If both do, a value of the second that is
    no object replaces whatever the first left, so it is taken. An object of the second is applied to what the
    first left. If that is an object in the first, the two are composed in the same way. If the first removes
    the field or sets it to another value, the outcome is a new object without any member that was there
    before. An object in a patch always keeps such members, so no single patch does that.

    Returns:
        False if no single patch does what both do. Then nothing was changed.
    """
    if not _composes(first, second):
        return False
    _lay_over(first, second)
    return True


def _composes(first: Fields, second: Fields) -> bool:
    for name, value in second.items():
        if type(value) is dict and name in first:
            before = first[name]
            if type(before) is not dict or not _composes(before, value):
                return False
    return True


def _lay_over(first: Fields, second: Fields) -> None:
    for name, value in second.items():
        before = first.get(name)
        if type(value) is dict and type(before) is dict:
            _lay_over(before, value)
        else:
            first[name] = value


def _patch(target: Fields, patch: Fields) -> None:
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif type(value) is dict:
            before = target.get(name)
            if type(before) is not dict:
                before = target[name] = {}
            _patch(before, value)
        else:
            target[name] = value


def _since_last_whole(changes: Changes) -> Changes:
    for index in range(len(changes) - 1, 0, -1):
        if changes[index].op != "patch":
            return changes[index:]
    return changes


def _fits(changes: Changes, limit_bytes: int) -> bool:
    return len(changes) <= MAX_CHANGES and _size_bytes(changes) <= limit_bytes


def _size_bytes(changes: Sequence[HeldChange]) -> int:
    return sum([len(change.data or b"") for change in changes])


def _same(left: HeldChange, right: HeldChange) -> bool:
    if (left.sent_at_us, left.op, left.base) != (right.sent_at_us, right.op, right.base):
        return False
    if left.data is None or right.data is None:
        return left.data is right.data
    return same_content(left.data, right.data)


class _Merged(NamedTuple):
    """One change in place of all those from ``first`` to ``last``."""

    op: Op
    fields: Fields | None
    first: HeldChange
    last: HeldChange

    def change(self) -> HeldChange:
        if self.first is self.last:
            return self.first
        assert self.fields is not None
        data = encode_fields(self.fields)
        return msgspec.structs.replace(self.last, op=self.op, base=self.first.base, data=data)


def _as_one(below: _Merged, above: _Merged) -> _Merged | None:
    """Merge a patch into the change before it, None if no single change does the same."""
    assert above.fields is not None
    if below.op == "patch":
        assert below.fields is not None
        if not compose(below.fields, above.fields):
            return None
        return below._replace(last=above.last)
    fields = {} if below.fields is None else below.fields
    _patch(fields, above.fields)
    return _Merged("put", fields, below.first, above.last)
