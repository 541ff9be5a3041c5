"""Reads of a connection over HTTP into buffers of our size.

The loop reads up to 256 KB from each connection that has something, before any request of those is looked at:
500 connections that began a body together took 128 MB. Here a connection without an admitted request reads
16 KB at a time, for two more calls and a copy: 0.3 µs for a read of 300 bytes, 0.5 µs for 16 KB. The rest of
a body whose request is answered already is dropped. An open WebSocket is read as the loop does it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import StreamReader

#: Of one read where no request is admitted: a head, and the beginning of a body.
SMALL_READ_BYTES: Final = 16_384
_LARGE_READ_BYTES: Final = 262_144
#: How much of a body the library keeps until it is read, as it does by itself.
_BODY_BYTES: Final = 65_536


class Buffers:
    """What a loop's connections read into, one after the other: each read is taken before the next."""

    def __init__(self) -> None:
        self.small: Final = memoryview(bytearray(SMALL_READ_BYTES))
        self.large: Final = memoryview(bytearray(_LARGE_READ_BYTES))


class BoundedReads(asyncio.BufferedProtocol):
    """Stands between a transport and its protocol, which gets the same calls as without it."""

    __slots__ = ("_buffer", "_buffers", "_protocol")

    def __init__(self, protocol: asyncio.Protocol, buffers: Buffers) -> None:
        self._protocol = protocol
        self._buffers = buffers
        self._buffer = buffers.small

    def grow(self) -> None:
        """Have the next reads be large."""
        self._buffer = self._buffers.large

    def shrink(self) -> None:
        """Have the next reads be small."""
        self._buffer = self._buffers.small

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the loop's
        """Give what the next read goes into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what was read."""
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


def keep_little(body: StreamReader) -> None:
    """Have a body whose request is not admitted yet be read only as far as one small read."""
    body._low_water, body._high_water = SMALL_READ_BYTES // 2, SMALL_READ_BYTES  # noqa: SLF001


def keep_as_usual(body: StreamReader) -> None:
    """Have a body be read as far ahead as the library does."""
    body.set_read_chunk_size(_BODY_BYTES)


class _Dropped(StreamReader):
    __slots__ = ()

    def feed_data(self, data: bytes, size: int = 0) -> bool:  # noqa: ARG002  # as the parser calls it
        return False


def drop(body: StreamReader) -> None:
    """Keep nothing of a body, whose end the library waits for before it hears the next request."""
    body.__class__ = _Dropped
    if body.exception() is None:
        body.read_nowait(-1)  # which lets the transport go on
