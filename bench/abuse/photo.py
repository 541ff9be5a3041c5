"""Another's photo: it is uploaded before its record, which then comes, and is attached at some time."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from time import perf_counter
from typing import Final

import msgspec

from bench.harness.environment import BenchError
from bench.harness.load_run import Target
from bench.uploads.http_client import Line, dial
from bench.uploads.workload import DOMAIN, Album
from storage.postgres.blocking import connected

_PHOTO_BYTES: Final = 20_000
_LOOK_S: Final = 0.02
#: A photo that is not attached after this counts with it.
_PATIENCE_S: Final = 60.0


async def photo_s(target: Target, dsn: str, tenant: str) -> float:
    """Upload a photo and send its record. Returns the seconds from the record's answer until it is attached.

    Raises BenchError, OSError.
    """
    mark = secrets.token_hex(6)
    picture = Album(mark, 1, _PHOTO_BYTES).picture(0, 0)
    head = (
        f"Host: {target.host}:{target.port}\r\nAuthorization: Bearer {target.token(tenant, f'photo-{mark}')}"
        "\r\nTus-Resumable: 1.0.0\r\n"
    )
    line = await dial(target.host, target.port)
    try:
        more = (
            f"Upload-Length: {picture.size_bytes}\r\nUpload-Metadata: {picture.metadata}\r\n"
            "Content-Length: 0\r\n"
        )
        answer = await _asked(line, f"POST /v1/uploads HTTP/1.1\r\n{head}{more}\r\n", 201)
        location = answer[b"location"].decode()
        more = (
            "Content-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\n"
            f"Content-Length: {picture.size_bytes}\r\n"
        )
        chunk = b"".join(picture.chunk(0, picture.size_bytes))
        await _asked(line, f"PATCH {location} HTTP/1.1\r\n{head}{more}\r\n", 204, chunk)
        item = {"domain": DOMAIN, "id": picture.record_id, "op": "put", "base": None, "data": {"title": "a"}}
        body = msgspec.json.encode({"type": "sync", "key": mark, "items": [item]})
        more = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        await _asked(line, f"POST /v1/sync HTTP/1.1\r\n{head}{more}\r\n", 200, body)
    finally:
        line.close()
    came_s = perf_counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            # Nobody tells of it but the database.
            while await asyncio.to_thread(_state, dsn, location.rpartition("/")[2]) != "attached":  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
    return perf_counter() - came_s


async def _asked(line: Line, head: str, wanted: int, body: bytes = b"") -> dict[bytes, bytes]:
    answer = await line.request(head.encode(), [body] if body else [])
    if answer.status != wanted:
        raise BenchError(f"a photo was answered with {answer.status}: {answer.body[:200].decode()}")
    return answer.headers


def _state(dsn: str, upload_id: str) -> str | None:
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT state FROM upload_session WHERE upload_id = %s::uuid", (upload_id,))
        found = cursor.fetchall()
    return found[0][0] if found else None
