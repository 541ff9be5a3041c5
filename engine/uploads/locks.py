"""Locks of uploads: one request at a time writes to an upload, in any process.

A client that asks for the offset has given its earlier request up, whether that request knows it or not. So
the question ends the earlier request: its bytes are kept, and the offset of the answer changes no more.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Final

import msgspec
import structlog

from engine.cluster.bus import Bus
from engine.model.uploads import Upload, UploadRef, visible_to
from engine.runtime.batching import Batcher, with_retries
from engine.runtime.ports import Clock, StoreError
from engine.uploads.blobs import BlobMissingError, Blobs
from engine.uploads.ports import Claim, OffsetUpdate, UploadStore
from engine.wire.errors import SyncError

#: A request in another process has this long to release a lock once it is asked; then the lock is stolen.
#: One that has every byte and makes the file gets longer, since it is nearly done.
_RELEASE_WITHIN_S: Final = 0.25
_FINISH_WITHIN_S: Final = 5.0
_POLL_S: Final = 0.01
#: Requests of one device at a time in one process, because each keeps bytes in memory.
MOST_OF_A_DEVICE: Final = 128
_BUSY_RETRY_MS: Final = 1000

_log = structlog.get_logger()


class UploadLock:
    """One request's lock of an upload; ``upload`` is its acknowledged state, once the lock is acquired."""

    upload: Upload

    def __init__(self, claim: Claim, offsets: Batcher[OffsetUpdate, bool]) -> None:
        self.claim = claim
        #: True while there is nothing to release.
        self.released = True
        self.ended = asyncio.Event()
        self._offsets = offsets
        self._cut: Callable[[], None] | None = None
        self._release_requested = False

    def on_release_requested(self, cut: Callable[[], None]) -> None:
        """Set what ends this request when another one needs the lock."""
        self._cut = cut
        if self._release_requested:
            cut()

    def request_release(self) -> None:
        """End this request, now or as soon as it has begun."""
        self._release_requested = True
        if self._cut is not None:
            self._cut()

    async def save_offset(
        self,
        offset_bytes: int,
        pieces: Sequence[str] = (),
        size_bytes: int | None = None,
        *,
        release: bool = False,
    ) -> None:
        """Acknowledge durable bytes, and renew the lock or release it.

        Args:
            offset_bytes: The new offset.
            pieces: Names of pieces that were made since the last call.
            size_bytes: The size of the whole upload, if this request told it.
            release: True gives the lock back.

        Raises:
            SyncError: ``locked`` if another request has the lock.
            StoreError: The store failed.
        """
        upload = self.upload
        all_pieces = (*upload.pieces, *pieces)
        update = OffsetUpdate(
            upload.ref, self.claim.lock_owner, offset_bytes, size_bytes, all_pieces, release
        )
        if not await self._offsets.submit(update):
            self.released = True
            raise taken_over()
        self.released = release
        self.upload = msgspec.structs.replace(
            upload,
            offset_bytes=offset_bytes,
            pieces=all_pieces,
            size_bytes=upload.size_bytes if size_bytes is None else size_bytes,
        )


class UploadLocks:
    """Upload locks held by this process.

    Args:
        store: Keeps who owns a lock.
        blobs: Forks a draft whose lock is stolen.
        bus: Asks other processes to release a lock.
        clock: Tells the time.
        expire_s: The time without a byte after which an upload expires.
    """

    def __init__(self, store: UploadStore, blobs: Blobs, bus: Bus, clock: Clock, expire_s: float) -> None:
        self._store = store
        self._blobs = blobs
        self._bus = bus
        self._clock = clock
        self._claims = Batcher(store.claim)
        self._offsets: Batcher[OffsetUpdate, bool] = Batcher(partial(store.save_offsets, expire_s=expire_s))
        #: By device as well, so that another device's request, which will be refused, blocks nobody.
        self._here: dict[tuple[UploadRef, str], UploadLock] = {}
        self._of_device: Counter[tuple[int, str]] = Counter()
        self._name = uuid.uuid4().hex
        self._count = 0

    async def run(self) -> None:
        """Call the store until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claims.run())
            group.create_task(self._offsets.run())

    async def drain(self) -> None:
        """End every request and wait for its end; its bytes are kept."""
        while self._here:
            locks = list(self._here.values())
            for lock in locks:
                lock.request_release()
            for lock in locks:
                await lock.ended.wait()

    def release_requested(self, ref: UploadRef, lock_owner: str) -> None:
        """End the request ``lock_owner`` if it runs in this process: another process needs the lock."""
        for (locked, _), lock in self._here.items():
            if locked == ref and lock.claim.lock_owner == lock_owner:
                lock.request_release()

    @asynccontextmanager
    async def acquire(self, ref: UploadRef, device_id: str) -> AsyncIterator[UploadLock]:
        """Lock an upload for the body of ``async with``. An upload that is not open is only read.

        Raises:
            SyncError: ``locked`` if another request has the lock, ``not_found``, ``upload_gone``;
                ``forbidden`` for a part of a final upload; ``rate_limited`` past ``MOST_OF_A_DEVICE``.
            StoreError: The store failed.
        """
        with self._only_here(ref, device_id) as lock:
            await self._claim(lock)
            try:
                yield lock
            finally:
                if not lock.released:
                    with suppress(SyncError, StoreError):  # if this fails, the lock expires
                        await lock.save_offset(lock.upload.offset_bytes, release=True)

    @contextmanager
    def _only_here(self, ref: UploadRef, device_id: str) -> Iterator[UploadLock]:
        """Register the one request of this process that wants an upload's lock."""
        place = (ref, device_id)
        if place in self._here:
            raise _locked()
        device = (ref.tenant_id, device_id)
        if self._of_device[device] >= MOST_OF_A_DEVICE:
            raise SyncError(
                "rate_limited",
                f"{MOST_OF_A_DEVICE} requests of this device are under way",
                retry_after_ms=_BUSY_RETRY_MS,
            )
        self._of_device[device] += 1
        self._count += 1
        lock = UploadLock(Claim(ref, device_id, f"{self._name}-{self._count}"), self._offsets)
        self._here[place] = lock
        try:
            yield lock
        finally:
            del self._here[place]
            self._of_device[device] -= 1
            if not self._of_device[device]:
                del self._of_device[device]
            lock.ended.set()

    async def _claim(self, lock: UploadLock) -> None:
        claim = lock.claim
        claimed = await self._claims.submit(claim)
        if claimed is not None and claimed.acquired:
            lock.upload, lock.released = claimed.upload, False
            return
        upload = visible_to(
            None if claimed is None else claimed.upload, claim.device_id, self._clock.now_us()
        )
        if upload.final_id is not None:
            raise part_used()
        if upload.lock_expired and await self._stolen(lock):
            return
        if upload.state == "open":
            raise _locked()
        lock.upload = upload

    async def _stolen(self, lock: UploadLock) -> bool:
        """Steal a lock. False if the upload is no longer open. Raises BlobsError, StoreError."""
        ref = lock.claim.ref
        upload = await with_retries(lambda: self._store.steal(lock.claim))
        if upload is None:
            return False
        lock.upload, lock.released = upload, False
        before = msgspec.structs.replace(upload.draft, generation=upload.generation - 1)
        with suppress(BlobMissingError):  # it was published already; finishing it finds the file
            await self._blobs.fork_draft(before, upload.generation)
        _log.info("upload_lock_stolen", tenant_id=ref.tenant_id, upload_id=ref.upload_id)
        return True

    async def interrupted(self, ref: UploadRef, device_id: str) -> Upload:
        """End the request that has an upload's lock, if one has, and return the upload unlocked.

        Raises:
            SyncError: ``not_found``, ``upload_gone``.
            StoreError: The store failed; BlobsError if the draft could not be forked.
        """
        upload = await self._found(ref, device_id)
        here = self._here.get((ref, device_id))
        if here is not None:
            here.request_release()
            await here.ended.wait()
            upload = await self._found(ref, device_id)
        if upload.locked:
            upload = await self._released_elsewhere(upload)
        return upload

    async def _found(self, ref: UploadRef, device_id: str) -> Upload:
        return visible_to(await self._store.find(ref), device_id, self._clock.now_us())

    async def _released_elsewhere(self, upload: Upload) -> Upload:
        """Ask another process to release a lock; steal it when that takes too long."""
        ref, device_id = upload.ref, upload.device_id
        assert upload.lock_owner is not None
        self._bus.upload_requested(ref.tenant_id, ref.upload_id, upload.lock_owner)
        began_s = self._clock.monotonic_s()
        while not upload.lock_expired:
            within_s = _FINISH_WITHIN_S if upload.complete else _RELEASE_WITHIN_S
            if self._clock.monotonic_s() >= began_s + within_s:
                break
            await asyncio.sleep(_POLL_S)
            upload = await self._found(ref, device_id)
            if not upload.locked:
                return upload
        with self._only_here(ref, device_id) as lock:
            if not await self._stolen(lock):
                return await self._found(ref, device_id)
            await lock.save_offset(lock.upload.offset_bytes, release=True)
            return msgspec.structs.replace(lock.upload, locked=False)


def taken_over() -> SyncError:
    """Return the error for a request whose lock a later request of the client took."""
    return SyncError("locked", "a later request took this upload over")


def _locked() -> SyncError:
    return SyncError("locked", "another request is under way on this upload")


def part_used() -> SyncError:
    """Return the error for a change of a part whose bytes belong to a final upload."""
    return SyncError("forbidden", "this part was put together with others")
