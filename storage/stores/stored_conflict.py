"""A conflict as its row stores it."""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from engine.model.rows import Conflict
from storage.stores.held_changes import StoredChange, changes_in_steps, open_raw
from storage.stores.sealed.sealing import CONFLICT_CLIENT, CONFLICT_DECISION, CONFLICT_SERVER, Sealing


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

    def in_steps(self, sealing: Sealing) -> Generator[None, None, Conflict]:
        """Return the engine's form of it. Raises as ``Sealing.open``."""
        own = self.tenant_id, self.domain, self.conflict_id
        fields = msgspec.structs.asdict(self)
        fields["server_data"] = open_raw(sealing, CONFLICT_SERVER, own, self.server_version, self.server_data)
        if sealing.slice_is_full():
            yield
        fields["client_data"] = open_raw(sealing, CONFLICT_CLIENT, own, self.server_version, self.client_data)
        fields["settled_sha256"] = sealing.open_text(
            CONFLICT_DECISION, *own, self.server_version, self.settled_sha256
        )
        if self.client_changes is not None:
            if sealing.slice_is_full():
                yield
            fields["client_changes"] = yield from changes_in_steps(self.client_changes, sealing, own)
        return Conflict(**fields)


_decode_stored = msgspec.json.Decoder(StoredConflict).decode


def conflict_in_steps(text: str, sealing: Sealing) -> Generator[None, None, Conflict]:
    """Decode a row of the log from JSON, and yield where the loop is to be given back.

    Both sides and the changes of one conflict are three times as large together as the largest record.

    Raises:
        KeysMissingError: As ``Sealing.open``.
        StoreError: As ``Sealing.open``.
    """
    return (yield from _decode_stored(text).in_steps(sealing))
