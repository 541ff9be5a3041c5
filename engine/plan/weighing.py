"""How long a batch takes to plan, told from its rows before it is, and which of its jobs have to wait.

Pure. The weights are a calibration, not a promise: a batch that takes longer than it weighs gives the loop
back between its items all the same (``engine.commit.planning``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from engine.model.rows import Conflict, ConflictRef, OpenConflictRef, Record, RecordKey, Snapshot
from engine.plan.held_changes import size_bytes
from engine.plan.work import Attach, Change, Push, Resolution, Work

#: Bytes of records that the changes of a batch may touch, unless it is one message.
BATCH_TOUCHES_BYTES: Final = 16 << 20
#: What planning a batch may take, unless it is one message: its tenants' locks are held for so long.
BATCH_US: Final = 10_000.0
#: What an item costs beside its bytes.
_ITEM_US: Final = 10.0
#: Small contents are not looked into: texts cost half of this, the worst five times as much.
_SMALL_BYTES: Final = 4096
_SMALL_US_PER_BYTE: Final = 0.004
#: Contents of any size: 256 KiB of the bench's texts take 0.5 ms to read and to write, of numbers 3 ms, of
#: ``[[],[],…]`` 5 ms.
_US_PER_BYTE: Final = 0.002
_US_PER_COMMA: Final = 0.05
_US_PER_LIST: Final = 0.02
#: The items of one step together take a millisecond or two.
_SMALL_ITEMS_PER_STEP: Final = 32


class Selection(msgspec.Struct, frozen=True):
    """What of a batch is planned now.

    ``left`` are the indexes of those that wait for the next one. ``apart`` are tenants of which a message is
    laborious by itself: what they send is planned without others, so that nobody else's locks are held.
    ``items_per_step`` may be planned before the clock is looked at.
    """

    left: Sequence[int] = ()
    apart: frozenset[int] = frozenset()
    items_per_step: int = 1


_LIGHT: Final = Selection(items_per_step=_SMALL_ITEMS_PER_STEP)


def select(batch: list[Work], snapshot: Snapshot) -> Selection:
    """Select the jobs of a batch that are planned together: one at least, unless all have to be apart.

    The order of each tenant's jobs stays: once one of them is left, those behind it are.
    """
    if _is_light(batch, snapshot):  # as nearly always: nothing need be weighed
        return _LIGHT
    scale = Scale(snapshot)
    alone = len({work.tenant_id for work in batch}) == 1
    left: list[int] = []
    apart: set[int] = set()
    full: set[int] = set()
    sum_us, sum_bytes, taken = 0.0, 0, 0
    for index, work in enumerate(batch):
        weight_us, touched_bytes = scale.weigh(work)
        tenant_id = work.tenant_id
        if weight_us > BATCH_US:
            apart.add(tenant_id)
        sum_us += weight_us
        sum_bytes += touched_bytes
        over = bool(taken) and (sum_us > BATCH_US or sum_bytes > BATCH_TOUCHES_BYTES)
        if tenant_id in full or over or (tenant_id in apart and not alone):
            left.append(index)
            full.add(tenant_id)
            sum_us -= weight_us
            sum_bytes -= touched_bytes
        else:
            taken += 1
    return Selection(left, frozenset(apart))


def _is_light(batch: list[Work], snapshot: Snapshot) -> bool:
    if snapshot.open_conflicts or snapshot.conflicts:
        return False
    largest_bytes = max(
        [
            len(row.data or row.last_data or b"")
            + (len(row.attachments) if row.attachments else 0)
            + (len(row.fields) if row.fields else 0)
            for row in snapshot.records.values()
        ],
        default=0,
    )
    if largest_bytes > _SMALL_BYTES:
        return False
    items = sent_bytes = 0
    for work in batch:
        if type(work) is Push:
            count, raw_bytes = len(work.items), len(work.raw_items)
            if raw_bytes > 2 * _SMALL_BYTES * count:
                return False
            items += count
            sent_bytes += raw_bytes
        else:
            items += 1
    most_bytes = items * largest_bytes + sent_bytes
    weight_us = items * _ITEM_US + most_bytes * _SMALL_US_PER_BYTE
    return weight_us < BATCH_US and most_bytes < BATCH_TOUCHES_BYTES


class Scale:
    """Weighs jobs against the rows of their batch; a record is looked into once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._records = snapshot.records
        self._held = snapshot.open_conflicts
        self._conflicts = snapshot.conflicts
        self._weights: dict[RecordKey, float] = {}

    def weigh(self, work: Work) -> tuple[float, int]:
        """Return the microseconds that planning a job takes, and the bytes of records that it touches."""
        if isinstance(work, Push):
            weight_us = sum([self._change_us(work, item) for item in work.items if type(item) is Change])
            weight_us += _ITEM_US * len(work.items)
        elif isinstance(work, Resolution):
            weight_us = _ITEM_US + self._record_us(RecordKey(work.tenant_id, work.domain, work.record_id))
            conflict = self._conflicts.get(ConflictRef(work.tenant_id, work.conflict_id))
            weight_us += 0.0 if conflict is None else _held_us(conflict)
        else:
            row = self._records.get(RecordKey(work.tenant_id, work.domain, work.record_id))
            weight_us = _ITEM_US + (0.0 if row is None else content_us(row.attachments))
        return weight_us, touched_bytes(work, self._records, self._held)

    def _change_us(self, push: Push, item: Change) -> float:
        weight_us = content_us(item.data) + self._record_us(RecordKey(push.tenant_id, item.domain, item.id))
        if self._held:
            held = self._held.get(OpenConflictRef(push.tenant_id, push.device_id, item.domain, item.id))
            if held is not None:
                weight_us += _held_us(held)
        return weight_us

    def _record_us(self, key: RecordKey) -> float:
        known_us = self._weights.get(key)
        if known_us is None:
            row = self._records.get(key)
            known_us = 0.0
            if row is not None:
                known_us = content_us(row.data or row.last_data) + content_us(row.fields)
            self._weights[key] = known_us
        return known_us


def content_us(data: bytes | None) -> float:
    """Return the microseconds that it takes to read and to write JSON; it is looked into at 0.5 ns a byte."""
    if not data:
        return 0.0
    size = len(data)
    if size <= _SMALL_BYTES:
        return _SMALL_US_PER_BYTE * size
    return _US_PER_BYTE * size + _US_PER_COMMA * data.count(b",") + _US_PER_LIST * data.count(b"[")


def _held_us(conflict: Conflict) -> float:
    changes = conflict.client_changes
    if changes is None:
        return content_us(conflict.client_data)
    return sum([1.0 + content_us(change.data) for change in changes])


def touched_bytes(
    work: Work, records: Mapping[RecordKey, Record], held: Mapping[OpenConflictRef, Conflict]
) -> int:
    """Return the bytes of records that a job reads or writes, counted anew for each change of one."""
    if isinstance(work, Resolution):
        return 0
    if isinstance(work, Attach):
        record = records.get(RecordKey(work.tenant_id, work.domain, work.record_id))
        return len(work.entry or b"") + (0 if record is None else record.size_bytes)
    found = 0
    for item in work.items:
        if type(item) is Change:
            record = records.get(RecordKey(work.tenant_id, item.domain, item.id))
            found += len(item.data) + (0 if record is None else record.size_bytes)
            if held:
                waiting = held.get(OpenConflictRef(work.tenant_id, work.device_id, item.domain, item.id))
                found += 0 if waiting is None else size_bytes(waiting)
    return found
