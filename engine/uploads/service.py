"""What a device asks of its uploads: begin one, bring bytes, put parts together, ask, give up.

Bytes are durable before the offset says so, and the offset is committed before the device is told.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

from engine.commit.validation import Session
from engine.filetypes.types import FileTypes
from engine.model.uploads import (
    FINISHED,
    Append,
    AppendPlan,
    Kind,
    Upload,
    UploadRef,
    concatenated_bytes,
    plan_append,
    upload_complete,
    visible_to,
)
from engine.runtime.batching import Batcher, with_retries
from engine.runtime.metrics import Metric, counter
from engine.runtime.ports import Clock
from engine.runtime.rate_limit import retry_later_ms, retry_soon_ms
from engine.uploads.blobs import BlobMissingError, Blobs
from engine.uploads.body_writer import PROGRESS_S, Body, BodyCutError, BodyWriter
from engine.uploads.finish import UploadFinisher
from engine.uploads.locks import UploadLock, UploadLocks, part_used, taken_over
from engine.uploads.metadata import Described
from engine.uploads.ports import Created, NewUpload, Quota, UploadStore
from engine.uploads.write_limiter import WriteLimiter
from engine.wire.errors import SyncError

MOST_PARTS: Final = 100


class Checksum(msgspec.Struct, frozen=True):
    """What a request says of the bytes that it brings; ``algorithm`` is ``hashlib``'s name."""

    algorithm: str
    digest: bytes


class Creation(msgspec.Struct, frozen=True):
    """An upload to begin. ``described`` is None of a part alone; ``size_bytes`` where it is not known yet."""

    kind: Kind
    size_bytes: int | None
    described: Described | None
    metadata: str


class UploadLimits(msgspec.Struct, frozen=True):
    """``quotas`` are in bytes by tenant's name, in place of ``quota``'s."""

    quota: Quota
    quotas: dict[str, int]
    expire_s: float


class UploadCounters(msgspec.Struct):
    """What became of uploads since the process started."""

    created: int = 0
    finished: int = 0
    cancelled: int = 0
    chunks: int = 0
    received_bytes: int = 0

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield from (
            counter("tidemark_uploads_created", "Uploads begun", self.created),
            counter("tidemark_uploads_finished", "Uploads that became files", self.finished),
            counter("tidemark_uploads_cancelled", "Uploads and files that devices took back", self.cancelled),
            counter("tidemark_upload_chunks", "Requests that brought bytes of uploads", self.chunks),
            counter("tidemark_upload_received_bytes", "Bytes of uploads that were kept", self.received_bytes),
        )


class UploadService:
    """Serves the requests of one process."""

    def __init__(
        self,
        store: UploadStore,
        blobs: Blobs,
        holds: UploadLocks,
        finishing: UploadFinisher,
        types: FileTypes,
        clock: Clock,
        turns: WriteLimiter,
        limits: UploadLimits,
    ) -> None:
        self.counters = UploadCounters()
        self._store = store
        self._blobs = blobs
        self._holds = holds
        self._finishing = finishing
        self._types = types
        self._clock = clock
        self._turns = turns
        self._quota = limits.quota
        self._quotas = limits.quotas
        self.expire_s = limits.expire_s
        self._creations: Batcher[NewUpload, Created] = Batcher(
            partial(store.create, expire_s=limits.expire_s), 50
        )
        self._draining = False

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._holds.run())
            group.create_task(self._finishing.run())
            group.create_task(self._creations.run())

    async def drain(self) -> None:
        """Bring every request to its end; what came is kept, and its client is told to come again."""
        self._draining = True
        await self._holds.drain()

    async def create(self, session: Session, creation: Creation) -> Upload:
        """Begin an upload, if there is room for all of it.

        Raises SyncError ``too_large``, ``quota_exceeded``, ``unsupported_type``, ``invalid_message``.
        """
        most_bytes = self._most_bytes(creation.described)
        size_bytes = creation.size_bytes
        if size_bytes is not None and size_bytes > most_bytes:
            raise SyncError("too_large", f"{size_bytes} bytes: a file of this type has {most_bytes} at most")
        if size_bytes == 0 and creation.described is not None:
            self._types.check_empty(creation.described.content_type)
        reserved_bytes = most_bytes if size_bytes is None else size_bytes
        upload = self._new(session, creation, reserved_bytes)
        quota = self._quota_of(session)
        made = await self._creations.submit(NewUpload(upload, quota))
        if made == "tenant_full":
            most = f"unfinished ones included, may have {quota.tenant_bytes} bytes"
            raise SyncError("quota_exceeded", f"the files of this tenant, {most}")
        if made == "record_full":
            raise _record_full(quota)
        if made == "device_full":
            raise SyncError(
                "insufficient_storage",
                f"this device has {quota.open_per_device} uploads open: finish or cancel some",
                retry_after_ms=retry_later_ms(),
            )
        self.counters.created += 1
        return upload

    def _quota_of(self, session: Session) -> Quota:
        tenant_bytes = self._quotas.get(session.tenant.name, self._quota.tenant_bytes)
        return msgspec.structs.replace(self._quota, tenant_bytes=tenant_bytes)

    def _most_bytes(self, described: Described | None) -> int:
        if described is None:
            return self._types.largest_bytes
        return self._types.most_bytes(described.content_type)

    def _new(self, session: Session, creation: Creation, reserved_bytes: int) -> Upload:
        described = creation.described
        now_us = self._clock.now_us()
        return Upload(
            ref=UploadRef(session.tenant.tenant_id, uuid.uuid4().hex),
            device_id=session.device_id,
            user=session.user,
            kind=creation.kind,
            file_name=None if described is None else described.file_name,
            content_type=None if described is None else described.content_type,
            domain=None if described is None else described.domain,
            record_id=None if described is None else described.record_id,
            metadata=creation.metadata,
            size_bytes=creation.size_bytes,
            reserved_bytes=reserved_bytes,
            expected_sha256=None if described is None else described.sha256,
            created_at_us=now_us,
            expires_at_us=now_us + int(self.expire_s * 1_000_000),
        )

    async def append(
        self, session: Session, upload_id: str, request: Append, body: Body, checksum: Checksum | None = None
    ) -> Upload:
        """Take in what a request brings; what came before it broke off is kept, unless it has a checksum.

        Raises SyncError, BlobsError, StoreError.
        """
        ref = UploadRef(session.tenant.tenant_id, upload_id)
        async with self._holds.acquire(ref, session.device_id) as hold:
            plan = plan_append(hold.upload, request)
            hold.on_release_requested(body.cut)
            if plan.complete and request.length_bytes is None:
                await self._see_end(hold, body)
            if not hold.released:
                try:
                    await self._take_in(hold, plan, request, body, checksum)
                except BlobMissingError:
                    # Taken over, and a file by now; else something is amiss that has to be said.
                    await hold.advance(hold.upload.offset_bytes)
                    raise
            if hold.upload.ready_to_finish:
                return await self._finished(hold)
            return self._renewed(hold.upload)

    async def _see_end(self, hold: UploadLock, body: Body) -> None:
        """Read a chunked body to its end, which has to come before any byte.

        Clients send an empty one after the last byte, and Java's waits for 100 before it ends it. Raises
        SyncError ``upload_complete``, and what ``_broken_off`` says of a body without an end.
        """
        block = None
        while block is None:
            try:
                block = await body.next(PROGRESS_S)
            except BodyCutError:
                raise self._broken_off(hold, body) from None
        if block:
            raise upload_complete()

    async def _take_in(
        self, hold: UploadLock, plan: AppendPlan, request: Append, body: Body, checksum: Checksum | None
    ) -> None:
        algorithm = None if checksum is None else checksum.algorithm
        writer = self._blobs.open_draft(hold.upload.draft, algorithm)
        intake = BodyWriter(
            hold, plan, request, writer, body, self._clock, self._turns, progress=checksum is None
        )
        try:
            cut = await intake.run()
            if cut and checksum is not None:
                raise self._broken_off(hold, body)
            pieces = await intake.flush()
            if checksum is not None and writer.digest() != checksum.digest:
                raise SyncError(
                    "checksum_mismatch", "the bytes are not what Upload-Checksum says: send them again"
                )
        finally:
            await writer.close()
        size_bytes = plan.size_bytes
        if request.completes and size_bytes is None and not cut:
            size_bytes = intake.offset_bytes
        whole = intake.offset_bytes == size_bytes and hold.upload.kind != "part"
        await hold.advance(intake.offset_bytes, pieces, size_bytes, release=not whole)
        self.counters.chunks += 1
        self.counters.received_bytes += intake.offset_bytes - request.offset_bytes
        if cut and not whole:
            raise self._broken_off(hold, body)

    def _broken_off(self, hold: UploadLock, body: Body) -> SyncError:
        """Say that an upload goes on later, or with another request; and from where."""
        if body.was_cut and not self._draining:
            error = taken_over()
        else:
            why = "this server is going away" if body.was_cut else "the body broke off"
            error = SyncError("unavailable", f"{why}: what came is kept", retry_after_ms=retry_soon_ms())
        error.details["offset"] = hold.upload.offset_bytes
        return error

    async def _finished(self, hold: UploadLock) -> Upload:
        upload = await self._finishing.finish(hold)
        self.counters.finished += 1
        return upload

    def _renewed(self, upload: Upload) -> Upload:
        expires_at_us = self._clock.now_us() + int(self.expire_s * 1_000_000)
        return msgspec.structs.replace(upload, expires_at_us=expires_at_us)

    async def find(self, session: Session, upload_id: str) -> Upload:
        """Say where an upload stands; a request that is under way on it ends.

        Raises SyncError ``not_found``, ``upload_gone``; what ``UploadFinisher.finish`` raises of one whose
        last request ended before that was done.
        """
        ref = UploadRef(session.tenant.tenant_id, upload_id)
        upload = await self._holds.freed(ref, session.device_id)
        if not upload.ready_to_finish:
            return upload
        async with self._holds.acquire(ref, session.device_id) as hold:
            return await self._finished(hold) if hold.upload.ready_to_finish else hold.upload

    async def concatenate(
        self, session: Session, described: Described, metadata: str, parts: Sequence[str]
    ) -> Upload:
        """Make one file of parts. Asked again, because the answer was lost, it gives what was made of them.

        Raises SyncError.
        """
        if not 1 <= len(parts) <= MOST_PARTS:
            raise SyncError("invalid_message", f"Upload-Concat: 1 to {MOST_PARTS} partial uploads")
        found = [await self._part(session, part) for part in parts]
        made_of_them = {part.final_id for part in found}
        joined = made_of_them.pop() if len(made_of_them) == 1 else None
        if joined is None:
            size_bytes = concatenated_bytes(found, self._most_bytes(described))
            if size_bytes == 0:
                self._types.check_empty(described.content_type)
            creation = Creation("joined", size_bytes, described, metadata)
            upload = msgspec.structs.replace(
                self._new(session, creation, sum([part.reserved_bytes for part in found])),
                offset_bytes=size_bytes,
                parts=tuple(parts),
            )
            creating = NewUpload(upload, self._quota_of(session))
            made_new = await with_retries(lambda: self._store.concatenate(creating, self.expire_s))
            if made_new == "record_full":
                raise _record_full(creating.quota)
            if made_new == "spent":
                raise SyncError("invalid_message", "Upload-Concat: a part is named twice, or was used before")
            self.counters.created += 1
            joined = upload.ref.upload_id
        made = await self.find(session, joined)
        if made.parts != tuple(parts):
            raise SyncError("invalid_message", "Upload-Concat: these parts were put together otherwise")
        return made

    async def _part(self, session: Session, part: str) -> Upload:
        found = await self._store.find(UploadRef(session.tenant.tenant_id, part))
        if found is not None and found.final_id is not None and found.device_id == session.device_id:
            return found
        try:
            return visible_to(found, session.device_id, self._clock.now_us())
        except SyncError as error:
            raise SyncError(error.code, f"Upload-Concat: {part}: {error.message}") from None

    async def cancel(self, session: Session, upload_id: str) -> None:
        """Give an upload up, or take its file away again. Raises SyncError."""
        ref = UploadRef(session.tenant.tenant_id, upload_id)
        upload = await self._holds.freed(ref, session.device_id)
        if upload.final_id is not None:
            raise part_used()
        if upload.state in FINISHED:
            await self._finishing.free(upload)
        elif not await self._finishing.discard(upload, None, "cancelled"):
            raise SyncError("upload_gone", "this upload has ended")
        self.counters.cancelled += 1


def _record_full(quota: Quota) -> SyncError:
    most = f"{quota.files_per_record} files, unfinished ones included"
    return SyncError("quota_exceeded", f"a record may have {most}")
