"""The outbox of a connection: sends frames in order, bounded in bytes, without a task while the client reads.

A frame is written to the transport at once; the transport sends all frames of one pass of the loop together.
Frames wait here only while the transport is full. Only then a task drains them, until they are sent or the
client has read nothing for too long and is cut off.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from aiohttp.abc import AbstractStreamWriter

#: Answers are queued even past ``max_bytes``; a client with so many times ``max_bytes`` waiting is cut off.
MAX_OUTBOXES: Final = 8
#: Smaller frames cost more to compress than they save.
COMPRESS_FROM_BYTES: Final = 1024
_DEFLATE_TAIL = b"\x00\x00\xff\xff"
_TEXT, _BINARY, _CLOSE, _COMPRESSED = 0x81, 0x82, 0x88, 0x40
_PING: Final = b"\x89\x00"
_PONG: Final = 0x8A
_head_short = struct.Struct("!BB").pack
_head_medium = struct.Struct("!BBH").pack
_head_long = struct.Struct("!BBQ").pack
_close_code = struct.Struct("!H").pack


class Flow(Protocol):
    """Tells whether the transport is full."""

    @property
    def writing_paused(self) -> bool:
        """True while the transport is full."""


class Owner(Protocol):
    """The socket that an outbox belongs to."""

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` in a task of a task group."""

    def on_writable(self) -> None:
        """Go on: there is room again, or nobody reads any more."""

    def on_deflated(self, saved_bytes: int) -> None:
        """Count the bytes that compressing a message saved."""

    def on_reader_cut(self) -> None:
        """Note that the reader took nothing for too long or was too far behind; the transport is aborted."""


class _Nobody:
    """Stands in for an owner that is released."""

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run nothing: an outbox that has ended sends nothing."""

    def on_writable(self) -> None:
        """Nobody waits for room."""

    def on_deflated(self, saved_bytes: int) -> None:
        """Nothing is saved: the message is not sent."""

    def on_reader_cut(self) -> None:
        """Nothing waits for the reader."""


_NOBODY: Final = _Nobody()


class Outbox:
    """Sends frames to one client.

    Args:
        transport: The transport of the connection.
        stream: Waits until the transport has room.
        flow: Tells whether the transport is full.
        owner: The socket.
        binary: Whether messages are sent as binary frames.
        deflate_bits: The size of the negotiated compression window; 0 without compression.
        max_bytes: Bytes that may wait before ``offer`` refuses.
        patience_s: A client that reads nothing for this long is cut off.
    """

    __slots__ = (
        "_bits",
        "_draining",
        "_ended",
        "_flow",
        "_frames",
        "_max_bytes",
        "_opcode",
        "_owner",
        "_patience_s",
        "_refused",
        "_stream",
        "_transport",
        "queued_bytes",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        stream: AbstractStreamWriter,
        flow: Flow,
        owner: Owner,
        *,
        binary: bool,
        deflate_bits: int,
        max_bytes: int,
        patience_s: float,
    ) -> None:
        self._transport = transport
        self._stream = stream
        self._flow = flow
        self._owner = owner
        self._opcode = _BINARY if binary else _TEXT
        self._bits = deflate_bits
        self._max_bytes = max_bytes
        self._patience_s = patience_s
        self._frames: deque[bytes] | None = None  # most connections never need one
        self.queued_bytes = 0
        self._draining = False
        self._refused = False
        self._ended = False

    @property
    def full(self) -> bool:
        """True if more than ``max_bytes`` wait: the connection reads no more requests then."""
        return self.queued_bytes >= self._max_bytes

    def put(self, payload: bytes) -> None:
        """Send a message, even if too much waits; a client that is too far behind is cut off instead.

        Nothing is sent after the close frame.
        """
        size_bytes = len(payload)
        first = self._opcode
        if size_bytes >= COMPRESS_FROM_BYTES and self._bits:
            payload = _deflate(payload, self._bits)
            self._owner.on_deflated(size_bytes - len(payload))
            size_bytes = len(payload)
            first |= _COMPRESSED
        if size_bytes < 126:
            self._send(_head_short(first, size_bytes) + payload)
        elif size_bytes < 65536:
            self._send(_head_medium(first, 126, size_bytes) + payload)
        else:
            self._send(_head_long(first, 127, size_bytes) + payload)

    def offer(self, payload: bytes) -> bool:
        """Send a message, or return False if too much waits; then ``Owner.on_writable`` follows."""
        if self._frames and self.queued_bytes + len(payload) > self._max_bytes:
            self._refused = True
            return False
        self.put(payload)
        return True

    def ping(self) -> None:
        """Send a ping, unless frames wait to be sent."""
        if not self._frames:
            self._send(_PING)

    def pong(self, payload: bytes) -> None:
        """Answer a ping."""
        self._send(_head_short(_PONG, len(payload)) + payload)

    def close(self, code: int, reason: str) -> None:
        """Send the close frame after all waiting frames, and nothing after it."""
        payload = _close_code(code) + reason.encode()
        self._send(_head_short(_CLOSE, len(payload)) + payload)
        self._ended = True

    def end(self) -> None:
        """Drop all waiting frames and send nothing more: the connection is gone."""
        self._ended = True
        self._frames = None
        self.queued_bytes = 0

    def release(self) -> None:
        """End, and let go of the owner: only a collection would free the two of them otherwise."""
        self.end()
        self._owner = _NOBODY

    def _send(self, frame: bytes) -> None:
        if self._ended:
            return
        if self._frames and self.queued_bytes + len(frame) > MAX_OUTBOXES * self._max_bytes:
            self._cut()
        elif self._frames or self._flow.writing_paused:
            if self._frames is None:
                self._frames = deque()
            self._frames.append(frame)
            self.queued_bytes += len(frame)
            if not self._draining:
                self._draining = True
                self._owner.start(self._drain)
        elif not self._transport.is_closing():
            self._transport.write(frame)

    def _cut(self) -> None:
        self._transport.abort()
        self.end()
        self._owner.on_reader_cut()

    async def _drain(self) -> None:
        """Write waiting frames as fast as the client reads them."""
        try:
            while self._frames:
                await self._taken()
                self._write_some()
        except TimeoutError:
            if self._frames:
                self._cut()
        except ConnectionError:
            self.end()
        finally:
            self._draining = False
        self._owner.on_writable()

    async def _taken(self) -> None:
        """Wait until the transport has room. A page may take minutes, as long as the client reads some of it.

        Raises:
            TimeoutError: The client read nothing for ``patience_s``.
        """
        # One wait for all of it: the transport's own wait cannot be repeated after it was cancelled.
        drained = asyncio.ensure_future(self._stream.drain())
        try:
            while True:
                waiting_bytes = self._transport.get_write_buffer_size()
                done, _ = await asyncio.wait({drained}, timeout=self._patience_s)
                if done:
                    return drained.result()
                if self._transport.get_write_buffer_size() >= waiting_bytes:
                    raise TimeoutError
        finally:
            drained.cancel()

    def _write_some(self) -> None:
        frames, transport = self._frames, self._transport
        if transport.is_closing():
            raise ConnectionError
        while frames and not self._flow.writing_paused:
            frame = frames.popleft()
            self.queued_bytes -= len(frame)
            transport.write(frame)
        if self._refused and self.queued_bytes * 2 < self._max_bytes:
            self._refused = False
            self._owner.on_writable()


def _compressor(window_bits: int) -> zlib._Compress:
    return zlib.compressobj(zlib.Z_BEST_SPEED, zlib.DEFLATED, -window_bits)


_compressors: Final = {bits: _compressor(bits) for bits in range(9, 16)}


def _deflate(payload: bytes, window_bits: int) -> bytes:
    """Compress one message independently of others, with the compressor of its window size.

    All connections share the compressors: the full flush clears the window, which would take 100 KiB for each
    connection.
    """
    deflate = _compressors[window_bits]
    try:
        deflated = deflate.compress(payload) + deflate.flush(zlib.Z_FULL_FLUSH)
    except BaseException:
        # It may contain a part of this message, which must not be sent to another client.
        _compressors[window_bits] = _compressor(window_bits)
        raise
    return deflated.removesuffix(_DEFLATE_TAIL)
