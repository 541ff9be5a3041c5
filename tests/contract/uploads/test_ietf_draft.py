"""The IETF's resumable uploads as each draft that a client may speak spells them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from multidict import CIMultiDict

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.raw_http import Answer, Wire, wired
from tests.harness.uploads.tus_uploader import PNG, encoded, file_path, photo
from tests.harness.ws_device import PATIENCE_S

pytestmark = ON_SHARED

#: Upload-Length and Upload-Limit came with it.
SINCE_6 = pytest.mark.parametrize("draft", [6, 7, 8], indirect=True)
SIZE_BYTES = 70_000
#: What has no header of its own in the draft.
BELONGS = {"Upload-Metadata": encoded({"domain": "task", "record_id": "pump-3"})}
MISMATCH = "https://iana.org/assignments/http-problem-types#mismatching-upload-offset"
COMPLETED = "https://iana.org/assignments/http-problem-types#completed-upload"
INCONSISTENT = "https://iana.org/assignments/http-problem-types#inconsistent-upload-length"


class Draft(NamedTuple):
    """A device that speaks one interop version."""

    version: int
    server: Running

    def headers(self, *, complete: bool | None = None, **more: str) -> dict[str, str]:
        """The token, the version, and whether the request is the end; others are named as in Python."""
        headers = self.server.headers() | {"Upload-Draft-Interop-Version": str(self.version)}
        if complete is not None and self.version == 3:
            headers["Upload-Incomplete"] = f"?{not complete:d}"
        elif complete is not None:
            headers["Upload-Complete"] = f"?{complete:d}"
        return headers | _titled(more)

    def creation(self, *, complete: bool, **more: str) -> dict[str, str]:
        """The headers of a creation."""
        file = {"Content-Type": "image/jpeg", "Content-Disposition": 'attachment; filename="site.jpg"'}
        return self.headers(complete=complete, **more) | {**file, **BELONGS} | _titled(more)

    def chunk(self, offset: int, *, complete: bool, **more: str) -> dict[str, str]:
        """The headers of an append."""
        headers = self.headers(complete=complete) | {"Upload-Offset": str(offset)}
        if self.version >= 6:
            headers["Content-Type"] = "application/partial-upload"
        return headers | _titled(more)

    def completed(self, headers: CIMultiDict[str]) -> bool | None:
        """Whether an answer says that the upload is complete."""
        if self.version < 4:
            value = headers.get("Upload-Incomplete")
            return None if value is None else {"?0": True, "?1": False}[value]
        value = headers.get("Upload-Complete")
        return None if value is None else {"?1": True, "?0": False}[value]

    async def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        """Send a request on a connection of its own."""
        async with wired(self.server.url) as wire:
            return await wire.ask(method, path, headers, body)

    async def begun(self, body: bytes = b"", **more: str) -> str:
        """Begin an upload of which more comes; gives its path."""
        answer = await self.ask("POST", "/v1/uploads", self.creation(complete=False, **more), body)
        assert answer.status == 201, answer
        return urlsplit(answer.headers["Location"]).path

    async def head(self, path: str) -> Answer:
        """Ask how an upload stands."""
        return await self.ask("HEAD", path, self.headers())

    async def offset(self, path: str) -> int:
        """Ask how far an upload has come."""
        answer = await self.head(path)
        assert answer.status == 204, answer
        return int(answer.headers["Upload-Offset"])

    async def file(self, path: str) -> bytes:
        """Read the file that an upload became."""
        answer = await self.ask("GET", file_path(path), self.server.headers())
        assert answer.status == 200, answer
        return answer.body


def _titled(named: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-").title(): value for name, value in named.items()}


@pytest.fixture(params=[3, 4, 5, 6, 7, 8])
def draft(request: pytest.FixtureRequest, shared: Running) -> Draft:
    return Draft(request.param, shared)


@pytest.fixture
def content() -> bytes:
    return photo(SIZE_BYTES, random.randrange(1 << 30))


@asynccontextmanager
async def creating(draft: Draft, headers: dict[str, str]) -> AsyncIterator[tuple[Wire, str]]:
    """Send the head of a creation and wait until it is told where to go on; gives the upload's path."""
    async with wired(draft.server.url) as wire:
        await wire.begin("POST", "/v1/uploads", headers)
        interim = await wire.interim()
        assert (interim.status, interim.headers["Upload-Draft-Interop-Version"]) == (104, str(draft.version))
        assert ("Upload-Limit" in interim.headers) is (draft.version >= 6)
        yield wire, urlsplit(interim.headers["Location"]).path


async def test_ietf_one_request_file_stored(draft: Draft, content: bytes) -> None:
    headers = draft.creation(complete=True, content_length=str(len(content)))
    async with creating(draft, headers) as (wire, path):
        await wire.send(content)
        answer = await wire.answer()
    assert answer.status == 201
    assert urlsplit(answer.headers["Location"]).path == path
    assert answer.headers["Upload-Offset"] == str(len(content))
    assert draft.completed(answer.headers) in ((True, None) if draft.version == 3 else (True,))
    assert await draft.file(path) == content


async def test_ietf_one_request_unknown_length_file_stored(draft: Draft, content: bytes) -> None:
    headers = draft.creation(complete=True, transfer_encoding="chunked")
    async with creating(draft, headers) as (wire, path):
        for start in range(0, len(content), 10_000):
            block = content[start : start + 10_000]
            await wire.send(f"{len(block):x}\r\n".encode() + block + b"\r\n")
        await wire.send(b"0\r\n\r\n")
        answer = await wire.answer()
    assert (answer.status, answer.headers["Upload-Offset"]) == (201, str(len(content)))
    assert await draft.file(path) == content


@pytest.mark.parametrize("how", ["fin", "rst", "chunked"])
async def test_ietf_cut_connection_loses_no_byte(how: str, draft: Draft, content: bytes) -> None:
    sent = random.randrange(1, len(content))
    length = {"transfer_encoding": "chunked"} if how == "chunked" else {"content_length": str(len(content))}
    async with creating(draft, draft.creation(complete=True, **length)) as (wire, path):
        frame = f"{len(content):x}\r\n".encode() if how == "chunked" else b""
        await wire.send(frame + content[:sent])
        if how == "rst":
            wire.reset()
        else:
            wire.finish()
    answer = await draft.head(path)
    assert (answer.status, draft.completed(answer.headers)) == (204, False)
    assert answer.headers["Cache-Control"] == "no-store"
    offset = int(answer.headers["Upload-Offset"])
    assert offset <= sent
    assert how == "rst" or offset == sent
    answer = await draft.ask("PATCH", path, draft.chunk(offset, complete=True), content[offset:])
    assert answer.status in (200, 201)
    assert draft.completed(answer.headers) in ((True, None) if draft.version == 3 else (True,))
    assert answer.headers["Upload-Offset"] == str(len(content))
    assert await draft.file(path) == content


async def test_ietf_head_ends_a_dead_request(draft: Draft, content: bytes) -> None:
    headers = draft.creation(complete=True, content_length=str(len(content)))
    async with creating(draft, headers) as (wire, path):
        await wire.send(content[:30_000])
        async with asyncio.timeout(PATIENCE_S):
            offset = await draft.offset(path)
        assert offset <= 30_000
        assert (await wire.answer()).status == 423
    answer = await draft.ask("PATCH", path, draft.chunk(offset, complete=True), content[offset:])
    assert answer.status in (200, 201)
    assert await draft.file(path) == content


async def test_ietf_several_appends_file_stored(draft: Draft, content: bytes) -> None:
    path = await draft.begun()
    for start, end in ((0, 20_000), (20_000, 50_000)):
        answer = await draft.ask("PATCH", path, draft.chunk(start, complete=False), content[start:end])
        assert answer.status == (201 if draft.version < 7 else 204)
        assert (answer.headers["Upload-Offset"], draft.completed(answer.headers)) == (str(end), False)
        assert draft.completed((await draft.head(path)).headers) is False
    answer = await draft.ask("PATCH", path, draft.chunk(50_000, complete=True), content[50_000:])
    assert answer.status in (200, 201)
    assert await draft.file(path) == content
    assert draft.completed((await draft.head(path)).headers) is True


async def test_ietf_empty_append_completes(draft: Draft, content: bytes) -> None:
    path = await draft.begun(content)
    assert draft.completed((await draft.head(path)).headers) is False
    answer = await draft.ask("PATCH", path, draft.chunk(len(content), complete=True))
    assert answer.status in (200, 201)
    assert await draft.file(path) == content


async def test_ietf_append_without_complete_header_completes(draft: Draft, content: bytes) -> None:
    path = await draft.begun(content[:1000])
    headers = draft.chunk(1000, complete=True)
    del headers["Upload-Incomplete" if draft.version < 4 else "Upload-Complete"]
    answer = await draft.ask("PATCH", path, headers, content[1000:])
    assert answer.status in (200, 201)
    assert await draft.file(path) == content


@pytest.mark.parametrize("offset", [0, 999, 1001])
async def test_ietf_wrong_offset_answered_with_the_right_one(
    offset: int, draft: Draft, content: bytes
) -> None:
    path = await draft.begun(content[:1000])
    answer = await draft.ask("PATCH", path, draft.chunk(offset, complete=True), content[offset:])
    assert (answer.status, answer.headers["Upload-Offset"]) == (409, "1000")
    assert draft.completed(answer.headers) is False
    if draft.version >= 6:
        assert answer.headers["Content-Type"].partition(";")[0] == "application/problem+json"
        problem = answer.message
        assert (problem["type"], problem["expected-offset"], problem["provided-offset"]) == (
            MISMATCH,
            1000,
            offset,
        )
    else:
        assert answer.verdict == (409, "offset_mismatch")
    assert await draft.offset(path) == 1000


async def test_ietf_repeated_end_answered_again(draft: Draft, content: bytes) -> None:
    path = await draft.begun(content[:1000])
    last = draft.chunk(1000, complete=True)
    assert (await draft.ask("PATCH", path, last, content[1000:])).status in (200, 201)
    again = await draft.ask("PATCH", path, draft.chunk(len(content), complete=True))
    assert again.status in (200, 201)
    assert draft.completed(again.headers) in ((True, None) if draft.version == 3 else (True,))
    async with wired(draft.server.url) as wire:
        chunked = draft.chunk(len(content), complete=True, transfer_encoding="chunked")
        await wire.begin("PATCH", path, chunked)
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).status == again.status
    more = await draft.ask("PATCH", path, draft.chunk(len(content), complete=False), b"more")
    assert more.status == 400
    if draft.version >= 6:
        assert more.message["type"] == COMPLETED
    assert await draft.file(path) == content


@SINCE_6
async def test_ietf_changed_length_refused(draft: Draft, content: bytes) -> None:
    path = await draft.begun(content[:1000], upload_length=str(len(content)))
    for headers, body in (
        (draft.chunk(1000, complete=False, upload_length="69999"), content[1000:2000]),
        (draft.chunk(1000, complete=True), content[1000:-1]),
    ):
        answer = await draft.ask("PATCH", path, headers, body)
        assert (answer.status, draft.completed(answer.headers)) == (400, False)
        if draft.version >= 7:
            assert answer.message["type"] == INCONSISTENT
    assert await draft.offset(path) == 1000
    creation = draft.creation(complete=True, upload_length="69999")
    refused = await draft.ask("POST", "/v1/uploads", creation, content)
    assert (refused.status, refused.interim) == (400, [])


@SINCE_6
async def test_ietf_head_tells_length_and_offset(draft: Draft, content: bytes) -> None:
    path = await draft.begun(content[:1000], upload_length=str(len(content)))
    answer = await draft.head(path)
    assert answer.headers["Upload-Length"] == str(len(content))
    limits = dict(limit.strip().split("=") for limit in answer.headers["Upload-Limit"].split(","))
    assert int(limits["max-size"]) == 20_971_520
    assert 0 < int(limits["expires" if draft.version == 6 else "max-age"]) <= 86_400
    unknown = await draft.head(await draft.begun(content[:1000]))
    assert "Upload-Length" not in unknown.headers


async def test_ietf_content_type_required_from_version_6(draft: Draft, content: bytes) -> None:
    path = await draft.begun(content[:1000])
    headers = draft.chunk(1000, complete=True, content_type="image/jpeg")
    answer = await draft.ask("PATCH", path, headers, content[1000:])
    assert answer.status == (415 if draft.version >= 6 else 201)


async def test_ietf_cancelled_upload_gone(draft: Draft, content: bytes) -> None:
    path = await draft.begun(content[:1000])
    assert (await draft.ask("DELETE", path, draft.headers())).status == 204
    assert (await draft.head(path)).status == 410
    answer = await draft.ask("PATCH", path, draft.chunk(1000, complete=True), content[1000:])
    assert answer.status == 410


async def test_ietf_head_with_upload_headers_refused(draft: Draft, content: bytes) -> None:
    path = await draft.begun(content[:1000])
    for method in ("HEAD", "DELETE"):
        answer = await draft.ask(method, path, draft.headers(complete=False) | {"Upload-Offset": "1000"})
        if draft.version < 7:
            assert answer.status == 400
            assert await draft.offset(path) == 1000
        else:
            assert answer.status == 204


@pytest.mark.parametrize("version", ["2", "9", "x", "", None])
async def test_ietf_unknown_version_answered_as_newest(
    version: str | None, shared: Running, content: bytes
) -> None:
    newest = Draft(8, shared)
    headers = newest.creation(complete=True, upload_draft_interop_version=version or "")
    if version is None:
        del headers["Upload-Draft-Interop-Version"]
    answer = await newest.ask("POST", "/v1/uploads", headers, content)
    assert answer.interim == []


async def test_ietf_options_tells_limits(draft: Draft) -> None:
    answer = await draft.ask("OPTIONS", "/v1/uploads", draft.headers())
    assert answer.status in (200, 204)
    assert draft.version < 6 or "max-size=" in answer.headers["Upload-Limit"]


@pytest.mark.parametrize("headers", [{}, {"Expect": "100-continue"}])
async def test_ietf_refused_creation_gets_no_interim_answer(headers: dict[str, str], draft: Draft) -> None:
    creation = draft.creation(complete=True, content_length="20971521") | headers
    async with wired(draft.server.url) as wire:
        await wire.begin("POST", "/v1/uploads", creation)
        answer = await wire.answer()
    assert (answer.status, answer.interim) == (413, [])


async def test_ietf_expect_continue_gets_both_interim_answers(draft: Draft, content: bytes) -> None:
    headers = draft.creation(complete=True, content_length=str(len(content)), expect="100-continue")
    async with wired(draft.server.url) as wire:
        await wire.begin("POST", "/v1/uploads", headers)
        assert {(await wire.interim()).status, (await wire.interim()).status} == {100, 104}
        await wire.send(content)
        assert (await wire.answer()).status == 201


async def test_ietf_http_headers_describe_the_file(draft: Draft) -> None:
    headers = draft.creation(
        complete=True,
        content_type="image/png",
        content_disposition="inline; filename=\"a.png\"; filename*=UTF-8''%C3%9Cber%20alles.png",
    )
    answer = await draft.ask("POST", "/v1/uploads", headers, PNG)
    assert answer.status == 201
    path = urlsplit(answer.headers["Location"]).path
    file = await draft.ask("GET", file_path(path), draft.server.headers())
    assert (file.body, file.headers["Content-Type"]) == (PNG, "image/png")
    assert "%C3%9Cber%20alles.png" in file.headers["Content-Disposition"]


@pytest.mark.parametrize("right", [True, False])
async def test_ietf_digest_mismatch_refused(right: bool, draft: Draft, content: bytes) -> None:
    digest = base64.b64encode(hashlib.sha256(content if right else b"other").digest()).decode()
    headers = draft.creation(complete=True, repr_digest=f"sha-256=:{digest}:")
    answer = await draft.ask("POST", "/v1/uploads", headers, content)
    assert answer.status == (201 if right else 460)
    path = urlsplit(answer.interim[0].headers["Location"]).path
    assert (await draft.head(path)).status == (204 if right else 410)
