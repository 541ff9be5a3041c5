"""Chunks of one upload in several processes, of which any takes the next one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession

from tests.harness.raw_http import Wire, wired
from tests.harness.supervised import Supervise, Supervised
from tests.harness.uploads.tus_uploader import CHUNK, TUS, Uploader, photo, signed
from tests.harness.ws_device import PATIENCE_S

SIZE_BYTES = 200_000


@pytest.fixture
async def site(supervise: Supervise) -> Supervised:
    return await supervise(2)


@pytest.fixture
async def phone(site: Supervised) -> AsyncIterator[Uploader]:
    async with ClientSession() as session:
        yield Uploader(session, site.url_of(1), signed())


@pytest.fixture
def content() -> bytes:
    return photo(SIZE_BYTES, random.randrange(1 << 30))


async def stalled(wire: Wire, phone: Uploader, path: str, offset: int, sent: bytes) -> None:
    """Begin a chunk that is to be the rest of a file, once it is taken send so much of it, and no more."""
    headers = TUS | phone.authorization | {"Upload-Offset": str(offset), "Content-Type": CHUNK}
    length = {"Content-Length": str(SIZE_BYTES - offset), "Expect": "100-continue"}
    await wire.begin("PATCH", path, headers | length)
    assert (await wire.interim()).status == 100
    await wire.send(sent)


async def test_several_processes_any_takes_the_next_chunk(
    site: Supervised, phone: Uploader, content: bytes
) -> None:
    path = await phone.begun(len(content))
    offset = 0
    for number, end in enumerate([1, 50_000, 50_001, 120_000, SIZE_BYTES]):
        phone.url = site.url_of(1 + number % 2)
        assert await phone.offset(path) == offset
        assert (await phone.append(path, offset, content[offset:end])).status == 204
        offset = end
    for worker in (1, 2):
        phone.url = site.url_of(worker)
        assert await phone.file(path) == content


async def test_several_processes_head_ends_a_dead_request_elsewhere(
    site: Supervised, phone: Uploader, content: bytes
) -> None:
    path = await phone.begun(len(content), content[:1000])
    async with wired(site.url_of(1)) as wire:
        await stalled(wire, phone, path, 1000, content[1000:60_000])
        phone.url = site.url_of(2)
        refused = await phone.append(path, 1000, content[1000:])
        assert refused.verdict == (423, "locked")
        async with asyncio.timeout(PATIENCE_S):
            offset = await phone.offset(path)
        assert offset == 60_000
        assert (await wire.answer()).verdict == (423, "locked")
    assert (await phone.append(path, offset, content[offset:])).status == 204
    assert await phone.file(path) == content


async def test_several_processes_second_writer_refused(
    site: Supervised, phone: Uploader, content: bytes
) -> None:
    path = await phone.begun(len(content))
    async with wired(site.url_of(1)) as wire:
        await stalled(wire, phone, path, 0, content[:60_000])
        for worker in (1, 2):
            phone.url = site.url_of(worker)
            assert (await phone.append(path, 0, content)).verdict == (423, "locked")
        await wire.send(content[60_000:])
        assert (await wire.answer()).status == 204
    assert await phone.file(path) == content


async def test_several_processes_racing_writers_one_wins(
    site: Supervised, phone: Uploader, content: bytes
) -> None:
    async with ClientSession() as session:
        other = Uploader(session, site.url_of(2), signed())
        for _ in range(10):
            path = await phone.begun(len(content))
            replies = await asyncio.gather(
                phone.append(path, 0, content), other.append(path, 0, content), phone.append(path, 0, content)
            )
            won = [reply for reply in replies if reply.status == 204]
            assert len(won) == 1, [reply.status for reply in replies]
            assert {reply.status for reply in replies} <= {204, 400, 409, 423}
            assert await phone.file(path) == content
            content = photo(SIZE_BYTES, random.randrange(1 << 30))


async def test_several_processes_delete_ends_a_request_elsewhere(
    site: Supervised, phone: Uploader, content: bytes
) -> None:
    path = await phone.begun(len(content))
    async with wired(site.url_of(1)) as wire:
        await stalled(wire, phone, path, 0, content[:60_000])
        phone.url = site.url_of(2)
        async with asyncio.timeout(PATIENCE_S):
            assert (await phone.cancel(path)).status == 204
        assert (await wire.answer()).status in (410, 423)
    assert (await phone.head(path)).status == 410
