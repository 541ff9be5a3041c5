"""Read buffers of connections over HTTP, small until a request is admitted.

The loop reads up to 256 KB from each readable connection before any of their requests is handled: 500
connections that began a body at the same time took 128 MB. Before a request is admitted, its connection reads
16 KB at a time, for two more calls and a copy: 0.3 µs for a read of 300 bytes, 0.5 µs for 16 KB. The rest of
a body is dropped if its request is answered already. An open WebSocket is read by the loop's own buffers.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import StreamReader

#: The size of one read before a request is admitted: a head, and the beginning of a body.
SMALL_READ_BYTES: Final = 16_384
_LARGE_READ_BYTES: Final = 262_144
#: The library keeps so much of a body until it is read: its own default.
_BODY_BYTES: Final = 65_536


class Buffers:
    """The buffers that all connections of a loop share: each read is consumed before the next one begins."""

    def __init__(self) -> None:
        self.small: Final = memoryview(bytearray(SMALL_READ_BYTES))
        self.large: Final = memoryview(bytearray(_LARGE_READ_BYTES))


class BoundedReads(asyncio.BufferedProtocol):
    """Stands between a transport and its protocol. The protocol gets the same calls as without it."""

    __slots__ = ("_buffer", "_buffers", "_protocol")

    def __init__(self, protocol: asyncio.Protocol, buffers: Buffers) -> None:
        self._protocol = protocol
        self._buffers = buffers
        self._buffer = buffers.small

    def grow(self) -> None:
        """Make the next reads large."""
        self._buffer = self._buffers.large

    def shrink(self) -> None:
        """Make the next reads small."""
        self._buffer = self._buffers.small

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the loop's
        """Return the buffer of the next read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass on the bytes that were read."""
        self._protocol.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool | None:
        """Hand on."""
        return self._protocol.eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Hand on."""
        self._protocol.connection_lost(exc)  # type: ignore[arg-type]  # wider than the stubs say

    def pause_writing(self) -> None:
        """Hand on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Hand on."""
        self._protocol.resume_writing()


def limit_read_ahead(body: StreamReader) -> None:
    """Pause a body after one small read, while its request is not admitted yet."""
    body._low_water, body._high_water = SMALL_READ_BYTES // 2, SMALL_READ_BYTES  # noqa: SLF001


def default_read_ahead(body: StreamReader) -> None:
    """Read a body as far ahead as the library does by default."""
    body.set_read_chunk_size(_BODY_BYTES)


class _Dropped(StreamReader):
    __slots__ = ()

    def feed_data(self, data: bytes, size: int = 0) -> bool:  # noqa: ARG002  # as the parser calls it
        return False


def discard(body: StreamReader) -> None:
    """Drop the rest of a body. The library waits for its end before it reads the next request."""
    body.__class__ = _Dropped
    if body.exception() is None:
        body.read_nowait(-1)  # which lets the transport go on
