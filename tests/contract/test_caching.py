"""What a cache between a device and the server may keep: files, each for who fetched it, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import pytest

from engine.uploads.blobs import BlobsFullError
from handlers.http.errors import as_sync_error
from tests.harness.in_process_server import ON_SHARED, Running, Serve
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
from tests.harness.ws_device import put

pytestmark = ON_SHARED

NOBODY: Final = "0" * 32
DRAFT: Final = {"Upload-Draft-Interop-Version": "8", "Upload-Complete": "?1"}
OF_CORS: Final = {"Access-Control-Request-Method": "GET"}


class Asked(NamedTuple):
    """A request, and the status of its answer."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


NO_TOKEN: Final = {"Authorization": "none"}
ASKED: Final = [
    Asked("GET", "/v1/changes", 200),
    Asked("GET", "/v1/changes?cursor=nonsense", 422),
    Asked("GET", "/v1/conflicts", 200),
    Asked("GET", "/v1/domains", 200),
    Asked("POST", f"/v1/conflicts/{NOBODY}/resolution", 404, {}, b'{"choice":"server","version":1}'),
    Asked("POST", "/v1/heartbeat", 200, {"Content-Type": "application/json"}, b"{}"),
    Asked("POST", "/v1/sync", 400, {"Content-Type": "application/json"}, b"{"),
    Asked("POST", "/v1/sync", 422, {"Content-Type": "text/html"}, b"{}"),
    Asked("GET", "/v1/sync", 401, NO_TOKEN),
    Asked("GET", "/v1/changes", 401, NO_TOKEN),
    Asked("GET", f"/v1/files/{NOBODY}", 401, NO_TOKEN),
    Asked("HEAD", f"/v1/files/{NOBODY}", 401, NO_TOKEN),
    Asked("GET", f"/v1/files/{NOBODY}", 403, {"Origin": "https://elsewhere.example.org"}),
    Asked("GET", f"/v1/files/{NOBODY}", 404),
    Asked("HEAD", f"/v1/files/{NOBODY}", 404),
    Asked("DELETE", f"/v1/files/{NOBODY}", 405),
    Asked("OPTIONS", f"/v1/files/{NOBODY}", 204, OF_CORS),
    Asked("OPTIONS", "/v1/uploads", 204, OF_CORS),
    Asked("POST", "/v1/uploads", 412),
    Asked("POST", "/v1/uploads", 422, TUS),
    Asked("GET", "/v1/uploads", 405),
    Asked("GET", f"/v1/uploads/{NOBODY}", 405),
    Asked("HEAD", f"/v1/uploads/{NOBODY}", 401, NO_TOKEN | TUS),
    Asked("HEAD", f"/v1/uploads/{NOBODY}", 404, TUS),
    Asked("HEAD", f"/v1/uploads/{NOBODY}", 404, DRAFT | {"Upload-Draft-Interop-Version": "7"}),
    Asked("PATCH", f"/v1/uploads/{NOBODY}", 404, TUS | {"Upload-Offset": "0", "Content-Type": CHUNK}),
    Asked("DELETE", f"/v1/uploads/{NOBODY}", 404, TUS),
    Asked("GET", "/v1/nowhere", 404),
    Asked("GET", "/nowhere", 404),
    Asked("GET", "/healthz", 200),
    Asked("GET", "/readyz", 200),
    Asked("GET", "/metrics", 200),
    Asked("GET", "/v1/changes", 417, {"Expect": "the unexpected"}),
]


@pytest.fixture
def phone(shared: Running) -> Uploader:
    return uploader(shared)


def varied(headers: Mapping[str, str]) -> set[str]:
    return {name.strip().lower() for name in headers.get("Vary", "").split(",") if name.strip()}


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked.method} {asked.path} {asked.status}")
async def test_caching_answer_without_a_file_is_not_stored(asked: Asked, phone: Uploader) -> None:
    reply = await phone.ask(asked.method, asked.path, asked.headers, asked.body)
    assert (reply.status, reply.headers["Cache-Control"]) == (asked.status, "no-store")
    wanted = {"authorization", "origin"} if asked.path.startswith("/v1/") else set()
    assert wanted <= varied(reply.headers)


async def test_caching_answer_of_an_upload_is_not_stored(shared: Running, phone: Uploader) -> None:
    content = photo(2_000)
    created = await phone.create(2_000, content[:1_000])
    path = created.headers["Location"]
    replies = [
        created,
        await phone.head(path),
        await phone.append(path, 0, content),
        await phone.append(path, 1_000, content[1_000:]),
        await phone.append(path, 2_000, b"more"),
        await phone.cancel(path),
        await phone.head(path),
        await phone.cancel(path),
    ]
    assert [reply.status for reply in replies] == [201, 200, 409, 204, 400, 204, 410, 410]
    named = {"Upload-Metadata": encoded(described()), "Content-Type": "image/jpeg"}
    async with wired(shared.url) as wire:
        by_draft = await wire.ask("POST", "/v1/uploads", phone.authorization | DRAFT | named, content)
        assert by_draft.status == 201
    async with wired(shared.url) as wire:
        more = DRAFT | {"Content-Type": "application/partial-upload", "Upload-Offset": "1"}
        problem = await wire.ask("PATCH", by_draft.interim[0].headers["Location"], phone.authorization | more)
        assert problem.headers["Content-Type"] == "application/problem+json"
    for headers in [*(reply.headers for reply in replies), by_draft.headers, problem.headers]:
        assert headers["Cache-Control"] == "no-store"
        assert varied(headers) == {"authorization", "origin"}


async def test_caching_file_is_private_and_its_refusal_is_not_stored(phone: Uploader) -> None:
    path = file_path(await phone.uploaded(photo(1_000)))
    tag = (await phone.ask("GET", path, {})).headers["ETag"]
    kept: list[tuple[str, dict[str, str], int]] = [
        ("GET", {}, 200),
        ("HEAD", {}, 200),
        ("GET", {"Range": "bytes=1-2"}, 206),
        ("GET", {"If-None-Match": tag}, 304),
    ]
    for method, headers, status in kept:
        reply = await phone.ask(method, path, headers)
        assert reply.status == status
        assert reply.headers["Cache-Control"] == "private, max-age=31536000, immutable"
        assert varied(reply.headers) == {"authorization", "origin"}
    beyond = await phone.ask("GET", path, {"Range": "bytes=1000-"})
    assert (beyond.status, beyond.headers["Cache-Control"]) == (416, "no-store")


@pytest.mark.parametrize("accepted", [{}, {"Accept": "application/msgpack"}, {"Accept-Encoding": "gzip"}])
async def test_caching_page_varies_with_all_that_chooses_its_form(
    accepted: dict[str, str], shared: Running
) -> None:
    pushed = {"type": "sync", "key": "k", "items": [put("a1", None, text="a" * 5_000)]}
    assert (await shared.post("/v1/sync", pushed)).status == 200
    reply = await shared.get("/v1/changes", headers={"Accept-Encoding": "identity"} | accepted)
    assert varied(reply.headers) == {"authorization", "origin", "accept", "accept-encoding"}
    assert ("Content-Encoding" in reply.headers) is ("Accept-Encoding" in accepted)


@pytest.mark.asyncio(loop_scope="function")
async def test_caching_rate_refusal_is_not_stored(serve: Serve) -> None:
    server = await serve(limits={"messages_per_minute": 1})
    assert (await server.get("/v1/changes")).status == 200
    limited = await server.get("/v1/changes")
    assert limited.verdict == (429, "rate_limited")
    assert (limited.headers["Cache-Control"], "Retry-After" in limited.headers) == ("no-store", True)


async def test_error_full_disk_has_a_longer_retry_after_than_an_outage() -> None:
    waits_ms = {as_sync_error(BlobsFullError("ENOSPC")).details["retry_after_ms"] for _ in range(50)}
    assert all(isinstance(wait_ms, int) and 45_000 <= wait_ms <= 90_000 for wait_ms in waits_ms)
    assert len(waits_ms) > 10, "not all come back together"
