"""What clients of tus send beside their bytes: empty requests at every offset and after the end.

The habits are those of tus-js-client, tuspy, Uppy, TUSKit and tus-java-client, which that for Android uses.
"""

from __future__ import annotations

import random
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.raw_http import Answer, Wire, wired
from tests.harness.uploads.tus_uploader import CHUNK, TUS, Uploader, described, encoded, photo, uploader

pytestmark = ON_SHARED

SIZE_BYTES: Final = 3_000
REQUEST_BYTES: Final = 1_000
#: How a body of no bytes may be framed.
FRAMES: Final[dict[str, dict[str, str]]] = {
    "of length 0": {"Content-Length": "0"},
    "chunked": {"Transfer-Encoding": "chunked"},
    "chunked, asked about first": {"Transfer-Encoding": "chunked", "Expect": "100-continue"},
    "without a word": {},
}
OVERRIDE: Final = {"X-HTTP-Method-Override": "PATCH"}


@pytest.fixture
def phone(shared: Running) -> Uploader:
    return uploader(shared)


@pytest.fixture
def content() -> bytes:
    return photo(SIZE_BYTES, random.randrange(1 << 30))


async def end_chunked(wire: Wire, data: bytes = b"") -> None:
    """Send the body of a chunked request, or no more than its end."""
    block = f"{len(data):x}\r\n".encode() + data + b"\r\n" if data else b""
    await wire.send(block + b"0\r\n\r\n")


async def patch(
    wire: Wire, phone: Uploader, path: str, offset: int, headers: dict[str, str], data: bytes = b""
) -> Answer:
    """Send a chunk as a client would that waits for 100 wherever it said so."""
    method = "POST" if "X-HTTP-Method-Override" in headers else "PATCH"
    all_headers = TUS | phone.authorization | {"Upload-Offset": str(offset), "Content-Type": CHUNK} | headers
    await wire.begin(method, path, all_headers)
    if "Expect" in headers:
        assert (await wire.interim()).status == 100, "Java's client takes a final answer for a refusal"
    if "Transfer-Encoding" in headers:
        await end_chunked(wire, data)
    return await wire.answer()


class JavaClient:
    """tus-java-client's ``TusUploader``: requests of so many bytes, all chunked, each asked about first."""

    def __init__(self, phone: Uploader, path: str, content: bytes, offset: int = 0) -> None:
        self._phone = phone
        self._path = path
        self._content = content
        self.offset = offset

    async def upload_chunk(self) -> bool:
        """Send a request; False if nothing was left to send in it, as the file had ended before."""
        data = self._content[self.offset : self.offset + REQUEST_BYTES]
        headers = {"Transfer-Encoding": "chunked", "Expect": "100-continue"}
        async with wired(self._phone.url) as wire:
            answer = await patch(wire, self._phone, self._path, self.offset, headers, data)
        assert 200 <= answer.status < 300, answer
        self.offset += len(data)
        assert answer.headers["Upload-Offset"] == str(self.offset)
        return data != b""

    async def upload(self) -> None:
        """Send everything, as its examples do: until a request finds nothing more."""
        while await self.upload_chunk():
            pass


@pytest.mark.parametrize("size_bytes", [REQUEST_BYTES - 1, REQUEST_BYTES, 3 * REQUEST_BYTES])
async def test_java_client_whole_requests_file_arrives(size_bytes: int, phone: Uploader) -> None:
    content = photo(size_bytes, size_bytes)
    path = await phone.begun(size_bytes)
    await JavaClient(phone, path, content).upload()
    assert await phone.file(path) == content
    again = JavaClient(phone, path, content, await phone.offset(path))
    await again.upload()
    assert again.offset == size_bytes, "its answer was lost: it asks by HEAD, and sends an empty request"


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize("frame", FRAMES)
async def test_empty_patch_any_offset_answered_with_the_offset(
    frame: str, override: bool, shared: Running, phone: Uploader, content: bytes
) -> None:
    headers = FRAMES[frame] | (OVERRIDE if override else {})
    path = await phone.begun(SIZE_BYTES)
    async with wired(shared.url) as wire:
        for offset in (0, 1, 1_500, SIZE_BYTES - 1, SIZE_BYTES, SIZE_BYTES):
            at = await phone.offset(path)
            if offset > at:
                assert (await phone.append(path, at, content[at:offset])).status == 204
            answer = await patch(wire, phone, path, offset, headers)
            assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(offset))
            wrong = await phone.append(path, offset + 1, b"")
            assert wrong.verdict == (409, "offset_mismatch")
    assert await phone.file(path) == content


@pytest.mark.parametrize("frame", FRAMES)
async def test_empty_patch_complete_part_taken(
    frame: str, shared: Running, phone: Uploader, content: bytes
) -> None:
    path = await phone.begun(SIZE_BYTES, content, upload_concat="partial", upload_metadata=None)
    async with wired(shared.url) as wire:
        answer = await patch(wire, phone, path, SIZE_BYTES, FRAMES[frame])
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(SIZE_BYTES))
    final = await phone.create(0, upload_length=None, upload_concat=f"final;{path}")
    assert final.status == 201
    joined = urlsplit(final.headers["Location"]).path
    async with wired(shared.url) as wire:
        refused = await patch(wire, phone, joined, SIZE_BYTES, {"Content-Length": "0"})
        assert refused.verdict == (403, "forbidden"), "tus forbids each PATCH of a final upload"


@pytest.mark.parametrize("frame", FRAMES)
async def test_empty_patch_with_length_completes_a_deferred_upload(
    frame: str, shared: Running, phone: Uploader, content: bytes
) -> None:
    path = await phone.begun(None)
    assert (await phone.append(path, 0, content)).status == 204
    async with wired(shared.url) as wire:
        headers = FRAMES[frame] | {"Upload-Length": str(SIZE_BYTES)}
        for _ in range(2):
            answer = await patch(wire, phone, path, SIZE_BYTES, headers)
            assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(SIZE_BYTES))
    head = await phone.head(path)
    assert (head.headers["Upload-Length"], "Upload-Defer-Length" in head.headers) == (str(SIZE_BYTES), False)
    assert await phone.file(path) == content


@pytest.mark.parametrize("kind", ["file", "part", "deferred"])
async def test_patch_bytes_behind_the_end_refused(
    kind: str, shared: Running, phone: Uploader, content: bytes
) -> None:
    options = {"upload_concat": "partial", "upload_metadata": None} if kind == "part" else {}
    path = await phone.begun(None if kind == "deferred" else SIZE_BYTES, **options)
    assert (await phone.append(path, 0, content)).status == 204
    length = {"Upload-Length": str(SIZE_BYTES)} if kind == "deferred" else {}
    for frame in (FRAMES["chunked"], FRAMES["chunked, asked about first"]):
        async with wired(shared.url) as wire:
            answer = await patch(wire, phone, path, SIZE_BYTES, frame | length, b"more")
            assert answer.verdict == (400, "upload_complete")
    assert await phone.offset(path) == SIZE_BYTES


async def test_empty_body_without_end_cut_by_head(shared: Running, phone: Uploader, content: bytes) -> None:
    path = await phone.begun(SIZE_BYTES, content, upload_concat="partial", upload_metadata=None)
    headers = TUS | phone.authorization | {"Upload-Offset": str(SIZE_BYTES), "Content-Type": CHUNK}
    async with wired(shared.url) as wire:
        await wire.begin("PATCH", path, headers | FRAMES["chunked, asked about first"])
        await wire.interim()
        assert await phone.offset(path) == SIZE_BYTES
        assert (await wire.answer()).verdict == (423, "locked")


@pytest.mark.parametrize("size_bytes", [None, SIZE_BYTES])
@pytest.mark.parametrize("frame", FRAMES)
async def test_creation_with_upload_no_bytes_begins_at_0(
    frame: str, size_bytes: int | None, shared: Running, phone: Uploader, content: bytes
) -> None:
    length = {"Upload-Defer-Length": "1"} if size_bytes is None else {"Upload-Length": str(size_bytes)}
    metadata = {"Upload-Metadata": encoded(described()), "Content-Type": CHUNK}
    async with wired(shared.url) as wire:
        await wire.begin("POST", "/v1/uploads", TUS | phone.authorization | length | metadata | FRAMES[frame])
        if "Expect" in FRAMES[frame]:
            assert (await wire.interim()).status == 100
        if "Transfer-Encoding" in FRAMES[frame]:
            await end_chunked(wire)
        created = await wire.answer()
    assert (created.status, created.headers["Upload-Offset"]) == (201, "0")
    path = created.headers["Location"]
    assert (await phone.append(path, 0, content, upload_length=str(SIZE_BYTES))).status == 204
    assert await phone.file(path) == content


async def test_head_after_the_end_always_the_same(phone: Uploader, content: bytes) -> None:
    created = await phone.create(SIZE_BYTES, content)
    assert (created.status, created.headers["Upload-Offset"]) == (201, str(SIZE_BYTES))
    path = created.headers["Location"]
    for _ in range(2):
        head = await phone.head(path)
        told = (head.status, head.headers["Upload-Offset"], head.headers["Upload-Length"])
        assert told == (200, str(SIZE_BYTES), str(SIZE_BYTES))
        again = await phone.append(path, SIZE_BYTES, b"", upload_length=str(SIZE_BYTES))
        assert (again.status, again.headers["Upload-Offset"]) == (204, str(SIZE_BYTES))
