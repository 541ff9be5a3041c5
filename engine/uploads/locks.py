"""Who writes to an upload: one request at a time, in whichever process, until its client asks again.

A client that asks for the offset has given its earlier request up, whether that one knows or not. So the
question ends it: what had come is kept, and the answer is an offset that nobody moves any more.
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

#: How long a request elsewhere has to give an upload back, once it is told; then it is taken from it. One
#: that makes a file of it is all but done.
_GIVE_BACK_S: Final = 0.25
_FINISH_S: Final = 5.0
_LOOK_S: Final = 0.01
#: Requests of one device that may be under way in one process: each keeps bytes in memory.
MOST_OF_A_DEVICE: Final = 128
_BUSY_RETRY_MS: Final = 1000

_log = structlog.get_logger()


class UploadLock:
    """One request's hold of an upload; ``upload`` is what is acknowledged by now, once it was taken."""

    upload: Upload

    def __init__(self, claim: Claim, advances: Batcher[OffsetUpdate, bool]) -> None:
        self.claim = claim
        #: Whether there is nothing to give back.
        self.released = True
        self.ended = asyncio.Event()
        self._advances = advances
        self._cut: Callable[[], None] | None = None
        self._wanted = False

    def on_release_requested(self, cut: Callable[[], None]) -> None:
        """Say what brings the request to its end."""
        self._cut = cut
        if self._wanted:
            cut()

    def want(self) -> None:
        """Bring the request to its end, now or once it has begun."""
        self._wanted = True
        if self._cut is not None:
            self._cut()

    async def advance(
        self,
        offset_bytes: int,
        pieces: Sequence[str] = (),
        size_bytes: int | None = None,
        *,
        release: bool = False,
    ) -> None:
        """Acknowledge what is durable. Raises SyncError ``locked`` when another request took over."""
        upload = self.upload
        all_pieces = (*upload.pieces, *pieces)
        asked = OffsetUpdate(upload.ref, self.claim.holder, offset_bytes, size_bytes, all_pieces, release)
        if not await self._advances.submit(asked):
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
    """The uploads that requests of this process have, and how they come to have them."""

    def __init__(self, store: UploadStore, blobs: Blobs, bus: Bus, clock: Clock, expire_s: float) -> None:
        self._store = store
        self._blobs = blobs
        self._bus = bus
        self._clock = clock
        self._claims = Batcher(store.claim)
        self._advances: Batcher[OffsetUpdate, bool] = Batcher(partial(store.advance, expire_s=expire_s))
        #: By device as well: what another one asks is refused, and is in nobody's way.
        self._here: dict[tuple[UploadRef, str], UploadLock] = {}
        self._of_device: Counter[tuple[int, str]] = Counter()
        self._name = uuid.uuid4().hex
        self._count = 0

    async def run(self) -> None:
        """Ask the store until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claims.run())
            group.create_task(self._advances.run())

    async def drain(self) -> None:
        """Bring every request to its end; what came is kept."""
        while self._here:
            holds = list(self._here.values())
            for hold in holds:
                hold.want()
            for hold in holds:
                await hold.ended.wait()

    def wanted(self, ref: UploadRef, holder: str) -> None:
        """Bring a request that has an upload to its end, if it is here and has not ended by now."""
        for (held, _), hold in self._here.items():
            if held == ref and hold.claim.holder == holder:
                hold.want()

    @asynccontextmanager
    async def acquire(self, ref: UploadRef, device_id: str) -> AsyncIterator[UploadLock]:
        """Have an upload to oneself, and give it back. One that is open no longer is only shown.

        Raises SyncError ``locked``, ``not_found``, ``upload_gone``.
        """
        with self._alone(ref, device_id) as hold:
            await self._take(hold)
            try:
                yield hold
            finally:
                if not hold.released:
                    with suppress(SyncError, StoreError):  # else it lapses
                        await hold.advance(hold.upload.offset_bytes, release=True)

    @contextmanager
    def _alone(self, ref: UploadRef, device_id: str) -> Iterator[UploadLock]:
        """Be the one request of this process that wants an upload."""
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
        hold = UploadLock(Claim(ref, device_id, f"{self._name}-{self._count}"), self._advances)
        self._here[place] = hold
        try:
            yield hold
        finally:
            del self._here[place]
            self._of_device[device] -= 1
            if not self._of_device[device]:
                del self._of_device[device]
            hold.ended.set()

    async def _take(self, hold: UploadLock) -> None:
        claim = hold.claim
        claimed = await self._claims.submit(claim)
        if claimed is not None and claimed.taken:
            hold.upload, hold.released = claimed.upload, False
            return
        upload = visible_to(
            None if claimed is None else claimed.upload, claim.device_id, self._clock.now_us()
        )
        if upload.final_id is not None:
            raise part_used()
        if upload.lock_expired and await self._stolen(hold):
            return
        if upload.state == "open":
            raise _locked()
        hold.upload = upload

    async def _stolen(self, hold: UploadLock) -> bool:
        """Take an upload from whoever has it, unless it is open no longer. Raises BlobsError, StoreError."""
        ref = hold.claim.ref
        upload = await with_retries(lambda: self._store.steal(hold.claim))
        if upload is None:
            return False
        hold.upload, hold.released = upload, False
        before = msgspec.structs.replace(upload.draft, generation=upload.generation - 1)
        with suppress(BlobMissingError):  # it is a file by now, and taken for one when it is finished
            await self._blobs.fork_draft(before, upload.generation)
        _log.info("upload_lock_stolen", tenant_id=ref.tenant_id, upload_id=ref.upload_id)
        return True

    async def freed(self, ref: UploadRef, device_id: str) -> Upload:
        """Give an upload that no request has, having ended the one that had it.

        Raises SyncError ``not_found``, ``upload_gone``.
        """
        upload = await self._found(ref, device_id)
        here = self._here.get((ref, device_id))
        if here is not None:
            here.want()
            await here.ended.wait()
            upload = await self._found(ref, device_id)
        if upload.held:
            upload = await self._given_back(upload)
        return upload

    async def _found(self, ref: UploadRef, device_id: str) -> Upload:
        return visible_to(await self._store.find(ref), device_id, self._clock.now_us())

    async def _given_back(self, upload: Upload) -> Upload:
        """Have a request elsewhere give an upload back, or take it."""
        ref, device_id = upload.ref, upload.device_id
        assert upload.holder is not None
        self._bus.wanted(ref.tenant_id, ref.upload_id, upload.holder)
        began_s = self._clock.monotonic_s()
        while not upload.lock_expired:
            if self._clock.monotonic_s() >= began_s + (_FINISH_S if upload.complete else _GIVE_BACK_S):
                break
            await asyncio.sleep(_LOOK_S)
            upload = await self._found(ref, device_id)
            if not upload.held:
                return upload
        with self._alone(ref, device_id) as hold:
            if not await self._stolen(hold):
                return await self._found(ref, device_id)
            await hold.advance(hold.upload.offset_bytes, release=True)
            return msgspec.structs.replace(hold.upload, held=False)


def taken_over() -> SyncError:
    """Make the refusal of a request whose client asked again meanwhile."""
    return SyncError("locked", "a later request took this upload over")


def _locked() -> SyncError:
    return SyncError("locked", "another request is under way on this upload")


def part_used() -> SyncError:
    """Make the refusal of what would change a part whose bytes are another upload's."""
    return SyncError("forbidden", "this part was put together with others")
