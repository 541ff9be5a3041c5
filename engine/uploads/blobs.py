"""What uploads need of the store of bytes, and of reads of files. The docstrings state the duties."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec

from engine.model.uploads import Draft, Upload, UploadRef


class PendingFile(msgspec.Struct, frozen=True):
    """A stored file that is not in its record's entry yet. ``due`` says that the record exists now."""

    upload: Upload
    due: bool


class PendingStore(Protocol):
    """Reads of files that were stored before their records."""

    async def tenants(self, after: int, limit: int) -> list[int]:
        """List tenants with pending files, ascending, with ids above ``after``. Raises StoreError."""

    async def pending(self, after: Mapping[int, Upload | None], limit: int) -> list[PendingFile]:
        """List pending files of several tenants in one round trip, in an order that does not change.

        Args:
            after: By tenant the last upload of the page before; None for a tenant's first page.
            limit: The most files of each tenant.

        Raises:
            StoreError: The store failed.
        """


class FileStore(Protocol):
    """Reads of files."""

    async def file(self, tenant_id: int, file_id: str) -> Upload | None:
        """Return the finished upload that has the bytes of ``file_id``, None if there is none.

        For a duplicate this is the upload whose file stands for it. Raises StoreError.
        """


class BlobsError(Exception):
    """Bytes could not be written or read; a retry may succeed."""


class BlobsFullError(BlobsError):
    """The store has no room. Acknowledged bytes stay."""


class BlobMissingError(BlobsError):
    """The store has no such bytes."""


class Content(msgspec.Struct, frozen=True):
    """The content of drafts, one after another: its SHA-256 in hex digits, and its first 8 KiB."""

    sha256: str
    head: bytes


class DraftWriter(Protocol):
    """Appends the bytes of one request to a draft. Not safe for two tasks at once."""

    async def write(self, blocks: Sequence[bytes]) -> None:
        """Append bytes, which may be lost until ``flush`` returns. Raises BlobsError, BlobsFullError."""

    async def flush(self, blocks: Sequence[bytes] = ()) -> tuple[str, ...]:
        """Append bytes, then make all bytes so far durable.

        Returns:
            The names of the pieces made since the last flush; none if the store needs no pieces.

        Raises:
            BlobsError: The bytes are not durable; BlobsFullError if there is no room.
        """

    def digest(self) -> bytes:
        """Return the hash of this request's bytes, by the algorithm of ``open_draft``; after ``flush``."""

    async def close(self) -> None:
        """End the request; bytes that were not flushed may be dropped. Never raises."""


class Blobs(Protocol):
    """Bytes of drafts and files. Every name is an id that the server made, never one that a client chose.

    Bytes behind a draft's ``size_bytes`` were never acknowledged, and no read returns them. No method blocks
    the event loop.
    """

    def open_draft(self, draft: Draft, algorithm: str | None = None) -> DraftWriter:
        """Return a writer that appends behind a draft.

        Args:
            draft: The acknowledged bytes.
            algorithm: hashlib's name of the hash for ``DraftWriter.digest``, None for no hash.
        """

    async def fork_draft(self, draft: Draft, generation: int) -> None:
        """Copy the acknowledged bytes of a draft to a later generation.

        A request that still writes to the earlier generation then writes what nobody reads. Raises
        BlobsError.
        """

    async def inspect(self, drafts: Sequence[Draft], file: UploadRef) -> Content:
        """Read drafts in order, or ``file`` if they were published before. Raises BlobsError."""

    async def publish(self, drafts: Sequence[Draft], file: UploadRef) -> None:
        """Make drafts, in order, a file: all or nothing, and durable on return. It may be repeated.

        A single draft is used up by it; several drafts stay. Raises BlobsError.
        """

    def read(self, file: UploadRef, first_byte: int, count_bytes: int) -> AsyncIterator[bytes]:
        """Read part of a file, in blocks. Raises BlobMissingError, BlobsError."""

    async def delete_draft(self, ref: UploadRef) -> None:
        """Delete a draft in all its generations, if there is one. Raises BlobsError."""

    async def delete_file(self, file: UploadRef) -> None:
        """Delete a file, if there is one. Raises BlobsError."""

    def list_stored(self, before_us: int) -> AsyncIterator[list[StoredBlob]]:
        """List drafts and files that were last written before an instant, a page at a time."""


class StoredBlob(msgspec.Struct, frozen=True):
    """A draft or a file that takes up room."""

    ref: UploadRef
    is_file: bool
    size_bytes: int
