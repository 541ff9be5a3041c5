"""Merge patches, equality of contents, and field versions.

No history is kept. With ``field_merge`` a record has, for each top-level field, the version and the time of
its last change, and the device that made it. About a field without this, nothing is known up to version
``since``: for a base before ``since``, the field counts as changed by the server.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from engine.wire.floats import json_decoder

#: The most entries of removed fields; older ones are folded into ``since``.
MAX_REMOVED_FIELDS: Final = 32
#: The most characters of their names together. A name may be as long as a record, and all names are read and
#: written with each change.
MAX_REMOVED_CHARS: Final = 4096
#: Field versions that are larger than this are searched for long names of removed fields.
_LARGE_BYTES: Final = 1 << 16

Fields = dict[str, Any]

_encode = msgspec.json.encode
_decode_any = json_decoder(dict[str, Any]).decode


class Sent(NamedTuple):
    """The device that made a change, and its ``at`` as the device sent it."""

    device_id: str
    at_us: int


class FieldVersions(msgspec.Struct, omit_defaults=True):
    """Version and time of each field's last change, as stored with the record.

    ``writers`` has, for each device, the fields whose last change it made, each with ``at`` as sent minus
    ``at``
    corrected: 0 if its clock is right. ``since_sent`` is the device that made version ``since``, if it is
        known.
    """

    since: int
    since_at_us: int
    changed: dict[str, tuple[int, int]] = {}
    writers: dict[str, dict[str, int]] = {}
    since_sent: Sent | None = None

    def changed_after(self, field: str, base: int) -> bool:
        """Return whether the server changed the field after version ``base``."""
        entry = self.changed.get(field)
        return base < (self.since if entry is None else entry[0])

    def changed_at_us(self, field: str) -> int:
        """Return when the field was last changed on the server."""
        entry = self.changed.get(field)
        return self.since_at_us if entry is None else entry[1]

    def own_sent_us(self, field: str, device_id: str) -> int | None:
        """Return when a device sent the field's last change, None if another device made it."""
        entry = self.changed.get(field)
        ahead_us = self.writers.get(device_id, {}).get(field)
        return None if entry is None or ahead_us is None else entry[1] + ahead_us

    def own_since_sent_us(self, field: str, device_id: str) -> int | None:
        """Return the same for a field without an entry: when the device sent version ``since``, if it did."""
        if field in self.changed or self.since_sent is None or self.since_sent.device_id != device_id:
            return None
        return self.since_sent.at_us


_decode_versions = msgspec.json.Decoder(FieldVersions).decode


def decode_fields(data: bytes) -> Fields:
    """Decode a record's stored data."""
    fields: Fields = _decode_any(data)
    return fields


def encode_fields(fields: Fields) -> bytes:
    """Return a record's data as compact UTF-8 JSON."""
    return _encode(fields)


def same_content(left: bytes, right: bytes) -> bool:
    """Return whether two stored contents are equal in any order of members. 1, 1.0 and true differ.

    Both were encoded by ``encode_fields``, so equal contents have equal lengths.
    """
    if left == right:
        return True
    if len(left) != len(right):
        return False
    return same_value(decode_fields(left), decode_fields(right))


def same_value(left: object, right: object) -> bool:
    """Return whether two decoded values are equal. 1, 1.0 and true differ.

    Different values are found without encoding them. Equal ones are sorted only if their members are in
    another order: sorting costs ten times as much as encoding.
    """
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if left != right:
        return False
    if isinstance(left, str | int | bool):
        return True
    if type(left) is dict and type(right) is dict:
        # What both share need not be encoded: two versions share all that a patch of 70 bytes leaves.
        left = {name: value for name, value in left.items() if value is not right[name]}
        if not left:
            return True
        right = {name: right[name] for name in left}
    left_json, right_json = _encode(left), _encode(right)
    if left_json == right_json:
        return True
    return len(left_json) == len(right_json) and _sorted(left) == _sorted(right)


def _sorted(value: object) -> bytes:
    return _encode(value, order="sorted")


def replaced(before: Fields, after: Fields) -> Fields:
    """Return the members of ``before`` that ``after`` lacks or has changed, also inside objects."""
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
    """Return the smallest fields, as many as have at most ``limit_bytes`` together as JSON."""
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
    """Return the target with an RFC 7396 merge patch applied. Neither argument is changed."""
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
    """Return the field versions of a record. If it has none, they start at its current version."""
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
    """Return the field versions after a new version, as JSON.

    Args:
        versions: The field versions before. They are changed.
        before: The data before, None for a tombstone.
        after: The data of the new version, None for a tombstone.
        version: The number of the new version.
        at_us: When its change was made, corrected.
        sent: The device that made it, None if it is no device's.
    """
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
        # The shorter of the two is walked: otherwise a thousand devices with a field each cost a million
        # steps.
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
    """Return the field versions of a record's version 1, as JSON."""
    return advance(FieldVersions(since=0, since_at_us=at_us), None, fields, 1, at_us, sent)
