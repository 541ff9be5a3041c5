"""What the store holds, as the engine sees it: rows read under the locks and rows to write.

Instants are microseconds since 1970-01-01 UTC (``_us``); ``data`` is compact UTF-8 JSON.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from engine.model.uploads import State as UploadState
from engine.model.uploads import UploadRef
from engine.wire.messages import Op

#: What stands where there were files once. None would say that there never were any.
NO_FILES: Final = b"[]"


class RecordKey(NamedTuple):
    """The identity of a record."""

    tenant_id: int
    domain: str
    id: str


class EventKey(NamedTuple):
    """The identity of an event; ``sent_at_us`` is the device's ``at`` as sent."""

    tenant_id: int
    domain: str
    id: str
    sent_at_us: int


class IdempotencyKey(NamedTuple):
    """An idempotency key: ``key_hash`` is 32 hex digits over device and key."""

    tenant_id: int
    key_hash: str


class OpenConflictRef(NamedTuple):
    """The one open conflict that a device may have on a record."""

    tenant_id: int
    device_id: str
    domain: str
    id: str


class ConflictRef(NamedTuple):
    """A conflict by its id."""

    tenant_id: int
    conflict_id: str


class QuarantineRef(NamedTuple):
    """A quarantined item by its id."""

    tenant_id: int
    quarantine_id: str


class DeviceRecordKey(NamedTuple):
    """The rejected items of one device on one record."""

    tenant_id: int
    device_id: str
    domain: str
    id: str


class Record(msgspec.Struct, frozen=True):
    """The latest version of a record; ``data`` is None for a tombstone.

    Every version from ``chain_from`` to ``version`` was written by ``device_id``; a version that is
    nobody's (a settled conflict) has ``chain_from`` above ``version``. ``fields`` is the JSON of
    the field versions (``engine.model.merge``), None where the domain was not merged by field.
    ``attachments`` is the JSON array of the record's files, None where there never were any; a tombstone
    keeps it. ``sent_at_us`` is the ``at`` of this version as its device sent it (``engine.plan.own_order``).
    ``last_data`` is a tombstone's data before it was deleted, None where they are kept no longer.
    """

    tenant_id: int
    domain: str
    id: str
    version: int
    seq: int
    at_us: int
    device_id: str | None
    chain_from: int
    data: bytes | None
    fields: bytes | None = None
    attachments: bytes | None = None
    sent_at_us: int | None = None
    last_data: bytes | None = None

    @property
    def size_bytes(self) -> int:
        """What a page or a batch handles of it."""
        return len(self.data or self.last_data or b"") + len(self.attachments or b"")

    @property
    def patch_base(self) -> bytes | None:
        """The data that a conflicting patch applies to: of a tombstone its last ones, if they are kept."""
        return self.last_data if self.data is None else self.data


class Event(msgspec.Struct, frozen=True):
    """An event; ``at_us`` is ``sent_at_us`` corrected by the device's clock offset."""

    tenant_id: int
    domain: str
    id: str
    sent_at_us: int
    at_us: int
    device_id: str
    data: bytes


class IdempotencyRecord(msgspec.Struct, frozen=True):
    """The kept answer of one message: ``results`` is the JSON array of its results.

    ``age_s`` is how long it was kept when it was read.
    """

    tenant_id: int
    key_hash: str
    request_sha256: str
    results: bytes
    age_s: int = 0


class HeldChange(msgspec.Struct, frozen=True):
    """One change that waits for a person; ``data`` is the put's record or the patch, None for a delete.

    ``base`` is None where the device knew of no record. ``at_us`` is corrected, ``sent_at_us`` as sent.
    """

    op: Op
    base: int | None
    at_us: int
    sent_at_us: int
    data: bytes | None


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """One conflict with both sides, as logged; ``outcome`` is ``open`` while it waits.

    ``client_data`` is the item's own data: the whole record for a put, the patch for a patch, None
    for a delete. ``server_data`` are the fields of the record it met that it replaced; where the record was
    left as it was, those that it would have replaced, the smallest of them if they are much
    (``engine.plan.answers.KEPT_DATA_BYTES``). None is a tombstone; rows of earlier versions have the whole
    record.
    ``settled_*`` say how a person decided.

    An item that joins an open conflict has a row of its own too: ``outcome`` is ``held``, ``held_in`` the
    open one's id. That one then has in ``client_changes`` all that it holds (``engine.plan.held_changes``;
    None while that is its own item) and in ``client_count`` how many changes it took in, those included that
    a later put or delete dropped. ``client_sent_at_us`` is None in rows from before it was kept.
    """

    tenant_id: int
    conflict_id: str
    domain: str
    record_id: str
    device_id: str
    policy: str
    outcome: str
    server_version: int
    server_data: bytes | None
    client_base: int | None
    client_op: Op
    client_at_us: int
    client_data: bytes | None
    client_sent_at_us: int | None = None
    client_changes: tuple[HeldChange, ...] | None = None
    client_count: int = 1
    held_in: str | None = None
    opened_at_us: int
    settled_by: str | None = None
    settled_at_us: int | None = None
    settled_sha256: str | None = None
    settled_version: int | None = None
    settled_seq: int | None = None


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """A rejected item, kept so that an operator can recover it; ``item`` is JSON text.

    It came at ``at_us``, when the server's clock was ``clock_offset_us`` ahead of the device's.
    """

    tenant_id: int
    quarantine_id: str
    device_id: str
    domain: str | None
    record_id: str | None
    item: bytes
    code: str
    message: str
    at_us: int
    clock_offset_us: int = 0


class TenantUsage(msgspec.Struct):
    """Rows and bytes that a tenant holds, or may hold, or by which that changes.

    ``record_bytes`` are data, last data and field versions. ``conflict_bytes`` are both sides of all
    conflicts, ``answer_bytes`` those of kept answers. ``future_event_rows`` are events that were dated more
    than a day ahead when they came; the store counts them anew as time passes.
    """

    record_rows: int = 0
    record_bytes: int = 0
    conflict_rows: int = 0
    conflict_bytes: int = 0
    quarantine_rows: int = 0
    quarantine_bytes: int = 0
    event_rows: int = 0
    event_bytes: int = 0
    answer_rows: int = 0
    answer_bytes: int = 0
    future_event_rows: int = 0

    def numbers(self) -> tuple[int, ...]:
        """Return all numbers in the order of the fields."""
        return msgspec.structs.astuple(self)

    def copy(self) -> TenantUsage:
        """Return one of its own."""
        return TenantUsage(*msgspec.structs.astuple(self))


class ReadSet(msgspec.Struct):
    """What one batch needs locked and read. ``tenants`` is ascending and without doubles.

    ``keys`` are looked for in the last two days, ``old_keys``, which are among them, in older days as well.
    ``duplicates`` are uploads of which those with the same content and name on the same record are asked.
    ``recovering`` are quarantined items of which it is asked whether they are there.
    ``usage_above`` are numbers in the order of ``TenantUsage``: the usage of a tenant that holds no more than
    these need not be told; where there are none, that of all is.
    """

    tenants: list[int]
    keys: list[IdempotencyKey]
    records: list[RecordKey]
    events: list[EventKey]
    open_conflicts: list[OpenConflictRef]
    conflicts: list[ConflictRef]
    uploads: list[UploadRef] = []
    duplicates: list[UploadRef] = []
    old_keys: list[IdempotencyKey] = []
    rejected_before: list[DeviceRecordKey] = []
    recovering: list[QuarantineRef] = []
    usage_above: tuple[int, ...] = ()


class Snapshot(msgspec.Struct):
    """What the store answered to ``ReadSet``; what does not exist is missing from the dicts.

    ``duplicates`` are the others, of which there is a file, also of one device; ``uploads`` has their states.
    ``rejected_before`` has the quarantine_id of the first item. ``usage`` is what tenants hold, of those
    that hold more than was asked for.
    """

    seqs: dict[int, int]
    keys: dict[IdempotencyKey, IdempotencyRecord]
    records: dict[RecordKey, Record]
    events: dict[EventKey, Event]
    open_conflicts: dict[OpenConflictRef, Conflict]
    conflicts: dict[ConflictRef, Conflict]
    uploads: dict[UploadRef, UploadState] = {}
    duplicates: dict[UploadRef, list[UploadRef]] = {}
    rejected_before: dict[DeviceRecordKey, str] = {}
    recovering: set[QuarantineRef] = set()
    usage: dict[int, TenantUsage] = {}


class WriteSet(msgspec.Struct):
    """What one batch writes, at most one row per identity. ``seqs`` are the counters' new values.

    ``conflicts`` are inserted or, by (tenant_id, conflict_id), replaced; ``recovered`` leave the quarantine.
    ``uploads`` are the states that finished uploads move to. ``usage`` is by how much tenants hold more.
    """

    seqs: dict[int, int]
    records: list[Record]
    events: list[Event]
    keys: list[IdempotencyRecord]
    conflicts: list[Conflict]
    quarantine: list[Quarantined]
    recovered: list[QuarantineRef] = []
    uploads: list[tuple[UploadRef, UploadState]] = []
    usage: dict[int, TenantUsage] = {}
