"""A disk that is full: what was acknowledged is kept, and goes on once there is room again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.in_process_server import Running, Serve
from tests.harness.small_disk import Disk, small_disk
from tests.harness.uploads.tus_uploader import described, encoded, photo, uploader

CHUNK_BYTES = 128 * 1024
SIZE_BYTES = 2 * 1024 * 1024
SMALL = "size=3m"
LARGE = "size=16m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", SMALL) as made:
        yield made


@pytest.fixture
async def server(serve: Serve, disk: Disk) -> Running:
    return await serve(data={"dir": str(disk.path)})


async def test_full_disk_keeps_acknowledged_bytes(server: Running, disk: Disk) -> None:
    phones = [uploader(server, f"phone-{number}") for number in range(3)]
    contents = [photo(SIZE_BYTES, random.randrange(1 << 30)) for _ in phones]
    paths = [
        await phone.begun(SIZE_BYTES, upload_metadata=encoded(described(record_id=f"pump-{number}")))
        for number, phone in enumerate(phones)
    ]
    offsets = [0, 0, 0]
    full: set[int] = set()
    for start in range(0, SIZE_BYTES, CHUNK_BYTES):
        for number, phone in enumerate(phones):
            if number in full:
                continue
            chunk = contents[number][start : start + CHUNK_BYTES]
            reply = await phone.append(paths[number], start, chunk)
            if reply.status == 204:
                offsets[number] = start + len(chunk)
            else:
                assert reply.verdict == (507, "insufficient_storage")
                full.add(number)
    assert full == {0, 1, 2}
    for number, phone in enumerate(phones):
        assert await phone.offset(paths[number]) >= offsets[number]

    disk.mount("remount", LARGE)
    for number, phone in enumerate(phones):
        offset = await phone.offset(paths[number])
        assert (await phone.append(paths[number], offset, contents[number][offset:])).status == 204
        assert await phone.file(paths[number]) == contents[number]


async def test_full_disk_leaves_syncs_and_files_alone(server: Running, disk: Disk) -> None:
    phone = uploader(server)
    kept = photo(100_000)
    path = await phone.uploaded(kept)
    filler = disk.path / "filler"
    with pytest.raises(OSError, match="No space left"):
        fill(filler)
    other = await phone.begun(SIZE_BYTES)
    full = await phone.append(other, 0, photo(CHUNK_BYTES))
    assert full.verdict == (507, "insufficient_storage")
    assert full.message["retry_after_ms"] >= 45_000, "it takes a person to make room"
    assert int(full.headers["Retry-After"]) >= 45
    assert await phone.file(path) == kept
    device = await server.device()
    item = {"domain": "task", "id": "pump-9", "op": "put", "base": None, "data": {"status": "ASSIGNED"}}
    assert (await device.push(item))[0]["status"] == "applied"
    filler.unlink()
    assert (await phone.append(other, 0, photo(CHUNK_BYTES))).status == 204


def fill(path: Path) -> None:
    """Write to a file until there is no room. Raises OSError."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
