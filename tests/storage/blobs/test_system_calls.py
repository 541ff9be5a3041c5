"""What a directory asks of the operating system: what is durable when, and who waits for it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.model.uploads import Draft, UploadRef
from engine.uploads.blobs import Blobs
from storage.blobs.directory import DirectoryBlobs
from storage.blobs.threads import BlobThreads
from tests.harness.uploads.blob_writer import opened

A, B, JOINED = (UploadRef(1, letter * 32) for letter in "abc")
BLOCK = bytes(300_000)


async def _everything(blobs: Blobs) -> None:
    """Call each method once at least."""
    drafts = []
    for ref in (A, B):
        writer = blobs.open_draft(Draft(ref, 0, 0), "sha256")
        await writer.write([BLOCK, BLOCK])
        pieces = await writer.flush([BLOCK])
        pieces += await writer.flush([BLOCK])
        await writer.write([BLOCK])
        await writer.close()
        drafts.append(Draft(ref, 0, 4 * len(BLOCK), pieces))
    await blobs.fork_draft(drafts[0], 1)
    drafts[0] = msgspec.structs.replace(drafts[0], generation=1)
    await blobs.inspect(drafts, JOINED)
    await blobs.publish(drafts, JOINED)
    await blobs.publish(drafts[:1], A)
    async for _ in blobs.read(JOINED, 5, 7 * len(BLOCK)):
        pass
    async for _ in blobs.list_stored(4_102_444_800_000_000):
        pass
    await blobs.delete_draft(B)
    await blobs.delete_file(JOINED)


async def test_event_loop_never_touches_files_nor_hashes(blob_place: str) -> None:
    blobs = opened(blob_place)
    called: list[str] = []

    def look(_: object, event: str, function: Any) -> None:
        owner = getattr(function, "__self__", None)
        kind = "posix" if getattr(owner, "__name__", "") == "posix" else type(owner).__name__
        if event == "c_call" and kind in ("posix", "FileIO", "HASH"):
            called.append(function.__name__)

    sys.setprofile(look)
    try:
        await _everything(blobs)
    finally:
        sys.setprofile(None)
    blobs.close()
    # Names, and the making of a hash, cost nothing; neither is a file asked for anything by them.
    assert set(called) <= {"fspath", "urandom", "digest", "hexdigest"}


class _Disk:
    """Which names, and contents under their names, a power cut would take away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: set[Path] = set()
        self.contents: set[Path] = set()
        self.steps = 0
        for name in ("open", "pwritev", "ftruncate", "fsync", "fdatasync", "mkdir", "rename"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name), getattr(self, f"_{name}")))

    def _watched(self, call: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            note(*arguments)
            self.steps += 1
            return call(*arguments, **named)

        return called

    def _open(self, path: Path, flags: int, *_: object) -> None:
        if flags & os.O_CREAT and not path.exists():
            self.names.add(path)

    def _mkdir(self, path: Path, *_: object) -> None:
        if not path.exists() and path.parent.exists():
            self.names.add(path)

    def _pwritev(self, descriptor: int, *_: object) -> None:
        self.contents.add(_path(descriptor))

    def _ftruncate(self, descriptor: int, *_: object) -> None:
        self.contents.add(_path(descriptor))

    def _fdatasync(self, descriptor: int) -> None:
        self.contents.discard(_path(descriptor))

    def _fsync(self, descriptor: int) -> None:
        self._fdatasync(descriptor)
        self.names = {name for name in self.names if name.parent != _path(descriptor)}

    def _rename(self, source: Path, target: Path) -> None:
        assert source not in self.contents, "a name is there before its bytes"
        self.names.discard(source)
        self.names.add(target)


def _path(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Disk:
    """The disk, once the test's own directory is on it."""
    assert tmp_path.exists()
    return _Disk(monkeypatch)


async def test_power_cut_keeps_acknowledged_bytes(disk: _Disk, tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path / "data" / "uploads", threads=2)

    @contextmanager
    def durable() -> Iterator[None]:
        steps = disk.steps
        yield
        assert disk.steps > steps
        assert disk.names | disk.contents == set()

    drafts = []
    for ref in (A, B):
        draft = Draft(ref, 0, 0)
        for _ in range(2):
            writer = blobs.open_draft(draft)
            await writer.write([BLOCK])
            assert disk.contents
            with durable():
                await writer.flush([BLOCK])
            await writer.close()
            draft = Draft(ref, 0, draft.size_bytes + 2 * len(BLOCK))
        drafts.append(draft)
    with durable():
        await blobs.fork_draft(drafts[0], 1)
    drafts[0] = msgspec.structs.replace(drafts[0], generation=1)
    with durable():
        await blobs.publish(drafts, JOINED)
    for _ in range(2):
        with durable():
            await blobs.publish(drafts[:1], A)
    with durable():
        await blobs.publish([Draft(UploadRef(2, A.upload_id), 0, 0)], UploadRef(2, A.upload_id))
    blobs.close()


async def test_blob_threads_cancelled_caller_waits_for_its_thread() -> None:
    threads = BlobThreads(1)
    began, let_go, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        let_go.wait()
        ended.set()

    under_way = asyncio.create_task(threads.run(work))
    await asyncio.to_thread(began.wait)
    not_begun = threading.Event()
    waiting = asyncio.create_task(threads.run(not_begun.set))
    await asyncio.sleep(0)
    for task in (waiting, under_way, under_way):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    states = waiting.cancelled(), under_way.done()
    let_go.set()
    assert states == (True, False)
    with pytest.raises(asyncio.CancelledError):
        await under_way
    assert ended.is_set()
    await threads.run(bool)
    assert not not_begun.is_set()
    threads.close()


async def test_blob_threads_have_lower_priority() -> None:
    threads = BlobThreads(1)
    niceness = await threads.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert niceness == max(10, own)  # `nice make test` has made all of them polite
    threads.close()
