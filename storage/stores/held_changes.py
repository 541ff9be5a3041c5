"""The changes that an open conflict holds, as its row stores them: an array in JSON."""

from __future__ import annotations

from typing import Final

import msgspec

from engine.model.rows import HeldChange
from engine.wire.messages import Op

_NULL: Final = b"null"


class StoredChange(msgspec.Struct, frozen=True):
    """One change. ``data`` is ``null`` if it has none."""

    op: Op
    base: int | None
    at_us: int
    sent_at_us: int
    data: msgspec.Raw

    def change(self) -> HeldChange:
        """Return the engine's form of it."""
        data = bytes(self.data)
        return HeldChange(self.op, self.base, self.at_us, self.sent_at_us, None if data == _NULL else data)


def encode_changes(changes: tuple[HeldChange, ...]) -> bytes:
    """Return the changes of a conflict as JSON."""
    return msgspec.json.encode(
        [
            StoredChange(one.op, one.base, one.at_us, one.sent_at_us, msgspec.Raw(one.data or _NULL))
            for one in changes
        ]
    )
