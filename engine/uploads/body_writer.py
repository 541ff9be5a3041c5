"""The bytes of one request on their way to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from engine.model.uploads import Append, AppendPlan
from engine.runtime.ports import Clock
from engine.uploads.blobs import DraftWriter
from engine.uploads.locks import UploadLock
from engine.uploads.write_limiter import WriteLimiter
from engine.wire.errors import SyncError

#: Handed to the disk at a stretch; so much of one request waits at most, and as much is under way.
_WRITE_BYTES: Final = 262_144
#: A request that is long has what came acknowledged so often: should the process be killed, that much is
#: kept. Well below the lease.
PROGRESS_S: Final = 5.0
_PROGRESS_BYTES: Final = 1_048_576


class BodyCutError(Exception):
    """No more comes: the connection is gone, or somebody called ``cut``."""


class Body(Protocol):
    """The bytes that a request brings."""

    #: Whether it was cut from this side.
    was_cut: bool

    async def next(self, patience_s: float) -> bytes | None:
        """Wait for some; none are the end, None says that nothing came for so long.

        Raises BodyCutError; SyncError where the sender is too slow.
        """

    def cut(self) -> None:
        """Have ``next`` raise BodyCutError."""


class BodyWriter:
    """The bytes of one request on their way to the disk: one write is under way while the next gathers."""

    def __init__(
        self,
        hold: UploadLock,
        plan: AppendPlan,
        request: Append,
        writer: DraftWriter,
        body: Body,
        clock: Clock,
        turns: WriteLimiter,
        *,
        progress: bool,
    ) -> None:
        self._hold = hold
        self._writer = writer
        self._body = body
        self._clock = clock
        self._turns = turns
        self._progress = progress
        self._blocks: list[bytes] = []
        self._waiting_bytes = 0
        #: Where the request ends, if it says so, and where it has to end in any case.
        self._ends_there = request.length_bytes is not None
        most_bytes = plan.most_bytes if request.length_bytes is None else request.length_bytes
        self._most_offset_bytes = hold.upload.offset_bytes + most_bytes
        self._writing: asyncio.Task[None] | None = None
        self.offset_bytes = hold.upload.offset_bytes

    async def flush(self) -> tuple[str, ...]:
        """Have all that came durable, in a turn. Gives the names of pieces. Raises BlobsError."""
        async with self._turns.slot():
            return await self._writer.flush(self._left())

    async def run(self) -> bool:
        """Take everything in; True says that it broke off. Raises SyncError, BlobsError, StoreError."""
        next_progress_s = self._clock.monotonic_s() + PROGRESS_S
        try:
            while True:
                try:
                    block = await self._body.next(PROGRESS_S)
                except BodyCutError:
                    return True
                if block == b"":
                    return False
                if block is not None:
                    await self._add(block)
                    if self._ends_there and self.offset_bytes == self._most_offset_bytes:
                        return False
                acknowledged_bytes = self._hold.upload.offset_bytes
                if self._clock.monotonic_s() >= next_progress_s or (
                    self._progress
                    and self.offset_bytes - acknowledged_bytes >= _PROGRESS_BYTES
                    and self.offset_bytes < self._most_offset_bytes
                ):
                    await self._acknowledge()
                    next_progress_s = self._clock.monotonic_s() + PROGRESS_S
        finally:
            await self._written()

    async def _add(self, block: bytes) -> None:
        if self.offset_bytes + len(block) > self._most_offset_bytes:
            raise SyncError("too_large", "more bytes than are to come")
        self.offset_bytes += len(block)
        self._blocks.append(block)
        self._waiting_bytes += len(block)
        # All but the last goes ahead, which is written and made durable in one.
        if self._waiting_bytes >= _WRITE_BYTES and self.offset_bytes < self._most_offset_bytes:
            await self._written()
            self._writing = asyncio.create_task(self._write(self._left()))

    async def _write(self, blocks: list[bytes]) -> None:
        async with self._turns.slot():
            await self._writer.write(blocks)

    async def _acknowledge(self) -> None:
        """Have what came kept, should this process be killed; with a checksum only the lease is renewed."""
        await self._written()
        pieces: Sequence[str] = ()
        if self._progress:
            pieces = await self.flush()
        else:  # not to be kept in memory until the rest comes
            await self._write(self._left())
        at_bytes = self.offset_bytes if self._progress else self._hold.upload.offset_bytes
        await self._hold.advance(at_bytes, pieces)

    async def _written(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    def _left(self) -> list[bytes]:
        """Take what was not written yet."""
        blocks, self._blocks, self._waiting_bytes = self._blocks, [], 0
        return blocks
