"""tuspy uploads as it is: whole, cut, checked and resumed."""

from __future__ import annotations

import asyncio
import io
import random
from pathlib import Path
from typing import Any

import pytest
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError, TusUploadFailed
from tusclient.storage.filestorage import FileStorage
from tusclient.uploader.uploader import AsyncUploader
from tusclient.uploader.uploader import Uploader as TusPy

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.tcp_proxy import Cut, breaking
from tests.harness.uploads.tus_uploader import Uploader, described, photo, uploader

pytestmark = ON_SHARED

CHUNK_BYTES = 64 * 1024
SIZE_BYTES = 5 * CHUNK_BYTES + 17


@pytest.fixture
def content() -> bytes:
    return photo(SIZE_BYTES, random.randrange(1 << 30))


@pytest.fixture
def phone(shared: Running) -> Uploader:
    return uploader(shared)


def path_of(tuspy: TusPy | AsyncUploader) -> str:
    """The path of an upload."""
    assert tuspy.url is not None
    return "/v1/uploads/" + tuspy.url.rpartition("/")[2]


def client(server: Running, url: str | None = None) -> TusClient:
    """Make tuspy's client of a server, by way of ``url``."""
    return TusClient(f"{url or server.url}/v1/uploads", headers=server.headers())


def of(client: TusClient, content: bytes, **options: Any) -> TusPy:
    """Make tuspy's uploader of one file; ``options`` are its own."""
    usual: dict[str, Any] = {"chunk_size": CHUNK_BYTES, "metadata": described()}
    return client.uploader(file_stream=io.BytesIO(content), **(usual | options))


@pytest.mark.parametrize("upload_checksum", [False, True])
@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES, 1 << 30])
async def test_tuspy_file_arrives(
    upload_checksum: bool, chunk_bytes: int, shared: Running, content: bytes, phone: Uploader
) -> None:
    tuspy = of(client(shared), content, upload_checksum=upload_checksum, chunk_size=chunk_bytes)
    await asyncio.to_thread(tuspy.upload)
    assert await phone.file(path_of(tuspy)) == content


async def test_tuspy_asyncio_client_uploads(shared: Running, content: bytes, phone: Uploader) -> None:
    tuspy = client(shared).async_uploader(
        file_stream=io.BytesIO(content), chunk_size=CHUNK_BYTES, metadata=described(), upload_checksum=True
    )
    await tuspy.upload()
    assert await phone.file(path_of(tuspy)) == content


@pytest.mark.parametrize("how", ["fin", "rst", "dead", "deaf"])
@pytest.mark.parametrize("upload_checksum", [False, True])
async def test_tuspy_random_cuts_lose_no_byte(
    how: Any, upload_checksum: bool, shared: Running, content: bytes, phone: Uploader
) -> None:
    cuts = [Cut(random.randrange(1, CHUNK_BYTES), how) for _ in range(4)]
    # Each request has a connection of its own: only chunks are cut, not the questions for the offset.
    between = [cut for one in cuts for cut in (None, one)]
    async with breaking(shared.url, between) as line:
        tuspy = of(
            client(shared, line.url), content, retries=20, retry_delay=0, upload_checksum=upload_checksum
        )
        await asyncio.to_thread(tuspy.upload)
        assert line.made == cuts
    assert await phone.file(path_of(tuspy)) == content


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # tuspy leaves that to the collector
async def test_tuspy_resumes_in_another_process(
    shared: Running, content: bytes, phone: Uploader, tmp_path: Path
) -> None:
    path = tmp_path / "photo"
    path.write_bytes(content)
    storage: Any = FileStorage(str(tmp_path / "urls"))  # type: ignore[no-untyped-call]
    told: dict[str, Any] = {
        "file_path": str(path),
        "chunk_size": CHUNK_BYTES,
        "metadata": described(),
        "store_url": True,
        "url_storage": storage,
    }
    first = client(shared).uploader(**told)
    await asyncio.to_thread(first.upload, 2 * CHUNK_BYTES)
    second = await asyncio.to_thread(client(shared).uploader, **told)
    assert (second.url, second.offset) == (first.url, 2 * CHUNK_BYTES)
    await asyncio.to_thread(second.upload)
    storage.close()
    assert await phone.file(path_of(second)) == content


@pytest.mark.parametrize("retries", [0, 1])
async def test_tuspy_changed_byte_repeats_its_chunk(
    retries: int, shared: Running, content: bytes, phone: Uploader
) -> None:
    flip = Cut(random.randrange(2_000, CHUNK_BYTES), "flip")
    async with breaking(shared.url, [None, None, flip]) as line:
        tuspy = of(client(shared, line.url), content, upload_checksum=True, retries=retries, retry_delay=0)
        if not retries:
            with pytest.raises(TusUploadFailed) as refused:
                await asyncio.to_thread(tuspy.upload)
            assert refused.value.status_code == 460
            assert await phone.offset(path_of(tuspy)) == CHUNK_BYTES
        await asyncio.to_thread(tuspy.upload)
        assert line.made == [flip]
    assert await phone.file(path_of(tuspy)) == content


async def test_tuspy_empty_text_arrives(shared: Running, phone: Uploader) -> None:
    tuspy = of(client(shared), b"", metadata=described(filetype="text/plain"))
    await asyncio.to_thread(tuspy.upload)
    assert await phone.file(path_of(tuspy)) == b""


async def test_tuspy_refusal_tells_why(shared: Running) -> None:
    tuspy = of(client(shared), photo(20 * 1024 * 1024 + 1))
    with pytest.raises(TusCommunicationError) as refused:
        await asyncio.to_thread(tuspy.upload)
    assert refused.value.status_code == 413
    assert b"too_large" in refused.value.response_content
