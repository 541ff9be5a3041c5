"""Files over HTTP: whole and by range, for the devices of one tenant, under whatever name they came."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import pytest
import structlog
from aiohttp import ClientError, ClientTimeout

from engine.model.uploads import Upload, UploadRef
from engine.uploads.blobs import BlobsError
from handlers.uploads import downloads as room
from handlers.uploads.downloads import disposition
from storage.blobs.directory import DirectoryBlobs
from tests.harness.in_process_server import Running, Serve
from tests.harness.uploads.stored_files import keep, publish, upload

CONTENT = random.Random(5).randbytes(1_000_003)


class Shelf:
    """A server with files on its disk."""

    def __init__(self, server: Running, data_dir: Path) -> None:
        self.server = server
        self.data_dir = data_dir

    async def put(self, content: bytes = CONTENT, number: int = 1, **fields: Any) -> str:
        """Have a file, and give its path."""
        one = await publish(self.data_dir, content, upload(number, **fields))
        keep(self.server.dsn, one)
        return path_of(one)


def path_of(one: Upload) -> str:
    return f"/v1/files/{one.ref.upload_id}"


@pytest.fixture
async def shelf(serve: Serve, tmp_path: Path) -> Shelf:
    return Shelf(await serve(), tmp_path)


async def test_download_own_tenant_alone(shelf: Shelf) -> None:
    path = await shelf.put()
    for device in ("phone", "tablet"):
        reply = await shelf.server.get(path, device)
        assert (reply.status, reply.body) == (200, CONTENT)
    digest = hashlib.sha256(CONTENT)
    wanted = {
        "Content-Length": "1000003",
        "Content-Type": "image/jpeg",
        "ETag": f'"{digest.hexdigest()}"',
        "Repr-Digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
        "Vary": "Authorization, Origin",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": "attachment; filename=\"gate 1.jpg\"; filename*=UTF-8''gate%201.jpg",
    }
    assert {name: reply.headers[name] for name in wanted} == wanted
    head = await shelf.server._request("HEAD", path, "phone", "acme", {})
    assert (head.status, head.body) == (200, b"")
    assert {name: head.headers[name] for name in wanted} == wanted

    other = await shelf.server.get(path, tenant="globex")
    assert other.verdict == (404, "not_found")
    unknown = await shelf.server.get(f"/v1/files/{'f' * 32}")
    assert unknown.verdict == (404, "not_found")
    assert unknown.body == other.body, "nobody learns that there is such a file"
    for odd in (path.upper(), f"{path}/", f"/v1/files/{'g' * 32}", "/v1/files/..%2f..%2fconfig.toml"):
        assert (await shelf.server.get(odd)).status == 404
    async with shelf.server.http.get(shelf.server.url + path) as response:
        assert response.status == 401


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=10-", slice(10, None)),
        ("bytes=262143-262144", slice(262_143, 262_145)),
        ("bytes=-3", slice(-3, None)),
        ("bytes=999999-9999999", slice(999_999, None)),
    ],
)
async def test_download_range_given(shelf: Shelf, wanted: str, part: slice) -> None:
    path = await shelf.put()
    reply = await shelf.server.get(path, headers={"Range": wanted})
    first, end, _ = part.indices(len(CONTENT))
    assert (reply.status, reply.body) == (206, CONTENT[part])
    assert reply.headers["Content-Range"] == f"bytes {first}-{end - 1}/1000003"
    assert reply.headers["Content-Length"] == str(end - first)


async def test_download_several_or_invalid_ranges_give_the_whole(shelf: Shelf) -> None:
    path = await shelf.put()
    beyond = await shelf.server.get(path, headers={"Range": "bytes=1000003-"})
    assert beyond.verdict == (416, "invalid_message")
    assert beyond.headers["Content-Range"] == "bytes */1000003"
    for headers in (
        {"Range": "bytes=0-1,5-6"},
        {"Range": "lines=1-2"},
        {"Range": "bytes=0-1", "If-Range": '"another"'},
        {"Range": "bytes=0-1", "If-Range": "Tue, 02 Jan 2024 00:00:00 GMT"},
    ):
        reply = await shelf.server.get(path, headers=headers)
        assert (reply.status, reply.body) == (200, CONTENT)
        assert "Content-Range" not in reply.headers
    head = await shelf.server._request("HEAD", path, "phone", "acme", {"headers": {"Range": "bytes=0-1"}})
    assert (head.status, head.headers["Content-Length"]) == (200, "1000003")


async def test_download_if_none_match_answers_304(shelf: Shelf) -> None:
    path = await shelf.put()
    tag = (await shelf.server.get(path)).headers["ETag"]
    for given in (tag, f'"x", W/{tag}', "*"):
        reply = await shelf.server.get(path, headers={"If-None-Match": given, "Range": "bytes=0-1"})
        assert (reply.status, reply.body, reply.headers["ETag"]) == (304, b"", tag)
    reply = await shelf.server.get(path, headers={"If-None-Match": '"x"'})
    assert reply.status == 200
    resumed = await shelf.server.get(path, headers={"If-Range": tag, "Range": "bytes=500000-"})
    assert (resumed.status, resumed.body) == (206, CONTENT[500_000:])


async def test_download_empty_file(shelf: Shelf) -> None:
    path = await shelf.put(b"")
    reply = await shelf.server.get(path)
    assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"", "0")
    assert (await shelf.server.get(path, headers={"Range": "bytes=0-"})).status == 416


async def test_download_duplicate_gives_the_standing_file(shelf: Shelf) -> None:
    await shelf.put(state="attached")
    again = upload(2, state="duplicate", file_name="gate 1.jpg", sha256=hashlib.sha256(CONTENT).hexdigest())
    keep(shelf.server.dsn, again)
    reply = await shelf.server.get(path_of(again))
    assert (reply.status, reply.body) == (200, CONTENT)
    assert (await shelf.server.get(path_of(again), tenant="globex")).status == 404


@pytest.mark.parametrize("state", ["open", "refused", "cancelled", "expired", "freed"])
async def test_download_unfinished_upload_not_found(shelf: Shelf, state: str) -> None:
    path = await shelf.put(b"some", state=state)
    assert (await shelf.server.get(path)).verdict == (404, "not_found")


async def test_download_missing_bytes_not_found_and_logged(shelf: Shelf) -> None:
    one = upload(1)
    keep(shelf.server.dsn, one)
    with structlog.testing.capture_logs() as logged:
        reply = await shelf.server.get(path_of(one))
    assert reply.verdict == (404, "not_found")
    assert logged == [
        {"event": "file_missing", "log_level": "error", "tenant_id": 1, "file_id": one.ref.upload_id}
    ]


async def test_download_disk_error_refused_before_cut_off_after_the_first_byte(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await shelf.put()
    good = [b"x" * 10]

    async def failing(*_: object) -> AsyncIterator[bytes]:
        for block in good:
            yield block
        raise BlobsError("EIO")

    monkeypatch.setattr(DirectoryBlobs, "read", failing)
    with structlog.testing.capture_logs() as logged:
        with pytest.raises(ClientError):
            await shelf.server.get(path)
        good.clear()
        reply = await shelf.server.get(path)
    assert reply.verdict == (503, "unavailable")
    assert reply.message["retry_after_ms"] > 0
    assert [one["event"] for one in logged] == ["file_broken_off", "file_unread"]


async def test_download_truncated_file_cut_off(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await shelf.put()

    async def short(*_: object) -> AsyncIterator[bytes]:
        yield CONTENT[:600_000]

    monkeypatch.setattr(DirectoryBlobs, "read", short)
    with pytest.raises(ClientError):
        await shelf.server.get(path, timeout=ClientTimeout(10))


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "gate.jpg",
        'a "b" \\ c.jpg',
        "../../etc/passwd",
        "a\r\nX-Evil: 1.jpg",
        "a\x00\x1f\x7f.jpg",
        "Übersicht 鍵 \U0001f511.pdf",
        "100% *'();:@&=+$,/?#[].txt",
        "x" * 1000,
    ],
)
def test_download_name_round_trips(name: str) -> None:
    header = disposition(name)
    assert header.isascii()
    assert header.isprintable()
    plain, _, encoded = header.partition("; filename*=UTF-8''")
    assert unquote(encoded) == name
    message = Message()
    message["Content-Disposition"] = plain
    told = message.get_filename()
    assert told is not None
    assert "/" not in told
    assert "\\" not in told
    assert message.get_content_disposition() == "attachment"


async def test_download_name_with_line_breaks_adds_no_header(shelf: Shelf) -> None:
    path = await shelf.put(b"abc", file_name="a\"\r\nSet-Cookie: x=1\r\n\r\n';.jpg")
    reply = await shelf.server.get(path)
    assert (reply.status, reply.body) == (200, b"abc")
    assert "Set-Cookie" not in reply.headers


# -- readers ----------------------------------------------------------------------------------


async def _request(shelf: Shelf, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    at = urlsplit(shelf.server.url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port, limit=1 << 12)
    headers = "".join(f"{name}: {value}\r\n" for name, value in shelf.server.headers().items())
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    return reader, writer


class Reads:
    """Counts the blocks that were read of files, and says when a reading is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks = 0
        self.over = asyncio.Event()
        read = DirectoryBlobs.read

        async def counted(blobs: DirectoryBlobs, file: UploadRef, *part: int) -> AsyncIterator[bytes]:
            try:
                async for block in read(blobs, file, *part):
                    self.blocks += 1
                    yield block
            finally:
                self.over.set()

        monkeypatch.setattr(DirectoryBlobs, "read", counted)


async def test_download_reads_at_the_readers_pace(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the memory nor a thread of the server is a reader's who does not read."""
    path = await shelf.put(b"x" * (64 << 20))
    reads = Reads(monkeypatch)
    with structlog.testing.capture_logs() as logged:
        reader, writer = await _request(shelf, path)
        await reader.readuntil(b"\r\n\r\n")
        before = -1
        while before != reads.blocks:  # until neither the sockets nor the server take any more
            before = reads.blocks
            for _ in range(20):
                await asyncio.to_thread((shelf.data_dir / "uploads").exists)
        assert 0 < reads.blocks < 128, "of 256"
        writer.transport.abort()
        await asyncio.wait_for(reads.over.wait(), 10)
        await shelf.server.drained()
    assert {one["event"] for one in logged} <= {"draining", "stopped"}
    assert caplog.records == []


async def test_download_stalled_reader_cut_off(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "_WRITE_WITHIN_S", 0.05)
    path = await shelf.put(b"x" * (64 << 20))
    reads = Reads(monkeypatch)
    reader, writer = await _request(shelf, path)
    await asyncio.wait_for(reads.over.wait(), 10)
    assert reads.blocks < 256
    with suppress(ConnectionError):
        await reader.read()
    assert reader.exception() is not None or reader.at_eof()
    writer.close()
    assert caplog.records == []


async def test_download_token_expires_cut_off_and_resumed_with_another(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = CONTENT * 32  # more than sockets and the server take
    path = await shelf.put(content)
    reads = Reads(monkeypatch)
    reader, writer = await _request(shelf, path)
    await reader.readuntil(b"\r\n\r\n")
    with monkeypatch.context() as later:
        in_two_hours_us = time.time_ns() // 1000 + 7_200_000_000
        later.setattr("compose.server.SystemClock.now_us", lambda _: in_two_hours_us)
        got = bytearray()
        with suppress(ConnectionError):
            while block := await reader.read(1 << 16):
                got += block
        await asyncio.wait_for(reads.over.wait(), 10)
    writer.close()
    assert len(got) < len(content)
    rest = await shelf.server.get(path, headers={"Range": f"bytes={len(got)}-"})
    assert (rest.status, bytes(got) + rest.body == content) == (206, True)
    assert caplog.records == []


async def test_download_counts_for_the_rate(serve: Serve, tmp_path: Path) -> None:
    shelf = Shelf(await serve(limits={"messages_per_minute": 2}), tmp_path)
    path = await shelf.put(b"abc")
    assert [(await shelf.server.get(path)).status for _ in range(3)] == [200, 200, 429]


def test_download_log_names_the_file_by_id() -> None:
    """Names are people's, and stay out of it."""
    assert msgspec.json.encode(room._named(upload(1))) == b'{"tenant_id":1,"file_id":"%032x"}' % 1
