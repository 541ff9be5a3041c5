"""Writers that are behind: what they commit is sealed as the database says, by keys that it has."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest

from compose.sealing.master_key import MasterKeySource
from compose.sealing.stores import FollowedSealing
from engine.model.rows import ReadSet, RecordKey, WriteSet
from engine.operate.figures.voice import Result, Verification
from engine.runtime.ports import StoreError, StoreRetryError
from engine.seal.master_keys import master_key_id
from engine.seal.sealer import key_number
from engine.uploads.ports import NewUpload, StoredFile
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresStore
from storage.stores.feed import PostgresFeed
from storage.stores.keys import reseal
from storage.stores.keys.admin import PostgresKeyAdmin
from storage.stores.keys.reseal import PostgresReseal
from storage.stores.monitoring.voice import PostgresVoice
from storage.stores.sealed.followed import SealingChangedError
from storage.stores.sealed.sealing import Sealing, UnreadableValueError
from storage.stores.uploads import PostgresUploads
from tests.harness.in_process_server import settings_with
from tests.harness.services import execute, rows
from tests.storage.stores.test_sealing import HASH, RECORD, SECRET, TABLES, _write, database
from tests.storage.stores.test_uploads import ROOM, new

__all__ = ["database"]

SETTINGS = settings_with(
    domains={"patient": {"policy": "server_wins", "pii": ["name"]}},
    sealing={"master_key": b64encode(b"m" * 32).decode()},
)
MASTER = master_key_id(b"m" * 32)
WANTED = ReadSet([1], [], [RecordKey(1, "patient", "r1")], [], [], [])
SECOND = msgspec.structs.replace(RECORD, id="r2", seq=2)
#: A standby becomes the primary that had received neither the key of the tenant nor what it sealed.
FAILOVER = (
    "DELETE FROM records",
    "DELETE FROM tenant_keys",
    "UPDATE tenants SET newest_key = 0",
    "UPDATE tenant_counters SET seq = 0",
)
VERIFICATION = Verification(f"{SECRET}-1", "phone", SECRET, 0, Result(verified=True))


async def _process(database: Database) -> FollowedSealing:
    """The sealing of another process, as of now."""
    found = FollowedSealing(SETTINGS, database, MasterKeySource(SETTINGS), 64)
    await found.refresh()
    return found


async def _seal(database: Database) -> None:
    for domain in ("patient", "voice"):
        await PostgresKeyAdmin(database).seal_domain(domain, [MASTER])


async def _records(database: Database, sealing: Sealing) -> list[str]:
    page = await PostgresFeed(database, sealing).page(1, 0, None, 10, 1 << 20)
    return [record.id for record in page.records]


async def test_pull_over_a_value_that_cannot_be_opened_is_counted(dsn: str, database: Database) -> None:
    await _seal(database)
    sealing = await _process(database)
    await _write(database, sealing, RECORD)
    assert await _records(database, sealing) == ["r1"]
    assert [getattr(one, "values", None) for one in sealing.metrics()] == [{"value": 0, "key": 0}]
    execute(dsn, "UPDATE records SET version = version + 1")
    with pytest.raises(UnreadableValueError):
        await _records(database, sealing)
    assert [getattr(one, "values", None) for one in sealing.metrics()] == [{"value": 1, "key": 0}]


def _dump(dsn: str, *tables: str) -> str:
    return "\n".join(str(row) for table in tables for row in rows(dsn, f"SELECT t::text FROM {table} AS t"))


@pytest.mark.parametrize("another", [True, False])
async def test_commit_after_a_failover_that_lost_the_key_seals_with_one_that_the_database_has(
    dsn: str, database: Database, another: bool
) -> None:
    await _seal(database)
    behind = await _process(database)
    await _write(database, behind, RECORD)
    execute(dsn, *FAILOVER)
    if another:
        await _write(database, await _process(database), SECOND)
    await _write(database, behind, msgspec.structs.replace(RECORD, seq=3))
    assert rows(dsn, "SELECT key_number FROM tenant_keys") == [(1,)]
    expected = ["r2", "r1"] if another else ["r1"]
    assert await _records(database, await _process(database)) == expected
    assert await _records(database, behind) == expected


async def test_commit_a_key_row_of_a_backup_in_place_of_the_key_seals_with_that_one(
    dsn: str, database: Database
) -> None:
    await _seal(database)
    await _write(database, await _process(database), RECORD)
    execute(dsn, "CREATE TABLE backup AS SELECT * FROM tenant_keys", *FAILOVER)
    behind = await _process(database)
    await _write(database, behind, RECORD)
    execute(dsn, *FAILOVER, "INSERT INTO tenant_keys SELECT * FROM backup")
    await _write(database, behind, RECORD)
    assert await _records(database, await _process(database)) == ["r1"]


async def test_commit_a_counter_that_names_another_key_is_put_right(dsn: str, database: Database) -> None:
    await _seal(database)
    sealing = await _process(database)
    store = PostgresStore(database, 24, sealing)
    await sealing.load_missing([1])
    execute(dsn, "UPDATE tenant_counters SET key_id = NULL")  # as a restore without triggers does
    with pytest.raises(SealingChangedError):
        await store.begin(WANTED)
    await (await store.begin(WANTED)).rollback()


async def test_counter_that_is_missing_when_a_key_is_made_names_it(dsn: str, database: Database) -> None:
    await _seal(database)
    execute(dsn, "DELETE FROM tenant_counters")
    await _write(database, await _process(database), RECORD)
    found = "SELECT FROM tenant_counters JOIN tenant_keys USING (tenant_id, key_id)"
    assert len(rows(dsn, found)) == 1


async def test_page_after_a_failover_reads_values_of_another_key_of_the_same_number(
    dsn: str, database: Database
) -> None:
    await _seal(database)
    behind = await _process(database)
    await _write(database, behind, RECORD)
    execute(dsn, *FAILOVER)
    await _write(database, await _process(database), SECOND)
    assert await _records(database, behind) == ["r2"]


async def test_commit_after_a_rotation_by_another_process_seals_with_the_new_key(
    dsn: str, database: Database
) -> None:
    await _seal(database)
    behind, other = await _process(database), await _process(database)
    await _write(database, behind, RECORD)
    await other._keys.rotate(1)
    await _write(database, behind, SECOND)
    sealed = [b64decode(str(data)) for (data,) in rows(dsn, "SELECT data FROM records ORDER BY id")]
    assert [key_number(one) for one in sealed] == [1, 2]


async def test_commit_keys_read_again_between_the_round_trips_refuses_the_batch(
    dsn: str, database: Database
) -> None:
    await _seal(database)
    sealing = await _process(database)
    store = PostgresStore(database, 24, sealing)
    transaction = await store.begin(WANTED)
    await (await _process(database))._keys.rotate(1)
    await sealing.refresh()
    await sealing.load_missing([1])
    with pytest.raises(SealingChangedError):
        await transaction.commit(WriteSet({1: 1}, [RECORD], [], [], [], []))
    assert rows(dsn, "SELECT FROM records") == []


async def test_commit_domains_followed_between_the_round_trips_refuses_the_batch(
    dsn: str, database: Database
) -> None:
    sealing = await _process(database)
    transaction = await PostgresStore(database, 24, sealing).begin(WANTED)
    await _seal(database)
    await sealing.refresh()
    with pytest.raises(SealingChangedError):
        await transaction.commit(WriteSet({1: 1}, [RECORD], [], [], [], []))
    assert rows(dsn, "SELECT FROM records") == []


async def test_commit_of_a_process_that_does_not_follow_seals_every_kind_of_row(
    dsn: str, database: Database
) -> None:
    behind = await _process(database)
    await _seal(database)
    await _write(database, behind)
    found = _dump(dsn, *TABLES)
    assert SECRET not in found
    assert HASH not in found


async def test_reseal_pass_begins_when_transactions_that_missed_the_domain_have_ended(
    dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = await PostgresStore(database, 24, await _process(database)).begin(WANTED)
    await _seal(database)
    execute(
        dsn,
        "UPDATE tenants SET created_at = now() - interval '1 day'",
        "UPDATE sealed_domains SET since = now() - interval '1 minute'",
    )
    sealing = await _process(database)
    store = PostgresReseal(database, sealing, sealing.refresh)
    monkeypatch.setattr(reseal, "_OLDER_S", 0.0)
    with pytest.raises(StoreError, match="transactions that began before this pass are still open"):
        await store.begin(1)
    await behind.commit(WriteSet({1: 2}, [RECORD], [], [], [], []))
    assert SECRET in _dump(dsn, "records")
    await store.begin(1)
    while await store.step(1) is not None:
        pass
    assert SECRET not in _dump(dsn, "records")


@pytest.mark.parametrize("before_check", [True, False])
async def test_reseal_page_with_a_key_that_a_failover_lost_is_sealed_with_another(
    dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch, before_check: bool
) -> None:
    await _write(database, Sealing(), RECORD)
    await _seal(database)
    execute(
        dsn,
        "UPDATE tenants SET created_at = now() - interval '1 day'",
        "UPDATE sealed_domains SET since = now() - interval '1 minute'",
    )
    sealing = await _process(database)
    store = PostgresReseal(database, sealing, sealing.refresh)
    await store.begin(1)
    lost, changed = FAILOVER[1:3], reseal._changed

    def fail_over(*arguments: Any) -> object:
        monkeypatch.setattr(reseal, "_changed", changed)
        execute(dsn, *lost)
        return changed(*arguments)

    if before_check:
        monkeypatch.setattr(reseal, "_changed", fail_over)
    else:
        await sealing.load_keys([1])
        execute(dsn, *lost)
    while await store.step(1) is not None:
        pass
    assert SECRET not in _dump(dsn, "records")
    assert await _records(database, await _process(database)) == ["r1"]


async def test_begin_settings_that_change_faster_than_they_are_read_is_a_retry(database: Database) -> None:
    await _seal(database)
    with pytest.raises(SealingChangedError):  # nobody reads them for this one
        await PostgresStore(database, 24, Sealing()).begin(WANTED)
    with pytest.raises(SealingChangedError):
        await PostgresVoice(database, Sealing()).put(1, [VERIFICATION])
    assert issubclass(SealingChangedError, StoreRetryError)


async def test_uploads_of_a_process_that_does_not_follow_are_sealed(dsn: str, database: Database) -> None:
    store = PostgresUploads(database, await _process(database))
    await _seal(database)
    upload = new(domain="patient", file_name=SECRET, metadata=f"filename {SECRET}", expected_sha256=HASH)
    assert await store.create([NewUpload(upload, ROOM)], 60.0) == ["created"]

    store = PostgresUploads(database, FollowedSealing(SETTINGS, database, MasterKeySource(SETTINGS), 64))
    execute(dsn, "UPDATE upload_session SET offset_bytes = 100")
    assert await store.mark_stored([StoredFile(upload.ref, "patient", HASH, "a/b")]) == [True]

    store = PostgresUploads(database, FollowedSealing(SETTINGS, database, MasterKeySource(SETTINGS), 64))
    whole = new(domain="patient", file_name=SECRET, metadata=SECRET, kind="final")
    assert await store.concatenate(NewUpload(whole, ROOM), 60.0) == "created"
    found = _dump(dsn, "upload_session")
    assert SECRET not in found
    assert HASH not in found


async def test_voice_log_of_a_process_that_does_not_follow_is_sealed(dsn: str, database: Database) -> None:
    store = PostgresVoice(database, await _process(database))
    await _seal(database)
    assert await store.put(1, [VERIFICATION]) == 1
    assert SECRET not in _dump(dsn, "voice_verification_log")


async def test_uploads_and_voice_while_nothing_is_sealed_take_no_round_trip_to_look(
    dsn: str, database: Database
) -> None:
    sealing = await _process(database)
    store, voice = PostgresUploads(database, sealing), PostgresVoice(database, sealing)
    upload, part = new(), new(kind="partial")
    whole = new(kind="final", parts=(part.ref.upload_id,))
    trips: list[int] = []

    async def counted(done: Awaitable[object], expected: object) -> None:
        before = database.usage.round_trips
        assert await done == expected
        trips.append(database.usage.round_trips - before)

    await counted(store.create([NewUpload(upload, ROOM)], 60.0), ["created"])
    await store.create([NewUpload(part, ROOM)], 60.0)
    await counted(store.concatenate(NewUpload(whole, ROOM), 60.0), "created")
    execute(dsn, "UPDATE upload_session SET offset_bytes = size_bytes")
    await counted(store.mark_stored([StoredFile(upload.ref, None, HASH, "a/b")]), [True])
    await counted(voice.put(1, [VERIFICATION]), 1)
    assert trips == [3, 5, 2, 2], "begin with the first statement, the others, commit"
