"""Another's photo: it is uploaded before its record, which then comes, and is attached at some time."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from time import perf_counter
from typing import Final

from bench.harness.environment import BenchError
from bench.harness.load_run import Target
from bench.uploads.device import FailedError, Uploader, session_at
from bench.uploads.workload import Album
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
    async with session_at(target.host, target.port) as session:
        uploader = Uploader(session, target.token(tenant, f"photo-{mark}"), _PHOTO_BYTES)
        try:
            stored = await uploader.upload(picture)
            await uploader.make_record(picture.record_id)
        except FailedError as error:
            raise BenchError(f"a photo was not uploaded: {error}") from None
    came_s = perf_counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            # Only the database shows it.
            while await asyncio.to_thread(_state, dsn, stored.file_id) != "attached":  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
    return perf_counter() - came_s


def _state(dsn: str, upload_id: str) -> str | None:
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT state FROM upload_session WHERE upload_id = %s::uuid", (upload_id,))
        found = cursor.fetchall()
    return found[0][0] if found else None
