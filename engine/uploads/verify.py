"""Compares the files that rows name with the bytes that are kept: the command ``tenant files``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from engine.model.uploads import STATES, UploadRef
from engine.uploads.blobs import BlobMissingError, Blobs, BlobsError
from engine.uploads.cleanup import CleanupStore, for_each, is_orphan

#: Rows of one read.
_PAGE_ROWS: Final = 500
#: Later than any write: bytes of whatever age are listed.
_EVER_US: Final = 4_102_444_800_000_000
#: Damaged files that are named; all are counted.
LISTED: Final = 1000

Watch = Callable[[str], None]


class ListedFile(msgspec.Struct, frozen=True):
    """A file as its row names it."""

    ref: UploadRef
    tenant: str
    device_id: str
    domain: str
    record_id: str
    size_bytes: int


class DamagedFile(msgspec.Struct, frozen=True):
    """A file whose bytes are not there. ``found`` is ``missing``, or why its last byte cannot be read."""

    tenant: str
    device_id: str
    domain: str
    record_id: str
    file_id: str
    size_bytes: int
    found: str


class FilesVerified(msgspec.Struct):
    """What ``tenant files`` found.

    Attributes:
        files: Files that rows name.
        file_bytes: Their size.
        damaged_files: Those that are missing or too short.
        damaged: The first thousand of them.
        unlisted: Files and drafts that no row names, None if one tenant was asked for.
        unlisted_bytes: Their size.
    """

    files: int = 0
    file_bytes: int = 0
    damaged_files: int = 0
    damaged: list[DamagedFile] = []
    unlisted: int | None = None
    unlisted_bytes: int = 0


class FileList(Protocol):
    """Reads of the files that rows name."""

    async def files(self, tenant: str | None, after: UploadRef | None, limit: int) -> list[ListedFile]:
        """List files of a tenant, or of all, by tenant and id. Raises NoTenantError, StoreError."""


class FileVerifier:
    """Reads the last byte of every file. The content is not compared: a disk may still have changed it.

    Args:
        rows: The files that rows name.
        states: The states of uploads.
        blobs: Bytes of uploads.
    """

    def __init__(self, rows: FileList, states: CleanupStore, blobs: Blobs) -> None:
        self._rows = rows
        self._states = states
        self._blobs = blobs

    async def verify(self, tenant: str | None, watch: Watch) -> FilesVerified:
        """Look at the files of a tenant, or of all, and then for bytes that no row names.

        Args:
            tenant: Its name.
            watch: Is told how far it is.

        Raises:
            StoreError: The database is away.
            BlobsError: The bytes cannot be listed.
        """
        found = FilesVerified()
        after: UploadRef | None = None
        while page := await self._rows.files(tenant, after, _PAGE_ROWS):
            damaged: dict[UploadRef, DamagedFile] = {}
            await for_each(page, partial(self._look, damaged))
            await self._count(found, damaged)
            found.files += len(page)
            found.file_bytes += sum(one.size_bytes for one in page)
            watch(f"{found.files:,} files")
            after = page[-1].ref
        if tenant is None:
            found.unlisted = 0
            async for blobs in self._blobs.list_stored(_EVER_US):
                states = await self._states.states([one.ref for one in blobs])
                orphans = [one for one in blobs if is_orphan(one, states.get(one.ref))]
                found.unlisted += len(orphans)
                found.unlisted_bytes += sum(one.size_bytes for one in orphans)
        return found

    async def _look(self, damaged: dict[UploadRef, DamagedFile], file: ListedFile) -> None:
        try:
            async for _ in self._blobs.read(file.ref, max(0, file.size_bytes - 1), min(1, file.size_bytes)):
                pass
        except BlobMissingError:
            why = "missing"
        except BlobsError as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
        else:
            return
        damaged[file.ref] = DamagedFile(
            file.tenant,
            file.device_id,
            file.domain,
            file.record_id,
            file.ref.upload_id,
            file.size_bytes,
            why,
        )

    async def _count(self, found: FilesVerified, damaged: dict[UploadRef, DamagedFile]) -> None:
        """Count damaged files, but those that were freed or erased after their page was read."""
        if not damaged:
            return
        states = await self._states.states(list(damaged))
        for ref, file in damaged.items():
            if ref in states and STATES[states[ref]].has_bytes:
                found.damaged_files += 1
                if len(found.damaged) < LISTED:
                    found.damaged.append(file)
