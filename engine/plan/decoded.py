"""Large records of a batch as decoded, so that each of 30 patches does not decode and encode all of one anew.

Pure. A record of 250 KB of numbers takes 10 ms to decode; a message has changed it 30 times. Decoded data are
never changed: a merge patch makes new objects along its own path, and shares the rest.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.model.merge import Fields, decode_fields, encode_fields
from engine.model.rows import RecordKey

#: Smaller records are decoded in less time than it takes to look.
LARGE_BYTES: Final = 4096
#: Records that are kept: decoded, the worst take twenty times their bytes.
_KEPT_BYTES: Final = 1 << 20

_encode = msgspec.json.encode


class _Decoded:
    """One record: the version that stands and the one that was encoded last, and its encoded members."""

    __slots__ = ("_last", "_members", "_now")

    def __init__(self, data: bytes, fields: Fields) -> None:
        self._now = self._last = (data, fields)
        self._members: dict[str, tuple[Any, bytes]] = {}

    def find(self, data: bytes) -> Fields | None:
        if data is self._last[0]:
            self._now = self._last
        return self._now[1] if data is self._now[0] else None

    def encode(self, fields: Fields) -> bytes:
        if fields is self._last[1]:
            return self._last[0]
        known = self._members
        parts: list[bytes] = []
        members: dict[str, tuple[Any, bytes]] = {}
        for name, value in fields.items():
            if type(value) is not dict and type(value) is not list and type(value) is not str:
                parts.append(_encode({name: value})[1:-1])
                continue
            member = known.get(name)
            if member is None or member[0] is not value:
                member = value, _encode({name: value})[1:-1]
            members[name] = member
            parts.append(member[1])
        self._members = members
        data = b"{%b}" % b",".join(parts)
        self._last = data, fields
        return data


class DecodedRecords:
    """Decodes and encodes records of a batch. The records used last are kept, if they are large."""

    __slots__ = ("_bytes", "_records")

    def __init__(self) -> None:
        self._records: dict[RecordKey, tuple[_Decoded, int]] = {}
        self._bytes = 0

    def decode(self, key: RecordKey, data: bytes) -> Fields:
        """Return the data of a record. They are not to be changed."""
        if len(data) < LARGE_BYTES:
            return decode_fields(data)
        kept = self._records.get(key)
        if kept is not None:
            fields = kept[0].find(data)
            if fields is not None:
                return fields
        fields = decode_fields(data)
        self._keep(key, _Decoded(data, fields), len(data))
        return fields

    def encode(self, key: RecordKey, fields: Fields) -> bytes:
        """Return data of a record as ``encode_fields`` does, what was encoded before only once."""
        kept = self._records.get(key) if self._records else None
        return encode_fields(fields) if kept is None else kept[0].encode(fields)

    def _keep(self, key: RecordKey, record: _Decoded, size_bytes: int) -> None:
        records = self._records
        before = records.pop(key, None)
        self._bytes += size_bytes - (0 if before is None else before[1])
        while records and self._bytes > _KEPT_BYTES:
            self._bytes -= records.pop(next(iter(records)))[1]
        records[key] = record, size_bytes
