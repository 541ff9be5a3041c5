"""What is left of uploads goes when its time has come, and nothing else: rows, reservations, bytes."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
import pytest

from engine.commit.ports import WorkQueue
from engine.commit.queue import OnOutcome
from engine.model.uploads import Append, State, Upload, UploadRef
from engine.plan.work import Work
from engine.uploads import cleanup as upload_cleanup
from engine.uploads.blobs import BlobsError
from engine.uploads.cleanup import Abandonment, RowsCleaned, UploadCleanup
from engine.uploads.ports import NewUpload, Quota
from engine.wire.errors import SyncError
from storage.blobs.directory import DirectoryBlobs
from storage.stores.upload_cleanup import PostgresCleanup
from storage.stores.upload_states import sql_state
from tests.engine.uploads.test_service import Sent
from tests.harness.admin import remove_tenant
from tests.harness.services import execute, rows
from tests.harness.upload_stack import (
    EXPIRE_S,
    GRACE_S,
    LAST_DATA_S,
    House,
    house,
    keep,
    now_us,
    session,
    text,
)

__all__ = ["house"]

EXPIRE_H = EXPIRE_S / 3600
GRACE_H = GRACE_S / 3600
LAST_DATA_H = LAST_DATA_S / 3600
WEEK_H = 7 * 24.0


# -- uploads that expired ---------------------------------------------------------------------


async def test_cleanup_upload_past_its_expiry_loses_bytes_and_reservation(house: House) -> None:
    upload = await house.sent(await house.begun(), text(100))
    other = await house.begun(200, tenant=2)
    at_us = (await house.store.find(upload.ref)).expires_at_us  # type: ignore[union-attr]  # it is there
    assert (await house.cleanup.expire_and_free(at_us - 1, keep)).expired == 0
    assert (house.state(upload), house.reserved()) == ("open", 300)
    assert house.stored_blobs() == {("drafts", upload.ref.upload_id)}
    later = "UPDATE upload_session SET expires_at = expires_at + interval '1 h' WHERE tenant_id = 2"
    execute(house.dsn, later)
    assert (await house.cleanup.expire_and_free(at_us, keep)).expired == 1
    assert (house.state(upload), house.reserved()) == ("expired", 0)
    assert (house.state(other), house.reserved(2)) == ("open", 200)
    assert house.stored_blobs() == set()
    with pytest.raises(SyncError) as gone:
        await house.service.find(session(), upload.ref.upload_id)
    assert gone.value.code == "upload_gone"
    assert (await house.tidied(EXPIRE_H * 3)).expired == 1, "the other tenant's"
    assert house.reserved(2) == 0


async def test_cleanup_locked_upload_expires_only_with_its_lock(
    house: House,
) -> None:
    held, died = await house.begun(), await house.begun()
    for upload, lease in ((held, "+"), (died, "-")):
        execute(
            house.dsn,
            f"UPDATE upload_session SET holder = 'x', held_until = now() {lease} interval '20 s',"
            f" expires_at = now() - interval '1 s' WHERE upload_id = '{upload.ref.upload_id}'",
        )
    assert (await house.tidied()).expired == 1
    assert (house.state(held), house.state(died)) == ("open", "expired")
    assert house.reserved() == 300


async def test_cleanup_upload_written_at_its_expiry_goes_on(house: House) -> None:
    upload, content = await house.begun(), text()
    body = Sent(content[:120], "stalls")
    writing = asyncio.create_task(house.service.append(session(), upload.ref.upload_id, Append(0, 300), body))
    await body.stalled.wait()
    execute(house.dsn, "UPDATE upload_session SET expires_at = now() - interval '1 s'")
    assert (await house.tidied()).expired == 0
    body.cut()
    with pytest.raises(SyncError):
        await writing
    assert (await house.sent(upload, content[120:])).state == "stored"
    assert (await house.tidied()).expired == 0


async def test_cleanup_request_stalled_past_expiry_gets_upload_gone(house: House) -> None:
    upload, content = await house.begun(), text()
    body = Sent(content[:120], "stalls")
    writing = asyncio.create_task(house.service.append(session(), upload.ref.upload_id, Append(0, 300), body))
    await body.stalled.wait()
    execute(
        house.dsn,
        "UPDATE upload_session SET expires_at = now() - interval '1 s', held_until = now() - interval '1 s'",
    )
    assert (await house.tidied()).expired == 1
    body.cut()
    with pytest.raises(SyncError) as refused:
        await writing
    assert refused.value.code == "locked"
    assert (house.state(upload), house.reserved()) == ("expired", 0)
    assert rows(house.dsn, "SELECT offset_bytes FROM upload_session") == [(0,)], "nothing was acknowledged"
    assert (await house.swept(25)).left == 0
    assert house.stored_blobs() == set(), "what it wrote after all is nobody's"


async def test_cleanup_parts_of_a_final_upload_expire_with_it(house: House) -> None:
    spent = [await house.begun(), await house.begun()]
    alone = await house.begun()
    for part in (*spent, alone):
        await house.sent(part, text(10))
    execute(
        house.dsn,
        "UPDATE upload_session SET kind = 'part', size_bytes = 10, expires_at = now() - interval '1 s'"
        f" WHERE upload_id <> '{alone.ref.upload_id}'",
    )
    whole = msgspec.structs.replace(
        alone,
        ref=UploadRef(1, uuid.uuid4().hex),
        kind="final",
        parts=tuple(part.ref.upload_id for part in spent),
        size_bytes=20,
        offset_bytes=20,
        reserved_bytes=600,
    )
    assert await house.store.concatenate(NewUpload(whole, Quota(1 << 30, 100, 1000)), EXPIRE_S) == "created"
    assert (await house.tidied()).expired == 0
    assert [house.state(one) for one in (whole, *spent)] == ["open"] * 3
    execute(house.dsn, "UPDATE upload_session SET expires_at = now() - interval '1 s' WHERE kind = 'joined'")
    tidied = await house.tidied()
    assert tidied.expired == 3
    assert tidied.abandonment == [Abandonment("tenant1", 0, 2)], "it counts as its parts"
    assert [house.state(one) for one in (whole, *spent, alone)] == ["expired"] * 3 + ["open"]
    assert house.reserved() == 300
    assert house.stored_blobs() == {("drafts", alone.ref.upload_id)}


async def test_cleanup_failed_deletion_is_done_by_a_later_run(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await house.sent(await house.begun(), text(100))

    async def refuse(*_: object) -> None:
        raise BlobsError("the disk is away")

    with monkeypatch.context() as broken:
        broken.setattr(DirectoryBlobs, "delete_draft", refuse)
        assert (await house.tidied(EXPIRE_H * 2)).expired == 1
        house.aged(25)
        assert (await house.swept()).left == 1
    assert house.stored_blobs() == {("drafts", upload.ref.upload_id)}
    assert (await house.swept()).orphans == 1
    assert house.stored_blobs() == set()


# -- files of records that are gone -----------------------------------------------------------


async def test_cleanup_deleted_record_files_freed_after_grace_period(house: House) -> None:
    await house.push("put", None)
    first, other = await house.stored(), await house.stored("b")
    await house.push("put", None, record="b")
    assert house.state(first) == "attached"
    await house.push("delete", 1)
    assert (await house.tidied()).freed == 0
    assert (await house.tidied(GRACE_H - 1)).freed == 0
    assert house.state(first) == "attached"
    assert (await house.tidied(GRACE_H + 1)).freed == 1
    assert house.state(first) == "freed"
    assert house.reserved() == 300, "that of the other"
    assert ("files", first.ref.upload_id) not in house.stored_blobs()
    assert ("files", other.ref.upload_id) in house.stored_blobs()
    assert rows(house.dsn, "SELECT attachments::text FROM records WHERE id = 'a'") == [("[]",)]
    await house.push("put", 2)
    assert rows(house.dsn, "SELECT attachments::text FROM records WHERE id = 'a'") == [("[]",)]
    assert (await house.tidied(GRACE_H * 3)).left == 0


async def test_cleanup_restored_record_keeps_files_and_restarts_grace_period(house: House) -> None:
    await house.push("put", None)
    file = await house.stored()
    await house.push("delete", 1)
    await house.tidied()
    assert rows(house.dsn, "SELECT gone_at IS NULL FROM upload_session") == [(False,)]
    await house.push("put", 2)
    assert (await house.tidied(GRACE_H * 2)).freed == 0
    assert rows(house.dsn, "SELECT gone_at IS NULL FROM upload_session") == [(True,)]
    await house.push("delete", 3)
    await house.tidied(GRACE_H * 2)
    assert (await house.tidied(GRACE_H * 3 - 1)).freed == 0
    assert house.state(file) == "attached"
    assert (await house.tidied(GRACE_H * 3 + 1)).freed == 1


async def test_cleanup_record_deleted_again_counts_from_the_last_deletion(house: House) -> None:
    await house.push("put", None)
    file = await house.stored()
    await house.push("delete", 1)
    await house.tidied(-2 * GRACE_H)  # no run saw that it was back meanwhile
    assert (await house.tidied()).freed == 0
    assert house.state(file) == "attached"


async def test_cleanup_duplicate_freed_with_the_file_that_stands_for_it(house: House) -> None:
    await house.push("put", None)
    content = text()
    first = await house.sent(await house.begun(), content)
    duplicate = await house.sent(await house.begun(), content)
    assert (house.state(first), house.state(duplicate)) == ("attached", "duplicate")
    await house.push("delete", 1)
    await house.tidied()
    assert (await house.tidied(GRACE_H + 1)).freed == 2
    assert (house.state(first), house.state(duplicate)) == ("freed", "freed")
    assert house.reserved() == 0


async def _twice(house: House) -> tuple[Upload, Upload]:
    """Have a file sent again, as who lost the answer does."""
    await house.push("put", None)
    content = text()
    return await house.sent(await house.begun(), content), await house.sent(await house.begun(), content)


def _shown(house: House) -> tuple[object, ...]:
    return rows(house.dsn, "SELECT attachments ->> 0, json_array_length(attachments) FROM records")[0]


async def test_free_file_with_a_duplicate_is_retained_with_its_reservation(house: House) -> None:
    first, duplicate = await _twice(house)
    shown = _shown(house)
    await house.service.cancel(session(), first.ref.upload_id)
    with pytest.raises(SyncError) as gone:
        await house.service.find(session(), first.ref.upload_id)
    assert gone.value.code == "upload_gone"
    house.aged(48)
    assert (await house.swept()).orphans == 0
    assert (await house.tidied(WEEK_H * 3)).forgotten == 0
    assert (house.state(first), house.state(duplicate)) == ("retained", "duplicate")
    assert (house.reserved(), house.stored_blobs(), _shown(house)) == (
        300,
        {("files", first.ref.upload_id)},
        shown,
    )
    assert (await house.service.find(session(), duplicate.ref.upload_id)).offset_bytes == 300
    await house.service.cancel(session(), duplicate.ref.upload_id)
    assert (house.state(first), house.state(duplicate)) == ("freed", "freed")
    assert (house.reserved(), house.stored_blobs(), _shown(house)) == (0, set(), (None, 0))
    assert (await house.tidied(WEEK_H + 1)).forgotten == 2


async def test_free_duplicate_leaves_the_file(house: House) -> None:
    first, duplicate = await _twice(house)
    shown = _shown(house)
    await house.service.cancel(session(), duplicate.ref.upload_id)
    assert (house.state(first), house.state(duplicate)) == ("attached", "freed")
    assert (house.reserved(), house.stored_blobs(), _shown(house)) == (
        300,
        {("files", first.ref.upload_id)},
        shown,
    )


async def test_cleanup_retained_file_freed_with_its_duplicate(house: House) -> None:
    first, duplicate = await _twice(house)
    await house.service.cancel(session(), first.ref.upload_id)
    await house.push("delete", 1)
    await house.tidied()
    assert (await house.tidied(GRACE_H - 1)).freed == 0
    assert (await house.tidied(GRACE_H + 1)).freed == 1
    assert (house.state(first), house.state(duplicate)) == ("freed", "freed")
    assert (house.reserved(), house.stored_blobs(), _shown(house)) == (0, set(), (None, 0))


async def test_cleanup_retained_file_left_by_a_crash_is_an_orphan(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, duplicate = await _twice(house)
    await house.service.cancel(session(), first.ref.upload_id)

    async def refuse(*_: object) -> None:
        raise BlobsError("the disk is away")

    with monkeypatch.context() as broken:
        broken.setattr(DirectoryBlobs, "delete_file", refuse)
        await house.service.cancel(session(), duplicate.ref.upload_id)
    assert house.stored_blobs() == {("files", first.ref.upload_id)}
    house.aged(25)
    assert (await house.swept()).orphans == 1
    assert (house.reserved(), house.stored_blobs()) == (0, set())


async def test_free_many_duplicates_at_once_leaves_no_file(house: House) -> None:
    """Whichever is the last, all of it goes with it, and nothing before."""
    await house.push("put", None)
    content = text()
    uploads = [await house.sent(await house.begun(), content) for _ in range(12)]
    for some in (uploads[:11], uploads[11:]):
        await asyncio.gather(*[house.service.cancel(session(), one.ref.upload_id) for one in some])
        left = {("files", uploads[0].ref.upload_id)} if some[1:] else set()
        assert (house.stored_blobs(), house.reserved()) == (left, 300 if left else 0)
    assert {house.state(one) for one in uploads} == {"freed"}


async def test_cleanup_file_without_record_freed_after_grace_period(house: House) -> None:
    file, mine = await house.stored("never"), await house.stored("never", tenant=2)
    assert (await house.tidied(GRACE_H - 1)).freed == 0
    assert (house.state(file), house.state(mine)) == ("stored", "stored")
    later = "UPDATE upload_session SET updated_at = updated_at + interval '2 h' WHERE tenant_id = 2"
    execute(house.dsn, later)
    assert (await house.tidied(GRACE_H + 1)).freed == 1
    assert (house.state(file), house.state(mine)) == ("freed", "stored")
    assert house.stored_blobs() == {("files", mine.ref.upload_id)}


class Reviving(WorkQueue):
    """Takes jobs in for somebody whose record is brought back at that very moment."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.back = asyncio.Event()

    def submit(self, work: Work, reply: OnOutcome, *_: object) -> None:
        """Have the record first."""

        async def revive() -> None:
            await self._house.push("put", 2)
            self._house.committer.submit(work, reply)
            self.back.set()

        self._task = asyncio.create_task(revive())


async def test_cleanup_record_restored_during_the_run_keeps_files(house: House) -> None:
    await house.push("put", None)
    file = await house.stored()
    await house.push("delete", 1)
    await house.tidied()
    cleanup = UploadCleanup(PostgresCleanup(house.database), house.blobs, Reviving(house), GRACE_S, 0)
    assert (await cleanup.expire_and_free(now_us(GRACE_H + 1), keep)).freed == 0
    assert house.state(file) == "attached"
    assert house.stored_blobs() == {("files", file.ref.upload_id)}
    assert rows(house.dsn, "SELECT json_array_length(attachments) FROM records") == [(1,)]


class Refusing(WorkQueue):
    """Takes no jobs in."""

    def submit(self, work: Work, reply: OnOutcome, *_: object) -> None:
        """Refuse."""
        del work, reply
        raise SyncError("overloaded", "come back", retry_after_ms=1)


async def test_cleanup_overloaded_commit_leaves_files_for_the_next_run(house: House) -> None:
    file = await house.stored("never")
    cleanup = UploadCleanup(PostgresCleanup(house.database), house.blobs, Refusing(), GRACE_S, 0)
    tidied = await cleanup.expire_and_free(now_us(GRACE_H + 1), keep)
    assert (tidied.freed, tidied.left, house.state(file)) == (0, 1, "stored")
    assert house.stored_blobs() == {("files", file.ref.upload_id)}
    assert (await house.tidied(GRACE_H + 1)).freed == 1


# -- rows that tell of nothing any more -------------------------------------------------------

STATES: tuple[State, ...] = State.__args__  # type: ignore[attr-defined]  # of a Literal


async def test_cleanup_ended_rows_deleted_after_a_week(house: House) -> None:
    uploads = {state: await house.begun() for state in STATES}
    for state, upload in uploads.items():
        execute(
            house.dsn,
            f"UPDATE upload_session SET state = {sql_state(state)}, expires_at = now() + interval '1 y',"
            f" created_at = 'epoch', record_id = 'z' WHERE upload_id = '{upload.ref.upload_id}'",
        )
    assert (await house.cleanup.expire_and_free(now_us(min(WEEK_H, GRACE_H) - 1), keep)).forgotten == 0
    assert {state for state, one in uploads.items() if house.state(one) != state} == set()
    later = "UPDATE upload_session SET updated_at = now() + interval '99 y' WHERE state = 'stored'"
    execute(house.dsn, later)
    assert (await house.tidied(WEEK_H + 1)).forgotten == 5
    left = {state for state, one in uploads.items() if house.state(one) is not None}
    assert left == {"open", "stored", "attached", "retained", "duplicate"}


# -- as a whole -------------------------------------------------------------------------------


async def test_cleanup_many_rows_are_paged(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_cleanup, "PAGE", 2)
    given_up = [await house.sent(await house.begun(tenant=1 + n % 2), text(9), 1 + n % 2) for n in range(7)]
    for n in range(5):
        await house.push("put", None, record=f"r{n}")
        await house.stored(f"r{n}")
        await house.push("delete", 1, record=f"r{n}")
        await house.stored(f"never{n}")
    await house.tidied()
    assert rows(house.dsn, "SELECT count(*) FROM upload_session WHERE gone_at IS NOT NULL") == [(5,)]
    calls = 0

    async def kept() -> None:
        nonlocal calls
        calls += 1

    tidied = await house.cleanup.expire_and_free(now_us(GRACE_H + 1), kept)
    assert (tidied.expired, tidied.freed, tidied.left) == (7, 10, 0)
    assert (house.reserved(1), house.reserved(2), house.stored_blobs()) == (0, 0, set())
    assert calls > 10, "its turn is kept all along"
    assert {house.state(one) for one in given_up} == {"expired"}
    assert (await house.tidied(WEEK_H * 2 + GRACE_H)).forgotten == 17


async def test_cleanup_two_runs_at_once_do_everything_once(house: House) -> None:
    for n in range(20):
        await house.sent(await house.begun(tenant=1 + n % 2), text(9), 1 + n % 2)
        await house.stored("never")
    runs: list[RowsCleaned] = await asyncio.gather(*[house.tidied(GRACE_H + 1) for _ in range(2)])
    assert sum(run.expired for run in runs) == 20
    assert (house.reserved(1), house.reserved(2)) == (0, 0)
    assert rows(house.dsn, "SELECT state, count(*) FROM upload_session GROUP BY state ORDER BY state") == [
        ("expired", 20),
        ("freed", 20),
    ]
    assert house.stored_blobs() == set()


async def test_cleanup_abandonment_is_counted_by_tenant(house: House) -> None:
    for _ in range(3):
        await house.stored("never")
    cancelled = await house.begun()
    await house.service.cancel(session(), cancelled.ref.upload_id)
    await house.begun()
    await house.begun(tenant=2)
    tidied = await house.tidied(EXPIRE_H + 0.5)
    assert tidied.abandonment == [Abandonment("tenant1", 3, 1), Abandonment("tenant2", 0, 1)]
    assert [one.ratio for one in tidied.abandonment] == [0.25, 1.0]
    execute(house.dsn, "UPDATE upload_session SET ended_at = ended_at - interval '1 day' WHERE tenant_id = 1")
    assert (await house.tidied()).abandonment == [Abandonment("tenant2", 0, 1)]


# -- the last data of deleted records ---------------------------------------------------------


async def test_cleanup_last_data_dropped_without_a_new_version(house: House) -> None:
    for record in ("a", "b"):
        await house.push("put", None, record=record)
        await house.push("delete", 1, record=record)
    await house.push("put", None, record="c")
    held_bytes = "SELECT record_bytes FROM tenant_counters WHERE tenant_id = 1"
    stored_bytes = (
        "SELECT sum(octet_length(concat(data::text, fields::text, last_data::text)))::bigint FROM records"
    )
    assert rows(house.dsn, held_bytes) == rows(house.dsn, stored_bytes)
    kept = "SELECT id, version, seq, last_data::text, last_data_at IS NULL FROM records ORDER BY id"
    before = rows(house.dsn, kept)
    assert [row[3] is None for row in before] == [False, False, True]
    assert (await house.tidied(LAST_DATA_H - 1)).emptied == 0
    assert rows(house.dsn, kept) == before
    heads = rows(house.dsn, "SELECT tenant_id, seq FROM tenant_counters ORDER BY 1")
    execute(house.dsn, "UPDATE records SET last_data_at = now() + interval '1 h' WHERE id = 'b'")
    assert (await house.tidied(LAST_DATA_H)).emptied == 1
    assert rows(house.dsn, kept) == [(*before[0][:3], None, True), *before[1:]]
    assert (await house.tidied(LAST_DATA_H + 2)).emptied == 1
    assert rows(house.dsn, held_bytes) == rows(house.dsn, stored_bytes)
    assert rows(house.dsn, "SELECT tenant_id, seq FROM tenant_counters ORDER BY 1") == heads


async def test_cleanup_last_data_of_a_locked_tenant_left_for_the_next_run(house: House) -> None:
    await house.push("put", None)
    await house.push("delete", 1)
    async with house.database.connection() as session:
        await session.run("BEGIN; SELECT FROM tenant_counters FOR UPDATE")
        assert (await house.tidied(LAST_DATA_H)).emptied == 0
        await session.run("ROLLBACK")
    assert (await house.tidied(LAST_DATA_H)).emptied == 1


async def test_cleanup_last_data_are_paged(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_cleanup, "PAGE", 2)
    for record in "abcde":
        await house.push("put", None, record=record)
        await house.push("delete", 1, record=record)
    assert (await house.tidied(LAST_DATA_H)).emptied == 5
    assert (await house.tidied(LAST_DATA_H)).emptied == 0


async def test_erase_tenant_drops_last_data(house: House) -> None:
    for tenant in (1, 2):
        await house.push("put", None, tenant)
        await house.push("delete", 1, tenant)
    remove_tenant(house.dsn, "tenant1", erase=True)
    kept = "SELECT tenant_id, last_data::text FROM records WHERE last_data IS NOT NULL"
    assert rows(house.dsn, kept) == [(2, '{"n":1}')]
