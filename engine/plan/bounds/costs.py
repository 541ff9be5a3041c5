"""How long work takes to plan, estimated from its rows, and how many bytes of records it touches.

Pure. The constants are a calibration, not a promise: a plan that takes longer than estimated still gives the
event loop back between its items (``engine.commit.planning``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.model.rows import Conflict, ConflictRef, OpenConflictRef, Record, RecordKey, Snapshot
from engine.plan.held_changes import size_bytes
from engine.plan.work import Attach, Change, Push, Resolution

#: What an item costs besides its bytes.
ITEM_US: Final = 10.0
#: Small contents are not examined: texts cost half of this, the worst contents five times as much.
SMALL_BYTES: Final = 4096
SMALL_US_PER_BYTE: Final = 0.004
#: Contents of any size: 256 KiB of the benchmark's texts take 0.5 ms to read and write, of numbers 3 ms, of
#: ``[[],[],…]`` 5 ms.
_US_PER_BYTE: Final = 0.002
_US_PER_COMMA: Final = 0.05
_US_PER_LIST: Final = 0.02


class Costs:
    """The rows of a batch, and the cost of each record, which is computed once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.records = snapshot.records
        self.open_conflicts = snapshot.open_conflicts
        self.conflicts = snapshot.conflicts
        self._record_us: dict[RecordKey, float] = {}

    def record_us(self, key: RecordKey) -> float:
        """Return the microseconds to read and write a record and its field versions, 0 if there is none."""
        known_us = self._record_us.get(key)
        if known_us is None:
            row = self.records.get(key)
            known_us = 0.0
            if row is not None:
                known_us = content_us(row.data or row.last_data) + content_us(row.fields)
            self._record_us[key] = known_us
        return known_us


def content_us(data: bytes | None) -> float:
    """Return the microseconds to read and write JSON. Examining it takes 0.5 ns a byte."""
    if not data:
        return 0.0
    size = len(data)
    if size <= SMALL_BYTES:
        return SMALL_US_PER_BYTE * size
    return _US_PER_BYTE * size + _US_PER_COMMA * data.count(b",") + _US_PER_LIST * data.count(b"[")


def push_us(push: Push, costs: Costs) -> float:
    """Return the microseconds to plan a push."""
    changes = [item for item in push.items if type(item) is Change]
    return sum([_change_us(push, item, costs) for item in changes]) + ITEM_US * len(push.items)


def _change_us(push: Push, item: Change, costs: Costs) -> float:
    cost_us = content_us(item.data) + costs.record_us(RecordKey(push.tenant_id, item.domain, item.id))
    if costs.open_conflicts:
        conflict = costs.open_conflicts.get(
            OpenConflictRef(push.tenant_id, push.device_id, item.domain, item.id)
        )
        if conflict is not None:
            cost_us += _conflict_us(conflict)
    return cost_us


def resolution_us(resolution: Resolution, costs: Costs) -> float:
    """Return the microseconds to plan the resolution of a conflict."""
    key = RecordKey(resolution.tenant_id, resolution.domain, resolution.record_id)
    conflict = costs.conflicts.get(ConflictRef(resolution.tenant_id, resolution.conflict_id))
    return ITEM_US + costs.record_us(key) + (0.0 if conflict is None else _conflict_us(conflict))


def attach_us(attach: Attach, costs: Costs) -> float:
    """Return the microseconds to plan a file's way into its record's entry, or out of it."""
    row = costs.records.get(RecordKey(attach.tenant_id, attach.domain, attach.record_id))
    return ITEM_US + (0.0 if row is None else content_us(row.attachments))


def _conflict_us(conflict: Conflict) -> float:
    changes = conflict.client_changes
    if changes is None:
        return content_us(conflict.client_data)
    return sum([1.0 + content_us(change.data) for change in changes])


def push_touched_bytes(
    push: Push, records: Mapping[RecordKey, Record], open_conflicts: Mapping[OpenConflictRef, Conflict]
) -> int:
    """Return the bytes of records that a push reads or writes. A record counts once for each item on it."""
    touched_bytes = 0
    for item in push.items:
        if type(item) is Change:
            record = records.get(RecordKey(push.tenant_id, item.domain, item.id))
            touched_bytes += len(item.data) + (0 if record is None else record.size_bytes)
            if open_conflicts:
                ref = OpenConflictRef(push.tenant_id, push.device_id, item.domain, item.id)
                conflict = open_conflicts.get(ref)
                touched_bytes += 0 if conflict is None else size_bytes(conflict)
    return touched_bytes


def attach_touched_bytes(attach: Attach, records: Mapping[RecordKey, Record]) -> int:
    """Return the bytes that an attachment reads or writes: its own entry and its record."""
    record = records.get(RecordKey(attach.tenant_id, attach.domain, attach.record_id))
    return len(attach.entry or b"") + (0 if record is None else record.size_bytes)
