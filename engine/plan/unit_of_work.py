"""The rows of a batch: those to read, then those that were read, with all changes of the plan so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final, NamedTuple

from engine.model.audit import AuditRow
from engine.model.commit_counts import OTHER_DOMAIN, PLACES, CommitCounts
from engine.model.rows import (
    Conflict,
    ConflictRef,
    DeviceRecordKey,
    Event,
    EventKey,
    IdempotencyKey,
    IdempotencyRecord,
    OpenConflictRef,
    Quarantined,
    ReadSet,
    Record,
    RecordKey,
    Snapshot,
    TenantUsage,
    WriteSet,
)
from engine.model.uploads import State as UploadState
from engine.model.uploads import UploadRef
from engine.plan.bounds.tenant_usage import AHEAD_US, conflict_bytes, record_bytes
from engine.plan.decoded import DecodedRecords
from engine.plan.work import Change, Push
from engine.wire.messages import Result

_NOTHING: Final = TenantUsage()
#: Makes a named tuple in half the time that its class takes.
_new = tuple.__new__


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


class Savepoint(NamedTuple):
    """The rows that an atomic message may change, as they were before it."""

    seq: int
    records: dict[RecordKey, Record | None]
    dirty: dict[RecordKey, None]
    events: list[EventKey]
    conflict_ids: set[ConflictRef]
    changes: int
    usage: TenantUsage


class Checkpoint(NamedTuple):
    """The rows that any message may change, as they were before it."""

    savepoint: Savepoint
    open_conflicts: dict[OpenConflictRef, Conflict]
    conflicts: dict[ConflictRef, Conflict]
    logged: dict[ConflictRef, Conflict]
    quarantine: int
    rejected_now: set[DeviceRecordKey]


class UnitOfWork:
    """The rows by identity, which of them have changed, and the tenants' counters.

    ``unread_conflicts`` are open conflicts that the batch needs and has not read: it has to begin again with
    them as ``extra_conflicts``. ``usage`` is how much each tenant holds more than before the batch.
    ``audit`` are security events.
    """

    def __init__(self, snapshot: Snapshot, extra_conflicts: Collection[OpenConflictRef] = ()) -> None:
        self.seqs = snapshot.seqs
        self.keys = snapshot.keys
        self.records = snapshot.records
        self.events = snapshot.events
        self.open_conflicts = snapshot.open_conflicts
        self.conflicts = snapshot.conflicts
        self.uploads = snapshot.uploads
        self.duplicates = snapshot.duplicates
        self.quarantine: list[Quarantined] = []
        self.audit: list[AuditRow] = []
        self.unread_conflicts: dict[OpenConflictRef, None] = {}
        self.decoded = DecodedRecords()
        self._also_held = extra_conflicts
        self._stored_conflicts = {
            ConflictRef(stored.tenant_id, stored.conflict_id)
            for stored in (*snapshot.open_conflicts.values(), *snapshot.conflicts.values())
        }
        self._rejected_now: set[DeviceRecordKey] = set()
        self._rejected_before = snapshot.rejected_before
        self.changes: list[tuple[Record, str]] = []
        self.reused_keys: list[tuple[Push, int]] = []
        self.usage = {tenant_id: TenantUsage() for tenant_id in snapshot.seqs}
        self._first_seqs = dict(snapshot.seqs)
        self._dirty: dict[RecordKey, None] = {}
        self._new_keys: list[IdempotencyRecord] = []
        self._new_events: dict[EventKey, None] = {}
        self._logged: dict[ConflictRef, Conflict] = {}
        self._upload_states: dict[UploadRef, UploadState] = {}
        self.counts: dict[int, CommitCounts] = {}

    def next_seq(self, tenant_id: int) -> int:
        """Return the tenant's next change number."""
        seq = self.seqs[tenant_id] + 1
        self.seqs[tenant_id] = seq
        return seq

    def put(self, key: RecordKey, record: Record, session_id: str) -> None:
        """Store a new version of a record, and announce it in the feed."""
        usage, before = self.usage[key.tenant_id], self.records.get(key)
        if before is None:
            usage.record_rows += 1
            usage.record_bytes += record_bytes(record)
        else:
            usage.record_bytes += record_bytes(record) - record_bytes(before)
        self.records[key] = record
        self._dirty[key] = None
        self.changes.append((record, session_id))

    def put_silently(self, key: RecordKey, record: Record) -> None:
        """Store a change of a record that the feed does not announce."""
        self.records[key] = record
        self._dirty[key] = None

    def set_upload_state(self, ref: UploadRef, state: UploadState) -> None:
        """Set the state of a finished upload."""
        self.uploads[ref] = self._upload_states[ref] = state

    def append(self, key: EventKey, event: Event, now_us: int) -> None:
        """Store a new event. ``now_us`` is the server's time."""
        usage = self.usage[key.tenant_id]
        usage.event_rows += 1
        usage.event_bytes += len(event.data)
        if event.sent_at_us > now_us + AHEAD_US:
            usage.future_event_rows += 1
        self.events[key] = event
        self._new_events[key] = None

    def put_answer(self, ref: IdempotencyKey, row: IdempotencyRecord) -> None:
        """Store the answer of a message under its key."""
        usage = self.usage[ref.tenant_id]
        usage.answer_rows += 1
        usage.answer_bytes += len(row.results)
        self.keys[ref] = row
        self._new_keys.append(row)

    def count_answered(self, push: Push, results: list[Result], domains: Collection[str]) -> None:
        """Count a message whose items were applied. It costs 0.4 µs, and 0.1 µs an item.

        Args:
            push: The message.
            results: The results of its items.
            domains: The configured domains. Items of others are counted together.
        """
        counts = self.counts.get(push.tenant_id)
        if counts is None:
            counts = self.counts[push.tenant_id] = CommitCounts()
        counts.syncs += 1
        counts.sent_bytes += len(push.raw_items)
        items = counts.items
        for item, result in zip(push.items, results, strict=True):
            status, domain = result.status, result.domain or OTHER_DOMAIN
            by_status = items.get(domain)
            if by_status is None:
                by_status = counts.items_of(domain if domain in domains else OTHER_DOMAIN)
            by_status[PLACES[status]] += 1
            if status == "applied" and type(item) is Change and item.op == "patch":
                record = self.records[_new(RecordKey, (push.tenant_id, domain, item.id))]
                counts.saved_bytes += max(0, len(record.data or b"") - len(item.data))

    def add_quarantined(self, rows: list[Quarantined]) -> None:
        """Add rejected items to the quarantine."""
        for row in rows:
            usage = self.usage[row.tenant_id]
            usage.quarantine_rows += 1
            usage.quarantine_bytes += len(row.item)
        self.quarantine.extend(rows)

    def note_rejected(self, ref: DeviceRecordKey) -> None:
        """Note that an item of a device on a record was rejected."""
        self._rejected_now.add(ref)

    def was_rejected(self, ref: DeviceRecordKey) -> bool:
        """Return whether an earlier item of the device on the record was rejected, now or in the past."""
        return ref in self._rejected_now or ref in self._rejected_before

    def find_open_conflict(self, holder: OpenConflictRef) -> Conflict | None:
        """Return a device's open conflict on a record that may not have been read under this policy.

        If it was not read, it is added to ``unread_conflicts``.
        """
        if holder not in self._also_held:
            self.unread_conflicts[holder] = None
        return self.open_conflicts.get(holder)

    def log_conflict(self, conflict: Conflict) -> None:
        """Store a conflict, new or changed. An open one is found by its device and record from now on."""
        tenant_id = conflict.tenant_id
        ref = ConflictRef(tenant_id, conflict.conflict_id)
        holder = OpenConflictRef(tenant_id, conflict.device_id, conflict.domain, conflict.record_id)
        self._count(ref, holder, conflict)
        if conflict.outcome == "open":
            self.open_conflicts[holder] = conflict
            self.conflicts[ref] = conflict
        elif ref in self.conflicts:
            self.conflicts[ref] = conflict
            self.open_conflicts.pop(holder, None)
        self._logged[ref] = conflict

    def _count(self, ref: ConflictRef, holder: OpenConflictRef, conflict: Conflict) -> None:
        usage = self.usage[ref.tenant_id]
        before = self.open_conflicts.get(holder)
        if before is None or before.conflict_id != ref.conflict_id:
            before = self.conflicts.get(ref)
        if before is None:
            usage.conflict_rows += 1
        else:
            usage.conflict_bytes -= conflict_bytes(before)
        usage.conflict_bytes += conflict_bytes(conflict)

    def savepoint(self, push: Push) -> Savepoint:
        """Return a copy of the rows that an atomic message may change."""
        keys = [
            RecordKey(push.tenant_id, item.domain, item.id)
            for item in push.items
            if type(item) is Change and item.op != "append"
        ]
        events = [
            key
            for item in push.items
            if type(item) is Change
            and item.op == "append"
            and (key := EventKey(push.tenant_id, item.domain, item.id, item.sent_at_us)) not in self.events
        ]
        return Savepoint(
            self.seqs[push.tenant_id],
            {key: self.records.get(key) for key in keys},
            {key: None for key in keys if key in self._dirty},
            events,
            set(self._logged),
            len(self.changes),
            self.usage[push.tenant_id].copy(),
        )

    def checkpoint(self, push: Push) -> Checkpoint:
        """Return a copy of the rows that any message may change. It copies all conflicts of the batch."""
        return Checkpoint(
            self.savepoint(push),
            dict(self.open_conflicts),
            dict(self.conflicts),
            dict(self._logged),
            len(self.quarantine),
            set(self._rejected_now),
        )

    def undo(self, push: Push, checkpoint: Checkpoint) -> None:
        """Undo a message completely, also its answer, which is stored already."""
        self.restore(push, checkpoint.savepoint)
        self.open_conflicts = checkpoint.open_conflicts
        self.conflicts = checkpoint.conflicts
        self._logged = checkpoint.logged
        self._rejected_now = checkpoint.rejected_now
        del self.quarantine[checkpoint.quarantine :]
        row = self._new_keys.pop()
        del self.keys[IdempotencyKey(row.tenant_id, row.key_hash)]

    def restore(self, push: Push, savepoint: Savepoint) -> None:
        """Undo the items of an atomic message. It opens no conflict, so only new log rows are dropped."""
        del self.changes[savepoint.changes :]
        self.usage[push.tenant_id] = savepoint.usage.copy()
        for key, record in savepoint.records.items():
            if record is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record
            if key not in savepoint.dirty:
                self._dirty.pop(key, None)
            self.seqs[key.tenant_id] = savepoint.seq
        for event in savepoint.events:
            self.events.pop(event, None)
            self._new_events.pop(event, None)
        for ref in set(self._logged) - savepoint.conflict_ids:
            del self._logged[ref]

    def conflict_counts(self) -> tuple[Counter[tuple[str, str]], Counter[str]]:
        """Return the new conflicts by policy and outcome, and those that a person settled by choice."""
        new: Counter[tuple[str, str]] = Counter()
        settled: Counter[str] = Counter()
        for ref, conflict in self._logged.items():
            outcome = conflict.outcome
            if conflict.settled_by is not None:
                settled[outcome] += 1
                outcome = "open"
            if ref not in self._stored_conflicts:
                new[conflict.policy, outcome] += 1
        return new, settled

    def writes(self) -> WriteSet:
        """Return the rows to write, each identity once."""
        first = self._first_seqs
        return WriteSet(
            seqs={tenant: seq for tenant, seq in self.seqs.items() if seq != first[tenant]},
            records=[self.records[key] for key in self._dirty],
            events=[self.events[key] for key in self._new_events],
            keys=self._new_keys,
            conflicts=list(self._logged.values()),
            quarantine=self.quarantine,
            uploads=list(self._upload_states.items()),
            usage={tenant: usage for tenant, usage in self.usage.items() if usage != _NOTHING},
            audit=self.audit,
            counts=self.counts,
        )
