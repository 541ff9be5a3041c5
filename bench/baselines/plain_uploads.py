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

import msgspec
import uvloop
from aiohttp import web

from bench.baselines.bare_server import listen


class _Upload(msgspec.Struct):
    file: int
    size: int
    offset: int = 0


_uploads: dict[str, _Upload] = {}
_directory = Path(sys.argv[-1])


async def _create(request: web.Request) -> web.Response:
    upload_id = uuid.uuid4().hex
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    file = await asyncio.to_thread(os.open, _directory / upload_id, flags, 0o600)
    _uploads[upload_id] = _Upload(file, int(request.headers["Upload-Length"]))
    return web.Response(status=201, headers={"Location": f"/v1/uploads/{upload_id}"})


async def _take(request: web.Request) -> web.Response:
    upload = _uploads[request.match_info["id"]]
    if int(request.headers["Upload-Offset"]) != upload.offset:
        return web.Response(status=409)
    body = await request.read()
    await asyncio.to_thread(_write, upload.file, body, upload.offset)
    upload.offset += len(body)
    if upload.offset == upload.size:
        os.close(upload.file)
    return web.Response(status=204, headers={"Upload-Offset": str(upload.offset)})


def _write(file: int, body: bytes, offset: int) -> None:
    os.pwrite(file, body, offset)
    os.fdatasync(file)


async def _look(request: web.Request) -> web.Response:
    return web.Response(headers={"Upload-Offset": str(_uploads[request.match_info["id"]].offset)})


async def _give(request: web.Request) -> web.FileResponse:
    return web.FileResponse(_directory / request.match_info["id"])


if __name__ == "__main__":
    _directory.mkdir(parents=True, exist_ok=True)
    routes = web.post("/v1/uploads", _create), web.get("/v1/files/{id}", _give)
    one = "/v1/uploads/{id}"
    uvloop.run(listen(*routes, web.patch(one, _take), web.head(one, _look)))
