"""The changes that an open conflict holds, as its row stores them: an array in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from engine.model.rows import HeldChange
from engine.wire.messages import Op
from storage.stores.sealed.sealing import CONFLICT_CHANGE, Sealing

_NULL: Final = b"null"


class StoredChange(msgspec.Struct, frozen=True):
    """One change. ``data`` is ``null`` if it has none."""

    op: Op
    base: int | None
    at_us: int
    sent_at_us: int
    data: msgspec.Raw


def decode_changes(
    stored: Sequence[StoredChange], sealing: Sealing, conflict: tuple[int, str, str]
) -> tuple[HeldChange, ...]:
    """Return the changes of a conflict: ``conflict`` is its tenant_id, domain and id.

    Raises as ``Sealing.open``.
    """
    found: list[HeldChange] = []
    for place, one in enumerate(stored):
        data: bytes | None = bytes(one.data)
        if data == _NULL:
            data = None
        elif data is not None and data[:1] == b'"':
            data = sealing.open(CONFLICT_CHANGE, *conflict, place, data.decode())
        found.append(HeldChange(one.op, one.base, one.at_us, one.sent_at_us, data))
    return tuple(found)


def encode_changes(
    changes: tuple[HeldChange, ...], sealing: Sealing, conflict: tuple[int, str, str]
) -> bytes:
    """Return the changes of a conflict as JSON. Only data are sealed: the rest is read by SQL."""
    return msgspec.json.encode(
        [
            StoredChange(
                *(one.op, one.base, one.at_us, one.sent_at_us),
                msgspec.Raw(sealing.seal(CONFLICT_CHANGE, *conflict, place, one.data) or _NULL),
            )
            for place, one in enumerate(changes)
        ]
    )
