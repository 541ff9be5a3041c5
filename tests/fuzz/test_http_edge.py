"""Drawn requests on a whole server: each has a typed answer, none of them that the server failed."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.raw_http import wired

pytestmark = ON_SHARED

MAX_EXAMPLES = 3_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 150
_ID = "0" * 32
_PATHS = (
    "/v1/sync",
    "/v1/changes",
    "/v1/conflicts",
    f"/v1/conflicts/{_ID}/resolution",
    "/v1/heartbeat",
    "/v1/telemetry",
    "/v1/domains",
    "/v1/uploads",
    f"/v1/uploads/{_ID}",
    "/v1/admin/health",
    "/healthz",
    "/readyz",
)
_ODD = (
    "",
    "/",
    "//",
    "/..",
    "/%2e%2e/",
    "/%00",
    "/%ff",
    "?",
    "?since=",
    "?limit=-1",
    "?limit=%F0&since[]=1",
    "#",
)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND", "get")
_NAMES = (
    "Accept",
    "Accept-Encoding",
    "Content-Disposition",
    "Content-Encoding",
    "Content-Type",
    "Content-Digest",
    "If-None-Match",
    "If-Range",
    "Origin",
    "Range",
    "Repr-Digest",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Version",
    "Tus-Resumable",
    "Upload-Checksum",
    "Upload-Complete",
    "Upload-Concat",
    "Upload-Draft-Interop-Version",
    "Upload-Defer-Length",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "X-Forwarded-For",
    "X-HTTP-Method-Override",
)
_VALUES = (
    "1.0.0",
    "application/json",
    "application/msgpack",
    "application/offset+octet-stream",
    "gzip",
    "PATCH",
    "bytes=0-",
    "0",
    "1",
    "5",
    "-1",
    "9" * 30,
    "?1",
    "?0",
    "6",
    "partial",
    f"final;/v1/uploads/{_ID}",
    "sha1 AAAA",
    "sha-256=:AAAA:",
    "filename YQ==,filetype dGV4dC9wbGFpbg==,domain dGFzaw==,record_id YQ==",
    "tidemark.v1.json",
    "https://page.example.org",
    "dGhlIHNhbXBsZSBub25jZQ==",
    "13",
)
_PRINTABLE = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20
)
_BODIES = (
    b"",
    b"{}",
    b"null",
    b'{"key":"k","items":[]}',
    b'{"type":"sync","id":"1","key":"k","items":[{"domain":"task","id":"a","op":"put","data":{}}]}',
    b'{"key":"t","hour":"2026-01-01T00:00:00Z","counters":{"a":1}}',
    b"\x81\xa3key\xa1k",
    b"[" * 200,
)


class Drawn(NamedTuple):
    """A request, and whether it has the token of a device."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    signed: bool

    def encoded(self, authorization: str) -> bytes:
        """Write it. Its length is right and its connection ends, so that no answer is missed."""
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: x", "Connection: close"]
        if self.signed:
            lines.append(f"Authorization: {authorization}")
        lines += [f"{name}: {value}" for name, value in self.headers]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode("latin-1", "replace") + self.body


#: Headers of requests that are right, of which others are drawn by a change or two.
_JSON = [("Content-Type", "application/json")]
_TUS = [("Tus-Resumable", "1.0.0")]
_FILE = [
    ("Upload-Length", "5"),
    ("Upload-Metadata", "filename YS50eHQ=,filetype dGV4dC9wbGFpbg==,domain dGFzaw==,record_id YQ=="),
]
_BYTES = [("Content-Type", "application/offset+octet-stream"), ("Upload-Offset", "0")]
_DRAFT = [("Upload-Draft-Interop-Version", "6"), ("Upload-Complete", "?1")]
_SOCKET = [
    ("Connection", "upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Protocol", "tidemark.v1.msgpack"),
]
_RIGHT = (
    ("POST", "/v1/sync", _JSON),
    ("GET", "/v1/sync", _SOCKET),  # without a key, so that none is opened
    ("GET", "/v1/changes?since=&limit=3", [("Accept", "application/msgpack"), ("Accept-Encoding", "gzip")]),
    ("POST", f"/v1/conflicts/{_ID}/resolution", _JSON),
    ("POST", "/v1/heartbeat", _JSON),
    ("POST", "/v1/telemetry", _JSON),
    ("POST", "/v1/uploads", _TUS + _FILE),
    ("POST", "/v1/uploads", _TUS + _FILE + _BYTES),
    ("POST", "/v1/uploads", _DRAFT + _FILE[1:]),
    ("PATCH", f"/v1/uploads/{_ID}", _TUS + _BYTES),
    (
        "PATCH",
        f"/v1/uploads/{_ID}",
        [*_DRAFT, ("Upload-Offset", "0"), ("Content-Type", "application/partial-upload")],
    ),
    ("HEAD", f"/v1/uploads/{_ID}", _TUS),
    ("GET", f"/v1/uploads/{_ID}", [("Range", "bytes=0-1"), ("If-None-Match", '"a"')]),
)
_LINE = st.tuples(st.sampled_from(_NAMES), st.sampled_from(_VALUES) | _PRINTABLE)


@st.composite
def _changed(draw: st.DrawFn) -> Drawn:
    """Draw a request that is right but for a header or two, which are missing, odd or there twice."""
    method, path, right = draw(st.sampled_from(_RIGHT))
    headers = list(right)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(headers)))
        if at < len(headers):
            value = draw(st.sampled_from(_VALUES) | _PRINTABLE)
            headers[at : at + 1] = draw(st.sampled_from([[], [(headers[at][0], value)], [headers[at]] * 2]))
        else:
            headers.append(draw(_LINE))
    return Drawn(method, path, headers, draw(st.sampled_from(_BODIES) | st.binary(max_size=60)), signed=True)


_ANY = st.builds(
    Drawn,
    st.sampled_from(_METHODS),
    st.builds(str.__add__, st.sampled_from(_PATHS), st.sampled_from(_ODD) | st.just("")),
    st.lists(_LINE, max_size=6),
    st.sampled_from(_BODIES) | st.binary(max_size=60),
    st.booleans() | st.just(value=True),
)
_REQUESTS = _changed() | _changed() | _ANY


async def _answer(url: str, request: bytes) -> tuple[int, bytes]:
    """Send a request, and return status and body of its answer."""
    async with wired(url) as wire:
        await wire.send(request)
        said = await wire.rest()
    while said.startswith(b"HTTP/1.1 1") and not said.startswith(b"HTTP/1.1 101"):
        said = said.partition(b"\r\n\r\n")[2]
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@settings(
    max_examples=MAX_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(request=_REQUESTS)
async def test_edge_drawn_request_has_a_typed_answer(shared: Running, request: Drawn) -> None:
    authorization = shared.headers()["Authorization"]
    status, body = await _answer(shared.url, request.encoded(authorization))
    assert status < 500, (request, status, body)
    if status >= 400 and body.startswith(b"{"):
        refusal: Any = msgspec.json.decode(body)
        assert refusal.get("code", refusal.get("title")), body


_LINES = st.lists(st.binary(max_size=30), max_size=5).map(b"\r\n".join)


@settings(
    max_examples=MAX_EXAMPLES // 5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(begin=st.sampled_from([b"", b"GET ", b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\n"]), lines=_LINES)
async def test_edge_bytes_that_are_no_request_are_refused(
    shared: Running, begin: bytes, lines: bytes
) -> None:
    end = b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    status, _ = await _answer(shared.url, begin + lines + end)
    assert 400 <= status < 500
