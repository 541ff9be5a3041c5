"""Limit of uploads: plain aiohttp that writes each body where it belongs and waits for the disk.

No database, no checks beyond the offset, no hash, no tenants; the product's requests and answers. A server
process of its own: ``python -m bench.baselines.plain_uploads DIRECTORY``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path

import uvloop
from aiohttp import web

from bench.baselines.bare_server import listen


class Uploads:
    """Files in a directory, by their offsets in memory."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._files: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    async def create(self, request: web.Request) -> web.Response:
        """Open a file for an upload."""
        upload_id = uuid.uuid4().hex
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self._files[upload_id] = await asyncio.to_thread(os.open, self._directory / upload_id, flags, 0o600)
        self._offsets[upload_id] = 0
        self._sizes[upload_id] = int(request.headers["Upload-Length"])
        return web.Response(status=201, headers={"Location": f"/v1/uploads/{upload_id}"})

    async def take(self, request: web.Request) -> web.Response:
        """Write a body, and answer once it is on the disk."""
        upload_id = request.match_info["id"]
        offset = self._offsets[upload_id]
        if int(request.headers["Upload-Offset"]) != offset:
            return web.Response(status=409)
        body = await request.read()
        await asyncio.to_thread(_write, self._files[upload_id], body, offset)
        offset += len(body)
        self._offsets[upload_id] = offset
        if offset == self._sizes[upload_id]:
            os.close(self._files.pop(upload_id))
        return web.Response(status=204, headers={"Upload-Offset": str(offset)})

    async def look(self, request: web.Request) -> web.Response:
        """Answer with the offset of an upload."""
        offset = self._offsets[request.match_info["id"]]
        return web.Response(headers={"Upload-Offset": str(offset)})

    async def give(self, request: web.Request) -> web.FileResponse:
        """Send a file."""
        return web.FileResponse(self._directory / request.match_info["id"])


def _write(file: int, body: bytes, offset: int) -> None:
    os.pwrite(file, body, offset)
    os.fdatasync(file)


async def _main(uploads: Uploads) -> None:
    app = web.Application()
    app.router.add_post("/v1/uploads", uploads.create)
    app.router.add_patch("/v1/uploads/{id}", uploads.take)
    app.router.add_head("/v1/uploads/{id}", uploads.look)
    app.router.add_get("/v1/files/{id}", uploads.give)
    await listen(app)


if __name__ == "__main__":
    uvloop.run(_main(Uploads(Path(sys.argv[1]))))
