"""Bytes of uploads and files in a bucket, for hosts that share no disk.

An object is never changed, and never partly there. ``drafts/TENANT/ID/PIECE`` is what one flush made durable;
the row of the upload names the pieces that count, and ``files/TENANT/ID`` is made of them. Only this module
uses the library.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from engine.model.uploads import Draft, UploadRef
from engine.runtime.settings import S3
from engine.uploads.blobs import BlobMissingError, BlobsError, BlobsFullError, Content, StoredBlob
from storage.blobs.content import ContentReader
from storage.blobs.threads import BlobThreads

#: A running request makes an object once it has collected this many bytes.
_PIECE_BYTES: Final = 1_048_576
#: The smallest part of a multipart upload that S3 accepts.
_PART_BYTES: Final = 5_242_880
#: Bytes read by one request: a reader may be slow, and the time of a request is bounded.
_READ_BYTES: Final = 1_048_576
_LISTED_TOGETHER: Final = 1000
#: Retries are safe, because they use the same name.
_RETRIES: Final = 3
_RETRY_S: Final = 10
_NAME: Final = re.compile(r"(?:drafts|files)/([0-9]+)/([0-9a-f]{32})(?:/.+)?")
#: S3 itself is never full. MinIO answers 507, Ceph names a quota.
_FULL: Final = re.compile(r"507 Insufficient Storage|StorageFull|QuotaExceeded")


class S3Blobs:
    """``engine.uploads.blobs.Blobs`` on a bucket.

    Args:
        settings: The bucket.
        threads: The number of threads for hashing.
        prefix: Stands before the names of all objects, where several servers share a bucket.
    """

    def __init__(self, settings: S3, threads: int, prefix: str = "") -> None:
        self._threads = BlobThreads(threads)
        self._store = S3Store(
            settings.bucket,
            prefix=prefix or None,
            config={
                "region": settings.region,
                **({"endpoint": settings.endpoint} if settings.endpoint else {}),
                **({"access_key_id": settings.access_key_id} if settings.access_key_id else {}),
                **({"secret_access_key": settings.secret_access_key} if settings.secret_access_key else {}),
            },
            client_options={"allow_http": settings.endpoint.startswith("http://")},
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_S)},
        )

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def open_draft(self, draft: Draft, algorithm: str | None = None) -> ObjectDraftWriter:
        """Return a writer that appends behind a draft."""
        return ObjectDraftWriter(self._store, self._threads, draft, algorithm)

    async def fork_draft(self, draft: Draft, generation: int) -> None:
        """Do nothing: an earlier generation writes objects that no row names."""

    async def inspect(self, drafts: Sequence[Draft], file: UploadRef) -> Content:
        """Read the pieces of drafts in order, or the file if they were published before."""
        with _port_errors():
            try:
                return await self._content(self._pieces(drafts))
            except FileNotFoundError:
                found = await obstore.head_async(self._store, _file(file))
                return await self._content(self._blocks(file, 0, found["size"]))

    async def publish(self, drafts: Sequence[Draft], file: UploadRef) -> None:
        """Make one object of the pieces."""
        several = sum(draft.size_bytes for draft in drafts) > _PART_BYTES
        with _port_errors():
            try:
                await obstore.put_async(
                    self._store,
                    _file(file),
                    self._pieces(drafts),
                    use_multipart=several,
                    chunk_size=_PART_BYTES,
                    max_concurrency=1,
                )
            except FileNotFoundError:  # a piece is missing: the draft was published before
                await obstore.head_async(self._store, _file(file))
        if len(drafts) == 1:
            await self.delete_draft(drafts[0].ref)

    async def read(self, file: UploadRef, first_byte: int, count_bytes: int) -> AsyncIterator[bytes]:
        """Read part of a file, one request a block."""
        with _port_errors():
            async for block in self._blocks(file, first_byte, count_bytes):
                yield block

    async def delete_draft(self, ref: UploadRef) -> None:
        """Delete all pieces of a draft, also those that no row names."""
        with _port_errors():
            async for found in obstore.list(self._store, _draft(ref), chunk_size=_LISTED_TOGETHER):
                await obstore.delete_async(self._store, [one["path"] for one in found])

    async def delete_file(self, file: UploadRef) -> None:
        """Delete a file."""
        with _port_errors():
            await obstore.delete_async(self._store, _file(file))

    async def list_stored(self, before_us: int) -> AsyncIterator[list[StoredBlob]]:
        """List drafts, each with all its pieces, and files."""
        before = datetime.fromtimestamp(before_us / 1_000_000, UTC)
        some: list[StoredBlob] = []
        with _port_errors():
            async for kept, written_at in self._list():
                if written_at < before:
                    some.append(kept)
                if len(some) == _LISTED_TOGETHER:
                    yield some
                    some = []
        if some:
            yield some

    async def _list(self) -> AsyncIterator[tuple[StoredBlob, datetime]]:
        """Add up the objects of each draft, which follow one another in the listing."""
        last: tuple[StoredBlob, datetime] | None = None
        for prefix in ("drafts", "files"):
            async for found in obstore.list(self._store, prefix, chunk_size=_LISTED_TOGETHER):
                for one in found:
                    name = _NAME.fullmatch(one["path"])
                    if name is None:
                        continue
                    kept = StoredBlob(UploadRef(int(name[1]), name[2]), prefix == "files", one["size"])
                    written_at = one["last_modified"]
                    if last is not None and not kept.is_file and last[0].ref == kept.ref:
                        size_bytes = last[0].size_bytes + kept.size_bytes
                        last = (
                            StoredBlob(kept.ref, is_file=False, size_bytes=size_bytes),
                            max(last[1], written_at),
                        )
                        continue
                    if last is not None:
                        yield last
                    last = kept, written_at
        if last is not None:
            yield last

    async def _content(self, blocks: AsyncIterator[bytes]) -> Content:
        reader = ContentReader()
        async for block in blocks:
            await self._threads.run(reader.take, block)
        return reader.content()

    async def _pieces(self, drafts: Sequence[Draft]) -> AsyncIterator[bytes]:
        for draft in drafts:
            left_bytes = draft.size_bytes
            for piece in draft.pieces:
                found = await obstore.get_async(self._store, f"{_draft(draft.ref)}/{piece}")
                async for block in found.stream(_READ_BYTES):
                    left_bytes -= len(block)
                    yield block
            if left_bytes:
                raise BlobsError(f"the pieces of {draft.ref.upload_id} are {left_bytes} bytes too short")

    async def _blocks(self, file: UploadRef, first_byte: int, count_bytes: int) -> AsyncIterator[bytes]:
        end_byte = first_byte + count_bytes
        for start in range(first_byte, end_byte, _READ_BYTES):
            end = min(end_byte, start + _READ_BYTES)
            block = bytes(await obstore.get_range_async(self._store, _file(file), start=start, end=end))
            if len(block) != end - start:
                raise BlobsError(f"{file.upload_id} ends before byte {end}")
            yield block


class ObjectDraftWriter:
    """``engine.uploads.blobs.DraftWriter`` in memory; a flush, or enough bytes, make an object."""

    def __init__(self, store: S3Store, threads: BlobThreads, draft: Draft, algorithm: str | None) -> None:
        self._store = store
        self._threads = threads
        self._draft = draft
        self._hash = hashlib.new(algorithm, usedforsecurity=False) if algorithm else None
        self._collected: list[bytes] = []
        self._end_bytes = draft.size_bytes
        self._pieces: list[str] = []

    async def write(self, blocks: Sequence[bytes]) -> None:
        """Collect bytes; if this fails, none of them counts."""
        await self._take(blocks, _PIECE_BYTES)

    async def flush(self, blocks: Sequence[bytes] = ()) -> tuple[str, ...]:
        """Make an object of the collected bytes. Returns the names of all objects since the last flush."""
        await self._take(blocks, 1)
        pieces, self._pieces = self._pieces, []
        return tuple(pieces)

    def digest(self) -> bytes:
        """Return the hash of all bytes of this request."""
        assert self._hash is not None, "no algorithm was asked for"
        return self._hash.digest()

    async def close(self) -> None:
        """Drop bytes that were not flushed."""
        self._collected = []

    async def _take(self, blocks: Sequence[bytes], piece_bytes: int) -> None:
        """Collect bytes, and make an object once they are ``piece_bytes``."""
        if self._hash is not None:
            await self._threads.run(_hashed, self._hash, blocks)
        collected = [*self._collected, *blocks]
        size_bytes = sum(map(len, collected))
        if size_bytes >= piece_bytes:
            piece = f"{self._draft.generation}-{self._end_bytes}-{secrets.token_hex(8)}"
            with _port_errors():
                await obstore.put_async(
                    self._store, f"{_draft(self._draft.ref)}/{piece}", collected, use_multipart=False
                )
            self._pieces.append(piece)
            self._end_bytes += size_bytes
            collected = []
        self._collected = collected


def _hashed(hasher: hashlib._Hash, blocks: Sequence[bytes]) -> None:
    for block in blocks:
        hasher.update(block)


def _draft(ref: UploadRef) -> str:
    return f"drafts/{ref.tenant_id}/{ref.upload_id}"


def _file(ref: UploadRef) -> str:
    return f"files/{ref.tenant_id}/{ref.upload_id}"


@contextmanager
def _port_errors() -> Iterator[None]:
    """Raise the library's errors as errors of the port."""
    try:
        yield
    except FileNotFoundError as error:
        # A HEAD request is not told why the object is missing, so the text of the cause is searched.
        if "NoSuchBucket" in f"{error}{error.__context__}":
            raise BlobsError("there is no such bucket: see s3.bucket") from error
        raise BlobMissingError("there are no such bytes") from error
    except (BaseError, ValueError) as error:
        if _FULL.search(str(error)):
            raise BlobsFullError("the bucket has no room for more") from error
        raise BlobsError(str(error)) from error
