"""The stores of ``engine.runtime.ports`` in dicts, holding the engine to its duties where it writes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from operator import gt

from engine.feed.ports import Page
from engine.model.audit import AuditRow
from engine.model.commit_counts import CommitCounts
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
    QuarantineRef,
    ReadSet,
    Record,
    RecordKey,
    Snapshot,
    TenantUsage,
    WriteSet,
)
from engine.model.uploads import State as UploadState
from engine.model.uploads import UploadRef
from engine.operate.conflicts import ConflictPage, ConflictWithRecord


class Memory:
    """All rows: answers read_set and applies writes."""

    def __init__(self) -> None:
        self.seqs: dict[int, int] = {}
        self.keys: dict[IdempotencyKey, IdempotencyRecord] = {}
        self.records: dict[RecordKey, Record] = {}
        self.events: dict[EventKey, Event] = {}
        self.conflicts: dict[ConflictRef, Conflict] = {}
        self.quarantine: list[Quarantined] = []
        self.audit: list[AuditRow] = []
        self.uploads: dict[UploadRef, UploadState] = {}
        self.usage: defaultdict[int, TenantUsage] = defaultdict(TenantUsage)
        self.counts: defaultdict[int, CommitCounts] = defaultdict(CommitCounts)
        #: Of what record, name and content they are.
        self.contents: dict[UploadRef, tuple[str, ...]] = {}

    def snapshot(self, wanted: ReadSet) -> Snapshot:
        """Answer what is asked, and nothing else."""
        assert wanted.tenants == sorted(set(wanted.tenants))
        held = {held_ref(row): row for row in self.conflicts.values() if row.outcome == "open"}
        duplicates = {ref: self._duplicates(ref) for ref in wanted.duplicates}
        uploads = {*wanted.uploads, *chain.from_iterable(duplicates.values())}
        return Snapshot(
            {tenant: self.seqs.get(tenant, 0) for tenant in wanted.tenants},
            {ref: self.keys[ref] for ref in wanted.keys if ref in self.keys},
            {key: self.records[key] for key in wanted.records if key in self.records},
            {key: self.events[key] for key in wanted.events if key in self.events},
            {ref: held[ref] for ref in wanted.open_conflicts if ref in held},
            {ref: self.conflicts[ref] for ref in wanted.conflicts if ref in self.conflicts},
            {ref: self.uploads[ref] for ref in uploads if ref in self.uploads},
            {ref: found for ref, found in duplicates.items() if found},
            {ref: first for ref in wanted.rejected_before if (first := self._set_aside(ref)) is not None},
            {ref for ref in wanted.recovering if any(quarantine_ref(row) == ref for row in self.quarantine)},
            {tenant: self.usage[tenant].copy() for tenant in wanted.tenants if self._is_told(tenant, wanted)},
        )

    def _is_told(self, tenant: int, wanted: ReadSet) -> bool:
        above = wanted.usage_above
        return not above or any(map(gt, self.usage[tenant].numbers(), above))

    def _set_aside(self, ref: DeviceRecordKey) -> str | None:
        for row in self.quarantine:
            if (row.tenant_id, row.device_id, row.domain, row.record_id) == ref:
                return row.quarantine_id
        return None

    def _duplicates(self, ref: UploadRef) -> list[UploadRef]:
        return [
            one
            for one, content in self.contents.items()
            if one.tenant_id == ref.tenant_id
            and one != ref
            and content == self.contents.get(ref)
            and self.uploads[one] in ("stored", "attached", "duplicate", "retained")
        ]

    def apply(self, writes: WriteSet, locked: set[int]) -> None:
        """Write everything; only for tenants that are locked, once per identity, keys and events new."""
        for rows in (writes.records, writes.events, writes.keys, writes.conflicts, writes.quarantine):
            assert {row.tenant_id for row in rows} <= locked
        assert set(writes.seqs) | set(writes.usage) <= locked
        assert {ref.tenant_id for ref, _ in writes.uploads} <= locked
        assert {ref for ref, _ in writes.uploads} <= set(self.uploads)
        records = {RecordKey(row.tenant_id, row.domain, row.id): row for row in writes.records}
        events = {EventKey(row.tenant_id, row.domain, row.id, row.sent_at_us): row for row in writes.events}
        keys = {IdempotencyKey(row.tenant_id, row.key_hash): row for row in writes.keys}
        conflicts = {ConflictRef(row.tenant_id, row.conflict_id): row for row in writes.conflicts}
        for unique, written in (
            (records, writes.records),
            (events, writes.events),
            (keys, writes.keys),
            (conflicts, writes.conflicts),
        ):
            assert len(unique) == len(written), "an identity is written twice"
        assert not events.keys() & self.events.keys()
        assert not keys.keys() & self.keys.keys()
        open_after = [held_ref(row) for row in (self.conflicts | conflicts).values() if row.outcome == "open"]
        assert len(open_after) == len(set(open_after)), "two open conflicts of a device on a record"
        self.seqs.update(writes.seqs)
        self.records.update(records)
        self.events.update(events)
        self.keys.update(keys)
        self.conflicts.update(conflicts)
        self.quarantine.extend(writes.quarantine)
        self.quarantine = [row for row in self.quarantine if quarantine_ref(row) not in writes.recovered]
        self.uploads.update(writes.uploads)
        self.audit.extend(writes.audit)
        for tenant, more in writes.usage.items():
            both = zip(self.usage[tenant].numbers(), more.numbers(), strict=True)
            self.usage[tenant] = TenantUsage(*[held + added for held, added in both])
        for tenant, counts in writes.counts.items():
            self.counts[tenant].add(counts)


def held_ref(row: Conflict) -> OpenConflictRef:
    """Say whose open conflict on which record a row is."""
    return OpenConflictRef(row.tenant_id, row.device_id, row.domain, row.record_id)


def quarantine_ref(row: Quarantined) -> QuarantineRef:
    """Name a rejected item."""
    return QuarantineRef(row.tenant_id, row.quarantine_id)


class MemoryTransaction:
    """One open batch (``engine.commit.ports.Transaction``)."""

    def __init__(self, rows: Memory, locks: list[asyncio.Lock], read_set: ReadSet) -> None:
        self._rows = rows
        self._locks = locks
        self._tenants = set(read_set.tenants)
        self.snapshot = rows.snapshot(read_set)

    async def commit(self, writes: WriteSet) -> None:
        """Write everything; the transaction has ended either way."""
        try:
            await asyncio.sleep(0)
            self._rows.apply(writes, self._tenants)
        finally:
            self._end()

    async def rollback(self) -> None:
        """Give the locks back without writing."""
        self._end()

    def _end(self) -> None:
        for lock in self._locks:
            lock.release()


class MemoryStore:
    """``Store``, ``FeedStore`` and ``ConflictStore`` over one ``Memory``."""

    def __init__(self, rows: Memory | None = None) -> None:
        self.rows = rows or Memory()
        self.epoch_id = "e1"
        #: Rows of all domains that one read by domain looks at.
        self.piece_rows = 1_000_000
        self.few_rows = 1_000_000
        self._locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def begin(self, read_set: ReadSet) -> MemoryTransaction:
        """Lock the tenants in ascending order, then read."""
        locks: list[asyncio.Lock] = []
        try:
            for tenant in read_set.tenants:
                await self._locks[tenant].acquire()
                locks.append(self._locks[tenant])
            await asyncio.sleep(0)
            return MemoryTransaction(self.rows, locks, read_set)
        except BaseException:
            for lock in locks:
                lock.release()
            raise

    async def epoch(self) -> str:
        """Return the epoch."""
        return self.epoch_id

    async def heads(self, tenant_ids: list[int]) -> dict[int, int]:
        """Return the counters."""
        await asyncio.sleep(0)
        return {tenant: self.rows.seqs[tenant] for tenant in tenant_ids if tenant in self.rows.seqs}

    async def page(
        self, tenant_id: int, after_seq: int, domains: list[str] | None, limit: int, max_bytes: int
    ) -> Page:
        """Read records behind ``after_seq``."""
        await asyncio.sleep(0)
        behind = sorted(
            (row for row in self.rows.records.values() if row.tenant_id == tenant_id and row.seq > after_seq),
            key=lambda row: row.seq,
        )
        read_to = None
        if domains is not None:
            behind, beyond = behind[: self.piece_rows], behind[self.piece_rows - 1 :]
            read_to = beyond[0].seq if beyond else None
            behind = [row for row in behind if row.domain in domains]
        taken: list[Record] = []
        size_bytes = 0
        for row in behind[:limit]:
            if taken and size_bytes >= max_bytes:
                break
            taken.append(row)
            size_bytes += row.size_bytes
        more = len(taken) < len(behind)
        high_seq = self.rows.seqs.get(tenant_id, 0)
        read_to = None if more or read_to == high_seq else read_to
        return Page(taken, high_seq, more=more, read_to=read_to)

    async def page_of_rare_domains(
        self, tenant_id: int, after_seq: int, domains: list[str], limit: int, max_bytes: int
    ) -> Page | None:
        """Read as ``page`` where there are few."""
        await asyncio.sleep(0)
        own = [row for row in self.rows.records.values() if row.tenant_id == tenant_id]
        if sum(row.domain in domains for row in own) > min(self.few_rows, self.piece_rows):
            return None
        kept, self.piece_rows = self.piece_rows, 1_000_000
        page = await MemoryStore.page(self, tenant_id, after_seq, domains, limit, max_bytes)
        self.piece_rows = kept
        return page

    async def pages_after(self, afters: Mapping[int, int], limit: int, max_bytes: int) -> dict[int, Page]:
        """Read a page of each tenant."""
        return {
            tenant_id: await self.page(tenant_id, after_seq, None, limit, max_bytes)
            for tenant_id, after_seq in afters.items()
        }

    async def open_conflicts(
        self, tenant_id: int, device_id: str | None, after: str | None, limit: int, max_bytes: int
    ) -> ConflictPage:
        """List open conflicts, oldest first."""
        await asyncio.sleep(0)
        rows = self.rows
        waiting = sorted(
            (
                row
                for row in rows.conflicts.values()
                if row.tenant_id == tenant_id and row.outcome == "open" and device_id in (None, row.device_id)
            ),
            key=_place,
        )
        if after is not None:
            behind = rows.conflicts.get(ConflictRef(tenant_id, after))
            waiting = [] if behind is None else [row for row in waiting if _place(row) > _place(behind)]
        found: list[ConflictWithRecord] = []
        size_bytes = 0
        for row in waiting[:limit]:
            if size_bytes > max_bytes:
                break
            record = rows.records.get(RecordKey(tenant_id, row.domain, row.record_id))
            found.append(ConflictWithRecord(row, record))
            size_bytes += sum(len(data or b"") for data in (row.client_data, row.server_data))
            size_bytes += len((record and record.patch_base) or b"")
        return ConflictPage(found, len(found) < len(waiting))

    async def conflict(self, tenant_id: int, conflict_id: str) -> Conflict | None:
        """Find one conflict, settled or not."""
        await asyncio.sleep(0)
        return self.rows.conflicts.get(ConflictRef(tenant_id, conflict_id))


def _place(row: Conflict) -> tuple[int, str]:
    return row.opened_at_us, row.conflict_id
