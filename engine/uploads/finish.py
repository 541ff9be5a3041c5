"""From the last byte to a file in its record's entry: check the content, publish, store, attach.

Every step may be repeated, by any request or process that finds that the step before it was the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import structlog

from engine.commit.ports import WorkQueue
from engine.filetypes.types import FileTypes
from engine.model.uploads import Draft, Upload, UploadRef
from engine.plan.attachments import attaching, freeing
from engine.plan.work import Attach, AttachAnswer, Outcome
from engine.runtime.batching import Batcher, with_retries
from engine.runtime.ports import Clock
from engine.uploads.blobs import Blobs, BlobsError
from engine.uploads.locks import UploadLock
from engine.uploads.ports import StoredFile, UploadStore
from engine.wire.errors import SyncError

_log = structlog.get_logger()


class UploadFinisher:
    """Makes files of complete uploads, attaches them to their records, and deletes them again.

    Args:
        store: Rows of uploads.
        blobs: Their bytes.
        types: Checks the content.
        work_queue: Commits what changes a record's entry.
        clock: Tells the time.
    """

    def __init__(
        self, store: UploadStore, blobs: Blobs, types: FileTypes, work_queue: WorkQueue, clock: Clock
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._types = types
        self._work_queue = work_queue
        self._stored = Batcher(store.mark_stored)
        self._clock = clock

    async def run(self) -> None:
        """Call the store until cancelled."""
        await self._stored.run()

    async def finish(self, lock: UploadLock) -> Upload:
        """Make a file of a locked, complete upload and release its lock.

        Returns:
            The upload as ``stored``, ``attached`` or ``duplicate``.

        Raises:
            SyncError: ``checksum_mismatch``, ``unsupported_type`` or ``too_large`` if the content is
                refused; ``upload_gone`` if the upload ended while its file was made.
            BlobsError: The bytes could not be read or published.
            StoreError: The store failed.
        """
        upload = lock.upload
        ref = upload.ref
        drafts = await self._drafts(upload)
        content = await self._blobs.inspect(drafts, ref)
        try:
            content_type = self._detected_type(upload, content.sha256, content.head)
        except SyncError as error:
            _log.info("upload_refused", tenant_id=ref.tenant_id, upload_id=ref.upload_id, code=error.code)
            await self.discard(upload, lock.claim.lock_owner, "refused")
            lock.released = True
            raise
        await self._blobs.publish(drafts, ref)
        stored = await self._stored.submit(StoredFile(ref, upload.domain, content.sha256, content_type))
        lock.released = True
        if not stored:
            raise SyncError("upload_gone", "this upload has ended")
        _log.info(
            "upload_finished",
            tenant_id=ref.tenant_id,
            device_id=upload.device_id,
            upload_id=ref.upload_id,
            size_bytes=upload.offset_bytes,
        )
        await self._delete_parts(upload)
        file = {"state": "stored", "sha256": content.sha256, "content_type": content_type}
        return await self.attach(msgspec.structs.replace(upload, locked=False, pieces=(), **file))

    async def _drafts(self, upload: Upload) -> Sequence[Draft]:
        if upload.kind != "final":
            return [upload.draft]
        tenant_id = upload.ref.tenant_id
        parts = [await self._store.find(UploadRef(tenant_id, part)) for part in upload.parts]
        return [part.draft for part in parts if part is not None]

    def _detected_type(self, upload: Upload, sha256: str, head: bytes) -> str:
        if upload.expected_sha256 not in (None, sha256):
            raise SyncError(
                "checksum_mismatch", f"the file's SHA-256 is {sha256}, not {upload.expected_sha256}"
            )
        assert upload.content_type is not None
        return self._types.detected_type(upload.content_type, head, upload.offset_bytes)

    async def discard(
        self, upload: Upload, lock_owner: str | None, state: Literal["refused", "cancelled"]
    ) -> bool:
        """End an open upload without a file, with its parts, and delete the bytes.

        Args:
            upload: The upload.
            lock_owner: The only request that may end it; None if any may.
            state: How it ends.

        Returns:
            False if it was no longer open, or has another owner.
        """
        ended = await with_retries(lambda: self._store.discard(upload.ref, lock_owner, state))
        if ended:
            await delete_or_log(self._blobs, upload.ref, is_file=False)
            await self._delete_parts(upload)
        return ended

    async def _delete_parts(self, upload: Upload) -> None:
        for part in upload.parts:
            await delete_or_log(self._blobs, UploadRef(upload.ref.tenant_id, part), is_file=False)

    async def attach(self, upload: Upload) -> Upload:
        """Put a stored file into its record's entry, if the record exists.

        If it does not exist, or the server is overloaded, the file stays ``stored``:
        ``PendingAttachments`` attaches it later.

        Returns:
            The upload in its new state.
        """
        outcome = await self._committed(attaching(upload, self._clock.now_us()))
        if not isinstance(outcome, AttachAnswer) or outcome.state in ("waiting", "freed"):
            return upload
        return msgspec.structs.replace(upload, state=outcome.state)

    async def free(self, upload: Upload) -> None:
        """Delete a finished upload for its device, and the file unless a duplicate needs it.

        Raises:
            SyncError: It was not committed; the device may try again.
        """
        outcome = await self._committed(freeing(upload, self._clock.now_us()))
        if isinstance(outcome, SyncError):
            raise outcome

    async def _committed(self, work: Attach) -> Outcome:
        """Commit a change of a file, then delete the bytes that no row needs after it."""
        outcome = await self._work_queue.commit(work)
        if isinstance(outcome, AttachAnswer) and outcome.deletable is not None:
            await delete_or_log(self._blobs, UploadRef(work.tenant_id, outcome.deletable), is_file=True)
        return outcome


async def delete_or_log(blobs: Blobs, ref: UploadRef, *, is_file: bool) -> bool:
    """Delete a file or a draft that no row needs. A failure is logged, and the next clean-up tries again.

    Args:
        blobs: The store of bytes.
        ref: Whose bytes.
        is_file: True for the file, False for the draft.

    Returns:
        False if the bytes are still there.
    """
    try:
        await (blobs.delete_file if is_file else blobs.delete_draft)(ref)
    except BlobsError as error:
        _log.warning(
            "upload_bytes_not_deleted",
            tenant_id=ref.tenant_id,
            upload_id=ref.upload_id,
            is_file=is_file,
            reason=str(error),
        )
        return False
    return True
