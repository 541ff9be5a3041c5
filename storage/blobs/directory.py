"""Bytes of uploads and files in a directory, which several processes or hosts may share.

A draft is ``drafts/TENANT/ID.GENERATION``, and becomes the file ``files/TENANT/ID[:2]/ID`` by a rename. No
file is locked: the row of the upload decides who may write, and its generation which draft is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

import anyio

from engine.model.uploads import Draft, UploadRef
from engine.uploads.blobs import BlobsError, Content, StoredBlob
from storage.blobs.content import ContentReader
from storage.blobs.threads import BlobThreads

_BLOCK_BYTES: Final = 1_048_576  # copied and hashed at a time
_READ_BYTES: Final = 65_536  # a block of a download; smaller, because many run at once
_LISTED_TOGETHER: Final = 1000
_REMEMBERED: Final = 50_000
_MOST_BLOCKS: Final = os.sysconf("SC_IOV_MAX")
_NAME: Final = re.compile(r"([0-9a-f]{32})(\..+)?")
_WRITING: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class DirectoryBlobs:
    """``engine.uploads.blobs.Blobs`` on a directory, with ``threads`` threads of its own."""

    def __init__(self, directory: Path, threads: int) -> None:
        self._places = _Places(directory)
        self._threads = BlobThreads(threads)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def open_draft(self, draft: Draft, algorithm: str | None = None) -> FileDraftWriter:
        """Return a writer that appends behind a draft."""
        return FileDraftWriter(self._places, self._threads, draft, algorithm)

    async def fork_draft(self, draft: Draft, generation: int) -> None:
        """Copy the acknowledged bytes to a later generation."""
        await self._threads.run(_fork, self._places, draft, generation)

    async def inspect(self, drafts: Sequence[Draft], file: UploadRef) -> Content:
        """Read drafts in order, or the file if they were published before."""
        return await self._threads.run(_inspect, self._places, drafts, file)

    async def publish(self, drafts: Sequence[Draft], file: UploadRef) -> None:
        """Make one draft a file by a rename; several are copied first, and the copy is renamed."""
        await self._threads.run(_publish, self._places, drafts, file)

    def read(self, file: UploadRef, first_byte: int, count_bytes: int) -> AsyncIterator[bytes]:
        """Read part of a file."""
        return self._threads.each(_read(self._places.file(file), first_byte, count_bytes, _READ_BYTES))

    async def delete_draft(self, ref: UploadRef) -> None:
        """Delete a draft in all its generations."""
        await self._threads.run(_delete_draft, self._places, ref)

    async def delete_file(self, file: UploadRef) -> None:
        """Delete a file."""
        await self._threads.run(self._places.file(file).unlink, missing_ok=True)

    def list_stored(self, before_us: int) -> AsyncIterator[list[StoredBlob]]:
        """List drafts, unfinished copies included, and files."""
        return self._threads.each(_list(self._places, before_us))


class FileDraftWriter:
    """``engine.uploads.blobs.DraftWriter`` on a draft's file, with one call of a thread each."""

    def __init__(self, places: _Places, threads: BlobThreads, draft: Draft, algorithm: str | None) -> None:
        self._places = places
        self._threads = threads
        self._draft = draft
        self._end_bytes = draft.size_bytes
        self._hash = hashlib.new(algorithm, usedforsecurity=False) if algorithm else None
        self._descriptor: int | None = None
        self._turn = asyncio.Lock()
        self._over = False

    async def write(self, blocks: Sequence[bytes]) -> None:
        """Write bytes to the file; if this fails, none of them counts."""
        await self._append(blocks, durable=False)

    async def flush(self, blocks: Sequence[bytes] = ()) -> tuple[str, ...]:
        """Write bytes and fsync; there are no pieces."""
        await self._append(blocks, durable=True)
        return ()

    def digest(self) -> bytes:
        """Return the hash of all bytes of this request."""
        assert self._hash is not None, "no algorithm was asked for"
        return self._hash.digest()

    async def close(self) -> None:
        """End the writer: after this returns it writes nothing."""
        self._over = True
        with anyio.CancelScope(shield=True):
            async with self._turn:
                if self._descriptor is not None:
                    self._threads.begin(self._close)

    async def _append(self, blocks: Sequence[bytes], *, durable: bool) -> None:
        async with self._turn:
            end_bytes = self._end_bytes
            try:
                await self._threads.run(self._write, blocks, durable=durable)
            except asyncio.CancelledError:
                self._end_bytes = end_bytes
                raise

    def _write(self, blocks: Sequence[bytes], *, durable: bool) -> None:
        """Write in a thread. The file is closed after fsync: opening it again costs little."""
        if self._over:
            raise BlobsError("this request has ended and writes no more")
        if self._descriptor is None:
            self._descriptor = self._opened()
        try:
            count_bytes = _written(self._descriptor, blocks, self._end_bytes)
        except OSError:
            with suppress(OSError):  # so that unacknowledged bytes take up no room
                os.ftruncate(self._descriptor, self._end_bytes)
            raise
        self._end_bytes += count_bytes
        if self._hash is not None:
            for block in blocks:
                self._hash.update(block)
        if durable:
            try:
                os.fdatasync(self._descriptor)
            except OSError:
                self._over = True  # the bytes are lost, and a second fsync would succeed
                raise
            finally:
                self._close()

    def _opened(self) -> int:
        path = self._places.draft(self._draft)
        if self._draft.size_bytes:
            # An earlier request made the name durable. If the file is gone, the lock was lost.
            try:
                return os.open(path, _WRITING)
            except FileNotFoundError:
                return os.open(_existing(self._places, self._draft), _WRITING)
        self._places.make(path.parent)
        descriptor = os.open(path, _WRITING | os.O_CREAT, 0o600)
        try:
            _sync_directory(path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _close(self) -> None:
        assert self._descriptor is not None
        descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)


class _Places:
    """Paths of drafts and files. Every name is an id that the server made."""

    def __init__(self, directory: Path) -> None:
        self.drafts = directory / "drafts"
        self.files = directory / "files"
        self._made: set[Path] = set()

    def draft(self, draft: Draft) -> Path:
        return self.generation(draft.ref, draft.generation)

    def generation(self, ref: UploadRef, generation: int) -> Path:
        return self._draft(ref, str(generation))

    def unfinished(self, ref: UploadRef) -> Path:
        """Return the path of a new copy: beside the drafts, so that the clean-up finds it if it is left."""
        return self._draft(ref, f"{secrets.token_hex(8)}.new")

    def file(self, ref: UploadRef) -> Path:
        return self.files / str(ref.tenant_id) / ref.upload_id[:2] / ref.upload_id

    def _draft(self, ref: UploadRef, ending: str) -> Path:
        return self.drafts / str(ref.tenant_id) / f"{ref.upload_id}.{ending}"

    def make(self, directory: Path) -> None:
        """Make a directory and its parents, and fsync also existing ones: their maker may have died."""
        if directory in self._made:
            return
        try:
            directory.mkdir(0o700)
        except FileNotFoundError:
            self.make(directory.parent)
            directory.mkdir(0o700, exist_ok=True)
        except FileExistsError:
            pass
        _sync_directory(directory.parent)
        if len(self._made) >= _REMEMBERED:
            self._made.clear()
        self._made.add(directory)


def _sync_directory(directory: Path) -> None:
    """Make the names in a directory durable (fsync)."""
    descriptor = os.open(directory, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written(descriptor: int, blocks: Sequence[bytes], at_bytes: int) -> int:
    """Write blocks without joining them. Returns how many bytes they were."""
    left = [memoryview(block) for block in blocks if block]
    first, count_bytes = 0, 0
    while first < len(left):
        taken = os.pwritev(descriptor, left[first : first + _MOST_BLOCKS], at_bytes + count_bytes)
        count_bytes += taken
        while first < len(left) and taken >= len(left[first]):
            taken -= len(left[first])
            first += 1
        if taken:
            left[first] = left[first][taken:]
    return count_bytes


def _existing(places: _Places, draft: Draft) -> Path:
    """Return a draft's path, after making the file of a generation whose owner died before it did."""
    path = places.draft(draft)
    if draft.size_bytes and not path.exists():
        _fork(places, draft, draft.generation)
    return path


def _fork(places: _Places, draft: Draft, generation: int) -> None:
    """Copy the newest generation with the acknowledged bytes. It stays; earlier ones are deleted."""
    target = places.generation(draft.ref, generation)
    if not draft.size_bytes or _has_bytes(target, draft.size_bytes):
        return
    for source in range(draft.generation, -1, -1):
        path = places.generation(draft.ref, source)
        if _has_bytes(path, draft.size_bytes):
            break
    else:
        raise FileNotFoundError(target)
    _copy(places, [(path, draft.size_bytes)], draft.ref, target)
    _remove(places, draft.ref, source)


def _remove(places: _Places, ref: UploadRef, before_generation: int) -> None:
    for generation in range(before_generation):
        places.generation(ref, generation).unlink(missing_ok=True)


def _has_bytes(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size >= size_bytes
    except FileNotFoundError:
        return False


def _inspect(places: _Places, drafts: Sequence[Draft], file: UploadRef) -> Content:
    path = places.file(file)
    # The file first: beside a published one, a late request may have made a draft that nobody acknowledged.
    if not path.exists():
        with suppress(FileNotFoundError):  # published just now
            return _content(_contents([(_existing(places, one), one.size_bytes) for one in drafts]))
    return _content(_read(path, 0, path.stat().st_size, _BLOCK_BYTES))


def _content(blocks: Iterable[bytes]) -> Content:
    reader = ContentReader()
    for block in blocks:
        reader.take(block)
    return reader.content()


def _publish(places: _Places, drafts: Sequence[Draft], file: UploadRef) -> None:
    target = places.file(file)
    places.make(target.parent)
    if len(drafts) != 1:
        if not target.exists():
            _copy(places, [(_existing(places, one), one.size_bytes) for one in drafts], file, target)
        _sync_directory(target.parent)
        return
    (draft,) = drafts
    directory = places.draft(draft).parent
    places.make(directory)
    # A file that exists is complete: only the rename below makes one.
    if not target.exists():
        source = _existing(places, draft)
        _cut(source, draft.size_bytes)
        source.rename(target)
    _sync_directory(target.parent)
    _remove(places, draft.ref, draft.generation + 1)  # generations that a crash left


def _cut(path: Path, size_bytes: int) -> None:
    """Truncate a draft to its acknowledged bytes, durably. Without any bytes it may have no file yet."""
    descriptor = os.open(path, _WRITING if size_bytes else _WRITING | os.O_CREAT, 0o600)
    try:
        found = os.fstat(descriptor).st_size
        if found < size_bytes:
            raise BlobsError(f"{path.name} holds fewer than the {size_bytes} acknowledged bytes")
        if found > size_bytes:  # else all its bytes are durable already
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy(places: _Places, beginnings: Iterable[tuple[Path, int]], ref: UploadRef, target: Path) -> None:
    """Copy the first bytes of each source, one after another, to a target: all or nothing, durably."""
    copy = places.unfinished(ref)
    places.make(copy.parent)
    descriptor = os.open(copy, _WRITING | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            end_bytes = 0
            for block in _contents(beginnings):
                end_bytes += _written(descriptor, [block], end_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        copy.rename(target)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _contents(beginnings: Iterable[tuple[Path, int]]) -> Iterator[bytes]:
    for path, size_bytes in beginnings:
        if size_bytes:
            yield from _read(path, 0, size_bytes, _BLOCK_BYTES)


def _read(path: Path, first_byte: int, count_bytes: int, block_bytes: int) -> Generator[bytes, None, None]:
    with path.open("rb", buffering=0) as content:
        content.seek(first_byte)
        while count_bytes:
            block = content.read(min(count_bytes, block_bytes))
            if not block:
                raise BlobsError(f"{path.name} is {count_bytes} bytes too short")
            count_bytes -= len(block)
            yield block


def _delete_draft(places: _Places, ref: UploadRef) -> None:
    for entry in _entries(places.draft(Draft(ref, 0, 0)).parent):
        if entry.name.startswith(f"{ref.upload_id}."):
            Path(entry.path).unlink(missing_ok=True)


def _list(places: _Places, before_us: int) -> Generator[list[StoredBlob], None, None]:
    found = _kept_each(places, before_us)
    while some := list(islice(found, _LISTED_TOGETHER)):
        yield some


def _kept_each(places: _Places, before_us: int) -> Iterator[StoredBlob]:
    for tenant in _entries(places.drafts):
        yield from _list_folder(tenant, int(tenant.name), before_us, is_file=False)
    for tenant in _entries(places.files):
        for shelf in _entries(tenant):
            yield from _list_folder(shelf, int(tenant.name), before_us, is_file=True)


def _list_folder(
    place: os.DirEntry[str], tenant_id: int, before_us: int, *, is_file: bool
) -> Iterator[StoredBlob]:
    for entry in _entries(place):
        name = _NAME.fullmatch(entry.name)
        if name is None:
            continue  # NFS renames open files that are deleted
        with suppress(FileNotFoundError):  # it may have been published or deleted since the listing
            found = entry.stat(follow_symlinks=False)
            if found.st_mtime_ns < before_us * 1000:
                yield StoredBlob(UploadRef(tenant_id, name[1]), is_file, found.st_size)


def _entries(directory: Path | os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    try:
        listing = os.scandir(directory)
    except FileNotFoundError:
        return
    with listing:
        yield from listing
