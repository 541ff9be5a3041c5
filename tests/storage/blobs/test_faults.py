"""What becomes of bytes when a process is killed, when there is no room and when a disk fails."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from bench.harness.clusters import free_port
from engine.model.uploads import Draft, UploadRef
from engine.runtime.settings import S3
from engine.uploads.blobs import BlobMissingError, BlobsError, BlobsFullError
from storage.blobs.directory import DirectoryBlobs
from storage.blobs.s3 import S3Blobs
from tests.harness.uploads.blob_writer import content, opened

_ROOT = Path(__file__).parents[3]
A, B, JOINED = (UploadRef(1, letter * 32) for letter in "abc")
KIB = 1024


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DirectoryBlobs]:
    made = DirectoryBlobs(tmp_path, threads=2)
    yield made
    made.close()


async def _appended(blobs: DirectoryBlobs | S3Blobs, draft: Draft, *blocks: bytes) -> Draft:
    writer = blobs.open_draft(draft)
    try:
        pieces = await writer.flush(blocks)
    finally:
        await writer.close()
    size_bytes = draft.size_bytes + sum(map(len, blocks))
    return Draft(draft.ref, draft.generation, size_bytes, draft.pieces + pieces)


async def _holds(blobs: DirectoryBlobs | S3Blobs, draft: Draft, expected: bytes) -> None:
    assert (await blobs.inspect([draft], draft.ref)).sha256 == hashlib.sha256(expected).hexdigest()


async def test_flush_survives_sigkill(blob_place: str) -> None:
    writer = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.harness.uploads.blob_writer",
        blob_place,
        "4",
        cwd=_ROOT,
        stdout=subprocess.PIPE,
    )
    assert writer.stdout is not None
    said = [await writer.stdout.readline() for _ in range(10 + random.randrange(30))]
    writer.kill()
    said += (await writer.stdout.read()).splitlines(keepends=True)
    await writer.wait()
    assert said[0], "the writer did not write"
    drafts = [msgspec.json.decode(line, type=Draft) for line in said if line.endswith(b"\n")]
    blobs = opened(blob_place)
    for draft in {draft.ref: draft for draft in drafts}.values():
        written = content(draft.ref.upload_id, 0, draft.size_bytes)
        await _holds(blobs, draft, written)
        whole = await _appended(blobs, draft, b"gone on with")
        await blobs.publish([whole], whole.ref)
        await _holds(blobs, whole, written + b"gone on with")
    blobs.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[DirectoryBlobs]:
    """A directory where files of a MiB find no room; where it may be mounted, on a disk of 1.5 MiB."""
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(tmp_path)]
    mounted = subprocess.run(mount, check=False, stderr=subprocess.DEVNULL)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if mounted.returncode:
        resource.setrlimit(resource.RLIMIT_FSIZE, (KIB * KIB, limits[1]))
    blobs = DirectoryBlobs(tmp_path, threads=2)
    yield blobs
    blobs.close()
    if mounted.returncode:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    else:
        subprocess.run(["/bin/umount", "--lazy", tmp_path], check=True)


async def test_write_full_disk_keeps_acknowledged_bytes(small: DirectoryBlobs) -> None:
    first = await _appended(small, Draft(A, 0, 0), b"a" * 600 * KIB)
    second = await _appended(small, Draft(B, 0, 0), b"b" * 600 * KIB)
    for _ in range(3):
        with pytest.raises(BlobsFullError):
            await _appended(small, first, b"x" * 700 * KIB)
    with pytest.raises(BlobsFullError):
        await small.publish([first, second], JOINED)
    with pytest.raises(BlobMissingError):
        await small.inspect([Draft(JOINED, 0, 1)], JOINED)
    kept = [one async for some in small.list_stored(4_102_444_800_000_000) for one in some]
    assert sorted(one.size_bytes for one in kept) == [600 * KIB, 600 * KIB]
    await _holds(small, first, b"a" * 600 * KIB)
    await _holds(small, second, b"b" * 600 * KIB)
    await small.delete_draft(B)
    first = await _appended(small, first, b"c" * 300 * KIB)
    await small.publish([first], A)
    await _holds(small, first, b"a" * 600 * KIB + b"c" * 300 * KIB)


async def test_flush_after_a_full_disk_keeps_earlier_bytes(small: DirectoryBlobs) -> None:
    writer = small.open_draft(Draft(A, 0, 0))
    await writer.write([b"a" * 200 * KIB])
    with pytest.raises(BlobsFullError):
        await writer.write([b"x" * 700 * KIB, b"x" * 700 * KIB])
    await writer.flush([b"b" * 200 * KIB])
    await writer.close()
    await _holds(small, Draft(A, 0, 400 * KIB), b"a" * 200 * KIB + b"b" * 200 * KIB)


async def test_flush_failed_fsync_never_reported_durable(
    directory: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = await _appended(directory, Draft(A, 0, 0), b"kept, ")
    writer = directory.open_draft(draft)
    await writer.write([b"lost"])

    def fail(_: int) -> None:
        raise OSError(5, "of the test")

    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", fail)
        with pytest.raises(BlobsError, match="of the test"):
            await writer.flush()
    # The system would say yes to a second try: it has forgotten what it failed to write.
    with pytest.raises(BlobsError):
        await writer.flush()
    await writer.close()
    await _holds(directory, await _appended(directory, draft, b"again"), b"kept, again")


async def test_draft_writer_closed_writes_no_more(directory: DirectoryBlobs) -> None:
    draft = await _appended(directory, Draft(A, 0, 0), b"kept, ")
    ended = directory.open_draft(draft)
    under_way = asyncio.create_task(ended.write([b"x" * KIB * KIB]))
    await asyncio.sleep(0)
    late = asyncio.create_task(ended.write([b"y" * KIB]))
    await asyncio.sleep(0)
    await ended.close()
    draft = await _appended(directory, draft, b"the next one")
    await asyncio.gather(under_way, late, return_exceptions=True)
    assert isinstance(late.exception(), BlobsError)
    await _holds(directory, draft, b"kept, the next one")


class _Held:
    """Writes that wait to be let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self._let_go = threading.Event(), threading.Event()
        self._write = os.pwritev
        monkeypatch.setattr(os, "pwritev", self._held)

    def _held(self, descriptor: int, blocks: Sequence[bytes], at_bytes: int) -> int:
        self.began.set()
        self._let_go.wait()
        return self._write(descriptor, blocks, at_bytes)

    async def let_go(self) -> None:
        """Let all go, once the event loop has had time to do what it should not."""
        for _ in range(20):
            await asyncio.sleep(0)
        self._let_go.set()


async def test_draft_writer_close_waits_for_the_write(
    directory: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = _Held(monkeypatch)
    writer = directory.open_draft(Draft(A, 0, 0))
    writing = asyncio.create_task(writer.write([b"of the first"]))
    await asyncio.to_thread(held.began.wait)
    closing = asyncio.create_task(writer.close())
    await asyncio.sleep(0)
    others = [directory.open_draft(Draft(B, generation, 0)) for generation in range(8)]
    ended = closing.done()
    await held.let_go()
    await asyncio.gather(closing, writing, *[other.flush([b"of another"]) for other in others])
    assert not ended
    await _holds(directory, Draft(A, 0, 12), b"of the first")


async def test_draft_writer_cancelled_write_counts_nothing(
    directory: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = _Held(monkeypatch)
    writer = directory.open_draft(Draft(A, 0, 0))
    given_up = asyncio.create_task(writer.write([b"given up"]))
    await asyncio.to_thread(held.began.wait)
    given_up.cancel()
    await held.let_go()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    await writer.flush([b"kept"])
    await writer.close()
    await _holds(directory, Draft(A, 0, 4), b"kept")


async def test_write_partial_pwrite_repeated(
    directory: DirectoryBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwritev

    def little(descriptor: int, blocks: Sequence[bytes], at_bytes: int) -> int:
        return write(descriptor, [b"".join(blocks)[:5]], at_bytes)

    monkeypatch.setattr(os, "pwritev", little)
    expected = b"0123456789abcdefghi"
    blocks = [expected[:3], expected[3:10], b"", expected[10:12], expected[12:]]
    await _appended(directory, Draft(A, 0, 0), *blocks)
    await _holds(directory, Draft(A, 0, len(expected)), expected)


@asynccontextmanager
async def _answering(status: int, body: str) -> AsyncIterator[S3Blobs]:
    """Give a bucket that answers each request alike."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type="application/xml")

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", free_port())
    await site.start()
    blobs = S3Blobs(
        S3(bucket="any", endpoint=site.name, region="us-east-1", access_key_id="a", secret_access_key="s"),
        threads=1,
    )
    try:
        yield blobs
    finally:
        blobs.close()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (507, "XMinioStorageFull", BlobsFullError),
        (403, "QuotaExceeded", BlobsFullError),
        (403, "AccessDenied", BlobsError),
        (503, "SlowDown", BlobsError),
        (404, "NoSuchBucket", BlobsError),
    ],
)
async def test_bucket_refusal_raises_blobs_error(status: int, code: str, error: type[BlobsError]) -> None:
    async with _answering(status, f"<Error><Code>{code}</Code></Error>") as blobs:
        writer = blobs.open_draft(Draft(A, 0, 0))
        with pytest.raises(BlobsError) as told:
            await writer.flush([b"1"])
        assert type(told.value) is error
        await writer.close()
        with pytest.raises(BlobsError) as told:
            await blobs.inspect([Draft(A, 0, 1, ("piece",))], A)
        assert type(told.value) is error


async def test_bucket_unreachable_raises_blobs_error(bucket: S3) -> None:
    away = msgspec.structs.replace(bucket, endpoint=f"http://127.0.0.1:{free_port()}")
    absent = msgspec.structs.replace(bucket, bucket="nobody-made-this")
    for settings in (away, absent):
        blobs = S3Blobs(settings, threads=1)
        for work in (
            _appended(blobs, Draft(A, 0, 0), b"1"),
            blobs.delete_draft(A),
            anext(blobs.read(A, 0, 1)),
        ):
            with pytest.raises(BlobsError) as told:
                await work
            assert type(told.value) is BlobsError
        blobs.close()
