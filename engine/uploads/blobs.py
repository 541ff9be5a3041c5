"""What uploads need of what keeps bytes, and of the store for files. The docstrings state the duty."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

import msgspec

from engine.model.uploads import Draft, Upload, UploadRef


class PendingFile(msgspec.Struct, frozen=True):
    """A stored file that is not in its record's entry yet. ``due`` says that the record is there now."""

    upload: Upload
    due: bool


class PendingStore(Protocol):
    """Files that are stored before their records."""

    async def tenants(self, after: int, limit: int) -> list[int]:
        """List tenants that have any, ascending and behind ``after``. Raises StoreError."""

    async def waiting(self, behind: Mapping[int, Upload | None], limit: int) -> list[PendingFile]:
        """List some tenants' files, ``limit`` of each, in one round trip.

        They come in an order that stays, those of a tenant behind the one that is given for it. Raises
        StoreError.
        """


class FileStore(Protocol):
    """Reads of files."""

    async def file(self, tenant_id: int, file_id: str) -> Upload | None:
        """Find the finished upload that has the bytes of ``file_id``.

        Of a duplicate that is the file which its record has in its stead. Raises StoreError.
        """


class BlobsError(Exception):
    """Bytes could not be kept or given; trying again may succeed."""


class BlobsFullError(BlobsError):
    """There is no room; what was acknowledged stays."""


class BlobMissingError(BlobsError):
    """There are no such bytes."""


class Content(msgspec.Struct, frozen=True):
    """What was found in drafts, one after another: ``sha256`` in hex digits, and the first 8 KiB."""

    sha256: str
    head: bytes


class DraftWriter(Protocol):
    """Bytes on their way behind a draft, by one request. Not for two tasks at once."""

    async def write(self, blocks: Sequence[bytes]) -> None:
        """Take bytes; they may be lost until ``flush`` returns. Raises BlobsError, BlobsFullError."""

    async def flush(self, blocks: Sequence[bytes] = ()) -> tuple[str, ...]:
        """Take bytes, and have all that came durable on return.

        Gives the names of the pieces that were made since the last flush, none where the store needs none.
        Raises BlobsError, BlobsFullError.
        """

    def digest(self) -> bytes:
        """Give the hash of all that came, by the algorithm that was asked for. After ``flush``."""

    async def close(self) -> None:
        """End it; what was not flushed need not be kept. Never raises."""


class Blobs(Protocol):
    """Bytes of uploads, then files. No name is a path that a client chose: all are ids of ours.

    What stands behind a draft's ``size_bytes`` is nobody's: it was never acknowledged. No method keeps the
    event loop busy.
    """

    def open_draft(self, draft: Draft, algorithm: str | None = None) -> DraftWriter:
        """Append behind a draft; ``algorithm`` (``hashlib``'s name) is of ``digest``."""

    async def fork_draft(self, draft: Draft, generation: int) -> None:
        """Make what is acknowledged of a draft that of a later generation.

        Whoever still writes to the earlier one writes to nothing that is read. Raises BlobsError.
        """

    async def inspect(self, drafts: Sequence[Draft], file: UploadRef) -> Content:
        """Read drafts in order, or ``file`` if they were published by now. Raises BlobsError."""

    async def publish(self, drafts: Sequence[Draft], file: UploadRef) -> None:
        """Make drafts in order a file, at once or not at all; durable on return.

        Doing it again does no harm. Of one draft nothing is left; several stay. Raises BlobsError.
        """

    def read(self, file: UploadRef, first_byte: int, count_bytes: int) -> AsyncIterator[bytes]:
        """Read part of a file, in blocks. Raises BlobMissingError, BlobsError."""

    async def delete_draft(self, ref: UploadRef) -> None:
        """Remove a draft in all its generations, if there is one. Raises BlobsError."""

    async def delete_file(self, file: UploadRef) -> None:
        """Remove a file, if there is one. Raises BlobsError."""

    def list_stored(self, before_us: int) -> AsyncIterator[list[StoredBlob]]:
        """List drafts and files that were last written before an instant, some at a time."""


class StoredBlob(msgspec.Struct, frozen=True):
    """Something that takes room: a draft, or a file."""

    ref: UploadRef
    is_file: bool
    size_bytes: int
