"""The kinds of row that a batch reads in one statement, by name, and the snapshot that is made of them.

The statement is a UNION ALL, so all kinds share its columns: the kind's number, then those of ``RecordRow``.
``select`` puts each field of a kind into a column of its type and pads the rest with NULL.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from operator import itemgetter
from typing import Any, Final, NamedTuple, get_type_hints

import msgspec

from engine.model.rows import (
    KEYED_CHARS,
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
from storage.stores.sealed.answers import open_answer
from storage.stores.sealed.same_file import is_same_file
from storage.stores.sealed.sealing import (
    EVENT_DATA,
    RECORD_DATA,
    RECORD_FILES,
    RECORD_LAST_DATA,
    REQUEST,
    Sealing,
)
from storage.stores.stored_conflict import conflict_in_steps
from storage.stores.upload_states import STATES_BY_TEXT


class StoredSnapshot(Snapshot):
    """A snapshot, and what the store itself needs to know of it.

    ``tombstones`` are the records that are tombstones in the table, whatever the plan makes of them. ``hour``
    is the database's hour, as hours since 1970-01-01 UTC. ``counted`` are the counts that each tenant's
    counter has, and their hour. ``sealing`` opens what is sealed. ``sealed`` and ``key_ids`` are what seals
    in the database, empty if nothing does.
    """

    tombstones: set[RecordKey] = msgspec.field(default_factory=set)
    hour: int = 0
    counted: dict[int, tuple[int, str]] = msgspec.field(default_factory=dict)
    sealing: Sealing = msgspec.field(default_factory=Sealing)
    sealed: str | None = None
    key_ids: dict[int, str | None] = msgspec.field(default_factory=dict)


class CounterRow(NamedTuple):
    """A tenant's counter.

    ``usage`` is what it holds, comma-separated, None if that was not asked. ``counts`` are those of
    ``counted_hour``, None without any. ``sealed`` and ``key_id`` are what ``Sealing.check`` compares.
    """

    tenant_id: int
    seq: int
    hour: int
    counted_hour: int
    usage: str | None
    counts: str | None
    sealed: str | None
    key_id: str | None


class AnswerRow(NamedTuple):
    """The kept answer of a message. ``key_hash`` is written as a UUID.

    If ``results`` are sealed, the hash is in them, and ``request_sha256`` is 00. A hash that was made with a
    key has ``KEYED_CHARS``.
    """

    tenant_id: int
    key_hash: str
    request_sha256: str
    age_s: int
    results: str


class RecordRow(NamedTuple):
    """A record. ``data`` are a tombstone's last data.

    It has every column of the statement in its order, so that a row of the statement is one: records are
    nearly all that is read, and to make another tuple of each would cost 0.3 µs.
    """

    number: int
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

    tenant_id: int
    conflict: str


class ConflictRow(NamedTuple):
    """A conflict that was asked by its id. ``conflict`` is its row as JSON."""

    tenant_id: int
    conflict: str


class UploadRow(NamedTuple):
    """The state of an upload, as rows spell it."""

    tenant_id: int
    upload_id: str
    state: str


class DuplicateRow(NamedTuple):
    """An upload with the same content and name on the same record as the one that was asked.

    ``own`` and ``other`` are the hash and the name of each. Only if they are sealed they may differ.
    """

    tenant_id: int
    upload_id: str
    duplicate_id: str
    state: str
    domain: str
    own: str
    other: str


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


_Steps = Generator[None, None, None]


def snapshot_steps(rows: list[Row], sealing: Sealing) -> Generator[None, None, StoredSnapshot]:
    """Make a snapshot of the rows that were read, in steps where much of them is sealed.

    Raises KeysMissingError, and StoreError if a value cannot be opened.
    """
    snapshot = StoredSnapshot({}, {}, {}, {}, {}, {}, sealing=sealing)
    for row in rows:
        fields_of, take = _READERS[row[0]]
        steps = take(snapshot, row if fields_of is None else fields_of(row))
        if steps is not None:
            yield from steps
        if sealing.slice_is_full():
            yield
    return snapshot


def _take_counter(snapshot: StoredSnapshot, row: CounterRow) -> None:
    tenant_id, seq, snapshot.hour, counted_hour, usage, counts, sealed, key_id = row
    # Counters are the first rows: what another key sealed is not opened before.
    if sealed is not None or snapshot.sealing.on:
        snapshot.sealing.check(sealed, {tenant_id: key_id})
        snapshot.sealed, snapshot.key_ids[tenant_id] = sealed, key_id
    snapshot.seqs[tenant_id] = seq
    if counts is not None:
        snapshot.counted[tenant_id] = (counted_hour, counts)
    if usage is not None:
        snapshot.usage[tenant_id] = TenantUsage(*map(int, usage.split(",")))


def _take_answer(snapshot: StoredSnapshot, row: AnswerRow) -> None:
    tenant_id, key_hash, request_sha256, age_s, results = row
    key = IdempotencyKey(tenant_id, key_hash.replace("-", ""))
    known = snapshot.keys.get(key)
    if known is None or known.age_s > age_s:
        if results[0] == '"':
            request_sha256, plain = open_answer(snapshot.sealing, key, results)
        else:
            plain = results.encode()
            if len(request_sha256) == KEYED_CHARS:
                snapshot.sealing.need_key_of(REQUEST, tenant_id, request_sha256)  # the plan compares it
        snapshot.keys[key] = IdempotencyRecord(tenant_id, key.key_hash, request_sha256, plain, age_s)


def _take_record(snapshot: StoredSnapshot, row: RecordRow, place: str = RECORD_DATA) -> None:
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
    # The first characters are compared here, because a call for each would cost all records 0.2 µs.
    if data is None or data[0] != '"':
        plain = None if data is None else data.encode()
    else:
        plain = snapshot.sealing.open(place, tenant_id, domain, record_id, version, data)
    if files is None or files[0] != '"':
        plain_files = None if files is None else files.encode()
    else:
        plain_files = snapshot.sealing.open(RECORD_FILES, tenant_id, domain, record_id, version, files)
    snapshot.records[RecordKey(tenant_id, domain, record_id)] = Record(
        tenant_id,
        domain,
        record_id,
        version,
        seq,
        at_us,
        device_id,
        chain_from,
        plain,
        None if fields is None else fields.encode(),
        plain_files,
        sent_at_us,
    )


def _take_tombstone(snapshot: StoredSnapshot, row: TombstoneRow) -> None:
    _take_record(snapshot, row, RECORD_LAST_DATA)
    key = RecordKey(row[1], row[2], row[3])
    record = snapshot.records[key]
    snapshot.records[key] = msgspec.structs.replace(record, data=None, last_data=record.data)
    snapshot.tombstones.add(key)


def _take_event(snapshot: StoredSnapshot, row: EventRow) -> None:
    tenant_id, domain, event_id, sent_at_us, at_us, device_id, data = row
    plain = snapshot.sealing.open(EVENT_DATA, tenant_id, domain, event_id, sent_at_us, data)
    assert plain is not None
    event = Event(tenant_id, domain, event_id, sent_at_us, at_us, device_id, plain)
    snapshot.events[EventKey(tenant_id, domain, event_id, sent_at_us)] = event


def _take_open_conflict(snapshot: StoredSnapshot, row: OpenConflictRow) -> _Steps:
    found = yield from conflict_in_steps(row.conflict, snapshot.sealing)
    ref = OpenConflictRef(found.tenant_id, found.device_id, found.domain, found.record_id)
    snapshot.open_conflicts[ref] = found


def _take_conflict(snapshot: StoredSnapshot, row: ConflictRow) -> _Steps:
    found = yield from conflict_in_steps(row.conflict, snapshot.sealing)
    snapshot.conflicts[ConflictRef(found.tenant_id, found.conflict_id)] = found


def _take_upload(snapshot: StoredSnapshot, row: UploadRow) -> None:
    snapshot.uploads[UploadRef(row.tenant_id, row.upload_id)] = STATES_BY_TEXT[row.state]


def _take_duplicate(snapshot: StoredSnapshot, row: DuplicateRow) -> None:
    duplicate = UploadRef(row.tenant_id, row.duplicate_id)
    if row.own != row.other and not is_same_file(snapshot.sealing, *row[:3], *row[4:]):
        return
    snapshot.duplicates.setdefault(UploadRef(row.tenant_id, row.upload_id), []).append(duplicate)
    snapshot.uploads.setdefault(duplicate, STATES_BY_TEXT[row.state])


def _take_rejected(snapshot: StoredSnapshot, row: RejectedRow) -> None:
    key = DeviceRecordKey(row.tenant_id, row.device_id, row.domain, row.id)
    snapshot.rejected_before[key] = row.quarantine_id


def _take_quarantined(snapshot: StoredSnapshot, row: QuarantineRow) -> None:
    snapshot.recovering.add(QuarantineRef(row.tenant_id, row.quarantine_id))


#: Every kind, in the order of their numbers, and how a row of it enters the snapshot.
_KINDS: Final[tuple[tuple[type[Any], Callable[[StoredSnapshot, Any], _Steps | None]], ...]] = (
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
        **expressions: The SQL expression of each field, and ``number`` if it is not the same for all rows.
    """
    by_column = {0: expressions.pop("number", str(_NUMBERS[kind]))}
    columns = _columns(kind)
    assert set(expressions) == set(columns), f"{kind.__name__} has other fields"
    by_column |= {columns[name]: expression for name, expression in expressions.items()}
    types = enumerate(["bigint", *_TYPES])
    return "SELECT " + ", ".join([by_column.get(column, f"NULL::{name}") for column, name in types])


def number_of(kind: type[Any]) -> int:
    """Return the number of a kind, for a SELECT that has rows of several."""
    return _NUMBERS[kind]


def _types(kind: type[Any]) -> dict[str, str]:
    """Return the SQL type of each field of a kind but the number."""
    hints = get_type_hints(kind)
    names = [name for name in kind._fields if name != "number"]
    return {name: "bigint" if hints[name] in (int, int | None) else "text" for name in names}


_TYPES: Final = tuple(_types(RecordRow).values())


def _columns(kind: type[Any]) -> dict[str, int]:
    """Return the column of each field: the next free one of its type."""
    free = {
        wanted: iter([column for column, name in enumerate(_TYPES, 1) if name == wanted])
        for wanted in ("text", "bigint")
    }
    return {name: next(free[wanted]) for name, wanted in _types(kind).items()}


def _fields_of(kind: type[Any]) -> Callable[[Row], Any] | None:
    """Return what makes a kind's fields of a row of the statement, None if the row has them as they are."""
    if issubclass(kind, RecordRow):
        return None
    take = itemgetter(*_columns(kind).values())
    return lambda row: kind._make(take(row))


_READERS: Final = {number: (_fields_of(kind), take) for number, (kind, take) in enumerate(_KINDS)}
