"""What the benchmark of uploads sends, and what it sees of what becomes of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from bench.cli import bench
from bench.harness.environment import BenchError
from bench.harness.load_run import Target
from bench.harness.server import Server as BareServer
from bench.peers.installation import installed
from bench.peers.stages import tus_server
from bench.report.results import Transfer
from bench.uploads import device, generator
from bench.uploads.damaged import damaged_refused
from bench.uploads.device import FailedError, Stored
from bench.uploads.generator import UploadPlan, Uploads
from bench.uploads.scenario import upload
from bench.uploads.workload import Album, Picture, record_id
from tests.harness.in_process_server import Serve
from tests.harness.ws_device import SECRET

FILE_BYTES, CHUNK_BYTES = 10_000, 4096


# -- files ------------------------------------------------------------------------------------


def whole(picture: Picture, chunk_bytes: int = CHUNK_BYTES) -> bytes:
    offsets = range(0, picture.size_bytes, chunk_bytes)
    return b"".join(bytes(part) for offset in offsets for part in picture.chunk(offset, chunk_bytes))


def test_album_chunks_are_the_file_and_no_two_files_are_alike() -> None:
    album = Album("p", 3, FILE_BYTES, CHUNK_BYTES)
    pictures = [album.picture(uploader, number) for uploader in range(3) for number in range(2)]
    contents = [whole(picture) for picture in pictures]
    assert {len(content) for content in contents} == {FILE_BYTES}
    assert [hashlib.sha256(content).hexdigest() for content in contents] == [one.sha256 for one in pictures]
    assert len({picture.sha256 for picture in pictures}) == 6
    assert all(content.startswith(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00") for content in contents)
    assert whole(pictures[0], 7) == contents[0]


def test_album_no_chunk_is_like_one_of_another_uploader() -> None:
    album = Album("p", 100, 1 << 20, 1 << 18)
    chunks = {
        b"".join(map(bytes, album.picture(uploader, 0).chunk(offset, 1 << 18)))[100:-100]
        for uploader in range(100)
        for offset in range(0, 1 << 20, 1 << 18)
    }
    assert len(chunks) == 400


def test_picture_metadata_names_the_file_and_its_record() -> None:
    picture = Album("p", 1, FILE_BYTES, CHUNK_BYTES).picture(0, 4)
    pairs = [pair.split(" ") for pair in picture.metadata.split(",")]
    said = {key: base64.b64decode(value).decode() for key, value in pairs}
    assert said == {
        "filename": "photo-4.jpg",
        "filetype": "image/jpeg",
        "sha256": picture.sha256,
        "domain": "task",
        "record_id": "p-0-0",
    }


# -- a server that fails ----------------------------------------------------------------------


class Server:
    """Keeps uploads in memory. ``spoil`` may answer in place of a chunk, ``told`` is an offset to tell.

    ``wrong`` counts chunks that came without their checksum.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.feed: dict[str, list[dict[str, Any]]] = {}
        self.spoil: Callable[[Server, web.Request, bytes], web.Response | None] = lambda *_: None
        self.asked: list[str] = []
        self.told = ""
        self.wrong = 0
        self.records: list[str] = []
        self.second_record = asyncio.Event()
        self.port = 0

    async def sync(self, request: web.Request) -> web.Response:
        """Make a record."""
        (item,) = (await request.json())["items"]
        self.records.append(item["id"])
        if item["id"].endswith("-1-1"):
            self.second_record.set()
        return web.json_response({"type": "synced"})

    async def create(self, request: web.Request) -> web.Response:
        """Begin an upload, and tell of it in the feed."""
        self.asked.append("POST")
        name = f"f{len(self.files)}"
        self.files[name] = b""
        said = dict(pair.split(" ") for pair in request.headers["Upload-Metadata"].split(","))
        said = {key: base64.b64decode(value).decode() for key, value in said.items()}
        entry: dict[str, Any] = {key: said[key] for key in ("filename", "filetype", "sha256")}
        entry |= {"file_id": name, "size_bytes": int(request.headers["Upload-Length"])}
        self.feed.setdefault(said["record_id"], []).append(entry)
        return web.Response(status=201, headers={"Location": f"/v1/uploads/{name}"})

    async def take(self, request: web.Request) -> web.Response:
        """Take a chunk."""
        self.asked.append("PATCH")
        body = await request.read()
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        self.wrong += request.headers["Upload-Checksum"] != f"sha256 {digest}"
        spoiled = self.spoil(self, request, body)
        if spoiled is not None:
            return spoiled
        self.files[request.match_info["id"]] += body
        return self.offset(request, 204)

    async def look(self, request: web.Request) -> web.Response:
        """Say how much has come."""
        self.asked.append("HEAD")
        return self.offset(request, 200)

    def offset(self, request: web.Request, status: int) -> web.Response:
        """Answer with what has come."""
        size = str(len(self.files[request.match_info["id"]]))
        return web.Response(status=status, headers={"Upload-Offset": self.told or size})

    async def give(self, request: web.Request) -> web.Response:
        """Send a file."""
        return web.Response(body=self.files[request.match_info["id"]])

    async def changes(self, request: web.Request) -> web.Response:
        """Give a page of one record."""
        place = int(request.query["cursor"] or "0")
        records = [{"id": name, "attachments": entries} for name, entries in sorted(self.feed.items())]
        page = [*records[place : place + 1], {"id": "without"}]
        cursor = str(place + 1)
        return web.json_response({"changes": page, "cursor": cursor, "more": place + 1 < len(records)})


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """A server on a free port; a client loses no time between tries."""
    monkeypatch.setattr(device, "_PAUSE_S", 0.0)
    monkeypatch.setattr(generator, "_FEED_S", 0.0)
    kept = Server()
    app = web.Application()
    app.router.add_post("/v1/sync", kept.sync)
    app.router.add_post("/v1/uploads", kept.create)
    app.router.add_patch("/v1/uploads/{id}", kept.take)
    app.router.add_head("/v1/uploads/{id}", kept.look)
    app.router.add_get("/v1/files/{id}", kept.give)
    app.router.add_get("/v1/changes", kept.changes)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    kept.port = runner.addresses[0][1]
    yield kept
    await runner.cleanup()


class Client:
    """Two uploaders of one run, in this process."""

    def __init__(self, port: int) -> None:
        plan = UploadPlan(
            host="127.0.0.1",
            port=port,
            files="/v1/files",
            prefix="p",
            tokens=["t0", "t1"],
            file_bytes=FILE_BYTES,
            chunk_bytes=CHUNK_BYTES,
            records=True,
        )
        self.album = Album("p", 2, FILE_BYTES, CHUNK_BYTES)
        self.run = Uploads(plan)
        self.uploaders = self.run.uploaders

    async def upload(self, number: int = 0, uploader: int = 0) -> Stored:
        """Upload one of an uploader's files."""
        return await self.uploaders[uploader].upload(self.album.picture(uploader, number))


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A client of that server."""
    one = Client(server.port)
    yield one
    for uploader in one.uploaders:
        uploader.close()


async def test_uploader_every_chunk_is_acknowledged_and_every_file_compared(
    client: Client, server: Server
) -> None:
    stored = [await client.upload(), await client.upload(1), await client.upload(0, 1)]
    assert server.asked == ["POST", "PATCH", "PATCH", "PATCH"] * 3
    assert [one.sent_bytes for one in client.uploaders] == [2 * FILE_BYTES, FILE_BYTES]
    assert [len(one.chunk_us) for one in client.uploaders] == [6, 3]
    assert server.wrong == 0, "each chunk has its checksum"
    assert await client.run.check(stored) == 3
    assert client.run.faults == []


Spoil = Callable[[Server, web.Request, bytes], web.Response]


def once(spoil: Spoil) -> Any:
    """Spoil the second chunk alone."""
    calls = iter(range(100))

    def spoiled(server: Server, request: web.Request, body: bytes) -> web.Response | None:
        return spoil(server, request, body) if next(calls) == 1 else None

    return spoiled


def _cut(server: Server, request: web.Request, body: bytes) -> web.Response:
    """Keep a part of a chunk, and have the connection end before the answer."""
    server.files[request.match_info["id"]] += body[:1000]
    assert request.transport is not None
    request.transport.abort()
    return web.Response(status=500)


def _busy(_: Server, __: web.Request, ___: bytes) -> web.Response:
    return web.Response(status=423, text="locked")


def _unheard(server: Server, request: web.Request, body: bytes) -> web.Response:
    """Keep a chunk and say that its offset is wrong, as if it came again."""
    server.files[request.match_info["id"]] += body
    return web.Response(status=409)


@pytest.mark.parametrize(
    ("spoil", "reason"), [(_busy, "status 423 locked"), (_unheard, "status 409"), (_cut, "")]
)
async def test_uploader_failed_chunk_goes_on_from_the_servers_offset(
    client: Client, server: Server, spoil: Spoil, reason: str
) -> None:
    server.spoil = once(spoil)
    stored = await client.upload()
    assert server.asked.count("HEAD") == 1
    assert await client.run.check([stored]) == 1
    ((said, times),) = client.uploaders[0].retries.items()
    assert times == 1
    assert reason in said


async def test_uploader_idle_connection_that_was_closed_is_opened_again(client: Client) -> None:
    stored = await client.upload()
    client.uploaders[0].close()
    assert await client.run.check([stored]) == 1
    assert client.uploaders[0].retries == {}


async def test_uploader_gives_up_what_fails_for_good(client: Client, server: Server) -> None:
    server.spoil = lambda *_: web.Response(status=413, text="too large")
    with pytest.raises(FailedError, match="status 413 too large"):
        await client.upload()
    server.spoil = lambda *_: web.Response(status=503)
    with pytest.raises(FailedError, match="status 503, 8 times"):
        await client.upload()


def _ahead(server: Server, request: web.Request, body: bytes) -> web.Response:
    server.files[request.match_info["id"]] += body
    return web.Response(status=204, headers={"Upload-Offset": "1"})


def _forgetful(server: Server, request: web.Request, _: bytes) -> web.Response:
    server.files[request.match_info["id"]] = b""
    return web.Response(status=500)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_ahead, "a chunk was acknowledged with offset 1 instead of 8192"),
        (_forgetful, "4096 bytes were acknowledged and 0 are there"),
    ],
)
async def test_uploader_wrong_offset_is_a_failure(
    client: Client, server: Server, spoil: Spoil, sentence: str
) -> None:
    server.spoil = once(spoil)
    with pytest.raises(FailedError, match=sentence):
        await client.upload()


async def test_checker_finds_a_file_that_is_not_as_it_was_sent(client: Client, server: Server) -> None:
    stored = [await client.upload(number) for number in range(4)]
    server.files["f1"] = server.files["f1"][:-1] + b"!"
    server.files["f2"] = b""
    server.feed[record_id("p", 0, 0)][3]["sha256"] = "0" * 64
    assert await client.run.check(stored) == 1
    assert sorted(client.run.faults) == [
        "file f1: its bytes are not those that were sent",
        "file f2: its bytes are not those that were sent",
        "file f3: its record's feed entry does not name it as it is",
    ]


async def test_checker_finds_an_upload_with_another_offset(client: Client, server: Server) -> None:
    stored = await client.upload()
    server.told = "8192"
    assert await client.run.check([stored]) == 0
    assert client.run.faults == ["file f0: its upload is said to be at 8192, status 200"]


# -- the others -------------------------------------------------------------------------------


async def turn(port: int, files: str, **changes: Any) -> Transfer:
    target = Target(port=port, secret=SECRET.decode(), tenants=["acme"], watched={"server": os.getpid()})
    usual: dict[str, Any] = {"uploaders": 5, "file_bytes": FILE_BYTES, "chunk_bytes": CHUNK_BYTES}
    return await upload("a turn", target, files=files, **({"records": False} | usual | changes))


async def test_uploading_many_at_the_plain_server(tmp_path: Path) -> None:
    async with BareServer(["-m", "bench.baselines.plain_uploads", str(tmp_path / "files")], {}) as plain:
        came = await turn(plain.port, "/v1/files")
    assert (came.begun, came.whole, came.chunks) == (5, 5, 15)
    assert came.mb_per_s * came.elapsed_s == pytest.approx(5 * FILE_BYTES / 1e6)
    assert (came.retries, came.fault_count, came.faults) == ({}, 0, [])
    assert came.elapsed_s > 0
    assert came.rss_peak_mib > 0
    assert {path.stat().st_size for path in (tmp_path / "files").iterdir()} == {FILE_BYTES}


async def test_uploading_goes_on_until_told_and_a_record_has_fifty_at_most(server: Server) -> None:
    async def beside(_: int) -> None:
        async with asyncio.timeout(30):
            await server.second_record.wait()

    small = {"uploaders": 2, "file_bytes": 300, "chunk_bytes": 200}
    came = await turn(server.port, "/v1/files", records=True, beside=beside, **small)
    assert (came.faults, came.other_cpus) == ([], None)
    assert came.whole == came.begun == len(server.files) > 50
    assert came.chunks == 2 * came.begun
    (first,) = (entries for name, entries in server.feed.items() if name.endswith("-1-0"))
    assert len(first) == 50
    assert server.feed.keys() <= set(server.records)


async def test_uploading_at_the_tus_server_of_node(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    place = await installed("tus", tmp_path)
    async with tus_server(place, str(tmp_path / "files")) as tus:
        came = await turn(tus.port, "/v1/uploads")
    assert (came.begun, came.whole, came.chunks) == (5, 5, 15)
    assert (came.retries, came.faults) == ({}, [])


async def test_bench_uploads_without_node_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(bench, ["--scenario", "uploads"])
    assert result.exit_code == 1
    assert re.search(r"node is not installed.*install Node.js 20.19 or later", result.output)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network\nexit 1\n")
    npm.chmod(0o700)
    with pytest.raises(BenchError, match="did not install bench/peers/tus: no network"):
        await installed("tus", tmp_path)


async def test_nobody_to_upload_to_is_an_error() -> None:
    async with BareServer(["-m", "bench.baselines.bare_server"], {}) as server:
        port = server.port
    with pytest.raises(BenchError, match="ended before it was done"):
        await turn(port, "/v1/files")


async def test_damaged_chunks_are_refused_by_the_product_and_taken_by_a_server_that_checks_nothing(
    serve: Serve, server: Server
) -> None:
    port = int((await serve()).url.rpartition(":")[2])
    target = Target(port=port, secret=SECRET.decode(), tenants=["acme"])
    assert await damaged_refused((target.host, port), target.token("acme", "phone")) == 100
    assert await damaged_refused((target.host, server.port), "t0") == 0
