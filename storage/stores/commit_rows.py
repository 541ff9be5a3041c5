"""The rows that a batch reads, and the state that is made of them."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from engine.model.rows import (
    ConflictRef,
    DeviceRecordKey,
    Event,
    EventKey,
    IdempotencyKey,
    IdempotencyRecord,
    OpenConflictRef,
    QuarantineRef,
    Record,
    RecordKey,
    Snapshot,
    TenantUsage,
)
from engine.model.uploads import UploadRef
from storage.postgres.driver import Row
from storage.stores.stored_conflict import decode_conflict


class StoredSnapshot(Snapshot):
    """What was read, and which records are tombstones in the table, whatever the plan makes of them."""

    tombstones: set[RecordKey] = msgspec.field(default_factory=set)


def snapshot_of(rows: list[Row]) -> StoredSnapshot:
    """Make a state of the rows that were read."""
    snapshot = StoredSnapshot({}, {}, {}, {}, {}, {})
    for row in rows:
        _READ[row[0]](snapshot, row)
    return snapshot


def _counter(snapshot: Snapshot, row: Row) -> None:
    snapshot.seqs[row[1]] = row[4]
    if row[8] is not None:
        snapshot.usage[row[1]] = TenantUsage(*map(int, row[8].split(",")))


def _key(snapshot: Snapshot, row: Row) -> None:
    ref = IdempotencyKey(row[1], row[2].replace("-", ""))
    kept = snapshot.keys.get(ref)
    if kept is None or kept.age_s > row[4]:
        snapshot.keys[ref] = IdempotencyRecord(row[1], ref.key_hash, row[3], row[8].encode(), row[4])


def _record(snapshot: Snapshot, row: Row) -> None:
    (
        _,
        tenant_id,
        domain,
        record_id,
        version,
        seq,
        at_us,
        chain_from,
        data,
        fields,
        device_id,
        files,
        sent_at_us,
    ) = row
    snapshot.records[RecordKey(tenant_id, domain, record_id)] = Record(
        tenant_id,
        domain,
        record_id,
        version,
        seq,
        at_us,
        device_id,
        chain_from,
        None if data is None else data.encode(),
        None if fields is None else fields.encode(),
        None if files is None else files.encode(),
        sent_at_us,
    )


def _tombstone(snapshot: StoredSnapshot, row: Row) -> None:
    """Its last data stand where those of others do."""
    _record(snapshot, row)
    key = RecordKey(row[1], row[2], row[3])
    record = snapshot.records[key]
    snapshot.records[key] = msgspec.structs.replace(record, data=None, last_data=record.data)
    snapshot.tombstones.add(key)


def _event(snapshot: Snapshot, row: Row) -> None:
    _, tenant_id, domain, event_id, sent_at_us, at_us, _, _, data, _, device_id, _, _ = row
    event = Event(tenant_id, domain, event_id, sent_at_us, at_us, device_id, data.encode())
    snapshot.events[EventKey(tenant_id, domain, event_id, sent_at_us)] = event


def _held(snapshot: Snapshot, row: Row) -> None:
    held = decode_conflict(row[8])
    snapshot.open_conflicts[OpenConflictRef(held.tenant_id, held.device_id, held.domain, held.record_id)] = (
        held
    )


def _conflict(snapshot: Snapshot, row: Row) -> None:
    conflict = decode_conflict(row[8])
    snapshot.conflicts[ConflictRef(conflict.tenant_id, conflict.conflict_id)] = conflict


def _upload(snapshot: Snapshot, row: Row) -> None:
    snapshot.uploads[UploadRef(row[1], row[2])] = row[3]


def _twin(snapshot: Snapshot, row: Row) -> None:
    twin = UploadRef(row[1], row[3])
    snapshot.duplicates.setdefault(UploadRef(row[1], row[2]), []).append(twin)
    snapshot.uploads.setdefault(twin, row[8])


def _aside(snapshot: Snapshot, row: Row) -> None:
    snapshot.rejected_before[DeviceRecordKey(row[1], row[10], row[2], row[3])] = row[8]


def _recovered(snapshot: Snapshot, row: Row) -> None:
    snapshot.recovering.add(QuarantineRef(row[1], row[2]))


_READ: Final[dict[int, Any]] = {
    0: _counter,
    1: _key,
    2: _record,
    3: _event,
    4: _held,
    5: _conflict,
    6: _upload,
    7: _twin,
    8: _tombstone,
    9: _aside,
    10: _recovered,
}
