"""Sealed values in the tables: nobody can read them there, and readers get them as they were written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from engine.feed.gap_reader import GapReader
from engine.feed.ports import Page
from engine.model.rows import (
    KEYED_CHARS,
    Conflict,
    ConflictRef,
    Event,
    EventKey,
    HeldChange,
    IdempotencyKey,
    IdempotencyRecord,
    OpenConflictRef,
    Quarantined,
    ReadSet,
    Record,
    RecordKey,
    WriteSet,
)
from engine.runtime.ports import StoreError, StoreUnreadableError
from storage.postgres.pool import Database
from storage.stores.commit.sealed_values import changes, side
from storage.stores.commit.store import PostgresStore
from storage.stores.conflicts import PostgresConflicts
from storage.stores.feed import PostgresFeed
from storage.stores.quarantine import PostgresQuarantine
from storage.stores.sealed.answers import keyed_request
from storage.stores.sealed.sealing import SLICE_CHARS, Sealing
from storage.stores.stored_conflict import conflict_in_steps
from tests.harness.key_ring import MadeUpRing, sealing_of
from tests.harness.services import Serving, execute, rows

AT_US = 1_767_323_045_000_000
#: Is in every value that has to be sealed, and in nothing else.
SECRET = "voiceprint"
HASH = "5e" * 32
KEY_HASH = "0f" * 16
FILES = b'[{"file_id":"f1","filename":"%s.pdf"}]' % SECRET.encode()

RECORD = Record(
    1, "patient", "r1", 2, 1, AT_US, "phone", 1, b'{"name":"%s"}' % SECRET.encode(), None, FILES, 7
)
GONE = msgspec.structs.replace(
    RECORD, id="r2", seq=2, data=None, attachments=b"[]", last_data=b'{"last":"%s"}' % SECRET.encode()
)
TASK = msgspec.structs.replace(
    RECORD, domain="task", id="r3", seq=3, data=b'{"title":"paint"}', attachments=None
)
EVENT = Event(1, "voice", "e1", AT_US, AT_US + 1, "phone", b'{"verified":"%s"}' % SECRET.encode())
ANSWER = IdempotencyRecord(1, KEY_HASH, HASH, b'[{"data":"%s"}]' % SECRET.encode(), personal=True)
CONFLICT = Conflict(
    tenant_id=1,
    conflict_id="c1",
    domain="patient",
    record_id="r1",
    device_id="phone",
    policy="manual",
    outcome="open",
    server_version=2,
    server_data=b'{"server":"%s"}' % SECRET.encode(),
    client_base=1,
    client_op="put",
    client_at_us=AT_US,
    client_data=b'{"client":"%s"}' % SECRET.encode(),
    client_sent_at_us=AT_US,
    client_changes=(
        HeldChange("put", 1, AT_US, AT_US, b'{"held":"%s"}' % SECRET.encode()),
        HeldChange("delete", 1, AT_US, AT_US, None),
    ),
    client_count=2,
    opened_at_us=AT_US,
    settled_sha256=HASH,
)
REJECTED = Quarantined(
    tenant_id=1,
    quarantine_id="q1",
    device_id="phone",
    domain="patiant",
    record_id="r9",
    item=b'{"domain":"patiant","data":"%s"}' % SECRET.encode(),
    code="unknown_domain",
    message="no such domain",
    at_us=AT_US,
)
BARE = IdempotencyRecord(1, "0e" * 16, HASH, b'[{"status":"applied"}]', personal=True, bare=True)
TABLES = (
    "records",
    "events",
    "sync_idempotency_record",
    "conflict_resolution_log",
    "quarantine",
)
WANTED = ReadSet(
    [1],
    [IdempotencyKey(1, KEY_HASH), IdempotencyKey(1, BARE.key_hash), IdempotencyKey(1, "0d" * 16)],
    [RecordKey(1, "patient", "r1"), RecordKey(1, "patient", "r2"), RecordKey(1, "task", "r3")],
    [EventKey(1, "voice", "e1", AT_US)],
    [OpenConflictRef(1, "phone", "patient", "r1")],
    [ConflictRef(1, "c1")],
)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    execute(dsn, "INSERT INTO tenants (name) VALUES ('one')", "INSERT INTO tenant_counters VALUES (1)")
    database = Serving(dsn, 2)
    yield database
    await database.close()


def _sealing(ring: MadeUpRing | None = None) -> Sealing:
    """Of these tests' domains all but task name personal data."""
    return sealing_of("patient", "voice", others=["task"], ring=ring)


async def _write(
    database: Database, sealing: Sealing, *records: Record, answers: Sequence[IdempotencyRecord] = ()
) -> None:
    """Write records and answers, or one row of each kind."""
    transaction = await PostgresStore(database, 24, sealing).begin(ReadSet([1], [], [], [], [], []))
    writes = WriteSet({1: 9}, list(records), [], list(answers), [], [])
    if not records and not answers:
        writes = WriteSet({1: 9}, [RECORD, GONE, TASK], [EVENT], [ANSWER, BARE], [CONFLICT], [REJECTED])
    await transaction.commit(writes)


def _dump(dsn: str) -> str:
    return "\n".join(str(row) for table in TABLES for row in rows(dsn, f"SELECT t::text FROM {table} AS t"))


async def test_sealing_every_kind_of_row_hides_it_in_the_tables_and_reads_it_back(
    dsn: str, database: Database
) -> None:
    sealing = _sealing()
    await _write(database, sealing)

    found = _dump(dsn)
    assert SECRET not in found
    assert HASH not in found
    assert "paint" in found, "a domain without personal data is not sealed"

    transaction = await PostgresStore(database, 24, sealing).begin(WANTED)
    await transaction.rollback()
    read = transaction.snapshot
    assert list(read.records.values()) == [RECORD, GONE, TASK]
    assert list(read.events.values()) == [EVENT]
    answer = read.keys[IdempotencyKey(1, KEY_HASH)]
    assert (answer.request_sha256, answer.results) == (HASH, ANSWER.results)
    bare = read.keys[IdempotencyKey(1, BARE.key_hash)]
    assert (bare.request_sha256, bare.results) == (
        keyed_request(sealing, 1, bare.request_sha256, HASH),
        BARE.results,
    )
    assert len(bare.request_sha256) == KEYED_CHARS
    assert list(read.open_conflicts.values()) == list(read.conflicts.values()) == [CONFLICT]

    page = await PostgresFeed(database, sealing).page(1, 0, None, 10, 1 << 20)
    assert [(one.data, one.attachments) for one in page.records] == [
        (RECORD.data, FILES),
        (None, b"[]"),
        (TASK.data, None),
    ]
    news = await PostgresFeed(database, sealing).pages_after({1: 0}, 10, 1 << 20)
    assert news[1].records == page.records
    conflicts = PostgresConflicts(database, sealing)
    assert await conflicts.conflict(1, "c1") == CONFLICT
    (listed,) = (await conflicts.open_conflicts(1, "phone", None, 10, 1 << 20)).found
    assert listed.record is not None
    assert (listed.conflict, listed.record.data) == (CONFLICT, RECORD.data)
    assert (await conflicts.find("c1", "one")).conflict == CONFLICT
    assert (await PostgresQuarantine(database, sealing).find("q1", "one")).row == REJECTED


async def test_sealing_off_leaves_every_kind_of_row_readable(dsn: str, database: Database) -> None:
    await _write(database, Sealing())
    found = _dump(dsn)
    assert found.count(SECRET) == 9
    assert HASH in found


async def test_sealed_rows_written_before_it_was_on_are_read(database: Database) -> None:
    await _write(database, Sealing())
    transaction = await PostgresStore(database, 24, _sealing()).begin(WANTED)
    await transaction.rollback()
    assert list(transaction.snapshot.records.values()) == [RECORD, GONE, TASK]
    assert list(transaction.snapshot.conflicts.values()) == [CONFLICT]


async def test_open_a_newer_key_of_another_process_reads_the_keys_once(database: Database) -> None:
    await _write(database, _sealing(MadeUpRing(newest=2)))
    ring = MadeUpRing(newest=1)
    sealing = _sealing(ring)
    await sealing.load_missing([1])
    ring.newest = 2
    page = await PostgresFeed(database, sealing).page(1, 0, None, 10, 1 << 20)
    assert page.records[0].data == RECORD.data
    assert ring.loads == [{1}, {1}]

    behind = MadeUpRing(newest=1)
    sealing = _sealing(behind)
    await sealing.load_missing([1])
    behind.newest = 2
    transaction = await PostgresStore(database, 24, sealing).begin(WANTED)
    await transaction.rollback()
    assert transaction.snapshot.records[RecordKey(1, "patient", "r1")] == RECORD
    assert behind.loads == [{1}, {1}]


async def test_bare_answers_are_known_again_after_a_rotation(database: Database) -> None:
    key = IdempotencyKey(1, BARE.key_hash)

    async def read(ring: MadeUpRing) -> tuple[str, str | None]:
        sealing = _sealing(ring)
        transaction = await PostgresStore(database, 24, sealing).begin(WANTED)
        await transaction.rollback()
        stored = transaction.snapshot.keys[key].request_sha256
        return stored, keyed_request(sealing, 1, stored, HASH)

    await _write(database, _sealing(MadeUpRing(newest=1)))
    stored, keyed = await read(MadeUpRing(newest=2))
    assert stored == keyed
    await _write(
        database, _sealing(MadeUpRing(newest=2)), answers=[msgspec.structs.replace(BARE, key_hash="0d" * 16)]
    )
    key = IdempotencyKey(1, "0d" * 16)
    behind = MadeUpRing(newest=1)
    await behind.load([1])
    behind.newest = 2  # another process has rotated
    newer, keyed = await read(behind)
    assert newer == keyed != stored
    assert newer[:10] == "0100000002"
    assert behind.loads == [{1}, {1}]
    with pytest.raises(StoreError, match="tenant_keys"):
        await read(MadeUpRing(newest=1))  # a lost key is no other request


async def test_reads_of_sealed_rows_load_keys_without_a_write(database: Database) -> None:
    await _write(database, _sealing())
    rings = [MadeUpRing() for _ in range(3)]
    sealings = [_sealing(ring) for ring in rings]
    await PostgresFeed(database, sealings[0]).page(1, 0, None, 10, 1 << 20)
    await PostgresConflicts(database, sealings[1]).conflict(1, "c1")
    await PostgresQuarantine(database, sealings[2]).find("q1", "one")
    assert [(ring.loads, ring.loads_to_seal) for ring in rings] == [([{1}], [])] * 3


@pytest.mark.parametrize(
    ("ring", "remedy"),
    [
        (None, "set sealing.master_key_file"),
        (MadeUpRing(newest=1), "restore the rows of tenant 1 in tenant_keys"),
    ],
)
async def test_open_without_the_key_is_an_error_that_names_the_remedy_and_no_empty_read(
    database: Database, ring: MadeUpRing | None, remedy: str
) -> None:
    await _write(database, _sealing(MadeUpRing(newest=2)))
    sealing = Sealing() if ring is None else _sealing(ring)
    with pytest.raises(StoreUnreadableError, match=remedy):
        await PostgresFeed(database, sealing).page(1, 0, None, 10, 1 << 20)
    with pytest.raises(StoreUnreadableError, match=remedy):
        await PostgresStore(database, 24, sealing).begin(WANTED)


async def test_open_a_value_moved_to_another_row_is_an_error(dsn: str, database: Database) -> None:
    sealing = _sealing()
    await _write(database, sealing)
    execute(dsn, "UPDATE records SET data = (SELECT data FROM records WHERE id = 'r1') WHERE id = 'r2'")
    with pytest.raises(StoreError, match="another row"):
        await PostgresFeed(database, sealing).page(1, 0, None, 10, 1 << 20)


async def test_live_feed_of_another_tenant_passes_a_value_that_cannot_be_opened(
    dsn: str, database: Database
) -> None:
    sealing = _sealing()
    await _write(database, sealing)
    execute(
        dsn,
        "UPDATE records SET data = (SELECT data FROM records WHERE id = 'r1') WHERE id = 'r2'",
        "INSERT INTO tenants (name) VALUES ('two')",
        "INSERT INTO tenant_counters (tenant_id, seq) VALUES (2, 3)",
    )
    reader = GapReader(PostgresFeed(database, sealing), 1 << 20)
    running = asyncio.create_task(reader.run())
    broken, whole = await asyncio.gather(
        reader.page_after(1, 0), reader.page_after(2, 0), return_exceptions=True
    )
    running.cancel()
    await asyncio.wait([running])
    assert "another row" in str(broken)
    assert isinstance(whole, Page)
    assert whole.high_seq == 3


def _given_back(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that has an element for each time that the loop is given back from now on."""
    waits_s: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits_s.append(wait_s)

    monkeypatch.setattr("storage.stores.sealed.sealing.asyncio.sleep", sleep)
    return waits_s


async def test_conflict_of_large_sides_and_changes_gives_the_loop_back_between_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sealing = _sealing()
    await sealing.load_missing([1])
    data = b'{"name":"%s"}' % (b"x" * SLICE_CHARS)
    large = msgspec.structs.replace(
        CONFLICT,
        server_data=data,
        client_data=data,
        client_changes=tuple(HeldChange("put", 1, AT_US, AT_US, data) for _ in range(3)),
    )
    fields = msgspec.structs.asdict(large)
    for name in ("server_data", "client_data"):
        fields[name] = msgspec.Raw(side(name, large, sealing) or b"")
    fields["client_changes"] = msgspec.Raw((changes(large, sealing) or "").encode())
    text = msgspec.json.encode(fields).decode()
    given_back = _given_back(monkeypatch)
    assert await sealing.opened([text], lambda one: conflict_in_steps(one, sealing)) == [large]
    assert len(given_back) == 5


async def test_page_of_large_sealed_records_gives_the_loop_back_between_slices(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealing = _sealing()
    data = b'{"name":"%s"}' % (b"x" * (SLICE_CHARS // 2))
    await _write(
        database,
        sealing,
        *[
            msgspec.structs.replace(RECORD, id=f"l{n}", seq=n, data=data, attachments=None)
            for n in range(1, 7)
        ],
    )
    given_back = _given_back(monkeypatch)
    page = await PostgresFeed(database, sealing).page(1, 0, None, 10, 1 << 30)
    assert [record.data for record in page.records] == [data] * 6
    assert len(given_back) == 3
