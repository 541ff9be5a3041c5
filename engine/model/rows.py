"""The rows of the store: those that a batch reads under its locks, and those that it writes.

Instants are microseconds since 1970-01-01 UTC (``_us``). ``data`` is compact UTF-8 JSON.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from engine.model.audit import AuditRow
from engine.model.commit_counts import CommitCounts
from engine.model.uploads import State as UploadState
from engine.model.uploads import UploadRef
from engine.wire.messages import Op

#: The characters of a hash of a request that was made with a key; a plain one has 64.
KEYED_CHARS: Final = 74
#: The ``attachments`` of a record that has no files any longer. None means that it never had any.
NO_FILES: Final = b"[]"


class RecordKey(NamedTuple):
    """The identity of a record."""

    tenant_id: int
    domain: str
    id: str


class EventKey(NamedTuple):
    """The identity of an event. ``sent_at_us`` is ``at`` as the device sent it."""

    tenant_id: int
    domain: str
    id: str
    sent_at_us: int


class IdempotencyKey(NamedTuple):
    """An idempotency key. ``key_hash`` is a hash of device and key, 32 hex digits."""

    tenant_id: int
    key_hash: str


class OpenConflictRef(NamedTuple):
    """The open conflict of a device on a record; there is one at most."""

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
    """A device and a record: the items of this device on this record."""

    tenant_id: int
    device_id: str
    domain: str
    id: str


class Record(msgspec.Struct, frozen=True):
    """The latest version of a record. ``data`` is None for a tombstone.

    ``device_id`` wrote every version from ``chain_from`` to ``version``. A version that a person wrote by
    settling a conflict has ``chain_from`` above ``version``. ``fields`` is the JSON of the field versions
    (``engine.model.merge``), None if it was written without ``field_merge``. ``attachments`` is the JSON
    array of the record's files, None if it never had any; a tombstone keeps it. ``sent_at_us`` is the ``at``
    of this version as its device sent it (``engine.plan.own_order``). ``last_data`` are a tombstone's data
    before its deletion, None if they are kept no longer.
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
        """The bytes of data and attachments."""
        return len(self.data or self.last_data or b"") + len(self.attachments or b"")

    @property
    def patch_base(self) -> bytes | None:
        """The data that a conflicting patch applies to: the last data of a tombstone, if they are kept."""
        return self.last_data if self.data is None else self.data


class Event(msgspec.Struct, frozen=True):
    """An event. ``at_us`` is ``sent_at_us`` corrected by the device's clock offset."""

    tenant_id: int
    domain: str
    id: str
    sent_at_us: int
    at_us: int
    device_id: str
    data: bytes


class IdempotencyRecord(msgspec.Struct, frozen=True):
    """The stored answer of one message. ``results`` is the JSON array of its results.

    ``age_s`` is its age when it was read. ``personal``: an item may be of a domain with personal data, so the
    answer is stored sealed. If it is ``bare``, all items were applied or unchanged: it has neither data nor
    errors, and only the hash tells of the request. Such a hash is read as it is stored, made with a key, in
    ``KEYED_CHARS`` characters.
    """

    tenant_id: int
    key_hash: str
    request_sha256: str
    results: bytes
    age_s: int = 0
    personal: bool = False
    bare: bool = False


class HeldChange(msgspec.Struct, frozen=True):
    """One change that waits for a person. ``data`` is the put's record or the patch, None for a delete.

    ``base`` is None if the device knew of no record. ``at_us`` is corrected, ``sent_at_us`` as sent.
    """

    op: Op
    base: int | None
    at_us: int
    sent_at_us: int
    data: bytes | None


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """One conflict with both sides, as logged. ``outcome`` is ``open`` until a person settles it.

    ``client_data`` are the item's own data: the whole record for a put, the patch for a patch, None for a
    delete. ``server_data`` are the fields of the record that the change replaced. If the record was not
    changed, they are the fields that the change would have replaced, only the smallest if there are many
    (``engine.plan.answers.KEPT_DATA_BYTES``). None is a tombstone. Rows of earlier releases have the whole
    record. ``settled_*`` tell how a person decided.

    An item that joins an open conflict has a row of its own, too: ``outcome`` is ``held`` and ``held_in`` the
    id of the open conflict. That conflict has all changes that it holds in ``client_changes``
    (``engine.plan.held_changes``; None while its own item is the only one). Its ``client_count`` counts all
    changes that joined it, also those that a later put or delete dropped. ``client_sent_at_us`` is None in
    rows that were written before the field existed.
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
    """A rejected item, kept so that an operator can retry it. ``item`` is JSON text.

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
    """Rows and bytes of a tenant: what it holds, what it may hold, or a change of what it holds.

    ``record_bytes`` are data, last data and field versions. ``conflict_bytes`` are both sides of all
    conflicts, ``answer_bytes`` the stored answers. ``future_event_rows`` are events that were dated more than
    a day ahead when they came; the store counts them again as time passes.
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
        """Return a copy."""
        return TenantUsage(*msgspec.structs.astuple(self))


class ReadSet(msgspec.Struct):
    """The tenants that a batch locks and the rows that it reads. ``tenants`` is ascending, each once.

    ``keys`` are looked up in the last two days, ``old_keys``, a part of them, in older days, too. For
    ``duplicates`` the store finds uploads with the same content and name on the same record. For
    ``rejected_before`` it finds the first quarantined item, and for ``recovering`` whether the item is in the
    quarantine. ``usage_above`` are numbers in the order of ``TenantUsage``: a tenant's usage is read only if
    one of its numbers is higher. If it is empty, all usage is read.
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
    """The rows that the store found for a ``ReadSet``. Rows that do not exist are missing.

    ``duplicates`` are the other uploads of any device whose file is the same; ``uploads`` has their
    states, too. ``rejected_before`` has the quarantine_id of the first item. ``usage`` has the tenants above
    ``ReadSet.usage_above``.
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
    """The rows that one batch writes, one per identity at most. ``seqs`` are the counters' new values.

    ``conflicts`` are inserted or, by (tenant_id, conflict_id), replaced. ``recovered`` are removed from the
    quarantine. ``uploads`` are new states of finished uploads. ``usage`` is how much more each tenant holds.
    ``audit`` are security events.
    ``counts`` are added to those of each tenant's present hour.
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
    audit: list[AuditRow] = []
    counts: dict[int, CommitCounts] = {}
