"""The contract of ``engine.uploads.blobs.Blobs``, for a directory and a bucket of a real object storage."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.model.uploads import Draft, UploadRef
from engine.runtime.settings import S3
from engine.uploads.blobs import BlobMissingError, Blobs, BlobsError, StoredBlob
from storage.blobs import directory as directory_blobs
from storage.blobs import s3
from storage.blobs.directory import DirectoryBlobs
from storage.blobs.s3 import S3Blobs

A, B = UploadRef(1, "a" * 32), UploadRef(1, "ab" * 16)
#: The same id, at a tenant whose number begins alike.
STRANGER = UploadRef(12, A.upload_id)
#: More than goes into one piece, or one part, of a bucket.
LARGE = bytes(range(256)) * 24_000
EVER_US = 4_102_444_800_000_000


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Blobs]:
    made = DirectoryBlobs(tmp_path / "data" / "uploads", threads=2)
    yield made
    made.close()


@pytest.fixture
def bucketed(bucket: S3) -> Iterator[Blobs]:
    made = S3Blobs(bucket, threads=2)
    yield made
    made.close()


@pytest.fixture
def in_cell(bucket: S3) -> Iterator[Blobs]:
    made = S3Blobs(bucket, threads=2, prefix="cells/cell_a")
    yield made
    made.close()


@pytest.fixture(params=["directory", "bucketed", "in_cell"])
def blobs(request: pytest.FixtureRequest) -> Blobs:
    """Either of them."""
    found: Blobs = request.getfixturevalue(request.param)
    return found


async def _appended(blobs: Blobs, draft: Draft, *blocks: bytes) -> Draft:
    """Append and acknowledge."""
    writer = blobs.open_draft(draft)
    pieces = await writer.flush(blocks)
    await writer.close()
    size_bytes = draft.size_bytes + sum(map(len, blocks))
    return Draft(draft.ref, draft.generation, size_bytes, draft.pieces + pieces)


async def _draft(blobs: Blobs, ref: UploadRef, *blocks: bytes) -> Draft:
    return await _appended(blobs, Draft(ref, 0, 0), *blocks)


async def _read(blobs: Blobs, file: UploadRef, first_byte: int, count_bytes: int) -> bytes:
    return b"".join([block async for block in blobs.read(file, first_byte, count_bytes)])


async def _kept(blobs: Blobs, before_us: int = EVER_US) -> list[StoredBlob]:
    return [kept async for some in blobs.list_stored(before_us) for kept in some]


async def _holds(blobs: Blobs, drafts: list[Draft], expected: bytes, file: UploadRef = A) -> None:
    found = await blobs.inspect(drafts, file)
    assert (found.sha256, found.head) == (hashlib.sha256(expected).hexdigest(), expected[:8192])


async def test_blobs_flushed_bytes_read_in_order(blobs: Blobs) -> None:
    draft = Draft(A, 0, 0)
    writer = blobs.open_draft(draft)
    await writer.write([b"one ", b"", b"two "])
    await writer.write([LARGE])
    await writer.write([LARGE[:300_000]])
    pieces = await writer.flush([b"three"])
    pieces += await writer.flush([b" four"])
    pieces += await writer.flush()
    await writer.close()
    expected = b"one two " + LARGE + LARGE[:300_000] + b"three four"
    draft = await _appended(blobs, Draft(A, 0, len(expected), pieces), *[b"%d" % n for n in range(2000)])
    await _holds(blobs, [draft], expected + b"".join(b"%d" % n for n in range(2000)))


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
async def test_draft_writer_digest_of_all_bytes(blobs: Blobs, algorithm: str) -> None:
    draft = await _draft(blobs, A, b"of an earlier request")
    writer = blobs.open_draft(draft, algorithm)
    await writer.write([b"a", LARGE])
    await writer.flush([b"b"])
    await writer.flush([b"c", b"d"])
    await writer.close()
    expected = hashlib.new(algorithm, b"a" + LARGE + b"bcd", usedforsecurity=False)
    assert writer.digest() == expected.digest()


async def test_blobs_unacknowledged_bytes_never_read(blobs: Blobs) -> None:
    draft = await _draft(blobs, A, b"acknowledged, ")
    await _appended(blobs, draft, b"a whole chunk whose answer was never given" * 9)
    cut = blobs.open_draft(draft)
    await cut.write([b"cut"])
    await cut.close()
    await _holds(blobs, [draft], b"acknowledged, ")
    draft = await _appended(blobs, draft, b"again")
    await _holds(blobs, [draft], b"acknowledged, again")
    await blobs.publish([draft], A)
    assert await _read(blobs, A, 0, draft.size_bytes) == b"acknowledged, again"
    with pytest.raises(BlobsError):
        await _read(blobs, A, 0, draft.size_bytes + 1)


async def test_fork_draft_earlier_generation_never_read(blobs: Blobs) -> None:
    draft = await _draft(blobs, A, b"before, ")
    late = blobs.open_draft(draft)
    await late.write([b"la"])
    later = blobs.open_draft(draft)
    await blobs.fork_draft(draft, 1)
    renewed = await _appended(blobs, Draft(A, 1, draft.size_bytes, draft.pieces), b"after")
    await late.flush([b"te" * 40])
    await late.close()
    await later.flush([b"later" * 40])
    await later.close()
    await _holds(blobs, [renewed], b"before, after")
    # Who renews once more, not knowing that it was done, undoes nothing.
    await blobs.fork_draft(draft, 1)
    await blobs.fork_draft(renewed, 4)
    last = Draft(A, 4, renewed.size_bytes, renewed.pieces)
    await _appended(blobs, renewed, b"of the one before")
    last = await _appended(blobs, last, b", last")
    await blobs.publish([last], A)
    assert await _read(blobs, A, 0, last.size_bytes) == b"before, after, last"


@pytest.mark.parametrize("end", ["append", "inspect", "publish"])
async def test_fork_draft_skipped_by_a_crash_keeps_the_bytes(blobs: Blobs, end: str) -> None:
    draft = await _draft(blobs, A, b"kept")
    claimed = Draft(A, 2, draft.size_bytes, draft.pieces)
    late = blobs.open_draft(draft)
    if end == "append":
        claimed = await _appended(blobs, claimed, b" on")
    if end == "publish":
        await blobs.publish([claimed], A)
    else:
        await _holds(blobs, [claimed], b"kept on" if end == "append" else b"kept")
    await asyncio.gather(late.flush([b"late" * 40]), return_exceptions=True)
    await late.close()
    await blobs.publish([claimed], A)
    assert (await _read(blobs, A, 0, claimed.size_bytes)).startswith(b"kept")
    await _holds(blobs, [claimed], b"kept on" if end == "append" else b"kept")


async def test_publish_one_draft_used_up(blobs: Blobs) -> None:
    draft = await _draft(blobs, A, b"head ", LARGE)
    await blobs.fork_draft(draft, 1)
    draft = await _appended(blobs, Draft(A, 1, draft.size_bytes, draft.pieces), b" tail")
    for _ in range(2):
        await blobs.publish([draft], A)
        await _holds(blobs, [draft], b"head " + LARGE + b" tail")
    assert await _read(blobs, A, 3, 4) == b"d " + LARGE[:2]
    assert await _read(blobs, A, 5, len(LARGE)) == LARGE
    assert await _read(blobs, A, draft.size_bytes - 4, 4) == b"tail"
    assert await _read(blobs, A, 0, 0) == b""
    assert await _kept(blobs) == [StoredBlob(A, is_file=True, size_bytes=draft.size_bytes)]


async def test_inspect_published_file_wins_over_a_late_draft(blobs: Blobs) -> None:
    """An earlier request, whose lock was stolen before its first byte, writes after the publishing."""
    late = blobs.open_draft(Draft(A, 0, 0))
    draft = await _appended(blobs, Draft(A, 1, 0), b"acknowledged")
    await blobs.publish([draft], A)
    await late.flush([b"never acknowledged"])
    await late.close()
    await _holds(blobs, [draft], b"acknowledged")
    await blobs.publish([draft], A)
    assert await _read(blobs, A, 0, draft.size_bytes) == b"acknowledged"


async def test_publish_several_drafts_stay(blobs: Blobs) -> None:
    first, second = await _draft(blobs, A, LARGE), await _draft(blobs, B, b"second", b"")
    joined = UploadRef(1, "c" * 32)
    nothing = Draft(UploadRef(1, "d" * 32), 0, 0)
    for _ in range(2):
        await blobs.publish([second, nothing, first], joined)
        await _holds(blobs, [second, nothing, first], b"second" + LARGE, joined)
    assert await _read(blobs, joined, 0, 6 + len(LARGE)) == b"second" + LARGE
    assert {kept.ref for kept in await _kept(blobs) if not kept.is_file} == {A, B}
    await blobs.delete_draft(A)
    await _holds(blobs, [second, nothing, first], b"second" + LARGE, joined)


async def test_publish_no_bytes_makes_a_file(blobs: Blobs) -> None:
    writer = blobs.open_draft(Draft(B, 0, 0))
    assert await writer.flush() == ()
    await writer.close()
    for ref in (A, B):
        for _ in range(2):
            await blobs.publish([Draft(ref, 0, 0)], ref)
        await _holds(blobs, [Draft(ref, 0, 0)], b"", ref)
    assert sorted(kept.ref.upload_id for kept in await _kept(blobs)) == [A.upload_id, B.upload_id]


async def test_publish_all_or_nothing(blobs: Blobs) -> None:
    first, second = await _draft(blobs, A, LARGE), await _draft(blobs, B, LARGE[::-1])
    joined = UploadRef(1, "c" * 32)
    size_bytes = first.size_bytes + second.size_bytes
    publishing = asyncio.create_task(blobs.publish([first, second], joined))
    looks = 0
    while not publishing.done():
        looks += 1
        try:
            assert await _read(blobs, joined, size_bytes - 1, 1) == LARGE[:1]
        except BlobMissingError:
            continue
    await publishing
    assert looks > 1
    assert await _read(blobs, joined, 0, size_bytes) == LARGE + LARGE[::-1]


async def test_publish_missing_bytes_refused(blobs: Blobs) -> None:
    first, second = await _draft(blobs, A, LARGE), await _draft(blobs, B, b"second")
    joined = UploadRef(1, "c" * 32)
    short = msgspec.structs.replace(second, size_bytes=7)
    for drafts in ([first, short], [short]):
        with pytest.raises(BlobsError):
            await blobs.publish(drafts, joined)
        with pytest.raises(BlobsError):
            await blobs.inspect(drafts, joined)
    await blobs.delete_draft(B)
    with pytest.raises(BlobMissingError):
        await blobs.publish([first, second], joined)
    with pytest.raises(BlobMissingError):
        await blobs.inspect([second], joined)
    with pytest.raises(BlobMissingError):
        await _read(blobs, joined, 0, 1)
    assert {kept.ref for kept in await _kept(blobs)} == {A}


async def test_blobs_tenants_and_uploads_kept_apart(blobs: Blobs) -> None:
    refs = [A, B, STRANGER, UploadRef(STRANGER.tenant_id, B.upload_id)]
    drafts = {ref: await _draft(blobs, ref, repr(ref).encode()) for ref in refs}
    for ref, draft in drafts.items():
        await _holds(blobs, [draft], repr(ref).encode(), ref)
    await blobs.delete_draft(A)
    await blobs.publish([drafts[B]], B)
    with pytest.raises(BlobMissingError):
        await _read(blobs, UploadRef(STRANGER.tenant_id, B.upload_id), 0, 1)
    for ref in refs[2:]:
        await blobs.publish([drafts[ref]], ref)
    await blobs.delete_file(STRANGER)
    for ref in (B, refs[-1]):
        assert await _read(blobs, ref, 0, drafts[ref].size_bytes) == repr(ref).encode()
    assert {kept.ref for kept in await _kept(blobs)} == {B, refs[-1]}


async def test_delete_draft_and_file_repeatable(blobs: Blobs) -> None:
    draft = await _draft(blobs, A, b"one")
    await blobs.fork_draft(draft, 1)
    await blobs.publish([await _draft(blobs, B, b"two")], B)
    for _ in range(2):
        await blobs.delete_draft(A)
        await blobs.delete_file(B)
    assert await _kept(blobs) == []
    for generation in (0, 1):
        with pytest.raises(BlobMissingError):
            await blobs.inspect([Draft(A, generation, 3, draft.pieces)], A)


@pytest.mark.parametrize("together", [1, 2, 1000])
async def test_list_stored_by_time_of_writing(
    blobs: Blobs, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (directory_blobs, s3):
        monkeypatch.setattr(module, "_LISTED_TOGETHER", together)
    assert await _kept(blobs) == []
    draft = await _draft(blobs, A, b"1234")
    await _appended(blobs, draft, b"5678")
    await _draft(blobs, STRANGER, b"123")
    await blobs.publish([await _draft(blobs, B, b"12")], B)
    assert await _kept(blobs, 1_577_836_800_000_000) == []
    lists = [some async for some in blobs.list_stored(EVER_US)]
    assert all(0 < len(some) <= together for some in lists)
    assert sorted([kept for some in lists for kept in some], key=lambda kept: kept.size_bytes) == [
        StoredBlob(B, is_file=True, size_bytes=2),
        StoredBlob(STRANGER, is_file=False, size_bytes=3),
        StoredBlob(A, is_file=False, size_bytes=8),
    ]


async def test_draft_writer_cancelled_keeps_acknowledged_bytes(blobs: Blobs) -> None:
    draft = await _draft(blobs, A, b"kept, ")
    for _ in range(5):
        writer = blobs.open_draft(draft, "sha256")
        flushing = asyncio.create_task(writer.flush([LARGE]))
        await asyncio.sleep(0)
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        await writer.close()
    draft = await _appended(blobs, draft, b"gone on with")
    await _holds(blobs, [draft], b"kept, gone on with")
