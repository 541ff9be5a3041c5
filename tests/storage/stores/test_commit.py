"""The contract of ``engine.commit.ports.Store`` and readers, for the real store and the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from engine.commit.ports import Store, Transaction
from engine.feed.ports import FeedStore, Page
from engine.model.audit import Actor, AuditRow
from engine.model.rows import (
    Conflict,
    ConflictRef,
    DeviceRecordKey,
    Event,
    EventKey,
    HeldChange,
    IdempotencyKey,
    IdempotencyRecord,
    OpenConflictRef,
    Quarantined,
    QuarantineRef,
    ReadSet,
    Record,
    RecordKey,
    TenantUsage,
    WriteSet,
)
from engine.operate.conflicts import ConflictPage, ConflictStore
from engine.plan.bounds.tenant_usage import NAMES
from engine.runtime.ports import StoreFullError, StorePoisonError, StoreRetryError
from storage.postgres.connection import Statement
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresStore
from storage.stores.conflicts import PostgresConflicts
from storage.stores.feed import PostgresFeed
from storage.stores.sealed.sealing import Sealing
from tests.harness.memory_store import MemoryStore
from tests.harness.services import PLACES, Serving, citus_cell, execute, rows

TENANTS = (1, 2, 3)
AT_US = 1_767_323_045_000_000
ODD = "quote \" apostrophe ' backslash \\ percent % brace {} comma, 鍵 \U0001f511 NULL"


class Subject(msgspec.Struct):
    """One implementation; ``dsn`` is empty for the one in memory."""

    store: Store
    feed: FeedStore
    conflicts: ConflictStore
    dsn: str


@pytest.fixture
async def memory() -> Subject:
    store = MemoryStore()
    return Subject(store, store, store, "")


@pytest.fixture
async def postgres(dsn: str) -> AsyncIterator[Subject]:
    async with _on(dsn) as subject:
        yield subject


@pytest.fixture
async def cell(cell_dsn: str) -> AsyncIterator[Subject]:
    async with _on(cell_dsn) as subject:
        yield subject


@pytest.fixture
async def citus() -> AsyncIterator[Subject]:
    with citus_cell() as dsn:
        async with _on(dsn) as subject:
            yield subject


@asynccontextmanager
async def _on(dsn: str) -> AsyncIterator[Subject]:
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('one'), ('two'), ('three')",
        "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
    )
    writes, reads = Serving(dsn, 4), Serving(dsn, 2)
    sealing = Sealing()
    store, feed = PostgresStore(writes, 720, sealing), PostgresFeed(reads, sealing)
    yield Subject(store, feed, PostgresConflicts(reads, sealing), dsn)
    await writes.close()
    await reads.close()


@pytest.fixture(params=["memory", "postgres", "cell", *PLACES[2:]])
def subject(request: pytest.FixtureRequest) -> Subject:
    """One of them."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Subject)
    return found


def _lookups(*tenants: int) -> ReadSet:
    return ReadSet(sorted(tenants), [], [], [], [], [])


def _writes(seqs: dict[int, int] | None = None, *records: Record) -> WriteSet:
    return WriteSet(seqs or {}, list(records), [], [], [], [])


def _record(seq: int, tenant_id: int = 1, **fields: object) -> Record:
    record = Record(tenant_id, "task", f"r{seq}", 1, seq, AT_US + seq, "phone", 1, b'{"n":%d}' % seq)
    return msgspec.structs.replace(record, **fields)


def _conflict(conflict_id: str, **fields: object) -> Conflict:
    conflict = Conflict(
        tenant_id=1,
        conflict_id=conflict_id,
        domain="task",
        record_id="r1",
        device_id="phone",
        policy="manual",
        outcome="open",
        server_version=3,
        server_data=b'{"side":"server"}',
        client_base=2,
        client_op="put",
        client_at_us=AT_US,
        client_data=b'{"side":"client"}',
        opened_at_us=AT_US,
    )
    return msgspec.structs.replace(conflict, **fields)


async def _commit(subject: Subject, read_set: ReadSet, writes: WriteSet) -> None:
    transaction = await subject.store.begin(read_set)
    await transaction.commit(writes)


async def test_what_is_committed_is_found_again(subject: Subject) -> None:
    record = _record(1, id=ODD, data=msgspec.json.encode({ODD: [ODD, 1.5, None]}), fields=b'{"a":[1,2]}')
    record = msgspec.structs.replace(record, sent_at_us=AT_US + 5)
    tombstone = _record(2, data=None, device_id=None, chain_from=2, last_data=b'{"n":1}')
    event = Event(1, "voice", ODD, AT_US, AT_US + 1, "phone", msgspec.json.encode({"x": ODD}))
    key = IdempotencyRecord(1, "0123456789abcdef" * 2, "ab" * 32, msgspec.json.encode([ODD]))
    held = _conflict(
        "c1",
        client_sent_at_us=AT_US + 1,
        client_changes=(
            HeldChange("delete", None, AT_US, AT_US + 1, None),
            HeldChange("patch", 2, AT_US + 2, AT_US + 3, msgspec.json.encode({ODD: ODD})),
        ),
        client_count=7,
        held_in=ODD,
    )
    deletion = _conflict("c2", record_id="r2", client_op="delete", client_data=None)
    rejected = Quarantined(
        tenant_id=1,
        quarantine_id="q1",
        device_id="phone",
        domain=None,
        record_id="r",
        item=msgspec.json.encode({"id": ODD}),
        code="invalid_item",
        message=ODD + "\x01\x02",
        at_us=AT_US,
        clock_offset_us=-7,
    )
    writes = WriteSet({1: 2}, [record, tombstone], [event], [key], [held, deletion], [rejected])
    await _commit(subject, _lookups(1), writes)

    transaction = await subject.store.begin(
        ReadSet(
            [1, 2],
            [IdempotencyKey(1, key.key_hash), IdempotencyKey(2, key.key_hash)],
            [RecordKey(1, "task", ODD), RecordKey(1, "task", "r2"), RecordKey(2, "task", ODD)],
            [EventKey(1, "voice", ODD, AT_US), EventKey(1, "voice", ODD, AT_US + 1)],
            [OpenConflictRef(1, "phone", "task", "r1"), OpenConflictRef(1, "tablet", "task", "r1")],
            [ConflictRef(1, "c2"), ConflictRef(2, "c2")],
        )
    )
    snapshot = transaction.snapshot
    await transaction.rollback()
    assert snapshot.seqs == {1: 2, 2: 0}
    assert snapshot.keys == {IdempotencyKey(1, key.key_hash): key}
    assert snapshot.records == {
        RecordKey(1, "task", ODD): record,
        RecordKey(1, "task", "r2"): tombstone,
    }
    assert snapshot.events == {EventKey(1, "voice", ODD, AT_US): event}
    assert snapshot.open_conflicts == {OpenConflictRef(1, "phone", "task", "r1"): held}
    assert snapshot.conflicts == {ConflictRef(1, "c2"): deletion}


async def test_a_new_version_takes_the_place_of_the_older(subject: Subject) -> None:
    await _commit(subject, _lookups(1), _writes({1: 2}, _record(1), _record(2)))
    newer = _record(3, id="r1", version=2, data=b'{"n":3}', device_id="tablet")
    transaction = await subject.store.begin(ReadSet([1], [], [RecordKey(1, "task", "r1")], [], [], []))
    await transaction.commit(_writes({1: 4}, newer, _record(4)))
    page = await subject.feed.page(1, 0, None, 10, 1 << 20)
    assert [(record.id, record.version, record.seq) for record in page.records] == [
        ("r2", 1, 2),
        ("r1", 2, 3),
        ("r4", 1, 4),
    ]


async def test_last_data_come_and_go_with_a_tombstone_and_are_in_no_page(subject: Subject) -> None:
    key = RecordKey(1, "task", "r1")
    alive = _record(1, data=b'{"n":1}')
    files = b'[{"file_id":"f"}]'
    steps = [
        alive,
        msgspec.structs.replace(alive, version=2, seq=2, data=None, last_data=alive.data),
        msgspec.structs.replace(alive, version=3, seq=3),
        msgspec.structs.replace(alive, version=4, seq=4, attachments=files),
        msgspec.structs.replace(alive, version=5, seq=5, data=None, last_data=alive.data, attachments=files),
        msgspec.structs.replace(alive, version=5, seq=5, data=None, last_data=alive.data, attachments=b"[]"),
        msgspec.structs.replace(alive, version=6, seq=6, attachments=b"[]"),
        msgspec.structs.replace(alive, version=7, seq=7, data=None, attachments=b"[]"),
    ]
    for record in steps:
        transaction = await subject.store.begin(ReadSet([1], [], [key], [], [], []))
        await transaction.commit(_writes({1: record.seq}, record))
        transaction = await subject.store.begin(ReadSet([1], [], [key], [], [], []))
        await transaction.rollback()
        assert transaction.snapshot.records == {key: record}
        (shown,) = (await subject.feed.page(1, 0, None, 10, 1 << 20)).records
        assert shown.data == record.data


async def test_what_was_set_aside_is_found_by_its_device_and_record(subject: Subject) -> None:
    rejected = [
        Quarantined(
            tenant_id=1,
            quarantine_id=quarantine_id,
            device_id="phone",
            domain="task",
            record_id=record_id,
            item=b"{}",
            code="invalid_item",
            message="no",
            at_us=AT_US,
        )
        for quarantine_id, record_id in (("q2", ODD), ("q1", ODD), ("q3", None))
    ]
    await _commit(subject, _lookups(1, 2), WriteSet({}, [], [], [], [], rejected))
    wanted = _lookups(1, 2)
    found = DeviceRecordKey(1, "phone", "task", ODD)
    wanted.rejected_before = [
        found,
        DeviceRecordKey(2, "phone", "task", ODD),
        DeviceRecordKey(1, "tablet", "task", ODD),
        DeviceRecordKey(1, "phone", "form", ODD),
        DeviceRecordKey(1, "phone", "task", "r"),
    ]
    wanted.recovering = [QuarantineRef(1, "q1"), QuarantineRef(2, "q1"), QuarantineRef(1, "q4")]
    transaction = await subject.store.begin(wanted)
    await transaction.rollback()
    assert transaction.snapshot.rejected_before == {found: "q2"}, "the first of them"
    assert transaction.snapshot.recovering == {QuarantineRef(1, "q1")}


async def test_a_conflict_is_replaced_by_its_id(subject: Subject) -> None:
    await _commit(subject, _lookups(1), WriteSet({}, [], [], [], [_conflict("c1")], []))
    settled = _conflict(
        "c1",
        outcome="server",
        settled_by="boss",
        settled_at_us=AT_US + 9,
        settled_sha256="ff",
        settled_version=4,
        settled_seq=7,
    )
    await _commit(subject, _lookups(1), WriteSet({}, [], [], [], [settled], []))
    assert await subject.conflicts.conflict(1, "c1") == settled
    assert await subject.conflicts.conflict(2, "c1") is None
    assert await subject.conflicts.open_conflicts(1, None, None, 10, 1 << 20) == ConflictPage([], more=False)


async def test_commit_events_of_audit_are_written_with_their_tenants_names(postgres: Subject) -> None:
    person, phone = Actor("user", "ann"), Actor("device", "phone")
    rows_ = [
        AuditRow("conflict_resolved", person, "c1", tenant_number=2, details={"choice": "server"}),
        AuditRow("quarantine_retried", phone, 'q"1\\', tenant_number=1, times=3),
        AuditRow("tenant_removed", person, "zero", "zero"),
    ]
    writes = WriteSet({}, [], [], [], [], [], audit=rows_)
    await _commit(postgres, _lookups(1, 2), writes)
    written = (
        "SELECT event, actor_kind, actor, tenant, tenant_number, target, details::text, times FROM audit_log"
    )
    assert rows(postgres.dsn, written) == [
        ("conflict_resolved", "user", "ann", "two", 2, "c1", '{"choice":"server"}', 1),
        ("quarantine_retried", "device", "phone", "one", 1, 'q"1\\', None, 3),
        ("tenant_removed", "user", "ann", "zero", None, "zero", None, 1),
    ]


async def test_a_rollback_leaves_nothing(subject: Subject) -> None:
    transaction = await subject.store.begin(_lookups(1))
    await transaction.rollback()
    assert await subject.feed.page(1, 0, None, 10, 1 << 20) == Page([], 0, more=False)


async def test_a_tenant_is_locked_until_the_transaction_ends_and_then_read_afresh(subject: Subject) -> None:
    """Whoever waited for the lock sees what its holder committed, not what stood before the wait."""
    first = await subject.store.begin(_lookups(1, 2))
    wanted = ReadSet([2, 3], [], [RecordKey(2, "task", "r1")], [], [], [])
    waiting: asyncio.Task[Transaction] = asyncio.create_task(subject.store.begin(wanted))
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    await first.commit(_writes({2: 1}, _record(1, 2)))
    second = await waiting
    assert second.snapshot.seqs == {2: 1, 3: 0}
    assert second.snapshot.records == {RecordKey(2, "task", "r1"): _record(1, 2)}
    await second.rollback()


async def test_other_tenants_are_not_held_up(subject: Subject) -> None:
    first = await subject.store.begin(_lookups(1))
    second = await subject.store.begin(_lookups(2))
    await second.commit(_writes({2: 1}, _record(1, 2)))
    await first.rollback()


async def test_many_writers_give_a_feed_without_gaps(subject: Subject) -> None:
    """Each takes the next number under the lock; a reader meanwhile never skips one."""
    seen: list[int] = []

    async def write(count: int) -> None:
        for _ in range(count):
            transaction = await subject.store.begin(_lookups(1, 2))
            seq = transaction.snapshot.seqs[1] + 1
            await transaction.commit(_writes({1: seq}, _record(seq)))

    async def read() -> None:
        while len(seen) < 60:
            page = await subject.feed.page(1, len(seen), None, 7, 1 << 20)
            assert page.high_seq >= len(seen) + len(page.records)
            seen.extend(record.seq for record in page.records)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        for _ in range(3):
            group.create_task(write(20))
    assert seen == list(range(1, 61))


async def test_pages_end_at_limit_and_bytes(subject: Subject) -> None:
    records = [_record(seq, data=b'{"x":"%s"}' % (b"x" * 100)) for seq in range(1, 7)]
    records[2] = msgspec.structs.replace(records[2], domain="ticket")
    records[4] = msgspec.structs.replace(records[4], data=None)
    await _commit(subject, _lookups(1), _writes({1: 9}, *records))

    async def seqs(after: int, domains: list[str] | None, limit: int, size: int) -> tuple[list[int], bool]:
        page = await subject.feed.page(1, after, domains, limit, size)
        assert page.high_seq == 9
        return [record.seq for record in page.records], page.more

    assert await seqs(0, None, 10, 1 << 20) == ([1, 2, 3, 4, 5, 6], False)
    assert await seqs(2, None, 10, 1 << 20) == ([3, 4, 5, 6], False)
    assert await seqs(0, None, 6, 1 << 20) == ([1, 2, 3, 4, 5, 6], False)
    assert await seqs(0, None, 5, 1 << 20) == ([1, 2, 3, 4, 5], True)
    assert await seqs(0, ["ticket", "journal"], 5, 1 << 20) == ([3], False)
    assert await seqs(0, ["journal"], 5, 1 << 20) == ([], False)
    assert await seqs(0, None, 10, 1) == ([1], True)
    assert await seqs(0, None, 10, 200) == ([1, 2], True)
    assert await seqs(6, None, 10, 1 << 20) == ([], False)
    assert (await subject.feed.page(2, 0, None, 10, 1 << 20)).records == []


async def test_several_tenants_are_read_together_as_each_alone(subject: Subject) -> None:
    records = [_record(seq, data=b'{"x":"%s"}' % (b"x" * 100)) for seq in range(1, 7)]
    others = [msgspec.structs.replace(_record(seq), tenant_id=2) for seq in (1, 3)]
    await _commit(subject, _lookups(1, 2), _writes({1: 9, 2: 3}, *records, *others))
    for afters, limit, size in (
        ({1: 0, 2: 0}, 10, 1 << 20),
        ({2: 1, 1: 4}, 10, 1 << 20),
        ({1: 0, 2: 0}, 2, 1 << 20),
        ({1: 0, 2: 2}, 10, 200),
        ({1: 9, 2: 3}, 10, 1),
        ({2: 7}, 10, 1),
    ):
        pages = await subject.feed.pages_after(afters, limit, size)
        for tenant_id, after_seq in afters.items():
            assert pages[tenant_id] == await subject.feed.page(tenant_id, after_seq, None, limit, size)


async def test_feed_pages_without_policies_are_of_their_tenant_alone(postgres: Subject) -> None:
    """Row-level security would hide a forgotten condition: the owner passes it by."""
    own = {tenant_id: _record(1, tenant_id) for tenant_id in (1, 2)}
    await _commit(postgres, _lookups(1, 2), _writes({1: 1, 2: 1}, *own.values()))
    database = Database(postgres.dsn, 1)
    feed = PostgresFeed(database, Sealing())
    try:
        for tenant_id, record in own.items():
            page = Page([record], 1, more=False)
            assert await feed.page(tenant_id, 0, None, 10, 1 << 20) == page
            assert await feed.page(tenant_id, 0, ["task"], 10, 1 << 20) == page
            assert await feed.page_of_rare_domains(tenant_id, 0, ["task"], 10, 1 << 20) == page
            assert await feed.pages_after({tenant_id: 0}, 10, 1 << 20) == {tenant_id: page}
    finally:
        await database.close()


async def test_the_queue_of_conflicts_is_listed_oldest_first(subject: Subject) -> None:
    open_ones = [
        _conflict("b", opened_at_us=AT_US + 1, record_id="r1"),
        _conflict("a", opened_at_us=AT_US + 2, record_id="r2"),
        _conflict("c", opened_at_us=AT_US + 2, record_id="r3", device_id="tablet"),
        _conflict("d", opened_at_us=AT_US, record_id="r4", tenant_id=2),
    ]
    await _commit(subject, _lookups(1, 2), WriteSet({1: 1}, [_record(1)], [], [], open_ones, []))

    async def listed(
        device_id: str | None, after: str | None, limit: int = 10, max_bytes: int = 1 << 20
    ) -> list[str]:
        page = await subject.conflicts.open_conflicts(1, device_id, after, limit, max_bytes)
        return [held.conflict.conflict_id for held in page.found] + ["..."] * page.more

    assert await listed(None, None) == ["b", "a", "c"]
    assert await listed("phone", None) == ["b", "a"]
    assert await listed(None, "b") == ["a", "c"]
    assert await listed(None, None, 2) == ["b", "a", "..."]
    assert await listed(None, None, 3) == ["b", "a", "c"]
    assert await listed("phone", None, 2) == ["b", "a"]
    assert await listed(None, None, max_bytes=1) == ["b", "..."]
    assert await listed(None, "a", max_bytes=1) == ["c"]
    assert await listed(None, "nobody's") == []
    held = (await subject.conflicts.open_conflicts(1, None, None, 1, 1 << 20)).found[0]
    assert held.conflict == open_ones[0]
    assert held.record == _record(1)


async def test_page_by_domain_looks_at_a_bounded_number_of_rows(subject: Subject) -> None:
    records = [_record(seq, domain="form" if seq % 4 == 0 else "task") for seq in range(1, 11)]
    await _commit(subject, _lookups(1), WriteSet({1: 10}, records, [], [], [], []))
    if isinstance(subject.feed, MemoryStore):
        subject.feed.piece_rows = 5
        feed: FeedStore = subject.feed
    else:
        assert isinstance(subject.feed, PostgresFeed)
        feed = PostgresFeed(subject.feed._database, Sealing(), 5)

    async def read(after: int, domains: list[str] | None, limit: int = 10) -> object:
        page = await feed.page(1, after, domains, limit, 1 << 20)
        return [record.seq for record in page.records], page.high_seq, page.more, page.read_to

    assert await read(0, ["form"]) == ([4], 10, False, 5)
    assert await read(5, ["form"]) == ([8], 10, False, None)
    assert await read(10, ["form"]) == ([], 10, False, None)
    assert await read(6, ["form"]) == ([8], 10, False, None)
    assert await read(4, ["note"]) == ([], 10, False, 9)
    assert await read(0, ["task"], 2) == ([1, 2], 10, True, None)
    assert await read(0, ["task", "form"]) == ([1, 2, 3, 4, 5], 10, False, 5)
    assert await read(0, None) == ([*range(1, 11)], 10, False, None)

    async def rare(after: int, domains: list[str], limit: int = 10) -> object:
        page = await feed.page_of_rare_domains(1, after, domains, limit, 1 << 20)
        return page and ([record.seq for record in page.records], page.high_seq, page.more, page.read_to)

    assert await rare(0, ["form"]) == ([4, 8], 10, False, None)
    assert await rare(0, ["form"], 1) == ([4], 10, True, None)
    assert await rare(8, ["form"]) == ([], 10, False, None)
    assert await rare(0, ["note"]) == ([], 10, False, None)
    assert await rare(0, ["task"]) is None


async def test_a_missing_counter_is_created(postgres: Subject) -> None:
    execute(postgres.dsn, "DELETE FROM tenant_counters WHERE tenant_id = 2")
    with pytest.raises(StoreRetryError):
        await postgres.store.begin(_lookups(1, 2))
    transaction = await postgres.store.begin(_lookups(1, 2))
    assert transaction.snapshot.seqs == {1: 0, 2: 0}
    await transaction.rollback()


async def test_what_postgresql_refuses_is_poison_and_writes_nothing(postgres: Subject) -> None:
    transaction = await postgres.store.begin(_lookups(1))
    with pytest.raises(StorePoisonError):
        await transaction.commit(_writes({1: 2}, _record(1), _record(2, data=b'{"broken":')))
    assert rows(postgres.dsn, "SELECT count(*) FROM records") == [(0,)]
    await _commit(postgres, _lookups(1), _writes({1: 1}, _record(1)))


async def test_full_disk_is_told_from_what_passes_by_itself(postgres: Subject) -> None:
    database = Serving(postgres.dsn, 1)
    try:
        with pytest.raises(StoreFullError):
            await database.query("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$")
        with pytest.raises(StoreRetryError):
            await database.query("DO $$ BEGIN RAISE SQLSTATE '53200'; END $$")
    finally:
        await database.close()


async def test_usage_is_added_to_what_a_tenant_holds(subject: Subject) -> None:
    more = {1: TenantUsage(record_rows=1, record_bytes=7, answer_rows=2), 2: TenantUsage(event_rows=3)}
    for _ in range(2):
        writes = _writes()
        writes.usage = more
        await _commit(subject, _lookups(1, 2), writes)
    transaction = await subject.store.begin(_lookups(1, 2, 3))
    await transaction.rollback()
    assert transaction.snapshot.usage == {
        1: TenantUsage(record_rows=2, record_bytes=14, answer_rows=4),
        2: TenantUsage(event_rows=6),
        3: TenantUsage(),
    }
    assert transaction.snapshot.seqs == {1: 0, 2: 0, 3: 0}


@pytest.mark.parametrize("name", NAMES)
async def test_usage_of_whatever_kind_is_added_beside_that_of_others(subject: Subject, name: str) -> None:
    more = {1: TenantUsage(record_rows=1, answer_bytes=2), 2: TenantUsage(**{name: 7})}
    writes = _writes()
    writes.usage = more
    await _commit(subject, _lookups(1, 2), writes)
    transaction = await subject.store.begin(_lookups(1, 2))
    await transaction.rollback()
    assert transaction.snapshot.usage == more


@pytest.mark.parametrize("name", NAMES)
async def test_usage_of_a_tenant_is_told_where_it_holds_more_than_was_asked_for(
    subject: Subject, name: str
) -> None:
    more = {1: TenantUsage(**{name: 7}), 2: TenantUsage(**{name: 8})}
    writes = _writes()
    writes.usage = more
    await _commit(subject, _lookups(1, 2), writes)
    wanted = _lookups(1, 2, 3)
    wanted.usage_above = tuple([7 if one == name else 0 for one in NAMES])
    transaction = await subject.store.begin(wanted)
    await transaction.rollback()
    assert transaction.snapshot.usage == {2: more[2]}
    assert transaction.snapshot.seqs == {1: 0, 2: 0, 3: 0}


async def _found_key(subject: Subject, key: IdempotencyRecord, *, old: bool) -> IdempotencyRecord | None:
    ref = IdempotencyKey(1, key.key_hash)
    wanted = ReadSet([1], [ref], [], [], [], [], old_keys=[ref] if old else [])
    transaction = await subject.store.begin(wanted)
    await transaction.rollback()
    return transaction.snapshot.keys.get(ref)


async def test_kept_answer_older_than_two_days_is_found_where_it_may_be_met(postgres: Subject) -> None:
    key = IdempotencyRecord(1, "0123456789abcdef" * 2, "ab" * 32, b"[]")
    await _commit(postgres, _lookups(1), WriteSet({}, [], [], [key], [], []))
    for age_h, found_at_once, found_as_old in (
        (0, True, True),
        (47, True, True),
        (49, False, True),
        (719, False, True),
        (721, False, False),
    ):
        execute(
            postgres.dsn,
            f"UPDATE sync_idempotency_record SET created_at = now() - interval '{age_h} hours'",
        )
        aged = msgspec.structs.replace(key, age_s=age_h * 3600)
        assert await _found_key(postgres, key, old=False) == (aged if found_at_once else None), age_h
        assert await _found_key(postgres, key, old=True) == (aged if found_as_old else None), age_h


async def test_kept_answer_of_a_key_used_twice_is_the_younger(postgres: Subject) -> None:
    for age_h in (400, 300, 0):
        key = IdempotencyRecord(1, "0123456789abcdef" * 2, "ab" * 32, f"[{age_h}]".encode(), age_h * 3600)
        await _commit(postgres, _lookups(1), WriteSet({}, [], [], [key], [], []))
        execute(
            postgres.dsn,
            "UPDATE sync_idempotency_record SET created_at = created_at"
            f" - interval '{age_h} hours' WHERE created_at > now() - interval '1 hour'",
        )
        assert await _found_key(postgres, key, old=True) == key


async def test_store_begin_reads_again_when_the_databases_day_is_another_one(postgres: Subject) -> None:
    """Statements name days: those of another day would pass over answers."""
    store = postgres.store
    assert isinstance(store, PostgresStore)
    key = IdempotencyRecord(1, "0123456789abcdef" * 2, "ab" * 32, b"[]")
    await _commit(postgres, _lookups(1), WriteSet({}, [], [], [key], [], []))
    today = store._day
    assert today is not None
    for day, again in ((today - 1, False), (today, False), (today - 30, True), (today + 1, True)):
        store._day = day
        store._statements.clear()
        if again:
            with pytest.raises(StoreRetryError):
                await _found_key(postgres, key, old=False)
        assert await _found_key(postgres, key, old=False) == key
        assert store._day == today


async def test_store_begin_of_two_lanes_on_another_day_reads_again_in_both(
    postgres: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to learn of the new day does not vouch for what the second has read."""
    store = postgres.store
    assert isinstance(store, PostgresStore)
    await (await store.begin(_lookups(1))).rollback()
    assert store._day is not None
    store._day -= 30
    store._statements.clear()
    begin, both, begun = store._database.begin, asyncio.Event(), 0

    async def begin_together(**named: Any) -> object:
        nonlocal begun
        transaction = await begin(**named)
        begun += 1
        if begun == 2:
            both.set()
        await both.wait()  # so that neither has an answer before the other has made its statement
        return transaction

    monkeypatch.setattr(store._database, "begin", begin_together)
    ended = await asyncio.gather(*(store.begin(_lookups(n)) for n in (1, 2)), return_exceptions=True)
    assert [type(one) for one in ended] == [StoreRetryError, StoreRetryError]


async def test_session_forgets_prepared_statements_of_past_days(postgres: Subject) -> None:
    database = Serving(postgres.dsn, 1)
    try:
        session = await database.acquire()
        count = "SELECT count(*) FROM pg_prepared_statements"
        for number in range(450):
            await session.run_prepared("", (Statement(f"SELECT {number}"),), "", {})
            if number % 100 == 99:
                ((prepared,),) = await session.run(count)
                assert prepared <= 200
        assert await session.run_prepared("", (Statement("SELECT 449"),), "", {}) == [(449,)]
        await database.release(session, clean=True)
    finally:
        await database.close()


async def test_a_terminated_backend_is_retried_or_unknown(postgres: Subject) -> None:
    """Before COMMIT was sent nothing was written; after it only the keys tell."""
    await _commit(postgres, _lookups(1), _writes({1: 1}, _record(1)))
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    execute(postgres.dsn, kill)
    for _ in range(5):
        try:
            transaction = await postgres.store.begin(_lookups(1))
            break
        except StoreRetryError:
            continue
    assert transaction.snapshot.seqs == {1: 1}
    await transaction.rollback()


async def test_prepared_statements_give_way_to_a_pooler(postgres: Subject) -> None:
    """A pooler hands out a connection on which nothing, or something of the same name, is prepared."""
    await _commit(postgres, _lookups(1), _writes({1: 1}, _record(1)))
    transaction = await postgres.store.begin(_lookups(1))
    session = transaction._transaction._connection  # type: ignore[attr-defined]
    await transaction.rollback()
    await session.run("DEALLOCATE ALL")
    with pytest.raises(StoreRetryError):
        await postgres.store.begin(_lookups(1))
    await _commit(postgres, _lookups(1), _writes({1: 2}, _record(2)))
    await session.run("DEALLOCATE ALL")
    await _commit(postgres, _lookups(1), _writes({1: 3}, _record(3)))
    assert rows(postgres.dsn, "SELECT count(*) FROM pg_prepared_statements") == [(0,)]
