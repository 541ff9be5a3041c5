"""The body of an upload's request, block by block (``engine.receiving.Body``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from engine.receiving import BodyCutError

#: What the wire says before a body that was asked about (RFC 9110, 10.1.1).
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestBody:
    """Ends when nothing comes for ``idle_s``; ``check`` raises for who is not to be heard any more."""

    def __init__(self, request: web.Request, idle_s: float, check: Callable[[], None]) -> None:
        self.was_cut = False
        self._request = request
        self._content = request.content
        self._idle_s = idle_s
        self._check = check
        self._silent_s = 0.0
        self._waiting: asyncio.Timeout | None = None
        self._invited = request.headers.get("Expect", "").lower() != "100-continue"

    async def next(self, patience_s: float) -> bytes | None:
        """Wait for some bytes; see the port."""
        if not self._invited:
            self._invite()
        self._check()
        if self.was_cut or self._silent_s >= self._idle_s:
            raise BodyCutError
        try:
            async with asyncio.timeout(min(patience_s, self._idle_s)) as self._waiting:
                block, more = await self._content.readchunk()
                # Where a chunk of the transfer coding ends; but the empty body ends so again and again.
                while more and not block and not self._content.at_eof():
                    block, more = await self._content.readchunk()
        except TimeoutError:
            if self.was_cut:
                raise BodyCutError from None
            self._silent_s += patience_s
            return None
        except (OSError, web.RequestPayloadError, HttpProcessingError):
            raise BodyCutError from None
        finally:
            self._waiting = None
        self._silent_s = 0.0
        return block

    def cut(self) -> None:
        """Have ``next`` raise BodyCutError, also if it waits by now."""
        self.was_cut = True
        # One that runs out just now takes no other time, and ends as well.
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def _invite(self) -> None:
        """Ask for the body of a client that wanted to know first whether it would be taken."""
        self._invited = True
        if self._request.transport is not None:
            self._request.transport.write(_CONTINUE)


async def uninvited(_: web.Request) -> None:
    """Say nothing yet to a client that wants to know whether its body would be taken."""
