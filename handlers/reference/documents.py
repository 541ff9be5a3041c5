"""``/openapi.json``, ``/asyncapi.json`` and ``/docs``: files of this package, kept in memory with ETags.

They need no token, so what one of them takes is bounded: an answer travels in pieces, at its reader's pace.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from aiohttp import web

from engine.wire.errors import SyncError
from handlers.http.headers import combined, is_known, takes_gzip

#: Where ``python -m docs.generate`` writes the documents.
STATIC: Final = Path(__file__).parent / "static"
_PIECE_BYTES: Final = 65_536
_JSON: Final = "application/json"
_HTML: Final = "text/html; charset=utf-8"
_SCRIPT: Final = "text/javascript; charset=utf-8"
#: A page runs scripts of its server alone, loads nothing from elsewhere, and has no origin: no cookies, no
#: storage, and no right to read what the server answers to other pages. RapiDoc has styles in its markup.
_PAGE: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " sandbox allow-scripts",
    "Referrer-Policy": "no-referrer",
}
#: A page without an origin may read it, and so may every other page: it is public.
_PUBLIC: Final = {"Access-Control-Allow-Origin": "*"}

#: Path -> file, media type and headers of its own.
FILES: Final[dict[str, tuple[str, str, Mapping[str, str]]]] = {
    "/openapi.json": ("openapi.json", _JSON, _PUBLIC),
    "/asyncapi.json": ("asyncapi.json", _JSON, _PUBLIC),
    "/docs": ("requests.html", _HTML, _PAGE),
    "/docs/messages": ("messages.html", _HTML, _PAGE),
    "/docs/page.css": ("page.css", "text/css; charset=utf-8", {}),
    "/docs/requests.js": ("requests.js", _SCRIPT, {}),
    "/docs/messages.js": ("messages.js", _SCRIPT, {}),
    "/docs/rapidoc-min.js": ("rapidoc/rapidoc-min.js", _SCRIPT, {}),
}


class Document(NamedTuple):
    """A file as it is sent: ``plain``, or ``packed`` by gzip, each with an ETag of its own."""

    plain: bytes
    packed: bytes
    plain_tag: str
    packed_tag: str
    headers: dict[str, str]


@cache
def documents() -> dict[str, Document]:
    """Read all files, once in a process. What comes compressed is not compressed again: that takes 40 ms."""
    return {path: _document(*row) for path, row in FILES.items()}


def _document(name: str, media: str, headers: Mapping[str, str]) -> Document:
    plain = (STATIC / name).read_bytes()
    ready = STATIC / f"{name}.gz"
    packed = ready.read_bytes() if ready.exists() else gzip.compress(plain, 6, mtime=0)
    digest = hashlib.sha256(plain).hexdigest()[:32]
    told = {"Content-Type": media, "Cache-Control": "no-cache", "Vary": "Accept-Encoding", **headers}
    return Document(plain, packed, f'"{digest}"', f'"{digest}-gzip"', told)


class Documents:
    """Handlers of the documents."""

    def __init__(self) -> None:
        self._documents = documents()

    def routes(self) -> list[web.RouteDef]:
        """List the routes."""
        parts = "/docs/{name}"
        return [
            *(web.get(path, self.give) for path in FILES if path.count("/") == 1),
            web.get("/docs/messages", self.give),
            web.get(parts, self.give),
        ]

    async def give(self, request: web.Request) -> web.StreamResponse:
        """Answer with a document, or with 304 to a client that has it.

        Raises:
            SyncError: ``not_found``.
        """
        document = self._documents.get(request.path)
        if document is None:
            raise SyncError("not_found", "Not Found")
        packs = takes_gzip(request.headers)
        body, tag = (document.packed, document.packed_tag) if packs else (document.plain, document.plain_tag)
        headers = document.headers | {"ETag": tag}
        if is_known(combined(request.headers, "If-None-Match"), tag):
            return web.Response(status=304, headers=headers)
        if packs:
            headers["Content-Encoding"] = "gzip"
        response = web.StreamResponse(headers=headers)
        response.content_length = len(body)
        with suppress(ConnectionError):  # the client is gone
            await response.prepare(request)
            if request.method != "HEAD":
                view = memoryview(body)
                for start in range(0, len(view), _PIECE_BYTES):
                    await response.write(view[start : start + _PIECE_BYTES])
            await response.write_eof()
        return response
