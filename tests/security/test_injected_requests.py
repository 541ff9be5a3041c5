"""Texts in paths, queries, headers and metadata of HTTP that mean something elsewhere, but not here."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import quote

import pytest

from tests.harness.in_process_server import ON_SHARED
from tests.harness.raw_http import wired
from tests.harness.uploads.tus_uploader import TUS, described, encoded, photo
from tests.security.arena import Arena
from tests.security.catalogue import against
from tests.security.texts import CONTROLS, TEXTS

pytestmark = [ON_SHARED, against("A05:2025", "V1.2")]

EVERY: Final = TEXTS | CONTROLS
#: Of each kind of text one: paths and headers are read before any store is asked.
SOME: Final = ("a quote", "a second statement", "a shell", "a template", "a path")
SOME_TEXTS = pytest.mark.parametrize("text", [EVERY[name] for name in SOME], ids=SOME)
SENT: Final = (*SOME, *CONTROLS)
SENT_TEXTS = pytest.mark.parametrize("text", [EVERY[name] for name in SENT], ids=SENT)
JSON: Final = {"Content-Type": "application/json"}
RESOLUTION: Final = b'{"choice":"client","version":1}'


class Request(NamedTuple):
    """A request with a text somewhere, and its answer; of a NUL, where that one is another."""

    method: str
    path: Callable[[str], str]
    verdict: tuple[int, str]
    of_nul: tuple[int, str] | None = None
    body: bytes | None = None


UNFIT: Final = (422, "invalid_message")
MISSING: Final = (404, "not_found")
PATHS: Final = {
    "a conflict": Request(
        "POST", lambda text: f"/v1/conflicts/{quote(text, safe='')}/resolution", MISSING, UNFIT, RESOLUTION
    ),
    "an upload": Request("HEAD", lambda text: f"/v1/uploads/{quote(text, safe='')}", MISSING),
    "an upload to append to": Request("PATCH", lambda text: f"/v1/uploads/{quote(text, safe='')}", MISSING),
    "an upload to cancel": Request("DELETE", lambda text: f"/v1/uploads/{quote(text, safe='')}", MISSING),
    "a file": Request("GET", lambda text: f"/v1/files/{quote(text, safe='')}", MISSING),
    "a cursor": Request("GET", lambda text: f"/v1/changes?cursor={quote(text)}", UNFIT),
    "a limit": Request("GET", lambda text: f"/v1/changes?limit={quote(text)}", UNFIT),
    "a limit of conflicts": Request("GET", lambda text: f"/v1/conflicts?limit={quote(text)}", UNFIT),
    "no route": Request("GET", lambda text: f"/v1/{quote(text, safe='')}", MISSING),
}


@SENT_TEXTS
@pytest.mark.parametrize("request_", PATHS.values(), ids=PATHS)
async def test_text_in_a_path_or_query_finds_nothing(request_: Request, text: str, arena: Arena) -> None:
    async with arena.holds():
        reply = await arena.ask(
            request_.method,
            request_.path(text),
            arena.running.token("owner"),
            headers=TUS | JSON,
            body=request_.body,
        )
    wanted = request_.of_nul if "\0" in text and request_.of_nul else request_.verdict
    assert reply.status == wanted[0]
    if request_.method != "HEAD":
        assert reply.verdict == wanted
        assert text not in reply.body.decode()


@SENT_TEXTS
@pytest.mark.parametrize("name", ["tenant", "hours"])
async def test_text_in_a_query_of_people_finds_nothing(name: str, text: str, arena: Arena) -> None:
    signed = arena.running.token(None, role="operator", tid=None)
    async with arena.holds():
        reply = await arena.ask("GET", f"/v1/admin/health?{name}={quote(text)}", signed)
    assert reply.verdict == (MISSING if name == "tenant" else UNFIT)
    assert text not in reply.body.decode()


#: Header -> the answer; None for a header that a sync does not read, or that only matters to a proxy.
HEADERS: Final[Mapping[str, tuple[int, str] | None]] = {
    "Origin": (403, "forbidden"),
    "Content-Type": UNFIT,
    "Content-Encoding": UNFIT,
    "X-Forwarded-For": None,
    "X-Forwarded-Prefix": None,
    "X-Forwarded-Host": None,
    "X-Tidemark-Request-Seconds": None,
    "X-HTTP-Method-Override": None,
    "X-Tenant-Id": None,
    "X-Request-ID": None,
    "User-Agent": None,
    "Referer": None,
    "Cookie": None,
    "Accept-Encoding": None,
    "Forwarded": None,
}


@SOME_TEXTS
@pytest.mark.parametrize("header", HEADERS)
async def test_text_in_a_header_is_refused_or_ignored(header: str, text: str, arena: Arena) -> None:
    wanted = HEADERS[header]
    async with arena.holds():
        reply = await arena.ask(
            "POST",
            "/v1/heartbeat",
            arena.running.token("owner"),
            headers=JSON | {header: text},
            body=b"{}",
        )
    if wanted is None:
        assert (reply.status, reply.message["type"]) == (200, "heartbeat_ack")
    else:
        assert reply.verdict == wanted
    assert text not in str(reply.headers)
    assert text not in reply.body.decode()


BROKEN: Final = {
    "a bare line feed": b"X-A: a\nAuthorization: Bearer x",
    "a bare carriage return": b"X-A: a\rX-B: b",
    "a NUL": b"X-A: a\0b",
    "a folded line": b"X-A: a\r\n b",
    "a space in a name": b"X A: a",
    "a space before the colon": b"Content-Length : 5",
    "a name of controls": b"X-\x01: a",
    "no colon": b"X-A",
    "an empty name": b": a",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3",
    "a length of words": b"Content-Length: +2",
    "a length and chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked",
    "chunks in a way of their own": b"Transfer-Encoding: xchunked",
    "chunks twice": b"Transfer-Encoding: chunked, chunked",
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
@against("A05:2025", "V4.2")
async def test_header_that_could_be_two_requests_is_malformed(line: bytes, arena: Arena) -> None:
    """The request behind it, a sync under a valid token, is never read."""
    signed = arena.running.token("owner")
    smuggled = b'{"type":"sync","key":"smuggled","items":[{"domain":"task","id":"s","op":"put","data":{}}]}'
    behind = (
        f"POST /v1/sync HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {signed}\r\nContent-Type:"
        f" application/json\r\nContent-Length: {len(smuggled)}\r\n\r\n"
    ).encode()
    async with arena.holds(), wired(arena.url) as wire:
        head = f"POST /v1/heartbeat HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {signed}\r\n"
        await wire.send(head.encode() + line + b"\r\n\r\n{}" + behind + smuggled)
        reply = await wire.answer()
        await wire.ended()
    assert reply.verdict == (400, "malformed")
    assert reply.headers["Cache-Control"] == "no-store"
    assert signed not in reply.body.decode()


#: Field of ``Upload-Metadata`` -> the answer to a text in it.
METADATA: Final = {
    "filetype": (415, "unsupported_type"),
    "domain": UNFIT,
    "sha256": UNFIT,
}


@SENT_TEXTS
@pytest.mark.parametrize("field", METADATA)
async def test_text_in_metadata_where_none_belongs_is_refused(field: str, text: str, arena: Arena) -> None:
    async with arena.holds():
        reply = await _create(arena, {"Upload-Metadata": encoded(described(**{field: text}))})
    assert reply == METADATA[field]


@pytest.mark.parametrize("text", CONTROLS.values(), ids=CONTROLS)
@pytest.mark.parametrize("field", ["filename", "record_id"])
async def test_control_in_metadata_is_refused(field: str, text: str, arena: Arena) -> None:
    async with arena.holds():
        reply = await _create(arena, {"Upload-Metadata": encoded(described(**{field: text}))})
    assert reply == UNFIT


@SOME_TEXTS
@pytest.mark.parametrize(
    ("header", "verdict"),
    [
        ("Upload-Length", UNFIT),
        ("Upload-Defer-Length", UNFIT),
        ("Upload-Concat", UNFIT),
        ("Upload-Metadata", UNFIT),
        ("Tus-Resumable", (412, "unsupported_version")),
    ],
)
async def test_text_in_a_header_of_uploads_is_refused(
    header: str, verdict: tuple[int, str], text: str, arena: Arena
) -> None:
    async with arena.holds():
        reply = await _create(arena, {header: text})
    assert reply == verdict


PARTS: Final = {
    "a path": "../../files/1/ab",
    "another host": "http://169.254.169.254/latest/meta-data",
    "a file": "file:///etc/passwd",
    "a path to an id": "/etc/" + "0" * 32,
    "an id of another host": "http://127.0.0.1:1/v1/uploads/" + "0" * 32,
    "a statement": "0' OR '1'='1",
    "an id in capitals": "/v1/uploads/" + "A" * 32,
    "a longer id": "/v1/uploads/" + "0" * 33,
}


@pytest.mark.parametrize("url", PARTS.values(), ids=PARTS)
@against("A01:2025", "V5.3")
async def test_part_of_a_final_upload_elsewhere_is_not_found(url: str, arena: Arena) -> None:
    async with arena.holds():
        reply = await _create(arena, {"Upload-Concat": f"final;{url}", "Upload-Length": None})
    assert reply == MISSING


NAMES: Final = {
    "a path up": "../../../../etc/cron.d/owned",
    "a path from the root": "/etc/passwd",
    "two dots": "..",
    "a path of another system": "..\\..\\boot.ini",
    "a drive": "C:\\boot.ini",
    "a device": "CON",
    "an option": "--checkpoint-action=exec=sh",
    "a stream": "a.jpg::$DATA",
    "an encoded path": "..%2f..%2fetc%2fpasswd",
    "a path encoded twice": "..%252f..%252fetc",
    "a shell": "$(id).jpg",
    "a quote": '"; filename="b.html',
    "a page": "<img src=x onerror=alert(1)>.jpg",
    "a direction": "gpj.\u202eexe",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@against("A01:2025", "V5.3")
async def test_name_of_a_file_never_is_a_path(name: str, arena: Arena) -> None:
    """The bytes lie under the upload's id, and a download says the name as an attachment's, in one header."""
    token = arena.running.token("owner")
    content = photo(200)
    headers = TUS | {
        "Upload-Length": str(len(content)),
        "Upload-Metadata": encoded(described(filename=name)),
        "Content-Type": "application/offset+octet-stream",
    }
    async with arena.holds("upload_session"):
        made = await arena.ask("POST", "/v1/uploads", token, headers=headers, body=content)
    assert made.status == 201
    upload_id = made.headers["Location"].rpartition("/")[2]
    assert made.headers["Location"] == f"/v1/uploads/{upload_id}"
    assert len(bytes.fromhex(upload_id)) == 16
    [(kept,)] = arena.rows("SELECT file_name FROM upload_session WHERE upload_id = %s", upload_id)
    assert kept == name
    file = await arena.ask("GET", f"/v1/files/{upload_id}", token)
    assert (file.status, file.body) == (200, content)
    disposition = file.headers["Content-Disposition"]
    quoted = disposition.removeprefix('attachment; filename="').partition('"')[0]
    assert disposition == f"attachment; filename=\"{quoted}\"; filename*=UTF-8''{quote(name, safe=_SAFE)}"
    assert not set(quoted) & set('"\\/<>%:')
    assert file.headers["X-Content-Type-Options"] == "nosniff"


PREFIXES: Final = (
    "//evil.example",
    "https://evil.example",
    "/a/../../b",
    "/a\\b",
    "javascript:alert(1)",
)


@pytest.mark.parametrize(
    "header", ["X-Forwarded-Prefix", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"]
)
@pytest.mark.parametrize("prefix", PREFIXES)
async def test_prefix_that_is_no_path_changes_no_location(prefix: str, header: str, arena: Arena) -> None:
    headers = TUS | {"Upload-Length": "10", "Upload-Metadata": encoded(described()), header: prefix}
    token = arena.running.token("owner")
    async with arena.holds("upload_session"):
        made = await arena.ask("POST", "/v1/uploads", token, headers=headers)
    assert made.status == 201
    root, _, upload_id = made.headers["Location"].rpartition("/")
    assert (root, len(bytes.fromhex(upload_id))) == ("/v1/uploads", 16)
    assert prefix not in str(made.headers)
    assert (await arena.ask("DELETE", made.headers["Location"], token, headers=TUS)).status == 204


_SAFE: Final = "!#$&+-.^_`|~"
CONTENT: Final = base64.b64encode(b"a").decode()
ODD_METADATA: Final = {
    "an element": f"filename {CONTENT},,domain {CONTENT}",
    "no base64": "filename ../../etc/passwd",
    "base64 of a URL": "filename Pz8_-w==",
    "a key twice": f"filename {CONTENT},filename {CONTENT}",
    "no UTF-8": "filename " + base64.b64encode(b"\xc3\x28").decode(),
    "an overlong dot": "filename " + base64.b64encode(b"\xc0\xae\xc0\xae/").decode(),
    "a surrogate": "filename " + base64.b64encode(b"\xed\xa0\x80").decode(),
    "too much": f"filename {'YQ' * 3000}",
}


@pytest.mark.parametrize("metadata", ODD_METADATA.values(), ids=ODD_METADATA)
async def test_metadata_that_can_be_read_in_two_ways_is_refused(metadata: str, arena: Arena) -> None:
    async with arena.holds():
        reply = await _create(arena, {"Upload-Metadata": metadata})
    assert reply == UNFIT


async def _create(arena: Arena, change: Mapping[str, str | None]) -> tuple[int, str]:
    usual = TUS | {"Upload-Length": "100", "Upload-Metadata": encoded(described())}
    headers = {name: value for name, value in {**usual, **change}.items() if value is not None}
    reply = await arena.ask("POST", "/v1/uploads", arena.running.token("owner"), headers=headers)
    assert "Location" not in reply.headers
    return reply.verdict
