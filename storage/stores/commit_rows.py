"""The kinds of row that a batch reads in one statement, by name, and the snapshot that is made of them.

The statement is a UNION ALL, so all kinds share its columns: the kind's number, six texts and six integers.
``select`` puts each field of a kind into a column of its type and pads the rest with NULL.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from operator import itemgetter
from typing import Any, Final, NamedTuple, get_type_hints

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
from engine.model.uploads import State, UploadRef
from storage.postgres.driver import Row
from storage.stores.stored_conflict import decode_conflict

#: The columns of the statement behind the kind's number.
_TEXT_COLUMNS: Final = range(1, 7)
_INTEGER_COLUMNS: Final = range(7, 13)


class StoredSnapshot(Snapshot):
    """A snapshot, and what the store itself needs to know of it.

    ``tombstones`` are the records that are tombstones in the table, whatever the plan makes of them. ``day``
    is the database's day, as days since 1970-01-01 UTC.
    """

    tombstones: set[RecordKey] = msgspec.field(default_factory=set)
    day: int = 0


class CounterRow(NamedTuple):
    """A tenant's counter. ``usage`` is what it holds, comma-separated, None if that was not asked."""

    tenant_id: int
    seq: int
    day: int
    usage: str | None


class AnswerRow(NamedTuple):
    """The kept answer of a message. ``key_hash`` is written as a UUID."""

    tenant_id: int
    key_hash: str
    request_sha256: str
    age_s: int
    results: str


class RecordRow(NamedTuple):
    """A record. ``data`` are a tombstone's last data."""

    tenant_id: int
    domain: str
    id: str
    version: int
    seq: int
    at_us: int
    chain_from: int
    data: str | None
    fields: str | None
    device_id: str | None
    attachments: str | None
    sent_at_us: int | None


class TombstoneRow(RecordRow):
    """A tombstone: the same columns as a record, under a number of its own."""


class EventRow(NamedTuple):
    """An event."""

    tenant_id: int
    domain: str
    id: str
    sent_at_us: int
    at_us: int
    device_id: str
    data: str


class OpenConflictRow(NamedTuple):
    """An open conflict that was asked by device and record. ``conflict`` is its row as JSON."""

    conflict: str


class ConflictRow(NamedTuple):
    """A conflict that was asked by its id. ``conflict`` is its row as JSON."""

    conflict: str


class UploadRow(NamedTuple):
    """The state of an upload."""

    tenant_id: int
    upload_id: str
    state: State


class DuplicateRow(NamedTuple):
    """An upload with the same content and name on the same record as the one that was asked."""

    tenant_id: int
    upload_id: str
    duplicate_id: str
    state: State


class RejectedRow(NamedTuple):
    """The first quarantined item of a device on a record."""

    tenant_id: int
    device_id: str
    domain: str
    id: str
    quarantine_id: str


class QuarantineRow(NamedTuple):
    """A quarantined item that is there."""

    tenant_id: int
    quarantine_id: str


def snapshot_of(rows: list[Row]) -> StoredSnapshot:
    """Make a snapshot of the rows that were read."""
    snapshot = StoredSnapshot({}, {}, {}, {}, {}, {})
    for row in rows:
        fields_of, take = _READERS[row[0]]
        take(snapshot, fields_of(row))
    return snapshot


def _take_counter(snapshot: StoredSnapshot, row: CounterRow) -> None:
    tenant_id, seq, snapshot.day, usage = row
    snapshot.seqs[tenant_id] = seq
    if usage is not None:
        snapshot.usage[tenant_id] = TenantUsage(*map(int, usage.split(",")))


def _take_answer(snapshot: StoredSnapshot, row: AnswerRow) -> None:
    tenant_id, key_hash, request_sha256, age_s, results = row
    key = IdempotencyKey(tenant_id, key_hash.replace("-", ""))
    known = snapshot.keys.get(key)
    if known is None or known.age_s > age_s:
        snapshot.keys[key] = IdempotencyRecord(
            tenant_id, key.key_hash, request_sha256, results.encode(), age_s
        )


def _take_record(snapshot: StoredSnapshot, row: RecordRow) -> None:
    (
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


def _take_tombstone(snapshot: StoredSnapshot, row: TombstoneRow) -> None:
    _take_record(snapshot, row)
    key = RecordKey(row[0], row[1], row[2])
    record = snapshot.records[key]
    snapshot.records[key] = msgspec.structs.replace(record, data=None, last_data=record.data)
    snapshot.tombstones.add(key)


def _take_event(snapshot: StoredSnapshot, row: EventRow) -> None:
    tenant_id, domain, event_id, sent_at_us, at_us, device_id, data = row
    event = Event(tenant_id, domain, event_id, sent_at_us, at_us, device_id, data.encode())
    snapshot.events[EventKey(tenant_id, domain, event_id, sent_at_us)] = event


def _take_open_conflict(snapshot: StoredSnapshot, row: OpenConflictRow) -> None:
    found = decode_conflict(row.conflict)
    ref = OpenConflictRef(found.tenant_id, found.device_id, found.domain, found.record_id)
    snapshot.open_conflicts[ref] = found


def _take_conflict(snapshot: StoredSnapshot, row: ConflictRow) -> None:
    found = decode_conflict(row.conflict)
    snapshot.conflicts[ConflictRef(found.tenant_id, found.conflict_id)] = found


def _take_upload(snapshot: StoredSnapshot, row: UploadRow) -> None:
    snapshot.uploads[UploadRef(row.tenant_id, row.upload_id)] = row.state


def _take_duplicate(snapshot: StoredSnapshot, row: DuplicateRow) -> None:
    duplicate = UploadRef(row.tenant_id, row.duplicate_id)
    snapshot.duplicates.setdefault(UploadRef(row.tenant_id, row.upload_id), []).append(duplicate)
    snapshot.uploads.setdefault(duplicate, row.state)


def _take_rejected(snapshot: StoredSnapshot, row: RejectedRow) -> None:
    key = DeviceRecordKey(row.tenant_id, row.device_id, row.domain, row.id)
    snapshot.rejected_before[key] = row.quarantine_id


def _take_quarantined(snapshot: StoredSnapshot, row: QuarantineRow) -> None:
    snapshot.recovering.add(QuarantineRef(row.tenant_id, row.quarantine_id))


#: Every kind, in the order of their numbers, and how a row of it enters the snapshot.
_KINDS: Final[tuple[tuple[type[Any], Callable[[StoredSnapshot, Any], None]], ...]] = (
    (CounterRow, _take_counter),
    (AnswerRow, _take_answer),
    (RecordRow, _take_record),
    (TombstoneRow, _take_tombstone),
    (EventRow, _take_event),
    (OpenConflictRow, _take_open_conflict),
    (ConflictRow, _take_conflict),
    (UploadRow, _take_upload),
    (DuplicateRow, _take_duplicate),
    (RejectedRow, _take_rejected),
    (QuarantineRow, _take_quarantined),
)
_NUMBERS: Final = {kind: number for number, (kind, _) in enumerate(_KINDS)}


def select(kind: type[Any], **expressions: str) -> str:
    """Return the SELECT list of one kind, without its FROM.

    Args:
        kind: The kind of row.
        **expressions: The SQL expression of each field. ``number`` is that of the kind's number, if it is not
            the same for all rows.
    """
    number = expressions.pop("number", str(_NUMBERS[kind]))
    assert set(expressions) == set(kind._fields), f"{kind.__name__} has other fields"
    columns = dict(zip(kind._fields, _columns(kind), strict=True))
    by_column = {columns[name]: expression for name, expression in expressions.items()}
    padded = [by_column.get(column, "NULL::text") for column in _TEXT_COLUMNS]
    padded += [by_column.get(column, "NULL::bigint") for column in _INTEGER_COLUMNS]
    return f"SELECT {number}, {', '.join(padded)}"


def number_of(kind: type[Any]) -> int:
    """Return the number of a kind, for a SELECT that has rows of several."""
    return _NUMBERS[kind]


def _columns(kind: type[Any]) -> list[int]:
    """Return the column of each field, in the order of the fields: the next free one of its type."""
    texts, integers = iter(_TEXT_COLUMNS), iter(_INTEGER_COLUMNS)
    hints = get_type_hints(kind)
    return [next(integers if hints[name] in (int, int | None) else texts) for name in kind._fields]


def _fields_of(kind: type[Any]) -> Callable[[Row], Any]:
    """Return what makes a kind's row by name of a row of the statement."""
    make, columns = tuple.__new__, _columns(kind)  # in half the time that the class itself takes
    if len(columns) == 1:
        return lambda row: make(kind, (row[columns[0]],))
    take = itemgetter(*columns)
    return lambda row: make(kind, take(row))


_READERS: Final = {
    number: (_fields_of(kind), take) for number, (kind, take) in zip(count(), _KINDS, strict=False)
}
