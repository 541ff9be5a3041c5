"""What both sides of a record are: merge patches, equality of contents, versions by field.

No history is kept. A record of a domain that is merged by field carries, per top-level field, the
version and time of its last change, and which device made it. Of a field without one nothing is known up to
version ``since``: on a base before that it counts as changed by the server.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from engine.wire.floats import json_decoder

#: Entries of removed fields that are kept apart; older ones are folded into ``since``.
MAX_REMOVED_FIELDS: Final = 32
#: Characters of their names together. A name may be as long as a record: 32 of them would be read and written
#: with each change.
MAX_REMOVED_CHARS: Final = 4096
#: Versions above this are looked at for long names of removed fields.
_LARGE_BYTES: Final = 1 << 16

Fields = dict[str, Any]

_encode = msgspec.json.encode
_decode_any = json_decoder(dict[str, Any]).decode


class Sent(NamedTuple):
    """Which device made a change, and its ``at`` as the device sent it."""

    device_id: str
    at_us: int


class FieldVersions(msgspec.Struct, omit_defaults=True):
    """Version and time of each field's last change, as stored beside the record.

    ``writers`` are, by device, the fields that it changed last, with their ``at`` as sent less the corrected
    one: 0 where its clock is right. ``since_sent`` is who made the version ``since``, if that is known.
    """

    since: int
    since_at_us: int
    changed: dict[str, tuple[int, int]] = {}
    writers: dict[str, dict[str, int]] = {}
    since_sent: Sent | None = None

    def changed_after(self, field: str, base: int) -> bool:
        """Whether the server changed the field after version ``base``."""
        entry = self.changed.get(field)
        return base < (self.since if entry is None else entry[0])

    def changed_at_us(self, field: str) -> int:
        """When the field was last changed on the server."""
        entry = self.changed.get(field)
        return self.since_at_us if entry is None else entry[1]

    def own_sent_us(self, field: str, device_id: str) -> int | None:
        """Return when a device itself sent the field's last change, None where another device made it."""
        entry = self.changed.get(field)
        ahead_us = self.writers.get(device_id, {}).get(field)
        return None if entry is None or ahead_us is None else entry[1] + ahead_us

    def own_since_sent_us(self, field: str, device_id: str) -> int | None:
        """Return the same for a field of which only the record's last change is known."""
        if field in self.changed or self.since_sent is None or self.since_sent.device_id != device_id:
            return None
        return self.since_sent.at_us


_decode_versions = msgspec.json.Decoder(FieldVersions).decode


def decode_fields(data: bytes) -> Fields:
    """Read stored record data."""
    fields: Fields = _decode_any(data)
    return fields


def encode_fields(fields: Fields) -> bytes:
    """Write record data as compact UTF-8 JSON."""
    return _encode(fields)


def same_content(left: bytes, right: bytes) -> bool:
    """Whether two stored contents are equal, whatever the order of members; 1, 1.0 and true differ.

    Both were written by ``encode_fields``, so equal contents have equal lengths.
    """
    if left == right:
        return True
    if len(left) != len(right):
        return False
    return same_value(decode_fields(left), decode_fields(right))


def same_value(left: object, right: object) -> bool:
    """Whether two decoded values are equal, without taking 1, 1.0 and true for one another.

    Values that differ are told apart without encoding them, and equal ones are sorted only where their
    members stand in another order: sorting costs ten times as much as encoding.
    """
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if left != right:
        return False
    if isinstance(left, str | int | bool):
        return True
    left_json, right_json = _encode(left), _encode(right)
    if left_json == right_json:
        return True
    return len(left_json) == len(right_json) and _sorted(left) == _sorted(right)


def _sorted(value: object) -> bytes:
    return _encode(value, order="sorted")


def replaced(before: Fields, after: Fields) -> Fields:
    """Return the members of ``before`` that ``after`` lacks or has otherwise, inside objects alike."""
    found: Fields = {}
    for name, value in before.items():
        if name not in after:
            found[name] = value
            continue
        other = after[name]
        if type(value) is dict and type(other) is dict:
            inner = {} if value is other else replaced(value, other)
            if inner:
                found[name] = inner
        elif not same_value(value, other):
            found[name] = value
    return found


def smallest(fields: Fields, limit_bytes: int) -> Fields:
    """Return the fields that are within ``limit_bytes`` together as JSON, the smallest first."""
    room_bytes = limit_bytes
    sizes = sorted([(len(_encode({name: value})), name) for name, value in fields.items()])
    found: Fields = {}
    for size_bytes, name in sizes:
        room_bytes -= size_bytes
        if room_bytes < 0:
            break
        found[name] = fields[name]
    return found


def apply_patch(target: Fields, patch: Fields) -> Fields:
    """Apply an RFC 7396 merge patch; neither argument is changed."""
    outcome = dict(target)
    for name, value in patch.items():
        if value is None:
            outcome.pop(name, None)
        elif type(value) is dict:
            before = outcome.get(name)
            outcome[name] = apply_patch(before if type(before) is dict else {}, value)
        else:
            outcome[name] = value
    return outcome


def versions_of(stored: bytes | None, version: int, at_us: int, sent: Sent | None = None) -> FieldVersions:
    """Read the field versions of a record; one that was not tracked starts at its present version."""
    if stored is None:
        return FieldVersions(since=version, since_at_us=at_us, since_sent=sent)
    return _decode_versions(stored)


def advance(
    versions: FieldVersions,
    before: Fields | None,
    after: Fields | None,
    version: int,
    at_us: int,
    sent: Sent | None = None,
) -> bytes:
    """Note which fields ``version`` changed and return the text to store; ``sent`` is None for nobody's."""
    old, new = before or {}, after or {}
    names = [name for name, value in new.items() if name not in old or not same_value(old[name], value)]
    names += [name for name in old if name not in new]
    changed = versions.changed
    for name in names:
        changed[name] = (version, at_us)
    _note_writer(versions, names, at_us, sent)
    if len(changed) > len(new) + MAX_REMOVED_FIELDS:
        _fold_removed(versions, new)
    stored = _encode(versions)
    if len(stored) > _LARGE_BYTES:
        _fold_removed(versions, new)
        stored = _encode(versions)
    return stored


def _note_writer(versions: FieldVersions, names: list[str], at_us: int, sent: Sent | None) -> None:
    writers = versions.writers
    for device_id, own in list(writers.items()) if writers else ():
        # The shorter of the two: a thousand devices with a field each would else cost a million steps.
        for name in names if len(names) <= len(own) else own.keys() & names:
            own.pop(name, None)
        if not own:
            del writers[device_id]
    if sent is not None and names:
        writers[sent.device_id] = own = writers.get(sent.device_id, {})
        for name in names:
            own[name] = sent.at_us - at_us


def _fold_removed(versions: FieldVersions, present: Fields) -> None:
    removed = [name for name in versions.changed if name not in present]
    removed.sort(key=lambda name: versions.changed[name][0])
    chars = sum(map(len, removed))
    count = 0
    while len(removed) - count > MAX_REMOVED_FIELDS or chars > MAX_REMOVED_CHARS:
        chars -= len(removed[count])
        count += 1
    folded = removed[:count]
    _note_writer(versions, folded, 0, None)
    for name in folded:
        version, at_us = versions.changed.pop(name)
        if version > versions.since:
            versions.since, versions.since_sent = version, None
        versions.since_at_us = max(versions.since_at_us, at_us)


def created(fields: Fields, at_us: int, sent: Sent | None = None) -> bytes:
    """Field versions of a record's version 1."""
    return advance(FieldVersions(since=0, since_at_us=at_us), None, fields, 1, at_us, sent)
