"""What is left of uploads goes when its time has come, and nothing else: rows, reservations, bytes."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
import pytest

from engine.commit.ports import WorkQueue
from engine.commit.queue import OnOutcome
from engine.model.uploads import Append, State, Upload, UploadRef
from engine.operate import retention
from engine.plan.work import Work
from engine.uploads import cleanup as upload_cleanup
from engine.uploads.blobs import BlobsError
from engine.uploads.cleanup import Abandonment, RowsCleaned, UploadCleanup
from engine.uploads.ports import NewUpload, Quota
from engine.wire.errors import SyncError
from storage.blobs.directory import DirectoryBlobs
from storage.stores.jobs.upload_cleanup import PostgresCleanup
from storage.stores.upload_states import sql_state
from tests.engine.uploads.test_service import FakeBody
from tests.harness.admin import remove_tenant
from tests.harness.services import execute, rows
from tests.harness.uploads.upload_stack import (
    EXPIRE_S,
    GRACE_S,
    LAST_DATA_S,
    UploadStack,
    after_page,
    now_us,
    session,
    stack,
    text,
)

__all__ = ["stack"]

EXPIRE_H = EXPIRE_S / 3600
GRACE_H = GRACE_S / 3600
LAST_DATA_H = LAST_DATA_S / 3600
WEEK_H = 7 * 24.0


# -- uploads that expired ---------------------------------------------------------------------


async def test_cleanup_upload_past_its_expiry_loses_bytes_and_reservation(stack: UploadStack) -> None:
    upload = await stack.sent(await stack.begun(), text(100))
    other = await stack.begun(200, tenant=2)
    at_us = (await stack.store.find(upload.ref)).expires_at_us  # type: ignore[union-attr]  # it is there
    assert (await stack.cleanup.expire_and_free(at_us - 1, after_page)).expired == 0
    assert (stack.state(upload), stack.reserved()) == ("open", 300)
    assert stack.stored_blobs() == {("drafts", upload.ref.upload_id)}
    later = "UPDATE upload_session SET expires_at = expires_at + interval '1 h' WHERE tenant_id = 2"
    execute(stack.dsn, later)
    assert (await stack.cleanup.expire_and_free(at_us, after_page)).expired == 1
    assert (stack.state(upload), stack.reserved()) == ("expired", 0)
    assert (stack.state(other), stack.reserved(2)) == ("open", 200)
    assert stack.stored_blobs() == set()
    with pytest.raises(SyncError) as gone:
        await stack.service.find(session(), upload.ref.upload_id)
    assert gone.value.code == "upload_gone"
    assert (await stack.clean_rows(EXPIRE_H * 3)).expired == 1, "the other tenant's"
    assert [stack.minutes.of(tenant_id).uploads_abandoned for tenant_id in (1, 2)] == [1, 1]
    assert stack.reserved(2) == 0


async def test_cleanup_locked_upload_expires_only_with_its_lock(
    stack: UploadStack,
) -> None:
    locked, died = await stack.begun(), await stack.begun()
    for upload, lease in ((locked, "+"), (died, "-")):
        execute(
            stack.dsn,
            f"UPDATE upload_session SET holder = 'x', held_until = now() {lease} interval '20 s',"
            f" expires_at = now() - interval '1 s' WHERE upload_id = '{upload.ref.upload_id}'",
        )
    assert (await stack.clean_rows()).expired == 1
    assert (stack.state(locked), stack.state(died)) == ("open", "expired")
    assert stack.reserved() == 300


async def test_cleanup_upload_written_at_its_expiry_goes_on(stack: UploadStack) -> None:
    upload, content = await stack.begun(), text()
    body = FakeBody(content[:120], "stalls")
    writing = asyncio.create_task(stack.service.append(session(), upload.ref.upload_id, Append(0, 300), body))
    await body.stalled.wait()
    execute(stack.dsn, "UPDATE upload_session SET expires_at = now() - interval '1 s'")
    assert (await stack.clean_rows()).expired == 0
    body.cut()
    with pytest.raises(SyncError):
        await writing
    assert (await stack.sent(upload, content[120:])).state == "stored"
    assert (await stack.clean_rows()).expired == 0


async def test_cleanup_request_stalled_past_expiry_gets_upload_gone(stack: UploadStack) -> None:
    upload, content = await stack.begun(), text()
    body = FakeBody(content[:120], "stalls")
    writing = asyncio.create_task(stack.service.append(session(), upload.ref.upload_id, Append(0, 300), body))
    await body.stalled.wait()
    execute(
        stack.dsn,
        "UPDATE upload_session SET expires_at = now() - interval '1 s', held_until = now() - interval '1 s'",
    )
    assert (await stack.clean_rows()).expired == 1
    body.cut()
    with pytest.raises(SyncError) as refused:
        await writing
    assert refused.value.code == "locked"
    assert (stack.state(upload), stack.reserved()) == ("expired", 0)
    assert rows(stack.dsn, "SELECT offset_bytes FROM upload_session") == [(0,)], "nothing was acknowledged"
    assert (await stack.remove_orphans(25)).left == 0
    assert stack.stored_blobs() == set(), "what it wrote after all is nobody's"


async def test_cleanup_parts_of_a_final_upload_expire_with_it(stack: UploadStack) -> None:
    parts = [await stack.begun(), await stack.begun()]
    alone = await stack.begun()
    for part in (*parts, alone):
        await stack.sent(part, text(10))
    execute(
        stack.dsn,
        "UPDATE upload_session SET kind = 'part', size_bytes = 10, expires_at = now() - interval '1 s'"
        f" WHERE upload_id <> '{alone.ref.upload_id}'",
    )
    whole = msgspec.structs.replace(
        alone,
        ref=UploadRef(1, uuid.uuid4().hex),
        kind="final",
        parts=tuple(part.ref.upload_id for part in parts),
        size_bytes=20,
        offset_bytes=20,
        reserved_bytes=600,
    )
    assert (
        await stack.store.concatenate(NewUpload(whole, Quota(1 << 30, 100, 1000, 1000)), EXPIRE_S)
        == "created"
    )
    assert (await stack.clean_rows()).expired == 0
    assert [stack.state(one) for one in (whole, *parts)] == ["open"] * 3
    execute(stack.dsn, "UPDATE upload_session SET expires_at = now() - interval '1 s' WHERE kind = 'joined'")
    rows_cleaned = await stack.clean_rows()
    assert rows_cleaned.expired == 3
    assert rows_cleaned.abandonment == [Abandonment("tenant1", 0, 2)], "it counts as its parts"
    assert [stack.state(one) for one in (whole, *parts, alone)] == ["expired"] * 3 + ["open"]
    assert stack.reserved() == 300
    assert stack.stored_blobs() == {("drafts", alone.ref.upload_id)}


async def test_cleanup_failed_deletion_is_done_by_a_later_run(
    stack: UploadStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await stack.sent(await stack.begun(), text(100))

    async def refuse(*_: object) -> None:
        raise BlobsError("the disk is away")

    with monkeypatch.context() as broken:
        broken.setattr(DirectoryBlobs, "delete_draft", refuse)
        assert (await stack.clean_rows(EXPIRE_H * 2)).expired == 1
        stack.aged(25)
        assert (await stack.remove_orphans()).left == 1
    assert stack.stored_blobs() == {("drafts", upload.ref.upload_id)}
    assert (await stack.remove_orphans()).orphans == 1
    assert stack.stored_blobs() == set()


# -- files of records that are gone -----------------------------------------------------------


async def test_cleanup_deleted_record_files_freed_after_grace_period(stack: UploadStack) -> None:
    await stack.push("put", None)
    first, other = await stack.stored(), await stack.stored("b")
    await stack.push("put", None, record="b")
    assert stack.state(first) == "attached"
    await stack.push("delete", 1)
    assert (await stack.clean_rows()).freed == 0
    assert (await stack.clean_rows(GRACE_H - 1)).freed == 0
    assert stack.state(first) == "attached"
    assert (await stack.clean_rows(GRACE_H + 1)).freed == 1
    assert stack.state(first) == "freed"
    assert stack.reserved() == 300, "that of the other"
    assert ("files", first.ref.upload_id) not in stack.stored_blobs()
    assert ("files", other.ref.upload_id) in stack.stored_blobs()
    assert rows(stack.dsn, "SELECT attachments::text FROM records WHERE id = 'a'") == [("[]",)]
    await stack.push("put", 2)
    assert rows(stack.dsn, "SELECT attachments::text FROM records WHERE id = 'a'") == [("[]",)]
    assert (await stack.clean_rows(GRACE_H * 3)).left == 0


async def test_cleanup_restored_record_keeps_files_and_restarts_grace_period(stack: UploadStack) -> None:
    await stack.push("put", None)
    file = await stack.stored()
    await stack.push("delete", 1)
    await stack.clean_rows()
    assert rows(stack.dsn, "SELECT gone_at IS NULL FROM upload_session") == [(False,)]
    await stack.push("put", 2)
    assert (await stack.clean_rows(GRACE_H * 2)).freed == 0
    assert rows(stack.dsn, "SELECT gone_at IS NULL FROM upload_session") == [(True,)]
    await stack.push("delete", 3)
    await stack.clean_rows(GRACE_H * 2)
    assert (await stack.clean_rows(GRACE_H * 3 - 1)).freed == 0
    assert stack.state(file) == "attached"
    assert (await stack.clean_rows(GRACE_H * 3 + 1)).freed == 1


async def test_cleanup_record_deleted_again_counts_from_the_last_deletion(stack: UploadStack) -> None:
    await stack.push("put", None)
    file = await stack.stored()
    await stack.push("delete", 1)
    await stack.clean_rows(-2 * GRACE_H)  # no run saw that it was back meanwhile
    assert (await stack.clean_rows()).freed == 0
    assert stack.state(file) == "attached"


async def test_cleanup_duplicate_freed_with_the_file_that_stands_for_it(stack: UploadStack) -> None:
    await stack.push("put", None)
    content = text()
    first = await stack.sent(await stack.begun(), content)
    duplicate = await stack.sent(await stack.begun(), content)
    assert (stack.state(first), stack.state(duplicate)) == ("attached", "duplicate")
    await stack.push("delete", 1)
    await stack.clean_rows()
    assert (await stack.clean_rows(GRACE_H + 1)).freed == 2
    assert (stack.state(first), stack.state(duplicate)) == ("freed", "freed")
    assert stack.reserved() == 0


async def _twice(stack: UploadStack) -> tuple[Upload, Upload]:
    """Have a file sent again, as who lost the answer does."""
    await stack.push("put", None)
    content = text()
    return await stack.sent(await stack.begun(), content), await stack.sent(await stack.begun(), content)


def _shown(stack: UploadStack) -> tuple[object, ...]:
    return rows(stack.dsn, "SELECT attachments ->> 0, json_array_length(attachments) FROM records")[0]


async def test_free_file_with_a_duplicate_is_retained_with_its_reservation(stack: UploadStack) -> None:
    first, duplicate = await _twice(stack)
    shown = _shown(stack)
    await stack.service.cancel(session(), first.ref.upload_id)
    with pytest.raises(SyncError) as gone:
        await stack.service.find(session(), first.ref.upload_id)
    assert gone.value.code == "upload_gone"
    stack.aged(48)
    assert (await stack.remove_orphans()).orphans == 0
    assert (await stack.clean_rows(WEEK_H * 3)).forgotten == 0
    assert (stack.state(first), stack.state(duplicate)) == ("retained", "duplicate")
    assert (stack.reserved(), stack.stored_blobs(), _shown(stack)) == (
        300,
        {("files", first.ref.upload_id)},
        shown,
    )
    assert (await stack.service.find(session(), duplicate.ref.upload_id)).offset_bytes == 300
    await stack.service.cancel(session(), duplicate.ref.upload_id)
    assert (stack.state(first), stack.state(duplicate)) == ("freed", "freed")
    assert (stack.reserved(), stack.stored_blobs(), _shown(stack)) == (0, set(), (None, 0))
    assert (await stack.clean_rows(WEEK_H + 1)).forgotten == 2


async def test_free_duplicate_leaves_the_file(stack: UploadStack) -> None:
    first, duplicate = await _twice(stack)
    shown = _shown(stack)
    await stack.service.cancel(session(), duplicate.ref.upload_id)
    assert (stack.state(first), stack.state(duplicate)) == ("attached", "freed")
    assert (stack.reserved(), stack.stored_blobs(), _shown(stack)) == (
        300,
        {("files", first.ref.upload_id)},
        shown,
    )


async def test_cleanup_retained_file_freed_with_its_duplicate(stack: UploadStack) -> None:
    first, duplicate = await _twice(stack)
    await stack.service.cancel(session(), first.ref.upload_id)
    await stack.push("delete", 1)
    await stack.clean_rows()
    assert (await stack.clean_rows(GRACE_H - 1)).freed == 0
    assert (await stack.clean_rows(GRACE_H + 1)).freed == 1
    assert (stack.state(first), stack.state(duplicate)) == ("freed", "freed")
    assert (stack.reserved(), stack.stored_blobs(), _shown(stack)) == (0, set(), (None, 0))


async def test_cleanup_retained_file_left_by_a_crash_is_an_orphan(
    stack: UploadStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, duplicate = await _twice(stack)
    await stack.service.cancel(session(), first.ref.upload_id)

    async def refuse(*_: object) -> None:
        raise BlobsError("the disk is away")

    with monkeypatch.context() as broken:
        broken.setattr(DirectoryBlobs, "delete_file", refuse)
        await stack.service.cancel(session(), duplicate.ref.upload_id)
    assert stack.stored_blobs() == {("files", first.ref.upload_id)}
    stack.aged(25)
    assert (await stack.remove_orphans()).orphans == 1
    assert (stack.reserved(), stack.stored_blobs()) == (0, set())


async def test_free_many_duplicates_at_once_leaves_no_file(stack: UploadStack) -> None:
    """Whichever is the last, all of it goes with it, and nothing before."""
    await stack.push("put", None)
    content = text()
    uploads = [await stack.sent(await stack.begun(), content) for _ in range(12)]
    for some in (uploads[:11], uploads[11:]):
        await asyncio.gather(*[stack.service.cancel(session(), one.ref.upload_id) for one in some])
        left = {("files", uploads[0].ref.upload_id)} if some[1:] else set()
        assert (stack.stored_blobs(), stack.reserved()) == (left, 300 if left else 0)
    assert {stack.state(one) for one in uploads} == {"freed"}


async def test_cleanup_file_without_record_freed_after_grace_period(stack: UploadStack) -> None:
    file, mine = await stack.stored("never"), await stack.stored("never", tenant=2)
    assert (await stack.clean_rows(GRACE_H - 1)).freed == 0
    assert (stack.state(file), stack.state(mine)) == ("stored", "stored")
    later = "UPDATE upload_session SET updated_at = updated_at + interval '2 h' WHERE tenant_id = 2"
    execute(stack.dsn, later)
    assert (await stack.clean_rows(GRACE_H + 1)).freed == 1
    assert (stack.state(file), stack.state(mine)) == ("freed", "stored")
    assert stack.stored_blobs() == {("files", mine.ref.upload_id)}


class Reviving(WorkQueue):
    """Takes jobs in for somebody whose record is brought back at that very moment."""

    def __init__(self, stack: UploadStack) -> None:
        self._house = stack
        self.back = asyncio.Event()

    def submit(self, work: Work, reply: OnOutcome, *_: object) -> None:
        """Have the record first."""

        async def revive() -> None:
            await self._house.push("put", 2)
            self._house.committer.submit(work, reply)
            self.back.set()

        self._task = asyncio.create_task(revive())


async def test_cleanup_record_restored_during_the_run_keeps_files(stack: UploadStack) -> None:
    await stack.push("put", None)
    file = await stack.stored()
    await stack.push("delete", 1)
    await stack.clean_rows()
    cleanup = UploadCleanup(
        PostgresCleanup(stack.database), stack.blobs, Reviving(stack), GRACE_S, stack.minutes
    )
    assert (await cleanup.expire_and_free(now_us(GRACE_H + 1), after_page)).freed == 0
    assert stack.state(file) == "attached"
    assert stack.stored_blobs() == {("files", file.ref.upload_id)}
    assert rows(stack.dsn, "SELECT json_array_length(attachments) FROM records") == [(1,)]


class Refusing(WorkQueue):
    """Takes no jobs in."""

    def submit(self, work: Work, reply: OnOutcome, *_: object) -> None:
        """Refuse."""
        del work, reply
        raise SyncError("overloaded", "come back", retry_after_ms=1)


async def test_cleanup_overloaded_commit_leaves_files_for_the_next_run(stack: UploadStack) -> None:
    file = await stack.stored("never")
    cleanup = UploadCleanup(PostgresCleanup(stack.database), stack.blobs, Refusing(), GRACE_S, stack.minutes)
    rows_cleaned = await cleanup.expire_and_free(now_us(GRACE_H + 1), after_page)
    assert (rows_cleaned.freed, rows_cleaned.left, stack.state(file)) == (0, 1, "stored")
    assert stack.stored_blobs() == {("files", file.ref.upload_id)}
    assert (await stack.clean_rows(GRACE_H + 1)).freed == 1


# -- rows that tell of nothing any more -------------------------------------------------------

STATES: tuple[State, ...] = State.__args__  # type: ignore[attr-defined]  # of a Literal


async def test_cleanup_ended_rows_deleted_after_a_week(stack: UploadStack) -> None:
    uploads = {state: await stack.begun() for state in STATES}
    for state, upload in uploads.items():
        execute(
            stack.dsn,
            f"UPDATE upload_session SET state = {sql_state(state)}, expires_at = now() + interval '1 y',"
            f" created_at = 'epoch', record_id = 'z' WHERE upload_id = '{upload.ref.upload_id}'",
        )
    assert (await stack.cleanup.expire_and_free(now_us(min(WEEK_H, GRACE_H) - 1), after_page)).forgotten == 0
    assert {state for state, one in uploads.items() if stack.state(one) != state} == set()
    later = "UPDATE upload_session SET updated_at = now() + interval '99 y' WHERE state = 'stored'"
    execute(stack.dsn, later)
    assert (await stack.clean_rows(WEEK_H + 1)).forgotten == 5
    left = {state for state, one in uploads.items() if stack.state(one) is not None}
    assert left == {"open", "stored", "attached", "retained", "duplicate"}


# -- as a whole -------------------------------------------------------------------------------


async def test_cleanup_many_rows_are_paged(stack: UploadStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_cleanup, "PAGE", 2)
    given_up = [await stack.sent(await stack.begun(tenant=1 + n % 2), text(9), 1 + n % 2) for n in range(7)]
    for n in range(5):
        await stack.push("put", None, record=f"r{n}")
        await stack.stored(f"r{n}")
        await stack.push("delete", 1, record=f"r{n}")
        await stack.stored(f"never{n}")
    await stack.clean_rows()
    assert rows(stack.dsn, "SELECT count(*) FROM upload_session WHERE gone_at IS NOT NULL") == [(5,)]
    calls = 0

    async def kept(_: object) -> None:
        nonlocal calls
        calls += 1

    rows_cleaned = await stack.cleanup.expire_and_free(now_us(GRACE_H + 1), kept)
    assert (rows_cleaned.expired, rows_cleaned.freed, rows_cleaned.left) == (7, 10, 0)
    assert (stack.reserved(1), stack.reserved(2), stack.stored_blobs()) == (0, 0, set())
    assert calls > 10, "its turn is kept all along"
    assert {stack.state(one) for one in given_up} == {"expired"}
    assert (await stack.clean_rows(WEEK_H * 2 + GRACE_H)).forgotten == 17


async def test_cleanup_two_runs_at_once_do_everything_once(stack: UploadStack) -> None:
    for n in range(20):
        await stack.sent(await stack.begun(tenant=1 + n % 2), text(9), 1 + n % 2)
        await stack.stored("never")
    runs: list[RowsCleaned] = await asyncio.gather(*[stack.clean_rows(GRACE_H + 1) for _ in range(2)])
    assert sum(run.expired for run in runs) == 20
    assert (stack.reserved(1), stack.reserved(2)) == (0, 0)
    assert rows(stack.dsn, "SELECT state, count(*) FROM upload_session GROUP BY state ORDER BY state") == [
        ("expired", 20),
        ("freed", 20),
    ]
    assert stack.stored_blobs() == set()


async def test_cleanup_abandonment_is_counted_by_tenant(stack: UploadStack) -> None:
    for _ in range(3):
        await stack.stored("never")
    cancelled = await stack.begun()
    await stack.service.cancel(session(), cancelled.ref.upload_id)
    await stack.begun()
    await stack.begun(tenant=2)
    rows_cleaned = await stack.clean_rows(EXPIRE_H + 0.5)
    assert rows_cleaned.abandonment == [Abandonment("tenant1", 3, 1), Abandonment("tenant2", 0, 1)]
    assert [one.ratio for one in rows_cleaned.abandonment] == [0.25, 1.0]
    execute(stack.dsn, "UPDATE upload_session SET ended_at = ended_at - interval '1 day' WHERE tenant_id = 1")
    assert (await stack.clean_rows()).abandonment == [Abandonment("tenant2", 0, 1)]


# -- the last data of deleted records ---------------------------------------------------------


async def test_cleanup_last_data_dropped_without_a_new_version(stack: UploadStack) -> None:
    for record in ("a", "b"):
        await stack.push("put", None, record=record)
        await stack.push("delete", 1, record=record)
    await stack.push("put", None, record="c")
    held_bytes = "SELECT record_bytes FROM tenant_counters WHERE tenant_id = 1"
    stored_bytes = (
        "SELECT sum(octet_length(concat(data::text, fields::text, last_data::text)))::bigint FROM records"
    )
    assert rows(stack.dsn, held_bytes) == rows(stack.dsn, stored_bytes)
    kept = "SELECT id, version, seq, last_data::text, last_data_at IS NULL FROM records ORDER BY id"
    before = rows(stack.dsn, kept)
    assert [row[3] is None for row in before] == [False, False, True]
    assert "emptied" not in await stack.retained(LAST_DATA_H - 1)
    assert rows(stack.dsn, kept) == before
    heads = rows(stack.dsn, "SELECT tenant_id, seq FROM tenant_counters ORDER BY 1")
    execute(stack.dsn, "UPDATE records SET last_data_at = now() + interval '1 h' WHERE id = 'b'")
    assert (await stack.retained(LAST_DATA_H))["emptied"] == 1
    assert rows(stack.dsn, kept) == [(*before[0][:3], None, True), *before[1:]]
    assert (await stack.retained(LAST_DATA_H + 2))["emptied"] == 1
    assert rows(stack.dsn, held_bytes) == rows(stack.dsn, stored_bytes)
    assert rows(stack.dsn, "SELECT tenant_id, seq FROM tenant_counters ORDER BY 1") == heads


async def test_cleanup_last_data_of_a_locked_tenant_left_for_the_next_run(stack: UploadStack) -> None:
    await stack.push("put", None)
    await stack.push("delete", 1)
    async with stack.database.connection() as session:
        await session.run("BEGIN; SET LOCAL tidemark.tenants = '1'; SELECT FROM tenant_counters FOR UPDATE")
        assert "emptied" not in await stack.retained(LAST_DATA_H)
        await session.run("ROLLBACK")
    assert (await stack.retained(LAST_DATA_H))["emptied"] == 1


async def test_cleanup_last_data_are_paged(stack: UploadStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_PAGE", 2)
    for record in "abcde":
        await stack.push("put", None, record=record)
        await stack.push("delete", 1, record=record)
    assert (await stack.retained(LAST_DATA_H))["emptied"] == 5
    assert "emptied" not in await stack.retained(LAST_DATA_H)


async def test_erase_tenant_drops_last_data(stack: UploadStack) -> None:
    for tenant in (1, 2):
        await stack.push("put", None, tenant)
        await stack.push("delete", 1, tenant)
    remove_tenant(stack.dsn, "tenant1", erase=True)
    kept = "SELECT tenant_id, last_data::text FROM records WHERE last_data IS NOT NULL"
    assert rows(stack.dsn, kept) == [(2, '{"n":1}')]
