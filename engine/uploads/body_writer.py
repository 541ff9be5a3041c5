"""Writes the body of one request to a draft."""

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

#: Bytes written at a time: one request has at most this much in memory, and as much being written.
_WRITE_BYTES: Final = 262_144
#: A long request acknowledges its bytes after this time, or this many bytes, whichever comes first; a killed
#: process loses no more. The time is far below the lock's ``LEASE_S``.
PROGRESS_S: Final = 5.0
_PROGRESS_BYTES: Final = 1_048_576


class BodyCutError(Exception):
    """The body ends early: the connection is gone, or ``Body.cut`` was called."""


class Body(Protocol):
    """The bytes that a request brings."""

    #: True after ``cut``.
    was_cut: bool

    async def next(self, patience_s: float) -> bytes | None:
        """Wait for the next block.

        Returns:
            The block; ``b""`` at the end of the body; None if nothing came for ``patience_s``.

        Raises:
            BodyCutError: The body ended early.
            SyncError: The sender is too slow, or its token is no longer valid.
        """

    def cut(self) -> None:
        """Make ``next`` raise BodyCutError, even if it is already waiting."""


class BodyWriter:
    """Writes the body of one request: one write runs while the next block is collected.

    Args:
        lock: The request's lock of the upload.
        plan: How many bytes the request may bring.
        request: What the request says of its length.
        writer: Appends to the draft.
        body: The bytes.
        clock: Tells the time.
        limiter: Hands out slots for writing.
        progress: True acknowledges bytes while the request runs. False with a checksum, because bytes are
            acknowledged only when all of them are checked; then only the lock is renewed.
    """

    def __init__(
        self,
        lock: UploadLock,
        plan: AppendPlan,
        request: Append,
        writer: DraftWriter,
        body: Body,
        clock: Clock,
        limiter: WriteLimiter,
        *,
        progress: bool,
    ) -> None:
        self._lock = lock
        self._writer = writer
        self._body = body
        self._clock = clock
        self._limiter = limiter
        self._progress = progress
        self._blocks: list[bytes] = []
        self._collected_bytes = 0
        #: Whether the request says where it ends, and the offset that it may not pass.
        self._length_is_known = request.length_bytes is not None
        max_bytes = plan.max_bytes if request.length_bytes is None else request.length_bytes
        self._max_offset_bytes = lock.upload.offset_bytes + max_bytes
        self._writing: asyncio.Task[None] | None = None
        self.offset_bytes = lock.upload.offset_bytes

    async def flush(self) -> tuple[str, ...]:
        """Make all bytes so far durable. Returns the names of new pieces. Raises BlobsError."""
        async with self._limiter.slot():
            return await self._writer.flush(self._take_blocks())

    async def run(self) -> bool:
        """Write the whole body.

        Returns:
            True if the body broke off; what came before stays.

        Raises:
            SyncError: ``too_large`` for more bytes than planned, ``locked`` if the lock was lost.
            BlobsError: Bytes could not be written.
            StoreError: Bytes could not be acknowledged.
        """
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
                    if self._length_is_known and self.offset_bytes == self._max_offset_bytes:
                        return False
                acknowledged_bytes = self._lock.upload.offset_bytes
                if self._clock.monotonic_s() >= next_progress_s or (
                    self._progress
                    and self.offset_bytes - acknowledged_bytes >= _PROGRESS_BYTES
                    and self.offset_bytes < self._max_offset_bytes
                ):
                    await self._acknowledge()
                    next_progress_s = self._clock.monotonic_s() + PROGRESS_S
        finally:
            await self._finish_write()

    async def _add(self, block: bytes) -> None:
        if self.offset_bytes + len(block) > self._max_offset_bytes:
            raise SyncError("too_large", "more bytes than are to come")
        self.offset_bytes += len(block)
        self._blocks.append(block)
        self._collected_bytes += len(block)
        # The last blocks stay: the final flush writes them and makes them durable in one step.
        if self._collected_bytes >= _WRITE_BYTES and self.offset_bytes < self._max_offset_bytes:
            await self._finish_write()
            self._writing = asyncio.create_task(self._write(self._take_blocks()))

    async def _write(self, blocks: list[bytes]) -> None:
        async with self._limiter.slot():
            await self._writer.write(blocks)

    async def _acknowledge(self) -> None:
        """Make the bytes so far durable and acknowledge them; with a checksum, only renew the lock."""
        await self._finish_write()
        pieces: Sequence[str] = ()
        if self._progress:
            pieces = await self.flush()
        else:  # so that they do not stay in memory until the rest comes
            await self._write(self._take_blocks())
        offset_bytes = self.offset_bytes if self._progress else self._lock.upload.offset_bytes
        await self._lock.save_offset(offset_bytes, pieces)

    async def _finish_write(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    def _take_blocks(self) -> list[bytes]:
        blocks, self._blocks, self._collected_bytes = self._blocks, [], 0
        return blocks
