"""The body of an upload's request, block by block (``engine.uploads.body_writer.Body``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from engine.uploads.body_writer import BodyCutError
from handlers.http.unread_body import AWAITS_CONTINUE, BODY_BROKEN

#: What the wire says before a body that was asked about (RFC 9110, 10.1.1).
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestBody:
    """Ends when nothing comes for ``idle_s``; ``check`` raises for who is not to be heard any more."""

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
        """Wait for some bytes; see the port."""
        if self._request.get(AWAITS_CONTINUE):
            self._invite()
        self._check()
        if self.was_cut or self._request.get(BODY_BROKEN) or self._silent_s >= self._idle_s:
            return self._rest()
        try:
            async with asyncio.timeout(min(patience_s, self._idle_s)) as self._waiting:
                if self._is_chunked:
                    # All that came, and not chunk by chunk: of single bytes there are thousands.
                    block = await self._content.readany()
                else:
                    block, _ = await self._content.readchunk()  # as it came, without a copy
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
        self._check()  # it may have waited for seconds, and this block may be the last
        return block

    def cut(self) -> None:
        """Have ``next`` raise BodyCutError, also if it waits by now."""
        self.was_cut = True
        # One that runs out just now takes no other time, and ends as well.
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(asyncio.get_running_loop().time())

    def _invite(self) -> None:
        """Ask for the body of a client that wanted to know first whether it would be taken."""
        self._request[AWAITS_CONTINUE] = False
        if self._request.transport is not None:
            self._request.transport.write(_CONTINUE)

    def _rest(self) -> bytes:
        """Give what had come before the end, and then raise BodyCutError."""
        if not self._request.get(BODY_BROKEN):
            self._request[BODY_BROKEN] = True
            # The library would keep it for itself once the connection is lost.
            self._content.set_exception(None)  # type: ignore[arg-type]
            block = self._content.read_nowait()
            if block:
                return block
        raise BodyCutError


def is_gone(request: web.Request) -> bool:
    """Tell whether the client of a request is gone, or its connection is being closed."""
    return request.transport is None or request.transport.is_closing()
