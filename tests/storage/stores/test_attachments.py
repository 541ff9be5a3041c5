"""Records' files in PostgreSQL: written with the versions that have them, read with every record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psycopg2
import pytest

from engine.model.rows import ReadSet, Record, RecordKey, WriteSet
from engine.model.uploads import UploadRef
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresStore
from storage.stores.feed import PostgresFeed
from storage.stores.sealed.sealing import Sealing
from tests.harness.services import Serving, execute, rows
from tests.harness.uploads.stored_files import keep, upload

AT_US = 1_767_323_045_000_000
ODD = 'quote " backslash \\ brace {} comma, 鍵 \x01\x02\r\n \U0001f511 NULL'
FILES = msgspec.json.encode([{"file_id": "1", "filename": ODD}])
ONE, TWO = UploadRef(1, f"{1:032x}"), UploadRef(1, f"{2:032x}")


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """A database with two tenants, and an upload of the first that is stored."""
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('one'), ('two')",
        "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
        "INSERT INTO upload_session"
        " (tenant_id, upload_id, device_id, kind, metadata, reserved_bytes, state, expires_at)"
        f" VALUES (1, '{ONE.upload_id}', 'phone', 'whole', '', 7, 'stored', now())",
    )
    database = Serving(dsn, 2)
    yield database
    await database.close()


def _record(seq: int, **fields: object) -> Record:
    return msgspec.structs.replace(
        Record(1, "task", f"r{seq}", 1, seq, AT_US + seq, "phone", 1, b'{"n":%d}' % seq), **fields
    )


async def _commit(database: Database, *records: Record, seq: int) -> None:
    keys = [RecordKey(row.tenant_id, row.domain, row.id) for row in records]
    transaction = await PostgresStore(database, 24, Sealing()).begin(ReadSet([1], [], keys, [], [], []))
    await transaction.commit(WriteSet({1: seq}, list(records), [], [], [], []))


async def test_attachments_kept_with_records_and_read_everywhere(database: Database) -> None:
    await _commit(database, _record(1), _record(2), _record(3, attachments=FILES), seq=3)
    changed = [
        _record(4, id="r1", version=2, data=b'{"m":1}'),
        _record(5, id="r2", attachments=FILES, fields=b'{"since":1}'),
        _record(6, id="r3", version=2, data=None, attachments=b"[]"),
    ]
    await _commit(database, *changed, seq=6)
    keys = [RecordKey(1, "task", name) for name in ("r1", "r2", "r3")]
    transaction = await PostgresStore(database, 24, Sealing()).begin(ReadSet([1], [], keys, [], [], []))
    await transaction.rollback()
    assert transaction.snapshot.records == dict(zip(keys, changed, strict=True))
    feed = PostgresFeed(database, Sealing())
    shown = [msgspec.structs.replace(one, fields=None) for one in changed]
    assert (await feed.page(1, 0, None, 10, 1 << 20)).records == shown
    assert (await feed.page(1, 0, ["task"], 10, 1 << 20)).records == shown
    assert (await feed.pages_after({1: 4}, 10, 1 << 20))[1].records == shown[1:]


async def test_feed_page_ends_where_attachments_fill_it(database: Database) -> None:
    large = b'["%s"]' % (b"x" * 1000)
    records = [_record(seq, attachments=large) for seq in (1, 2, 3)]
    await _commit(database, *records, seq=3)
    feed = PostgresFeed(database, Sealing())
    for page in (await feed.page(1, 0, None, 10, 1100), (await feed.pages_after({1: 0}, 10, 1100))[1]):
        assert [row.seq for row in page.records] == [1, 2]
        assert page.more


async def test_upload_state_read_and_written_with_the_batch(database: Database, dsn: str) -> None:
    store = PostgresStore(database, 24, Sealing())
    asked = [ONE, TWO, UploadRef(2, ONE.upload_id)]
    wanted = ReadSet([1, 2], [], [], [], [], [], asked)
    transaction = await store.begin(wanted)
    assert transaction.snapshot.uploads == {ONE: "stored"}
    await transaction.commit(WriteSet({}, [], [], [], [], [], uploads=[(ONE, "attached")]))
    assert rows(dsn, "SELECT state, updated_at > created_at FROM upload_session") == [("attached", True)]
    transaction = await store.begin(wanted)
    await transaction.rollback()
    assert transaction.snapshot.uploads == {ONE: "attached"}


async def test_duplicates_same_record_name_and_content(database: Database, dsn: str) -> None:
    same: dict[str, Any] = {"file_name": "gate.jpg", "sha256": "aa"}
    states = ("open", "stored", "attached", "duplicate", "retained", "cancelled", "freed")
    others: list[dict[str, Any]] = [
        {"tenant": 2},
        {"domain": "note"},
        {"record_id": "b"},
        {"file_name": "x"},
        {"sha256": "bb"},
    ]
    keep(
        dsn,
        *(upload(10 + number, state=state, **same) for number, state in enumerate(states)),
        *(upload(20 + number, state="attached", **same | other) for number, other in enumerate(others)),
    )
    asked, lone = UploadRef(1, f"{12:032x}"), UploadRef(1, f"{23:032x}")
    wanted = ReadSet([1, 2], [], [], [], [], [], [asked], [asked, lone, UploadRef(2, asked.upload_id)])
    transaction = await PostgresStore(database, 24, Sealing()).begin(wanted)
    await transaction.rollback()
    duplicates = {UploadRef(1, f"{number:032x}"): states[number - 10] for number in (11, 13, 14)}
    found = transaction.snapshot.duplicates
    assert found.keys() == {asked}
    assert set(found[asked]) == duplicates.keys()
    assert transaction.snapshot.uploads == duplicates | {asked: "attached"}


async def test_upload_row_locked_while_a_batch_decides(database: Database, dsn: str) -> None:
    """What is cancelled needs no tenant's lock, so that the row itself has to be held."""
    transaction = await PostgresStore(database, 24, Sealing()).begin(ReadSet([1], [], [], [], [], [], [ONE]))
    cancel = "SELECT FROM upload_session FOR UPDATE NOWAIT"
    with pytest.raises(psycopg2.errors.LockNotAvailable):
        await asyncio.to_thread(execute, dsn, cancel)
    await transaction.rollback()
    await asyncio.to_thread(execute, dsn, cancel)


async def test_attachment_names_round_trip(database: Database, dsn: str) -> None:
    await _commit(database, _record(1, attachments=FILES), seq=1)
    ((text,),) = rows(dsn, "SELECT attachments::text FROM records")
    assert json.loads(str(text))[0]["filename"] == ODD
