"""How a request of an upload ends that goes on later, or whose body nobody asked for; and its connection."""

from __future__ import annotations

import asyncio
import random
import time
from urllib.parse import urlsplit

import pytest

from tests.harness.in_process_server import Running, Serve
from tests.harness.postgres_stalls import WAITS_FOR_LOCK, backend, tenants_held
from tests.harness.raw_http import Answer, Wire, wired
from tests.harness.uploads.tus_uploader import CHUNK, TUS, Uploader, described, encoded, photo, uploader
from tests.harness.ws_device import put

SIZE_BYTES = 20_000
SENT_BYTES = 5_000
#: Far less than a body is waited for that was not asked for.
SOON_S = 5
HOUR_US = 3_600_000_000
IDLE = {"idle_s": 1}
DRAFTS = pytest.mark.parametrize("version", [3, 5, 6, 8])
WAYS = pytest.mark.parametrize("way", ["drain", "idle"])


@pytest.fixture
def content() -> bytes:
    return photo(SIZE_BYTES, random.randrange(1 << 30))


async def ended(way: str, server: Running) -> None:
    """Have the requests of a server end; those that are idle do by themselves."""
    if way == "drain":
        await server.drained()


def chunk(phone: Uploader, offset: int, length: int) -> dict[str, str]:
    """The headers of a chunk by tus whose client asks first."""
    headers = {"Upload-Offset": str(offset), "Content-Type": CHUNK, "Content-Length": str(length)}
    return TUS | phone.authorization | headers | {"Expect": "100-continue"}


def draft(server: Running, version: int, **more: str) -> dict[str, str]:
    """The headers of a request by the draft that is the end of an upload."""
    end = {"Upload-Incomplete": "?0"} if version == 3 else {"Upload-Complete": "?1"}
    named = {name.replace("_", "-").title(): value for name, value in more.items()}
    return server.headers() | {"Upload-Draft-Interop-Version": str(version)} | end | named


def is_later(answer: Answer) -> bool:
    """Whether an answer says that the upload goes on later, from the bytes that were sent."""
    message = answer.message
    assert answer.headers["Connection"] == "close"
    assert (message["offset"], answer.headers["Upload-Offset"]) == (SENT_BYTES, str(SENT_BYTES))
    return answer.verdict == (503, "unavailable") and message["retryable"] and message["retry_after_ms"] > 0


async def unanswered(wire: Wire) -> bool:
    """Whether a connection ends without an answer."""
    try:
        await wire.answer()
    except (asyncio.IncompleteReadError, ConnectionError):
        return True
    return False


@WAYS
async def test_drain_tus_chunk_told_to_resume(way: str, serve: Serve, content: bytes) -> None:
    server = await serve(uploads=IDLE if way == "idle" else {})
    phone = uploader(server)
    path = await phone.begun(len(content))
    async with wired(server.url) as wire:
        await wire.begin("PATCH", path, chunk(phone, 0, len(content)))
        assert (await wire.interim()).status == 100
        await wire.send(content[:SENT_BYTES])
        await ended(way, server)
        assert is_later(await wire.answer())
    phone.url = (await serve()).url
    assert await phone.offset(path) == SENT_BYTES
    assert (await phone.append(path, SENT_BYTES, content[SENT_BYTES:])).status == 204
    assert await phone.file(path) == content


@WAYS
async def test_drain_tus_creation_told_to_resume(way: str, serve: Serve, content: bytes) -> None:
    server = await serve(uploads=IDLE if way == "idle" else {})
    phone = uploader(server)
    length = {"Upload-Length": str(len(content)), "Upload-Metadata": encoded(described())}
    async with wired(server.url) as wire:
        await wire.begin("POST", "/v1/uploads", chunk(phone, 0, len(content)) | length)
        assert (await wire.interim()).status == 100
        await wire.send(content[:SENT_BYTES])
        await ended(way, server)
        answer = await wire.answer()
    assert is_later(answer)
    phone.url = (await serve()).url
    assert await phone.offset(answer.headers["Location"]) == SENT_BYTES


@DRAFTS
@WAYS
async def test_drain_ietf_creation_closed_without_answer(
    way: str, version: int, serve: Serve, content: bytes
) -> None:
    server = await serve(uploads=IDLE if way == "idle" else {})
    file = {"Content-Type": "image/jpeg", "Upload-Metadata": encoded(described())}
    headers = draft(server, version, content_length=str(len(content))) | file
    async with wired(server.url) as wire:
        await wire.begin("POST", "/v1/uploads", headers)
        path = urlsplit((await wire.interim()).headers["Location"]).path
        await wire.send(content[:SENT_BYTES])
        await ended(way, server)
        assert await unanswered(wire)
    again = await serve()
    append = draft(again, version, upload_offset=str(SENT_BYTES), content_type="application/partial-upload")
    async with wired(again.url) as wire:
        answer = await wire.ask("PATCH", path, append, content[SENT_BYTES:])
        assert answer.status in (200, 201)
    assert await uploader(again).file(path) == content


@WAYS
async def test_drain_ietf_chunk_closed_without_answer(way: str, serve: Serve, content: bytes) -> None:
    server = await serve(uploads=IDLE if way == "idle" else {})
    path = await uploader(server).begun(len(content))
    headers = draft(server, 8, upload_offset="0", content_type="application/partial-upload")
    async with wired(server.url) as wire:
        length = {"Content-Length": str(len(content)), "Expect": "100-continue"}
        await wire.begin("PATCH", path, headers | length)
        assert (await wire.interim()).status == 100
        await wire.send(content[:SENT_BYTES])
        await ended(way, server)
        assert await unanswered(wire)
    assert await uploader(await serve()).offset(path) == SENT_BYTES


async def test_drain_head_told_to_come_back(server: Running, content: bytes) -> None:
    phone = uploader(server)
    path = await phone.begun(len(content))
    other = await server.device("other")
    with tenants_held(server.dsn, "acme"):
        await other.send({"type": "sync", "id": "1", "key": "1", "items": [put("1", None, n=1)]})
        await backend(server.dsn, WAITS_FOR_LOCK)
        drained = asyncio.create_task(server.drained())
        assert (await other.receive())["type"] == "goodbye"
        assert (await phone.head(path)).status == 503
        answered = await phone.append(path, 0, content)
        assert answered.verdict == (503, "unavailable")
        for method in ("HEAD", "PATCH"):
            async with wired(server.url) as wire:
                headers = server.headers() | {"Upload-Draft-Interop-Version": "8", "Upload-Offset": "0"}
                await wire.begin(method, path, headers | {"Content-Type": "application/partial-upload"})
                assert await unanswered(wire)
    await drained


@pytest.mark.parametrize("version", [None, 8])
async def test_taken_over_request_answered_locked(
    version: int | None, server: Running, content: bytes
) -> None:
    phone = uploader(server)
    path = await phone.begun(len(content))
    headers = chunk(phone, 0, len(content))
    if version is not None:
        headers = draft(server, version, content_type="application/partial-upload") | {
            name: headers[name] for name in ("Upload-Offset", "Content-Length", "Expect")
        }
    async with wired(server.url) as wire:
        await wire.begin("PATCH", path, headers)
        assert (await wire.interim()).status == 100
        await wire.send(content[:SENT_BYTES])
        offset = await phone.offset(path)
        answer = await wire.answer()
    assert answer.verdict == (423, "locked")
    assert (answer.message["offset"], answer.headers["Upload-Offset"]) == (offset, str(offset))
    assert answer.headers["Connection"] == "close"


REFUSED = {
    "no upload": ("/v1/uploads/" + "0" * 32, {}, 404),
    "another offset": (None, {"Upload-Offset": "7"}, 409),
    "another type": (None, {"Content-Type": "image/jpeg"}, 415),
    "too much": (None, {"Content-Length": "30000"}, 413),
    "no token": (None, {"Authorization": "Bearer x"}, 401),
    "no version": (None, {"Tus-Resumable": "2"}, 412),
    "no metadata": ("/v1/uploads", {"Upload-Length": "20000"}, 422),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refusal_before_continue_ends_the_connection(case: str, server: Running) -> None:
    phone = uploader(server)
    begun = await phone.begun(SIZE_BYTES)
    path, headers, status = REFUSED[case]
    method = "POST" if path == "/v1/uploads" else "PATCH"
    async with wired(server.url) as wire:
        await wire.begin(method, path or begun, chunk(phone, 0, SIZE_BYTES) | headers)
        answer = await wire.answer()
        assert (answer.status, answer.interim) == (status, [])
        assert answer.headers["Connection"] == "close"
        async with asyncio.timeout(SOON_S):
            await wire.ended()


async def test_refusal_of_a_read_body_keeps_the_connection(server: Running) -> None:
    phone = uploader(server)
    path = await phone.begun(SIZE_BYTES)
    async with wired(server.url) as wire:
        for expect in ({}, {"Expect": "100-continue"}):
            headers = TUS | phone.authorization | {"Upload-Offset": "7", "Content-Type": CHUNK} | expect
            answer = await wire.ask("PATCH", path, headers, b"abc")
            assert answer.verdict == (409, "offset_mismatch")
            assert "Connection" not in answer.headers


async def test_chunk_token_expires_cut_off_and_resumed_with_another(
    server: Running, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = uploader(server)
    path = await phone.begun(len(content))
    async with wired(server.url) as wire:
        await wire.begin("PATCH", path, chunk(phone, 0, len(content)))
        assert (await wire.interim()).status == 100
        with monkeypatch.context() as later:
            later.setattr("compose.server.SystemClock.now_us", lambda _: time.time_ns() // 1000 + 2 * HOUR_US)
            await wire.send(content[:1])
            await wire.send(content[1:2])
            answer = await wire.answer()
    assert answer.verdict == (401, "unauthenticated")
    offset = await phone.offset(path)
    assert (await phone.append(path, offset, content[offset:])).status == 204


async def test_a_chunk_whose_last_bytes_come_after_its_token_has_expired_is_refused(
    server: Running, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = uploader(server)
    path = await phone.begun(len(content))
    async with wired(server.url) as wire:
        await wire.begin("PATCH", path, chunk(phone, 0, 1))
        assert (await wire.interim()).status == 100
        with monkeypatch.context() as later:
            later.setattr("compose.server.SystemClock.now_us", lambda _: time.time_ns() // 1000 + 2 * HOUR_US)
            await wire.send(content[:1])
            answer = await wire.answer()
    assert answer.verdict == (401, "unauthenticated")
    assert await phone.offset(path) == 0


@pytest.mark.parametrize("sub", ["a\0b", "a\ud800"], ids=ascii)
async def test_upload_sub_unfit_for_the_database_refused_at_once(server: Running, sub: str) -> None:
    headers = TUS | server.headers(sub=sub) | {"Upload-Length": "9", "Upload-Metadata": encoded(described())}
    async with server.http.post(f"{server.url}/v1/uploads", headers=headers) as answer:
        assert answer.status == 401
