"""``tenant files`` finds each file whose bytes are not there, and bytes of which no row is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.model.uploads import Draft, UploadRef
from engine.runtime.settings import S3
from engine.uploads.verify import FileVerifier, ListedFile
from storage.blobs.s3 import S3Blobs
from storage.stores.jobs.upload_cleanup import PostgresCleanup
from storage.stores.upload_reads import PostgresFileList
from tests.harness.commands import Run, command
from tests.harness.services import execute, without_cells
from tests.harness.uploads.upload_stack import UploadStack, stack, text

__all__ = ["command", "stack"]


def _path(stack: UploadStack, upload_id: str) -> Path:
    [path] = (stack.directory / "uploads" / "files").rglob(f"{upload_id}*")
    return path


@without_cells("its files lie where a database alone has them")
async def test_tenant_files_names_files_without_bytes_and_bytes_without_a_row(
    stack: UploadStack, command: Run
) -> None:
    await stack.push("put", None)
    whole, gone, short = [(await stack.stored()).ref.upload_id for _ in range(3)]
    other = (await stack.stored(tenant=2)).ref.upload_id
    await stack.sent(await stack.begun(), text(100))
    settings = {"TIDEMARK__DATA__DIR": str(stack.directory)}
    ended = await command("tenant", "files", **settings)
    assert (ended.status, ended.out.splitlines()[-1]) == (0, "4 files (1.2 KB), 0 of them damaged")

    _path(stack, gone).unlink()
    with _path(stack, short).open("r+b") as file:
        file.truncate(299)
    execute(stack.dsn, f"DELETE FROM upload_session WHERE upload_id = '{other}'")
    ended = await command("tenant", "files", "--json", **settings)
    found = json.loads(ended.out)
    assert ended.status == 1
    assert {one["file_id"]: one["found"][-15:] for one in found["damaged"]} == {
        gone: "missing",
        short: "bytes too short",
    }
    assert {(one["tenant"], one["domain"], one["record_id"]) for one in found["damaged"]} == {
        ("tenant1", "task", "a")
    }
    counted = {name: found[name] for name in ("files", "damaged_files", "unlisted", "unlisted_bytes")}
    assert counted == {"files": 3, "damaged_files": 2, "unlisted": 1, "unlisted_bytes": 300}
    ended = await command("tenant", "files", "tenant2", **settings)
    assert (ended.status, ended.out.splitlines()[-1]) == (0, "0 files (0 B), 0 of them damaged")
    assert "there is no tenant acne" in (await command("tenant", "files", "acne", **settings)).refusal()
    assert _path(stack, whole).stat().st_size == 300


async def test_files_of_a_bucket_verified(stack: UploadStack, bucket: S3) -> None:
    """Of three files one was copied to the bucket, and a part of another."""
    await stack.push("put", None)
    refs = [(await stack.stored()).ref for _ in range(3)]
    blobs = S3Blobs(bucket, threads=2)
    strange = UploadRef(1, "ab" * 16)
    for ref, size_bytes in ((refs[0], 300), (refs[1], 10), (strange, 5)):
        draft = Draft(ref, 0, 0)
        pieces = await blobs.open_draft(draft).flush([b"x" * size_bytes])
        await blobs.publish([Draft(ref, 0, size_bytes, pieces)], ref)
    verifier = FileVerifier(PostgresFileList(stack.database), PostgresCleanup(stack.database), blobs)
    found = await verifier.verify(None, lambda _: None)
    blobs.close()
    assert {one.file_id for one in found.damaged} == {refs[1].upload_id, refs[2].upload_id}
    assert {one.found == "missing" for one in found.damaged} == {True, False}
    assert (found.files, found.damaged_files, found.unlisted) == (3, 2, 1)
    with pytest.raises(Exception, match="there is no tenant"):
        await verifier.verify("nobody", lambda _: None)


class _Erasing(PostgresFileList):
    """A list of files of which some are erased right after a page of them was read."""

    erased: tuple[str, ...] = ()
    dsn = ""

    async def files(self, tenant: str | None, after: UploadRef | None, limit: int) -> list[ListedFile]:
        page = await super().files(tenant, after, limit)
        for upload_id in self.erased:
            execute(self.dsn, f"DELETE FROM upload_session WHERE upload_id = '{upload_id}'")
        return page


async def test_files_erased_after_their_page_was_read_are_not_damaged(stack: UploadStack) -> None:
    await stack.push("put", None)
    gone, missing = [(await stack.stored()).ref.upload_id for _ in range(2)]
    for upload_id in (gone, missing):
        _path(stack, upload_id).unlink()
    rows = _Erasing(stack.database)
    rows.erased, rows.dsn = (gone,), stack.dsn
    verifier = FileVerifier(rows, PostgresCleanup(stack.database), stack.blobs)
    found = await verifier.verify(None, lambda _: None)
    assert (found.damaged_files, [one.file_id for one in found.damaged]) == (1, [missing])
