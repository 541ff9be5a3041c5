"""What a batch reads, collected from its work: every row once."""

from __future__ import annotations

from collections.abc import Collection

from engine.model.rows import (
    ConflictRef,
    DeviceRecordKey,
    EventKey,
    IdempotencyKey,
    OpenConflictRef,
    ReadSet,
    RecordKey,
)
from engine.model.uploads import UploadRef


class Reads:
    """The rows to read, as the fields of ``ReadSet`` name them."""

    __slots__ = (
        "conflicts",
        "duplicates",
        "events",
        "keys",
        "old_keys",
        "open_conflicts",
        "records",
        "rejected_before",
        "uploads",
    )

    def __init__(self, extra_conflicts: Collection[OpenConflictRef]) -> None:
        self.keys: dict[IdempotencyKey, None] = {}
        self.old_keys: list[IdempotencyKey] = []
        self.records: dict[RecordKey, None] = {}
        self.events: dict[EventKey, None] = {}
        self.open_conflicts: dict[OpenConflictRef, None] = dict.fromkeys(extra_conflicts)
        self.rejected_before: dict[DeviceRecordKey, None] = {}
        self.conflicts: dict[ConflictRef, None] = {}
        self.uploads: dict[UploadRef, None] = {}
        self.duplicates: dict[UploadRef, None] = {}

    def read_set(self, tenants: Collection[int], usage_above: tuple[int, ...]) -> ReadSet:
        """Return the read set of a batch of these tenants."""
        return ReadSet(
            sorted(tenants),
            list(self.keys),
            list(self.records),
            list(self.events),
            list(self.open_conflicts),
            list(self.conflicts),
            list(self.uploads),
            list(self.duplicates),
            self.old_keys,
            list(self.rejected_before),
            usage_above=usage_above,
        )
