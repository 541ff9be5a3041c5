"""What uploads need of the store: sessions that any process may take up. The docstrings state the duty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from engine.model.uploads import State, Upload, UploadRef

#: A request keeps an upload for so long without a word; after it others may take the upload over.
LEASE_S = 30


class Claim(msgspec.Struct, frozen=True):
    """A device's request, ``holder``, wants an upload to itself."""

    ref: UploadRef
    device_id: str
    holder: str


class Claimed(msgspec.Struct, frozen=True):
    """An upload as it was found. ``taken`` says that it is the claimant's now.

    One that is not is another request's, perhaps let lapse, or is no longer open.
    """

    upload: Upload
    taken: bool


class OffsetUpdate(msgspec.Struct, frozen=True):
    """What a holder has made durable: the new offset and pieces. ``release`` gives the upload back."""

    ref: UploadRef
    holder: str
    offset_bytes: int
    size_bytes: int | None
    pieces: tuple[str, ...]
    release: bool


class Quota(msgspec.Struct, frozen=True):
    """How much a tenant may store, how many files a record may have, how many a device may have open."""

    tenant_bytes: int
    files_per_record: int
    open_per_device: int


#: What became of an upload that was to be kept: there may be no room for the tenant's bytes, the record's
#: files, or the device's open uploads.
Created = Literal["created", "tenant_full", "record_full", "device_full"]


#: The same of one that is put together of parts, which may have been spent before.
Joined = Literal["created", "record_full", "spent"]


class NewUpload(msgspec.Struct, frozen=True):
    """An upload to be kept, within a quota."""

    upload: Upload
    quota: Quota


class Stored(msgspec.Struct, frozen=True):
    """An upload that was made a file, and what that is."""

    ref: UploadRef
    sha256: str
    content_type: str


class UploadStore(Protocol):
    """Every method is one transaction that may be run again, and raises StoreError.

    All but claims are durable on return: after a crash nobody has an upload.
    """

    async def create(self, uploads: Sequence[NewUpload], expire_s: float) -> list[Created]:
        """Keep new uploads and reserve their bytes, those for which there is room."""

    async def concatenate(self, upload: NewUpload, expire_s: float) -> Joined:
        """Keep a new upload that is put together of parts, which are spent by it, all of them or none.

        What the parts reserved becomes its own. ``spent`` when one of them is not open, spent by now, or
        named twice.
        """

    async def find(self, ref: UploadRef) -> Upload | None:
        """Find an upload in whatever state."""

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed | None]:
        """Give uploads to those who want them, while nobody has them; None for one that is not there."""

    async def steal(self, claim: Claim) -> Upload | None:
        """Take an upload from whoever has it, if it is still open; its generation is a later one then."""

    async def advance(self, advances: Sequence[OffsetUpdate], expire_s: float) -> list[bool]:
        """Move offsets; False for one whose holder is its holder no longer, and nothing was done."""

    async def store(self, stored: Sequence[Stored]) -> list[bool]:
        """Note that uploads are files now, and give them back; False for one that has ended otherwise."""

    async def discard(self, ref: UploadRef, holder: str | None, state: State) -> bool:
        """End an open upload as ``state`` says and free what it reserved.

        Only its ``holder`` may, unless that is None. False when it was not open, or is another's. The parts
        of one that was joined share its fate.
        """
