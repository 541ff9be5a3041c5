"""What uploads need of the store: sessions that any process may take up. The docstrings state the duty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from engine.uploads import State, Upload, UploadRef

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


class Advance(msgspec.Struct, frozen=True):
    """What a holder has made durable: the new offset and pieces. ``release`` gives the upload back."""

    ref: UploadRef
    holder: str
    offset_bytes: int
    size_bytes: int | None
    pieces: tuple[str, ...]
    release: bool


class Quota(msgspec.Struct, frozen=True):
    """How much a tenant may store, and how many files one record may have."""

    tenant_bytes: int
    files_per_record: int


class UploadStore(Protocol):
    """Every method is one transaction, durable on return, that may be run again. All raise StoreError."""

    async def create(
        self, upload: Upload, quota: Quota, expire_s: float
    ) -> Literal["created", "tenant_full", "record_full"]:
        """Keep a new upload and reserve its bytes, unless there is no room."""

    async def join(self, upload: Upload, expire_s: float) -> bool:
        """Keep a new upload that is put together of parts, which are spent by it, all of them or none.

        What the parts reserved becomes its own. False when one of them is not open, spent by now, or named
        twice.
        """

    async def find(self, ref: UploadRef) -> Upload | None:
        """Find an upload in whatever state."""

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed | None]:
        """Give uploads to those who want them, while nobody has them; None for one that is not there."""

    async def seize(self, claim: Claim) -> Upload | None:
        """Take an upload from whoever has it, if it is still open; its generation is a later one then."""

    async def advance(self, advances: Sequence[Advance], expire_s: float) -> list[bool]:
        """Move offsets; False for one whose holder is its holder no longer, and nothing was done."""

    async def store(
        self, ref: UploadRef, holder: str, sha256: str, content_type: str | None
    ) -> bool:
        """Note that an upload is a file now, and give it back; False for one that another holds."""

    async def discard(self, ref: UploadRef, holder: str | None, state: State) -> bool:
        """End an open upload as ``state`` says and free what it reserved.

        Only its ``holder`` may, unless that is None. False when it was not open, or is another's. The parts
        of one that was joined share its fate.
        """
