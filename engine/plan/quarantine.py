"""Rejected items as they were sent, kept so that an operator can retry them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final

import msgspec

from engine.model.rows import Quarantined
from engine.plan.work import Push
from engine.wire.codec import JSON, MSGPACK
from engine.wire.messages import Result

#: Control characters and lone surrogates.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_decoders = {codec.name: codec.raw_items for codec in (JSON, MSGPACK)}


def quarantined(push: Push, results: list[Result], new_id: Callable[[], str]) -> list[Quarantined]:
    """Return the quarantine's rows of a push: one for each item whose result is ``rejected``."""
    rejected = [index for index, result in enumerate(results) if result.status == "rejected"]
    if not rejected:
        return []
    # Decoded once for all items: this runs on the event loop while the batch's tenants are locked.
    sent = _decoders[push.encoding].decode(push.raw_items)
    return [_row(push, sent[index], results[index], new_id()) for index in rejected]


def _row(push: Push, item: msgspec.Raw, result: Result, quarantine_id: str) -> Quarantined:
    error = result.error
    assert isinstance(error, msgspec.Struct)
    return Quarantined(
        tenant_id=push.tenant_id,
        quarantine_id=quarantine_id,
        device_id=push.device_id,
        domain=_printable(result.domain),
        record_id=_printable(result.id),
        item=_item_text(push, bytes(item)),
        code=error.code,
        message=error.message,
        at_us=push.now_us,
        clock_offset_us=push.clock_offset_us,
    )


def _printable(name: str | None) -> str | None:
    """Return a name without characters that the database refuses. The stored item itself has them, escaped.

    A valid record id is not changed: later items of the record are found by it.
    """
    return None if name is None else _UNPRINTABLE.sub("?", name[:255])


def _item_text(push: Push, item: bytes) -> bytes:
    if push.encoding == "json":
        return item
    try:
        return json.dumps(msgspec.msgpack.decode(item), default=_foreign).encode()
    except (ValueError, TypeError, msgspec.DecodeError):
        return json.dumps({"msgpack_hex": item.hex()}).encode()


def _foreign(value: object) -> str:
    """Return the text for a MessagePack value that JSON cannot express."""
    return value.hex() if isinstance(value, bytes) else str(value)
