"""Bytes that no row wants go once they are a day old, and those that a row wants stay, whatever it says."""

from __future__ import annotations

import pytest

from engine.model.uploads import Draft, State, UploadRef
from engine.runtime.settings import S3
from engine.uploads.blobs import StoredBlob
from engine.uploads.cleanup import UploadCleanup
from storage.blobs.s3 import S3Blobs
from storage.stores.jobs.upload_cleanup import PostgresCleanup
from storage.stores.upload_states import sql_state
from tests.harness.admin import remove_tenant
from tests.harness.services import execute, rows
from tests.harness.uploads.upload_stack import GRACE_S, UploadStack, after_page, now_us, session, stack, text

__all__ = ["stack"]

STATES: tuple[State, ...] = State.__args__  # type: ignore[attr-defined]  # of a Literal
WEEK_H = 7 * 24.0

#: What may be there of an upload in each state: its draft, its file.
WANTED: dict[State | None, set[str]] = {
    "open": {"drafts", "files"},
    "stored": {"files"},
    "attached": {"files"},
    "retained": {"files"},
    "duplicate": set(),
    "refused": set(),
    "cancelled": set(),
    "expired": set(),
    "concatenated": set(),
    "freed": set(),
    None: set(),
}


async def test_orphans_bytes_without_a_row_deleted_after_a_day(stack: UploadStack) -> None:
    assert set(WANTED) == {*STATES, None}
    wanted = set()
    for state, places in WANTED.items():
        upload = await stack.begun()
        ref = upload.ref
        for place in ("files", "drafts"):
            await stack.blobs.open_draft(Draft(ref, 0, 0)).flush([b"12345"])
            if place == "files":
                await stack.blobs.publish([Draft(ref, 0, 5)], ref)
            if place in places:
                wanted.add((place, ref.upload_id))
        change = (
            f"UPDATE upload_session SET state = {sql_state(state)}" if state else "DELETE FROM upload_session"
        )
        execute(stack.dsn, f"{change} WHERE upload_id = '{ref.upload_id}'")
    await stack.blobs.open_draft(Draft(UploadRef(77, "ab" * 16), 3, 0)).flush(
        [b"of a tenant that is no more"]
    )
    stack.aged(23)
    before = stack.stored_blobs()
    assert (await stack.remove_orphans()).orphans == 0
    assert stack.stored_blobs() == before
    stack.aged(25)
    removed = await stack.remove_orphans()
    assert stack.stored_blobs() == wanted
    assert (removed.orphans, removed.left) == (len(before - wanted), 0)
    assert removed.orphan_bytes == 5 * (len(before - wanted) - 1) + 27
    assert (await stack.remove_orphans()).orphans == 0


async def test_orphans_file_of_an_open_upload_kept(stack: UploadStack) -> None:
    """Its process died in between: the device asks again, and it is finished."""
    content = text(40)
    upload = await stack.begun(40)
    await stack.blobs.open_draft(upload.draft).flush([content])
    await stack.blobs.publish([Draft(upload.ref, 0, 40)], upload.ref)
    execute(stack.dsn, "UPDATE upload_session SET offset_bytes = 40")
    stack.aged(48)
    assert (await stack.remove_orphans()).orphans == 0
    assert (await stack.service.find(session(), upload.ref.upload_id)).state == "stored"


async def test_orphans_of_an_erased_tenant_alone_deleted(stack: UploadStack) -> None:
    await stack.push("put", None)
    await stack.stored()
    await stack.sent(await stack.begun(), text(50))
    other = await stack.stored(tenant=2)
    with pytest.raises(Exception, match="upload_session"):
        remove_tenant(stack.dsn, "tenant1", erase=False)
    remove_tenant(stack.dsn, "tenant1", erase=True)
    for table in ("upload_session", "tenant_storage"):
        assert rows(stack.dsn, f"SELECT DISTINCT tenant_id FROM {table}") == [(2,)]
    stack.aged(25)
    assert (await stack.remove_orphans()).orphans == 2
    assert stack.stored_blobs() == {("files", other.ref.upload_id)}


async def test_remove_tenant_without_uploads_needs_no_erasing(stack: UploadStack) -> None:
    upload = await stack.begun()
    await stack.service.cancel(session(), upload.ref.upload_id)
    await stack.clean_rows(WEEK_H + 1)
    remove_tenant(stack.dsn, "tenant1", erase=False)
    assert rows(stack.dsn, "SELECT name FROM tenants") == [("tenant2",)]


async def test_list_stored_tells_drafts_from_files(stack: UploadStack) -> None:
    file = await stack.stored("never")
    draft = await stack.sent(await stack.begun(), text(7))
    found: list[StoredBlob] = [one async for some in stack.blobs.list_stored(now_us(1)) for one in some]
    assert {(one.ref, one.is_file, one.size_bytes) for one in found} == {
        (file.ref, True, 300),
        (draft.ref, False, 7),
    }


async def test_orphans_in_a_bucket_deleted(stack: UploadStack, bucket: S3) -> None:
    blobs = S3Blobs(bucket, 2)
    try:
        kept, orphan = await stack.begun(), await stack.begun()
        await blobs.open_draft(kept.draft).flush([b"12345"])
        pieces = await blobs.open_draft(orphan.draft).flush([b"12345"])
        await blobs.publish([Draft(orphan.ref, 0, 5, pieces)], UploadRef(1, "ab" * 16))
        execute(
            stack.dsn,
            f"UPDATE upload_session SET state = 'expired' WHERE upload_id = '{orphan.ref.upload_id}'",
        )
        cleanup = UploadCleanup(
            PostgresCleanup(stack.database), blobs, stack.committer, GRACE_S, stack.minutes
        )
        await blobs.open_draft(orphan.draft).flush([b"123"])
        assert (await cleanup.remove_orphans(now_us(23), after_page)).orphans == 0
        removed = await cleanup.remove_orphans(now_us(25), after_page)
        assert (removed.orphans, removed.left) == (2, 0)
        left = [one.ref async for some in blobs.list_stored(now_us(25)) for one in some]
        assert left == [kept.ref]
    finally:
        blobs.close()
