"""The store that uploads need: their rows, which any process may change. The docstrings state its duties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from engine.model.uploads import Upload, UploadRef

#: A lock expires after this time unless its owner renews it; then another request may steal it.
LEASE_S = 30


class Claim(msgspec.Struct, frozen=True):
    """A request, ``lock_owner``, of a device asks for the lock of an upload."""

    ref: UploadRef
    device_id: str
    lock_owner: str


class Claimed(msgspec.Struct, frozen=True):
    """An upload as it was found. ``acquired`` says that the claimant has its lock now.

    If it is False, the upload is another device's, another request has the lock (which may have expired), or
    the upload is no longer open.
    """

    upload: Upload
    acquired: bool


class OffsetUpdate(msgspec.Struct, frozen=True):
    """The offset and pieces that a lock's owner has made durable. ``release`` also gives the lock back.

    ``size_bytes`` is the size of the whole upload if this request told it, else None.
    """

    ref: UploadRef
    lock_owner: str
    offset_bytes: int
    size_bytes: int | None
    pieces: tuple[str, ...]
    release: bool


class Quota(msgspec.Struct, frozen=True):
    """The most a tenant may store, the most files of a record, and the most uploads of a device.

    A device's uploads are bounded twice: those that are open, and those that it began in 24 hours.
    """

    tenant_bytes: int
    files_per_record: int
    open_per_device: int
    begun_per_device: int


#: The outcome of a new upload: there may be no room for the tenant's bytes, the record's files or the
#: device's open uploads, or the device may have begun too many, whatever became of them.
Created = Literal["created", "tenant_full", "record_full", "device_full", "too_many_begun"]


#: The outcome of a concatenation, whose parts may have been used before.
Concatenated = Literal["created", "record_full", "part_used"]


class NewUpload(msgspec.Struct, frozen=True):
    """An upload to insert, within a quota."""

    upload: Upload
    quota: Quota


class StoredFile(msgspec.Struct, frozen=True):
    """An upload whose bytes are a file now; the hash is in hex digits. ``domain`` is that of its record."""

    ref: UploadRef
    domain: str | None
    sha256: str
    content_type: str


class UploadStore(Protocol):
    """Rows of uploads. Every method is one transaction that may be run again, and raises StoreError.

    All but claims are durable on return. Claims need not be: after a crash nobody has a lock.
    """

    async def create(self, uploads: Sequence[NewUpload], expire_s: float) -> list[Created]:
        """Insert new uploads and reserve their bytes, each if there is room for it.

        Args:
            uploads: They are decided in the order of their tenants, not in this order.
            expire_s: The time without a byte after which an upload expires.
        """

    async def concatenate(self, upload: NewUpload, expire_s: float) -> Concatenated:
        """Insert a final upload and mark its parts as used by it: all of them, or nothing happens.

        The bytes that the parts reserved become the final upload's.

        Returns:
            ``part_used`` if a part is not open, already used, or named twice.
        """

    async def find(self, ref: UploadRef) -> Upload | None:
        """Read an upload in any state."""

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed | None]:
        """Lock uploads that are open and unlocked; None for an upload that does not exist."""

    async def steal(self, claim: Claim) -> Upload | None:
        """Take the lock of an open upload from any owner, and raise its generation.

        Returns:
            The upload, or None if it is no longer open.
        """

    async def save_offsets(self, updates: Sequence[OffsetUpdate], expire_s: float) -> list[bool]:
        """Save offsets. False for an update whose owner has lost the lock: then nothing was changed."""

    async def mark_stored(self, files: Sequence[StoredFile]) -> list[bool]:
        """Record that uploads are files now, and release their locks. False for one that ended otherwise."""

    async def discard(
        self, ref: UploadRef, lock_owner: str | None, state: Literal["refused", "cancelled"]
    ) -> bool:
        """End an open upload without a file and return what it reserved; parts of a final one end with it.

        Args:
            ref: The upload.
            lock_owner: The only request that may end it; None if any may.
            state: How it ends.

        Returns:
            False if the upload was not open, or has another owner.
        """
