"""tus 1.0.0, request by request: core and the extensions that the server names."""

from __future__ import annotations

import base64
import hashlib
import random
from email.utils import parsedate_to_datetime

import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.raw_http import wired
from tests.harness.uploads.tus_uploader import (
    CHUNK,
    TUS,
    Uploader,
    described,
    encoded,
    file_path,
    photo,
    uploader,
)

pytestmark = ON_SHARED

SIZE_BYTES = 70_000


@pytest.fixture
def phone(shared: Running) -> Uploader:
    return uploader(shared)


@pytest.fixture
def content() -> bytes:
    return photo(SIZE_BYTES, random.randrange(1 << 30))


def checksum(data: bytes, algorithm: str = "sha1") -> str:
    """Write an ``Upload-Checksum``."""
    return f"{algorithm} {base64.b64encode(hashlib.new(algorithm, data).digest()).decode()}"


async def test_tus_options_lists_extensions(phone: Uploader) -> None:
    reply = await phone.ask("OPTIONS", "/v1/uploads", {})
    assert reply.status == 204
    assert reply.headers["Tus-Version"] == "1.0.0"
    assert set(reply.headers["Tus-Extension"].split(",")) == {
        "creation",
        "creation-defer-length",
        "creation-with-upload",
        "expiration",
        "checksum",
        "termination",
        "concatenation",
    }
    assert set(reply.headers["Tus-Checksum-Algorithm"].split(",")) == {"sha1", "sha256", "md5"}
    assert int(reply.headers["Tus-Max-Size"]) == 26_214_400


async def test_tus_three_chunks_file_stored(phone: Uploader, content: bytes) -> None:
    created = await phone.create(len(content))
    assert (created.status, created.headers["Tus-Resumable"]) == (201, "1.0.0")
    path = created.headers["Location"]
    for start, end in ((0, 1), (1, 50_000), (50_000, len(content))):
        assert await phone.offset(path) == start
        reply = await phone.append(path, start, content[start:end])
        assert (reply.status, reply.headers["Upload-Offset"]) == (204, str(end))
        assert reply.headers["Tus-Resumable"] == "1.0.0"
    assert await phone.file(path) == content


async def test_tus_head_tells_offset_and_length(phone: Uploader) -> None:
    metadata = encoded(described())
    path = await phone.begun(SIZE_BYTES, upload_metadata=metadata)
    reply = await phone.head(path)
    assert reply.status == 200
    wanted = {
        "Upload-Offset": "0",
        "Upload-Length": str(SIZE_BYTES),
        "Upload-Metadata": metadata,
        "Cache-Control": "no-store",
        "Tus-Resumable": "1.0.0",
    }
    assert {name: reply.headers[name] for name in wanted} == wanted


async def test_tus_deferred_length_given_with_a_chunk(phone: Uploader, content: bytes) -> None:
    path = await phone.begun(None)
    assert (await phone.append(path, 0, content[:30_000])).status == 204
    reply = await phone.head(path)
    assert reply.headers["Upload-Defer-Length"] == "1"
    assert "Upload-Length" not in reply.headers
    last = await phone.append(path, 30_000, content[30_000:], upload_length=str(len(content)))
    assert last.status == 204
    assert await phone.file(path) == content


async def test_tus_deferred_length_given_alone(phone: Uploader, content: bytes) -> None:
    path = await phone.begun(None, content)
    reply = await phone.append(path, len(content), b"", upload_length=str(len(content)))
    assert reply.status == 204
    assert await phone.file(path) == content


@pytest.mark.parametrize("first_bytes", [1, SIZE_BYTES // 2, SIZE_BYTES])
async def test_tus_creation_with_upload_brings_bytes(
    first_bytes: int, phone: Uploader, content: bytes
) -> None:
    created = await phone.create(len(content), content[:first_bytes])
    assert (created.status, created.headers["Upload-Offset"]) == (201, str(first_bytes))
    path = created.headers["Location"]
    if first_bytes < len(content):
        assert (await phone.append(path, first_bytes, content[first_bytes:])).status == 204
    assert await phone.file(path) == content


async def test_tus_open_upload_tells_its_expiry(phone: Uploader) -> None:
    created = await phone.create(SIZE_BYTES)
    reply = await phone.append(created.headers["Location"], 0, b"\xff\xd8")
    for headers in (created.headers, reply.headers):
        assert parsedate_to_datetime(headers["Upload-Expires"]).tzinfo is not None


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
async def test_tus_chunk_wrong_checksum_refused(algorithm: str, phone: Uploader, content: bytes) -> None:
    path = await phone.begun(len(content))
    first, rest = content[:30_000], content[30_000:]
    wrong = await phone.append(path, 0, first, upload_checksum=checksum(rest, algorithm))
    assert wrong.verdict == (460, "checksum_mismatch")
    assert await phone.offset(path) == 0
    right = await phone.append(path, 0, first, upload_checksum=checksum(first, algorithm))
    assert (right.status, right.headers["Upload-Offset"]) == (204, "30000")
    last = await phone.append(path, 30_000, rest, upload_checksum=checksum(content, algorithm))
    assert last.verdict == (460, "checksum_mismatch")
    assert await phone.offset(path) == 30_000
    assert (await phone.append(path, 30_000, rest, upload_checksum=checksum(rest, algorithm))).status == 204
    assert await phone.file(path) == content


async def test_tus_creation_wrong_checksum_keeps_no_byte(phone: Uploader, content: bytes) -> None:
    reply = await phone.create(len(content), content, upload_checksum=checksum(b"other"))
    assert reply.verdict == (460, "checksum_mismatch")
    assert await phone.offset(reply.headers["Location"]) == 0


async def test_tus_chunk_with_checksum_broken_off_keeps_no_byte(
    shared: Running, phone: Uploader, content: bytes
) -> None:
    path = await phone.begun(len(content))
    headers = (
        TUS
        | phone.authorization
        | {
            "Upload-Offset": "0",
            "Content-Type": CHUNK,
            "Content-Length": str(len(content)),
            "Upload-Checksum": checksum(content),
        }
    )
    async with wired(shared.url) as wire:
        await wire.begin("PATCH", path, headers)
        await wire.send(content[:40_000])
        wire.finish()
    assert await phone.offset(path) == 0


async def test_tus_file_other_than_declared_sha256_refused(phone: Uploader, content: bytes) -> None:
    right = hashlib.sha256(content).hexdigest()
    assert await phone.file(await phone.uploaded(content, sha256=right)) == content
    wrong = encoded(described(sha256=hashlib.sha256(b"other").hexdigest()))
    path = await phone.begun(len(content), upload_metadata=wrong)
    assert (await phone.append(path, 0, content)).verdict == (460, "checksum_mismatch")
    assert (await phone.head(path)).status == 410
    assert (await phone.append(path, 0, content)).verdict == (410, "upload_gone")
    assert (await phone.ask("GET", file_path(path), {})).status == 404


async def test_tus_cancelled_upload_gone(phone: Uploader, content: bytes) -> None:
    path = await phone.begun(len(content), content[:1000])
    assert (await phone.cancel(path)).status == 204
    assert (await phone.head(path)).status == 410
    assert (await phone.append(path, 1000, content[1000:])).verdict == (410, "upload_gone")
    assert (await phone.cancel(path)).verdict == (410, "upload_gone")


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "CHUNKED"])
async def test_tus_chunked_coding_spelled_any_way_taken(
    coding: str, shared: Running, phone: Uploader, content: bytes
) -> None:
    path = await phone.begun(len(content))
    headers = TUS | phone.authorization | {"Upload-Offset": "0", "Content-Type": CHUNK}
    async with wired(shared.url) as wire:
        await wire.begin("PATCH", path, headers | {"Transfer-Encoding": coding})
        await wire.send(f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n")
        assert (await wire.answer()).status == 204
    assert await phone.file(path) == content


async def test_tus_concatenation_makes_one_file(phone: Uploader, content: bytes) -> None:
    parts = [content[:20_000], content[20_000:20_001], content[20_001:]]
    partial = {"upload_concat": "partial", "upload_metadata": None}
    paths = [await phone.begun(len(part), **partial) for part in parts]
    for path, part in reversed(list(zip(paths, parts, strict=True))):
        assert (await phone.append(path, 0, part)).status == 204
        assert (await phone.head(path)).headers["Upload-Concat"] == "partial"
    joined = f"final;{' '.join(paths)}"
    final = await phone.create(0, upload_length=None, upload_concat=joined)
    assert final.status == 201
    path = final.headers["Location"]
    reply = await phone.head(path)
    assert (reply.headers["Upload-Concat"], reply.headers["Upload-Length"]) == (joined, str(len(content)))
    assert reply.headers["Upload-Offset"] == str(len(content))
    assert await phone.file(path) == content
    assert (await phone.append(path, len(content), b"more")).verdict == (403, "forbidden")


async def test_tus_concatenation_by_whole_urls(phone: Uploader, content: bytes) -> None:
    partial = {"upload_concat": "partial", "upload_metadata": None}
    path = await phone.begun(len(content), content, **partial)
    final = await phone.create(0, upload_length=None, upload_concat=f"final;{phone.url}{path}")
    assert final.status == 201
    assert await phone.file(final.headers["Location"]) == content


async def test_tus_concatenation_wrong_sha256_refused(phone: Uploader, content: bytes) -> None:
    partial = {"upload_concat": "partial", "upload_metadata": None}
    path = await phone.begun(len(content), content, **partial)
    final = await phone.create(
        0,
        upload_length=None,
        upload_concat=f"final;{path}",
        upload_metadata=encoded(described(sha256="0" * 64)),
    )
    assert final.verdict == (460, "checksum_mismatch")
    assert (await phone.head(path)).status == 410


async def test_tus_method_override_honoured(phone: Uploader, content: bytes) -> None:
    path = await phone.begun(len(content))
    headers = TUS | {"Upload-Offset": "0", "Content-Type": CHUNK, "X-HTTP-Method-Override": "PATCH"}
    reply = await phone.ask("POST", path, headers, content)
    assert (reply.status, reply.headers["Upload-Offset"]) == (204, str(len(content)))
    gone = await phone.begun(len(content))
    by_head = await phone.ask("HEAD", gone, TUS | {"X-HTTP-Method-Override": "DELETE"})
    assert (by_head.status, by_head.headers["Allow"]) == (405, "DELETE, HEAD, OPTIONS, PATCH")
    assert await phone.offset(gone) == 0
    assert (await phone.ask("POST", gone, TUS | {"X-HTTP-Method-Override": "DELETE"})).status == 204
    assert (await phone.head(gone)).status == 410


async def test_tus_two_files_of_one_name_kept_apart(shared: Running, phone: Uploader) -> None:
    tablet = uploader(shared, "tablet")
    other_tenant = uploader(shared, "phone", "globex")
    contents = [photo(5_000, seed) for seed in range(4)]
    people = [phone, phone, tablet, other_tenant]
    paths = [await person.uploaded(one) for person, one in zip(people, contents, strict=True)]
    assert len(set(paths)) == 4
    for person, path, one in zip(people, paths, contents, strict=True):
        assert await person.file(path) == one
