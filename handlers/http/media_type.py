"""The type of what a request brings."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from engine.wire.errors import SyncError

_MOST_CHARS: Final = 255


def media_type(request: web.Request) -> str:
    """Read it in lower case without parameters, empty where none is said. Raises SyncError ``malformed``.

    The library's own ``content_type`` is never asked: it parses by a grammar of mail, for seconds if made to.
    """
    header = request.headers.get("Content-Type", "")
    if len(header) > _MOST_CHARS:
        raise SyncError("malformed", f"Content-Type: {_MOST_CHARS} characters at most")
    return header.partition(";")[0].strip(" \t").lower()
