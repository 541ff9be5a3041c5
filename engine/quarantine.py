"""A rejected item as it was sent, kept so that an operator can recover it."""

from __future__ import annotations

import json

import msgspec

from engine.jobs import Push
from engine.messages import Result
from engine.rows import Quarantined

_json_items = msgspec.json.Decoder(list[msgspec.Raw])
_msgpack_items = msgspec.msgpack.Decoder(list[msgspec.Raw])


def quarantined(push: Push, index: int, result: Result, quarantine_id: str) -> Quarantined:
    """Make the quarantine's row for the rejected item at ``index``."""
    error = result.error
    assert isinstance(error, msgspec.Struct)
    return Quarantined(
        tenant_id=push.tenant_id,
        quarantine_id=quarantine_id,
        device_id=push.device_id,
        domain=_printable(result.domain),
        record_id=_printable(result.id),
        item=_item_text(push, index),
        code=error.code,
        message=error.message,
        at_us=push.now_us,
    )


def _printable(name: str | None) -> str | None:
    """A refused name may hold what the database refuses; the item itself keeps it, escaped."""
    if name is None:
        return None
    return "".join(char if char.isprintable() else "?" for char in name[:255])


def _item_text(push: Push, index: int) -> bytes:
    if push.encoding == "json":
        return bytes(_json_items.decode(push.raw_items)[index])
    item = bytes(_msgpack_items.decode(push.raw_items)[index])
    try:
        return json.dumps(msgspec.msgpack.decode(item), default=_foreign).encode()
    except (ValueError, TypeError, msgspec.DecodeError):
        return json.dumps({"msgpack_hex": item.hex()}).encode()


def _foreign(value: object) -> str:
    """MessagePack values that JSON has no form for."""
    return value.hex() if isinstance(value, bytes) else str(value)
