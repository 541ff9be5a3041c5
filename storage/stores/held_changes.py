"""The changes that an open conflict holds, as its row stores them: an array in JSON."""

from __future__ import annotations

from collections.abc import Generator, Sequence
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


def changes_in_steps(
    stored: Sequence[StoredChange], sealing: Sealing, conflict: tuple[int, str, str]
) -> Generator[None, None, tuple[HeldChange, ...]]:
    """Return the changes of a conflict: ``conflict`` is its tenant_id, domain and id.

    It yields where the loop is to be given back. Raises as ``Sealing.open``.
    """
    found: list[HeldChange] = []
    for place, one in enumerate(stored):
        data = open_raw(sealing, CONFLICT_CHANGE, conflict, place, one.data)
        found.append(HeldChange(one.op, one.base, one.at_us, one.sent_at_us, data))
        if sealing.slice_is_full():
            yield
    return tuple(found)


def open_raw(
    sealing: Sealing, place: str, conflict: tuple[int, str, str], version: int, raw: msgspec.Raw
) -> bytes | None:
    """Return data of a conflict that its JSON has, sealed or not; None for ``null``.

    Raises as ``Sealing.open``.
    """
    stored = bytes(raw)
    if stored[:1] == b'"':
        return sealing.open(place, *conflict, version, stored.decode())
    return None if stored == _NULL else stored


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
