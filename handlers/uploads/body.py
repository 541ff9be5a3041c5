"""The body of an upload's request, block by block (``engine.uploads.body_writer.Body``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from engine.uploads.body_writer import BodyCutError
from handlers.http.unread_body import AWAITS_CONTINUE, BODY_BROKEN

#: The answer to ``Expect: 100-continue`` (RFC 9110, 10.1.1).
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestBody:
    """Reads a request's body in blocks.

    Args:
        request: The request.
        idle_s: The body ends early when nothing comes for this long.
        check: Raises SyncError once the device's token is no longer valid; called for every block.
    """

    def __init__(self, request: web.Request, idle_s: float, check: Callable[[], None]) -> None:
        self.was_cut = False
        self._request = request
        self._content = request.content
        self._is_chunked = request.content_length is None
        self._idle_s = idle_s
        self._check = check
        self._silent_s = 0.0
        self._waiting: asyncio.Timeout | None = None

    async def next(self, patience_s: float) -> bytes | None:
        """Wait for the next block; see the port."""
        if self._request.get(AWAITS_CONTINUE):
            self._invite()
        self._check()
        if self.was_cut or self._request.get(BODY_BROKEN) or self._silent_s >= self._idle_s:
            return self._rest()
        try:
            async with asyncio.timeout(min(patience_s, self._idle_s)) as self._waiting:
                if self._is_chunked:
                    # All bytes at once, not chunk by chunk: a chunk may be a single byte.
                    block = await self._content.readany()
                else:
                    block, _ = await self._content.readchunk()  # without a copy
        except TimeoutError:
            if self.was_cut:
                return self._rest()
            self._silent_s += patience_s
            return None
        except (OSError, web.RequestPayloadError, HttpProcessingError):
            return self._rest()
        finally:
            self._waiting = None
        self._silent_s = 0.0
        self._check()  # again: the wait may have taken seconds, and this block may be the last
        return block

    def cut(self) -> None:
        """Make ``next`` raise BodyCutError, even if it is already waiting."""
        self.was_cut = True
        # A timeout that has just expired cannot be rescheduled, and ends the wait as well.
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def _invite(self) -> None:
        """Send ``100 Continue`` to a client that waits for it before it sends the body."""
        self._request[AWAITS_CONTINUE] = False
        if self._request.transport is not None:
            self._request.transport.write(_CONTINUE)

    def _rest(self) -> bytes:
        """Return the bytes that came before the end; on the next call raise BodyCutError."""
        if not self._request.get(BODY_BROKEN):
            self._request[BODY_BROKEN] = True
            # Without this, aiohttp does not return these bytes once the connection is lost.
            self._content.set_exception(None)  # type: ignore[arg-type]
            block = self._content.read_nowait()
            if block:
                return block
        raise BodyCutError


def is_gone(request: web.Request) -> bool:
    """Return True if a request's connection is closed or closing."""
    return request.transport is None or request.transport.is_closing()
