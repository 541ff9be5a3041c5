"""A hundred uploads and a server that is killed: all go on from what was acknowledged, and arrive whole."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, TCPConnector

from storage.embedded.servers import Services
from tests.harness.server_process import ServerProcess
from tests.harness.services import execute
from tests.harness.supervised import Supervise
from tests.harness.uploads.tus_uploader import Uploader, described, encoded, photo, signed

UPLOADS = 100
SIZE_BYTES = 256 * 1024
CHUNK_BYTES = 32 * 1024
#: Kills in the normal run; ``TIDEMARK_KILLS=20`` is the long one.
KILLS = int(os.environ.get("TIDEMARK_KILLS", "3"))
#: Chunks between two kills.
CHUNKS_BETWEEN = UPLOADS * SIZE_BYTES // CHUNK_BYTES // (KILLS + 1)


class Fire:
    """Uploads that see to it that no acknowledged byte is asked for again, and none that was never sent."""

    def __init__(self) -> None:
        self.chunks = 0
        self.resumed = 0
        self.wrong: list[str] = []
        self._news = asyncio.Condition()

    async def progressed(self, chunks: int) -> None:
        """Wait for so many more acknowledged chunks, or for the end of all."""
        wanted = min(self.chunks + chunks, UPLOADS * SIZE_BYTES // CHUNK_BYTES - UPLOADS)
        async with self._news:
            await self._news.wait_for(lambda: self.chunks >= wanted)

    async def upload(self, phone: Uploader, number: int) -> None:
        """Upload one file, through whatever happens, and read it back."""
        content = photo(SIZE_BYTES, number)
        path = await self._until_done(lambda: self._begun(phone, number))
        acknowledged = sent = 0
        while acknowledged < SIZE_BYTES:
            end = acknowledged + CHUNK_BYTES
            sent = max(sent, end)
            try:
                reply = await phone.append(path, acknowledged, content[acknowledged:end])
            except (ClientError, ConnectionError):
                offset = await self._until_done(lambda: phone.offset(path))
                self.resumed += 1
                if not acknowledged <= offset <= sent:
                    self.wrong.append(f"{path}: {offset}, {acknowledged} acknowledged, {sent} sent")
                acknowledged = offset
                continue
            assert (reply.status, reply.headers["Upload-Offset"]) == (204, str(end)), reply
            acknowledged = end
            async with self._news:
                self.chunks += 1
                self._news.notify_all()
        if await self._until_done(lambda: phone.file(path)) != content:
            self.wrong.append(f"{path}: another content")

    async def _begun(self, phone: Uploader, number: int) -> str:
        metadata = encoded(described(filename=f"{number}.jpg", record_id=f"pump-{number}"))
        return await phone.begun(SIZE_BYTES, upload_metadata=metadata)

    async def _until_done(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await ask()
            except (ClientError, ConnectionError):
                await asyncio.sleep(0.01)


async def _under_fire(url: str, kill: Callable[[], Awaitable[None]]) -> None:
    fire = Fire()
    async with ClientSession(connector=TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        for number in range(UPLOADS):
            phone = Uploader(session, url, signed(f"phone-{number}"))
            group.create_task(fire.upload(phone, number))
        for _ in range(KILLS):
            await fire.progressed(random.randrange(CHUNKS_BETWEEN // 2, CHUNKS_BETWEEN))
            await kill()
    assert fire.wrong == []
    assert fire.resumed > 0


async def test_server_killed_under_a_hundred_uploads_loses_no_byte(
    dsn: str, services: Services, tmp_path: Path
) -> None:
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme')",
        "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
    )
    server = ServerProcess(dsn, services.redis_url, tmp_path)
    await server.start()

    async def kill() -> None:
        await server.kill()
        await server.start()

    try:
        await _under_fire(server.url, kill)
        assert await server.terminate() == 0
    finally:
        await server.stop()


async def test_workers_killed_under_a_hundred_uploads_lose_no_byte(supervise: Supervise) -> None:
    site = await supervise(2)
    kills = 0

    async def kill() -> None:
        nonlocal kills
        kills += 1
        os.kill(site.pid_of(1 + kills % 2), signal.SIGKILL)
        await site.until("listening", 2 + kills)

    await _under_fire(site.url, kill)
    assert await site.terminate() == 0
