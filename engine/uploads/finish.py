"""From the last byte to a file in its record's entry: looked at, made a file, kept, attached.

Each step may be done again, by whoever finds that the one before it was the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog

from engine.commit.ports import WorkQueue
from engine.filetypes.types import FileTypes
from engine.model.uploads import Draft, State, Upload, UploadRef
from engine.plan.attachments import attaching, freeing
from engine.plan.work import Attach, AttachAnswer, Outcome
from engine.runtime.batching import Batcher, with_retries
from engine.runtime.ports import Clock
from engine.uploads.blobs import Blobs, BlobsError
from engine.uploads.locks import UploadLock
from engine.uploads.ports import Stored, UploadStore
from engine.wire.errors import SyncError

_log = structlog.get_logger()


class UploadFinisher:
    """Makes files of uploads of which every byte has come."""

    def __init__(
        self, store: UploadStore, blobs: Blobs, types: FileTypes, work_queue: WorkQueue, clock: Clock
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._types = types
        self._work_queue = work_queue
        self._stored = Batcher(store.store)
        self._clock = clock

    async def run(self) -> None:
        """Tell the store of files until cancelled."""
        await self._stored.run()

    async def finish(self, hold: UploadLock) -> Upload:
        """Make a file of an upload that is held, and give it back.

        Raises SyncError ``checksum_mismatch``, ``unsupported_type`` or ``too_large`` for one that came to
        nothing, ``upload_gone`` for one that was ended meanwhile.
        """
        upload = hold.upload
        ref = upload.ref
        drafts = await self._drafts(upload)
        content = await self._blobs.inspect(drafts, ref)
        try:
            content_type = self._detected_type(upload, content.sha256, content.head)
        except SyncError as error:
            _log.info("upload_refused", tenant_id=ref.tenant_id, upload_id=ref.upload_id, code=error.code)
            await self.discard(upload, hold.claim.holder, "refused")
            hold.released = True
            raise
        await self._blobs.publish(drafts, ref)
        stored = await self._stored.submit(Stored(ref, content.sha256, content_type))
        hold.released = True
        if not stored:
            raise SyncError("upload_gone", "this upload has ended")
        _log.info(
            "upload_finished",
            tenant_id=ref.tenant_id,
            device_id=upload.device_id,
            upload_id=ref.upload_id,
            size_bytes=upload.offset_bytes,
        )
        for part in upload.parts:
            await delete_draft(self._blobs, UploadRef(ref.tenant_id, part))
        file = {"state": "stored", "sha256": content.sha256, "content_type": content_type}
        return await self.attach(msgspec.structs.replace(upload, held=False, pieces=(), **file))

    async def _drafts(self, upload: Upload) -> Sequence[Draft]:
        if upload.kind != "joined":
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

    async def discard(self, upload: Upload, holder: str | None, state: State) -> bool:
        """End an open upload, with its parts, and remove its bytes."""
        ended = await with_retries(lambda: self._store.discard(upload.ref, holder, state))
        if ended:
            await delete_draft(self._blobs, upload.ref)
            for part in upload.parts:
                await delete_draft(self._blobs, UploadRef(upload.ref.tenant_id, part))
        return ended

    async def attach(self, upload: Upload) -> Upload:
        """Put a stored file into its record's entry; one whose record is not there yet waits for it.

        So does one for which there is no time now: it is looked for until it is done.
        """
        outcome = await self._settled(attaching(upload, self._clock.now_us()))
        if not isinstance(outcome, AttachAnswer) or outcome.state in ("waiting", "freed"):
            return upload
        return msgspec.structs.replace(upload, state=outcome.state)

    async def free(self, upload: Upload) -> None:
        """Free an upload, and its file if no duplicate needs it. Raises SyncError when that has to wait."""
        outcome = await self._settled(freeing(upload, self._clock.now_us()))
        if isinstance(outcome, SyncError):
            raise outcome

    async def _settled(self, work: Attach) -> Outcome:
        """Have it committed what becomes of a file, and remove the bytes that nobody wants after it."""
        outcome = await self._work_queue.commit(work)
        if isinstance(outcome, AttachAnswer) and outcome.deletable is not None:
            await delete_file(self._blobs, UploadRef(work.tenant_id, outcome.deletable))
        return outcome


async def delete_draft(blobs: Blobs, ref: UploadRef) -> bool:
    """Remove a draft; False, and a warning in the log, where that has to wait."""
    try:
        await blobs.delete_draft(ref)
    except BlobsError as error:
        _log.warning("draft_left", tenant_id=ref.tenant_id, upload_id=ref.upload_id, reason=str(error))
        return False
    return True


async def delete_file(blobs: Blobs, ref: UploadRef) -> bool:
    """Remove a file; False, and a warning in the log, where that has to wait."""
    try:
        await blobs.delete_file(ref)
    except BlobsError as error:
        _log.warning("file_left", tenant_id=ref.tenant_id, upload_id=ref.upload_id, reason=str(error))
        return False
    return True
