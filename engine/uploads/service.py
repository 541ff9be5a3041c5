"""The requests of devices for uploads: create, append, concatenate, find, cancel.

Bytes are durable before the offset is saved, and the offset is committed before the device is answered.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from engine.cache.minutes import Minutes
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
from engine.runtime.ports import Clock
from engine.runtime.rate_limit import retry_later_ms, retry_soon_ms
from engine.uploads.blobs import BlobMissingError, Blobs
from engine.uploads.body_writer import PROGRESS_S, Body, BodyCutError, BodyWriter
from engine.uploads.counters import UploadCounters
from engine.uploads.finish import UploadFinisher
from engine.uploads.locks import UploadLock, UploadLocks, part_used, taken_over
from engine.uploads.metadata import Described
from engine.uploads.ports import Created, NewUpload, Quota, UploadStore
from engine.uploads.write_limiter import WriteLimiter
from engine.wire.errors import SyncError

MAX_PARTS: Final = 100
#: New uploads in one transaction: each locks its tenant's quota until the commit.
_MAX_CREATED: Final = 50


class Checksum(msgspec.Struct, frozen=True):
    """The hash of a request's body, as its client states it; ``algorithm`` is hashlib's name."""

    algorithm: str
    digest: bytes


class Creation(msgspec.Struct, frozen=True):
    """A request to create an upload.

    ``described`` is None only for a partial upload, ``size_bytes`` while the client does not know it.
    ``metadata`` is the header ``Upload-Metadata``.
    """

    kind: Kind
    size_bytes: int | None
    described: Described | None
    metadata: str


class UploadLimits(msgspec.Struct, frozen=True):
    """Limits from the settings, and of the disk.

    ``quotas`` has the bytes of tenants, by name, that have their own quota. ``full`` returns the reason why
    the database has no room, None if it has. Without room no upload begins.
    """

    quota: Quota
    quotas: dict[str, int]
    expire_s: float
    full: Callable[[], str | None]


class UploadService:
    """Serves the upload requests of one process."""

    def __init__(
        self,
        store: UploadStore,
        blobs: Blobs,
        locks: UploadLocks,
        finisher: UploadFinisher,
        types: FileTypes,
        clock: Clock,
        limiter: WriteLimiter,
        limits: UploadLimits,
        minutes: Minutes,
    ) -> None:
        self.counters = UploadCounters()
        self._minutes = minutes
        self._full = limits.full
        self._store = store
        self._blobs = blobs
        self._locks = locks
        self._finisher = finisher
        self._types = types
        self._clock = clock
        self._limiter = limiter
        self._quota = limits.quota
        self._quotas = limits.quotas
        self.expire_s = limits.expire_s
        self._creations: Batcher[NewUpload, Created] = Batcher(
            partial(store.create, expire_s=limits.expire_s), _MAX_CREATED
        )
        self._draining = False

    async def run(self) -> None:
        """Call the store until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._locks.run())
            group.create_task(self._finisher.run())
            group.create_task(self._creations.run())

    async def drain(self) -> None:
        """End every request. Its bytes are kept, and its client is told to come back."""
        self._draining = True
        await self._locks.drain()

    async def create(self, session: Session, creation: Creation) -> Upload:
        """Create an upload, if there is room for all its bytes.

        Raises:
            SyncError: ``too_large``, ``quota_exceeded``, ``insufficient_storage``, ``rate_limited``,
                ``unsupported_type``, ``invalid_message``.
            StoreError: The store failed.
        """
        if reason := self._full():
            raise SyncError("insufficient_storage", reason, retry_after_ms=retry_later_ms())
        max_bytes = self._max_bytes(creation.described)
        size_bytes = creation.size_bytes
        if size_bytes is not None and size_bytes > max_bytes:
            raise SyncError("too_large", f"{size_bytes} bytes: a file of this type has {max_bytes} at most")
        if size_bytes == 0 and creation.described is not None:
            self._types.check_empty(creation.described.content_type)
        reserved_bytes = max_bytes if size_bytes is None else size_bytes
        upload = self._new(session, creation, reserved_bytes)
        quota = self._quota_of(session)
        created = await self._creations.submit(NewUpload(upload, quota))
        if created == "tenant_full":
            most = f"unfinished ones included, may have {quota.tenant_bytes} bytes"
            raise SyncError("quota_exceeded", f"the files of this tenant, {most}")
        if created == "record_full":
            raise _record_full(quota)
        if created == "device_full":
            raise SyncError(
                "insufficient_storage",
                f"this device has {quota.open_per_device} uploads open: finish or cancel some",
                retry_after_ms=retry_later_ms(),
            )
        if created == "too_many_begun":
            raise SyncError(
                "rate_limited",
                f"this device began {quota.begun_per_device} uploads in 24 hours: try again later",
                retry_after_ms=retry_later_ms(),
            )
        self.counters.created += 1
        return upload

    def _quota_of(self, session: Session) -> Quota:
        tenant_bytes = self._quotas.get(session.tenant.name, self._quota.tenant_bytes)
        return msgspec.structs.replace(self._quota, tenant_bytes=tenant_bytes)

    def _max_bytes(self, described: Described | None) -> int:
        if described is None:
            return self._types.largest_bytes
        return self._types.max_bytes(described.content_type)

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
        """Write the body of a request to an upload, and make a file of it after the last byte.

        If the body breaks off, the bytes before it are kept, unless the request has a checksum.

        Args:
            session: The device.
            upload_id: 32 hex digits.
            request: Where the bytes belong and how many they are.
            body: The bytes.
            checksum: The hash that the body must have, None for no check.

        Returns:
            The upload with its new offset and state.

        Raises:
            SyncError: The request is refused; ``details["offset"]`` has the offset if the body broke off.
            BlobsError: Bytes could not be written.
            StoreError: The store failed.
        """
        ref = UploadRef(session.tenant.tenant_id, upload_id)
        async with self._locks.acquire(ref, session.device_id) as lock:
            plan = plan_append(lock.upload, request)
            lock.on_release_requested(body.cut)
            if plan.complete and request.length_bytes is None:
                await self._read_empty_body(lock, body)
            if not lock.released:
                try:
                    await self._write_body(lock, plan, request, body, checksum)
                except BlobMissingError:
                    # If the lock was stolen and the draft published since then, this raises ``locked``.
                    await lock.save_offset(lock.upload.offset_bytes)
                    raise
            if lock.upload.ready_to_finish:
                return await self._finished(lock)
            return self._expiry_renewed(lock.upload)

    async def _read_empty_body(self, lock: UploadLock, body: Body) -> None:
        """Read a chunked body to its end, and refuse it if it has any byte.

        Clients send an empty body after the last byte, and Java's waits for 100 before it ends it. Raises
        SyncError ``upload_complete``, or what ``_broken_off`` returns for a body without an end.
        """
        block = None
        while block is None:
            try:
                block = await body.next(PROGRESS_S)
            except BodyCutError:
                raise self._broken_off(lock, body) from None
        if block:
            raise upload_complete()

    async def _write_body(
        self, lock: UploadLock, plan: AppendPlan, request: Append, body: Body, checksum: Checksum | None
    ) -> None:
        algorithm = None if checksum is None else checksum.algorithm
        writer = self._blobs.open_draft(lock.upload.draft, algorithm)
        body_writer = BodyWriter(
            lock, plan, request, writer, body, self._clock, self._limiter, progress=checksum is None
        )
        try:
            cut = await body_writer.run()
            if cut and checksum is not None:
                raise self._broken_off(lock, body)
            pieces = await body_writer.flush()
            if checksum is not None and writer.digest() != checksum.digest:
                raise SyncError(
                    "checksum_mismatch", "the bytes are not what Upload-Checksum says: send them again"
                )
        finally:
            await writer.close()
        size_bytes = plan.size_bytes
        if request.completes and size_bytes is None and not cut:
            size_bytes = body_writer.offset_bytes
        # The lock stays until the file is made.
        ready_to_finish = body_writer.offset_bytes == size_bytes and lock.upload.kind != "partial"
        await lock.save_offset(body_writer.offset_bytes, pieces, size_bytes, release=not ready_to_finish)
        self.counters.chunks += 1
        received_bytes = body_writer.offset_bytes - request.offset_bytes
        self._minutes.of(lock.upload.ref.tenant_id).bytes_in += received_bytes
        self.counters.received_bytes += received_bytes
        if cut and not ready_to_finish:
            raise self._broken_off(lock, body)

    def _broken_off(self, lock: UploadLock, body: Body) -> SyncError:
        """Return the error for a body that broke off, with the offset from which the client goes on."""
        if body.was_cut and not self._draining:
            error = taken_over()
        else:
            why = "this server is going away" if body.was_cut else "the body broke off"
            error = SyncError("unavailable", f"{why}: what came is kept", retry_after_ms=retry_soon_ms())
        error.details["offset"] = lock.upload.offset_bytes
        return error

    async def _finished(self, lock: UploadLock) -> Upload:
        upload = await self._finisher.finish(lock)
        self.counters.finished += 1
        self._minutes.of(upload.ref.tenant_id).uploads_finished += len(upload.parts) or 1
        return upload

    def _expiry_renewed(self, upload: Upload) -> Upload:
        expires_at_us = self._clock.now_us() + int(self.expire_s * 1_000_000)
        return msgspec.structs.replace(upload, expires_at_us=expires_at_us)

    async def find(self, session: Session, upload_id: str) -> Upload:
        """Return an upload with its offset, after ending the request that was under way on it.

        If the last request ended before the file was made, the file is made now.

        Raises:
            SyncError: ``not_found``, ``upload_gone``, or what ``UploadFinisher.finish`` raises.
            StoreError: The store failed; BlobsError if bytes could not be read.
        """
        ref = UploadRef(session.tenant.tenant_id, upload_id)
        upload = await self._locks.interrupted(ref, session.device_id)
        if not upload.ready_to_finish:
            return upload
        async with self._locks.acquire(ref, session.device_id) as lock:
            return await self._finished(lock) if lock.upload.ready_to_finish else lock.upload

    async def concatenate(
        self, session: Session, described: Described, metadata: str, parts: Sequence[str]
    ) -> Upload:
        """Make one file of partial uploads. A repeated request returns the upload of the first one.

        Args:
            session: The device.
            described: What the file is.
            metadata: The header ``Upload-Metadata``.
            parts: The ids of the partial uploads in their order.

        Raises:
            SyncError: The parts cannot be put together, or there is no room.
            StoreError: The store failed; BlobsError if bytes could not be read or published.
        """
        if not 1 <= len(parts) <= MAX_PARTS:
            raise SyncError("invalid_message", f"Upload-Concat: 1 to {MAX_PARTS} partial uploads")
        found = [await self._part(session, part) for part in parts]
        final_ids = {part.final_id for part in found}
        final_id = final_ids.pop() if len(final_ids) == 1 else None
        if final_id is None:
            final_id = await self._new_final(session, described, metadata, found)
        final = await self.find(session, final_id)
        if final.parts != tuple(parts):
            raise SyncError("invalid_message", "Upload-Concat: these parts were put together otherwise")
        return final

    async def _new_final(
        self, session: Session, described: Described, metadata: str, parts: Sequence[Upload]
    ) -> str:
        """Insert the final upload of some parts and return its id."""
        size_bytes = concatenated_bytes(parts, self._max_bytes(described))
        if size_bytes == 0:
            self._types.check_empty(described.content_type)
        creation = Creation("final", size_bytes, described, metadata)
        upload = msgspec.structs.replace(
            self._new(session, creation, sum([part.reserved_bytes for part in parts])),
            offset_bytes=size_bytes,
            parts=tuple([part.ref.upload_id for part in parts]),
        )
        new = NewUpload(upload, self._quota_of(session))
        created = await with_retries(lambda: self._store.concatenate(new, self.expire_s))
        if created == "record_full":
            raise _record_full(new.quota)
        if created == "part_used":
            raise SyncError("invalid_message", "Upload-Concat: a part is named twice, or was used before")
        self.counters.created += 1
        return upload.ref.upload_id

    async def _part(self, session: Session, part: str) -> Upload:
        found = await self._store.find(UploadRef(session.tenant.tenant_id, part))
        if found is not None and found.final_id is not None and found.device_id == session.device_id:
            return found
        try:
            return visible_to(found, session.device_id, self._clock.now_us())
        except SyncError as error:
            raise SyncError(error.code, f"Upload-Concat: {part}: {error.message}") from None

    async def cancel(self, session: Session, upload_id: str) -> None:
        """Cancel an open upload, or delete the file of a finished one.

        Raises:
            SyncError: ``not_found``, ``upload_gone``; ``forbidden`` for a part of a final upload.
            StoreError: The store failed.
        """
        ref = UploadRef(session.tenant.tenant_id, upload_id)
        upload = await self._locks.interrupted(ref, session.device_id)
        if upload.final_id is not None:
            raise part_used()
        if upload.state in FINISHED:
            await self._finisher.free(upload)
        elif not await self._finisher.discard(upload, None, "cancelled"):
            raise SyncError("upload_gone", "this upload has ended")
        self.counters.cancelled += 1


def _record_full(quota: Quota) -> SyncError:
    most = quota.files_per_record
    return SyncError("quota_exceeded", f"a record may have {most} files, unfinished ones included")
