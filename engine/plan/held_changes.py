"""The changes that one conflict holds: one device's, of one record, until a person decides.

Pure. Two merge patches (RFC 7396) are not one merge patch in general: ``{"a":null}``, then ``{"a":{"c":2}}``
leaves ``{"c":2}`` in ``a`` whatever stood there, and no single patch says so. So the changes are kept as a
list in the order of their ``at`` as sent, ties in the order of arrival, and are applied one after the other.
The list is merged only where it would pass its limits: a merged change has the place of its last part, so
that one that comes late and belongs between the parts goes below them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from engine.model.merge import Fields, decode_fields, encode_fields, same_content
from engine.model.rows import Conflict, HeldChange
from engine.wire.messages import Op

#: Each change that comes is compared with every one that is held, and writes the list anew.
MAX_CHANGES: Final = 128

Changes = tuple[HeldChange, ...]


def changes_of(conflict: Conflict) -> Changes:
    """Return what a conflict holds; one that was opened and nothing more is its own first change."""
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
    """Return how many bytes of data a conflict holds of its device."""
    if conflict.client_changes is None:
        return len(conflict.client_data or b"")
    return _size_bytes(conflict.client_changes)


def op_of(changes: Changes) -> Op:
    """Return the op that one change in place of all of them would have."""
    first = changes[0].op
    return "put" if first == "delete" and len(changes) > 1 else first


def applied(changes: Changes, server: bytes | None) -> Fields | None:
    """Return the record as it would stand if the changes won; None is a tombstone.

    ``server`` is the record's data as stored. Everything is decoded here, so that each patch is applied in
    place: a copy of the record for each of 128 patches would take tens of milliseconds.
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
    """Return what is held once ``change`` is there too, None where that would pass the limits.

    A change that is the very same as the one before its place adds nothing: it does nothing to what that
    one left. A put or a delete drops what stands before it.
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
    """Merge neighbours where the merged change does to every record what the two do, one after the other.

    ``changes`` have a put or a delete only in front.
    """
    merged: list[_Merged] = []
    for change in changes:
        fields = None if change.data is None else decode_fields(change.data)
        merged.append(_Merged(change.op, fields, change, change))
        while len(merged) > 1 and (both := _as_one(*merged[-2:])) is not None:
            merged[-2:] = [both]
    return tuple([one.change() for one in merged])


def compose(first: Fields, second: Fields) -> bool:
    """Make the first merge patch do what both do; False, and nothing is changed, if no patch does that.

    Field by field: where one patch alone names a field, its value stands. Where both do, a value of the
    second that is no object replaces whatever the first left, so it stands. An object of the second is
    applied to what the first left: if that is an object in the first, the two compose or fail as patches
    do. If the first removes the field or gives it another value, the outcome is a new object without
    any member that stood there before, and an object in a patch always keeps such members: there is none.
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
    """One change for all those from ``first`` to ``last``."""

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
    """Merge a patch into what stands below it, None where that cannot be exact."""
    assert above.fields is not None
    if below.op == "patch":
        assert below.fields is not None
        if not compose(below.fields, above.fields):
            return None
        return below._replace(last=above.last)
    fields = {} if below.fields is None else below.fields
    _patch(fields, above.fields)
    return _Merged("put", fields, below.first, above.last)
