"""A conflict as its row stores it."""

from __future__ import annotations

import msgspec

from engine.model.rows import Conflict
from storage.stores.held_changes import StoredChange


class StoredConflict(msgspec.Struct):
    """A row of ``conflict_resolution_log`` as JSON. Data are not decoded, and ``null`` if there are none."""

    tenant_id: int
    conflict_id: str
    domain: str
    record_id: str
    device_id: str
    policy: str
    outcome: str
    server_version: int
    server_data: msgspec.Raw
    client_base: int | None
    client_op: str
    client_at_us: int
    client_data: msgspec.Raw
    client_sent_at_us: int | None
    client_changes: list[StoredChange] | None
    client_count: int
    held_in: str | None
    opened_at_us: int
    settled_by: str | None
    settled_at_us: int | None
    settled_sha256: str | None
    settled_version: int | None
    settled_seq: int | None

    def conflict(self) -> Conflict:
        """Return the engine's form of it."""
        fields = msgspec.structs.asdict(self)
        for name in ("server_data", "client_data"):
            fields[name] = _bytes(fields[name])
        if self.client_changes is not None:
            fields["client_changes"] = tuple([one.change() for one in self.client_changes])
        return Conflict(**fields)


def _bytes(raw: msgspec.Raw) -> bytes | None:
    return None if bytes(raw) == b"null" else bytes(raw)


_decode_stored = msgspec.json.Decoder(StoredConflict).decode


def decode_conflict(text: str) -> Conflict:
    """Decode a row of the log from JSON."""
    return _decode_stored(text).conflict()
