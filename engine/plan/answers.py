"""The answer to a push: as it is sent, as it is stored under its key, and as it is sent again.

Pure. A change of 70 bytes may be answered with a record of 250 KiB, and the answer is stored for weeks. So a
stored answer has little ``data``. When it is sent again, the rest is taken from the records that still have
the version that was answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import UNSET

from engine.model.rows import Record, RecordKey
from engine.wire.messages import Result

#: The most bytes of ``data`` in one stored answer. Also the most bytes of the server's side in a row of the
#: conflict log whose record was not changed.
KEPT_DATA_BYTES: Final = 4096
#: The statuses whose results have ``data``, as JSON.
_WITH_DATA: Final = (b'"resolved"', b'"conflict"')

#: One stored result, its values not decoded.
_Kept = dict[str, msgspec.Raw]

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(list[_Kept]).decode
_decode_text = msgspec.json.Decoder(str).decode
_NULL: Final = msgspec.Raw(b"null")
_decode_version = msgspec.json.Decoder(int | None).decode


def limit_sent_data(results: list[Result], limit_bytes: int) -> list[Result]:
    """Return the results as they are sent: without data once their sum exceeds ``limit_bytes``."""
    total = 0
    for index, result in enumerate(results):
        if isinstance(result.data, msgspec.Raw):
            total += len(memoryview(result.data))
            if total > limit_bytes:
                return results[:index] + [_without_data(later) for later in results[index:]]
    return results


def limit_kept_data(results: list[Result], encoded: bytes, limit_bytes: int) -> bytes:
    """Return the answer as it is stored.

    Args:
        results: The results as they are sent.
        encoded: The same as JSON.
        limit_bytes: The most ``data`` to store, that of the first results that fit.

    Returns:
        JSON; ``encoded`` itself if all of it is stored.
    """
    if len(encoded) <= limit_bytes:  # nearly always
        return encoded
    room_bytes = limit_bytes
    found: list[Result] = []
    for result in results:
        if isinstance(result.data, msgspec.Raw):
            size_bytes = len(memoryview(result.data))
            if size_bytes > room_bytes:
                found.append(_without_data(result))
                continue
            room_bytes -= size_bytes
        found.append(result)
    return _encode(found)


def restore_data(
    encoded: bytes, tenant_id: int, records: Mapping[RecordKey, Record], limit_bytes: int
) -> bytes:
    """Return a stored answer as it is sent again.

    Args:
        encoded: The stored answer, as JSON.
        tenant_id: The tenant of the push.
        records: The records of the push, as they are now.
        limit_bytes: The most ``data`` in one answer.

    Returns:
        JSON: the answer with the data that was not stored, for records that still have the same version.
    """
    if not any(status in encoded for status in _WITH_DATA):
        return encoded
    results = _decode(encoded)
    again = [_with_data(result, tenant_id, records) for result in results]
    if all(new is old for new, old in zip(again, results, strict=True)):
        return encoded
    total = 0
    for result in again:
        data = result.get("data", _NULL)
        total += 0 if data == _NULL else len(memoryview(data))
        if total > limit_bytes:
            result.pop("data", None)
    return _encode(again)


def _with_data(result: _Kept, tenant_id: int, records: Mapping[RecordKey, Record]) -> _Kept:
    if "data" in result or bytes(result["status"]) not in _WITH_DATA:
        return result
    key = RecordKey(tenant_id, _decode_text(result["domain"]), _decode_text(result["id"]))
    record = records.get(key)
    if record is None or record.version != _decode_version(result["version"]):
        return result
    return result | {"data": _NULL if record.data is None else msgspec.Raw(record.data)}


def _without_data(result: Result) -> Result:
    return msgspec.structs.replace(result, data=UNSET)
