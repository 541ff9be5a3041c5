"""Headers that libraries read at length, or fail on: they cost nobody anything, and are answered in words."""

from __future__ import annotations

import gzip

import msgspec
import pytest

from tests.contract.uploads.test_ietf_draft import Draft
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.raw_http import Answer, wired
from tests.harness.uploads.tus_uploader import CHUNK, PNG, TUS, described, encoded, photo, uploader
from tests.harness.ws_device import put
from tests.security.catalogue import against

pytestmark = ON_SHARED

#: A grammar of mail takes the first apart for half a minute, and cannot take the second apart at all.
COMMENTS = {"many": "(" + "(a)" * 6000, "nested": "(" * 300}


async def asked(
    server: Running, method: str, path: str, headers: dict[str, str], body: bytes = b"{}"
) -> Answer:
    async with wired(server.url) as wire:
        return await wire.ask(method, path, server.headers() | headers, body)


@against("API4:2023", "V2.4")
@pytest.mark.parametrize("comment", COMMENTS)
@pytest.mark.parametrize("spelling", ["tus", "draft", "sync"])
async def test_headers_content_type_of_comments_is_refused_at_once(
    comment: str, spelling: str, shared: Running
) -> None:
    path = "/v1/sync" if spelling == "sync" else await uploader(shared).begun(1000)
    method = "POST" if spelling == "sync" else "PATCH"
    more = {"tus": TUS, "draft": {"Upload-Draft-Interop-Version": "6"}, "sync": {}}[spelling]
    headers = more | {"Upload-Offset": "0", "Content-Type": COMMENTS[comment]}
    answer = await asked(shared, method, path, headers)
    assert answer.verdict == (400, "malformed")


#: By what parsers of mail do with it: they look codecs up by name, count sections, and unquote in squares.
DISPOSITIONS = {
    "a codec": "attachment; filename*=rot13''abc",
    "a codec that is none": "attachment; filename*=nothing''%ff",
    "a huge section": "attachment; filename*" + "9" * 5000 + "=a",
    "sections": "attachment" + "".join([f"; filename*{n}*=a" for n in range(300)]),
    "no UTF-8": "attachment; filename*=UTF-8''%ff",
    "quotes without an end": 'attachment; filename="' + '\\"' * 2000,
    "too much": 'attachment; filename="a.jpg"; b="' + "\\a" * 15_000 + '"',
    "semicolons": "attachment" + ";" * 4000,
    "two words": "attachment; filename=a photo.jpg",
    "bytes": "attachment; filename*=UTF-8''\udcff; filename",
}


@against("API4:2023", "V2.4")
@pytest.mark.parametrize("disposition", DISPOSITIONS)
async def test_headers_odd_disposition_names_nothing(disposition: str, shared: Running) -> None:
    headers = Draft(8, shared).creation(complete=True, content_disposition=DISPOSITIONS[disposition])
    answer = await asked(shared, "POST", "/v1/uploads", headers, PNG)
    assert answer.verdict == (422, "invalid_message")
    assert "filename: required" in answer.message["message"]


@pytest.mark.parametrize("name", ["Upload-Length", "Upload-Offset"])
@pytest.mark.parametrize("spelling", ["tus", "draft"])
async def test_headers_number_of_many_zeros_is_zero(name: str, spelling: str, shared: Running) -> None:
    path = await uploader(shared).begun(1000)
    usual = TUS | {"Content-Type": CHUNK} if spelling == "tus" else Draft(8, shared).chunk(0, complete=False)
    headers = usual | {"Upload-Offset": "0", name: "0" * 5000}
    answer = await asked(shared, "PATCH", path, headers, photo(500))
    if name == "Upload-Length":
        assert answer.verdict == (400, "inconsistent_length")
    else:
        assert answer.headers["Upload-Offset"] == "500"


@pytest.mark.parametrize("expect", ["\udcff", "200-ok", "100-continue, 200-ok", "100-continue;a=b"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/healthz"),
        ("DELETE", "/healthz"),
        ("HEAD", "/metrics"),
        ("GET", "/v1/sync"),
        ("POST", "/v1/sync"),
        ("PUT", "/v1/sync"),
        ("POST", "/v1/heartbeat"),
        ("POST", "/v1/uploads"),
        ("OPTIONS", "/v1/uploads"),
        ("PATCH", "/v1/uploads/" + "0" * 32),
        ("HEAD", "/v1/uploads/" + "0" * 32),
        ("GET", "/v1/files/" + "0" * 32),
        ("GET", "/v1/nothing"),
        ("LOCK", "/"),
        ("OPTIONS", "*"),
        ("CONNECT", "tidemark:80"),
    ],
)
async def test_headers_expectation_that_cannot_be_met_is_417(
    expect: str, method: str, path: str, shared: Running
) -> None:
    async with wired(shared.url) as wire:
        answer = await wire.ask(method, path, {"Expect": expect})
    assert answer.status == 417
    assert method == "HEAD" or answer.verdict == (417, "malformed")


@pytest.mark.parametrize(
    ("method", "path", "verdict"),
    [
        ("PUT", "/v1/sync", (405, "method_not_allowed")),
        ("POST", "/healthz", (405, "method_not_allowed")),
        ("GET", "/v1/sync/", (404, "not_found")),
        ("GET", "/", (404, "not_found")),
    ],
)
@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}])
async def test_headers_expectation_without_a_route_is_refused(
    expect: dict[str, str], method: str, path: str, verdict: tuple[int, str], shared: Running
) -> None:
    answer = await asked(shared, method, path, expect)
    assert answer.verdict == verdict
    assert [one.status for one in answer.interim] == [100] * len(expect)


LONG = msgspec.json.encode({"type": "sync", "key": "k", "items": [put("a1", None, text="x" * 3000)]})


@pytest.mark.parametrize(
    ("lines", "coding"),
    [
        ([], None),
        (["Accept-Encoding: gzip;q=0"], None),
        (["Accept-Encoding: gzip;q=0.3, identity"], None),
        (["Accept-Encoding: br, deflate"], None),
        (["Accept-Encoding: x-GZIP"], "gzip"),
        (["Accept-Encoding: br", "Accept-Encoding: , gzip;q=0.5"], "gzip"),
        (["Accept-Encoding: *"], "gzip"),
    ],
    ids=str,
)
async def test_headers_accept_encoding_chooses_compression(
    lines: list[str], coding: str | None, shared: Running
) -> None:
    await shared.post("/v1/sync", LONG)
    async with wired(shared.url) as wire:
        await wire.head("GET", "/v1/changes", shared.headers(), *lines)
        assert (await wire.answer()).headers.get("Content-Encoding") == coding


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        (["Accept: application/MSGPACK"], "application/msgpack"),
        (["Accept: text/html", "Accept: application/msgpack;q=0.9"], "application/msgpack"),
        (["Accept: application/msgpack;q=0"], "application/json"),
        (["Accept: application/msgpack;q=0.1, application/json"], "application/json"),
        (["Accept: */*"], "application/json"),
    ],
    ids=str,
)
async def test_headers_accept_chooses_the_encoding(lines: list[str], kind: str, shared: Running) -> None:
    async with wired(shared.url) as wire:
        await wire.head("GET", "/v1/changes", shared.headers(), *lines)
        assert (await wire.answer()).headers["Content-Type"] == kind


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        (["Content-Encoding: GZip"], 200),
        (["Content-Encoding: x-gzip"], 200),
        (["Content-Encoding: identity", "Content-Encoding: gzip,"], 200),
        (["Content-Encoding: gzip", "Content-Encoding: gzip"], 422),
        (["Content-Encoding: br"], 422),
    ],
    ids=str,
)
async def test_headers_content_encoding_in_any_form_is_inflated(
    lines: list[str], verdict: int, shared: Running
) -> None:
    body = gzip.compress(LONG)
    sized = {"Content-Length": str(len(body)), "Content-Type": "Application/JSON ; charset=utf-8"}
    async with wired(shared.url) as wire:
        await wire.head("POST", "/v1/sync", shared.headers() | sized, *lines)
        await wire.send(body)
        assert (await wire.answer()).status == verdict


async def test_headers_metadata_in_several_lines_is_one_list(shared: Running) -> None:
    pairs = encoded(described()).split(",")
    async with wired(shared.url) as wire:
        sized = {"Upload-Length": "5", "Content-Length": "0"}
        metadata = [f"Upload-Metadata: {pair}" for pair in pairs]
        await wire.head("POST", "/v1/uploads", TUS | shared.headers() | sized, *metadata)
        begun = await wire.answer()
        assert begun.status == 201
        await wire.head("HEAD", begun.headers["Location"], TUS | shared.headers())
        assert (await wire.answer()).headers["Upload-Metadata"].replace(", ", ",") == ",".join(pairs)


async def test_headers_expect_100_continue_of_a_sync_is_answered(shared: Running) -> None:
    body = b'{"type": "heartbeat"}'
    headers = shared.headers() | {"Content-Length": str(len(body)), "Expect": "100-Continue"}
    async with wired(shared.url) as wire:
        await wire.begin("POST", "/v1/heartbeat", headers)
        assert (await wire.interim()).status == 100
        await wire.send(body)
        assert (await wire.answer()).status == 200


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip,Chunked", "x, chunked"])
@pytest.mark.parametrize("spelling", ["tus", "draft"])
async def test_headers_content_encoding_of_an_upload_is_refused(
    coding: str, spelling: str, shared: Running
) -> None:
    phone = uploader(shared)
    path = await phone.begun(1000)
    usual = TUS | {"Content-Type": CHUNK} if spelling == "tus" else Draft(8, shared).chunk(0, complete=False)
    headers = usual | phone.authorization | {"Upload-Offset": "0", "Transfer-Encoding": coding}
    async with wired(shared.url) as wire:
        await wire.begin("PATCH", path, headers)
        await wire.send(b"a\r\n0123456789\r\n0\r\n\r\n")
        assert (await wire.answer()).verdict == (415, "unsupported_type")
    assert await phone.offset(path) == 0
