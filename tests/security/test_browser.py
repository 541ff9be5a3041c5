"""What pages of a browser may do with this server, and what a browser may do with its answers."""

from __future__ import annotations

from typing import Final

import pytest

from tests.contract.test_caching import ASKED, Asked
from tests.contract.test_frames_masked import HANDSHAKE
from tests.harness.in_process_server import ON_SHARED, ORIGIN
from tests.harness.raw_http import wired
from tests.harness.uploads.file_heads import HEADS
from tests.harness.uploads.tus_uploader import TUS, described, encoded, file_path, uploader
from tests.security.arena import Arena
from tests.security.catalogue import against

pytestmark = ON_SHARED

#: For answers that a browser opens by themselves: nothing is guessed, run, framed or loaded.
WARDS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}


@against("A02:2025", "V3.4")
@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: f"{asked.method} {asked.path} {asked.status}")
async def test_browser_answer_is_neither_sniffed_nor_framed_nor_run(asked: Asked, arena: Arena) -> None:
    usual = {"Authorization": f"Bearer {arena.running.token()}", "Content-Type": "application/json"}
    headers = usual | dict(asked.headers)
    reply = await arena.ask(asked.method, asked.path, headers=headers, body=asked.body or None)
    assert reply.status == asked.status
    assert {name: reply.headers.get(name) for name in WARDS} == WARDS


@against("A02:2025", "V3.4")
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"garbled\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"a" * 30_000 + b"\r\n") * 3, 413),
    ],
    ids=["no HTTP", "no host", "endless headers"],
)
async def test_browser_refusal_before_a_request_is_neither_sniffed_nor_run(
    sent: bytes, status: int, arena: Arena
) -> None:
    async with arena.holds(), wired(arena.url) as wire:
        await wire.send(sent)
        answer = await wire.answer()
    assert answer.status == status
    assert {name: answer.headers.get(name) for name in WARDS} == WARDS


SCRIPT: Final = b"<html><script>fetch('/v1/changes')</script></html>"
#: Content -> its declared type, and the status and code of its refusal; None where it is kept as plain text.
DISGUISED: Final[dict[str, tuple[bytes, str, tuple[int, str] | None]]] = {
    "a page as itself": (SCRIPT, "text/html", (415, "unsupported_type")),
    "a page as XHTML": (SCRIPT, "application/xhtml+xml", (415, "unsupported_type")),
    "a picture that runs": (b"<svg onload=alert(1)>", "image/svg+xml", (415, "unsupported_type")),
    "a script": (b"alert(1)", "text/javascript", (415, "unsupported_type")),
    "a style": (b"a{}", "text/css", (415, "unsupported_type")),
    "XML": (b"<?xml version='1.0'?><a/>", "application/xml", (415, "unsupported_type")),
    "a page as a photo": (SCRIPT, "image/jpeg", (415, "unsupported_type")),
    "a page as a PDF": (SCRIPT, "application/pdf", (415, "unsupported_type")),
    "a page as a voice clip": (SCRIPT, "audio/mpeg", (415, "unsupported_type")),
    "a PDF as a photo": (HEADS["pdf"], "image/png", (415, "unsupported_type")),
    "a photo as a PDF": (HEADS["png"], "application/pdf", (415, "unsupported_type")),
    "two types": (SCRIPT, "image/png, text/html", (415, "unsupported_type")),
    "a type with a line feed": (SCRIPT, "image/png\r\nX: y", (415, "unsupported_type")),
    "a page as text": (SCRIPT, "text/plain", (415, "unsupported_type")),
    "a page as a table": (SCRIPT, "text/csv", (415, "unsupported_type")),
    "a text that becomes a page": (b"name,value\n" + SCRIPT, "text/csv", None),
}


@against("A05:2025", "V5.2")
@pytest.mark.parametrize("case", DISGUISED)
async def test_browser_file_that_is_a_page_is_refused_or_given_out_as_text(case: str, arena: Arena) -> None:
    content, filetype, refusal = DISGUISED[case]
    metadata = encoded(described(filename="a.html", filetype=filetype))
    sent = TUS | {"Upload-Length": str(len(content)), "Upload-Metadata": metadata}
    if refusal is not None:
        chunk = {"Content-Type": "application/offset+octet-stream"}
        async with arena.holds("upload_session"):
            reply = await arena.ask(
                "POST", "/v1/uploads", arena.running.token(), headers=sent | chunk, body=content
            )
            assert reply.verdict == refusal
        return
    phone = uploader(arena.running)
    path = await phone.uploaded(content, filename="a.html", filetype=filetype)
    reply = await phone.ask("GET", file_path(path), {})
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (200, content, filetype)
    assert reply.headers["Content-Disposition"].startswith("attachment;")
    assert {name: reply.headers.get(name) for name in WARDS} == WARDS


#: Origins that are not ORIGIN, though they look like it, or would pass a check that is not exact.
STRANGE: Final = (
    "https://evil.example",
    "null",
    "*",
    "file://",
    ORIGIN.replace("https", "http"),
    ORIGIN + ":443",
    ORIGIN + ":8443",
    ORIGIN + "/",
    ORIGIN + ".evil.example",
    ORIGIN + "evil",
    ORIGIN + "\\@evil.example",
    ORIGIN + "%00.evil.example",
    ORIGIN.replace("//", "//user@"),
    ORIGIN.replace("page", "evil.page"),
    ORIGIN.replace("page", "pаge"),  # noqa: RUF001  # of another alphabet is the attack
    ORIGIN.replace("page.example", "pagexexample"),
    ORIGIN.removesuffix("org"),
    ORIGIN.upper(),
    ORIGIN + " https://evil.example",
    "https://evil.example, " + ORIGIN,
    "",
)
#: A handshake, and requests that a page sends without asking before, or after it.
SENDS: Final[dict[str, tuple[str, str, dict[str, str], bytes]]] = {
    "a socket": ("GET", "/v1/sync", HANDSHAKE, b""),
    "a push": ("POST", "/v1/sync", {"Content-Type": "application/json"}, b'{"key":"k","items":[]}'),
    "an upload": ("POST", "/v1/uploads", TUS | {"Upload-Length": "5"}, b""),
    "a read": ("GET", "/v1/changes", {}, b""),
    "a preflight": ("OPTIONS", "/v1/sync", {"Access-Control-Request-Method": "POST"}, b""),
}


@against("A01:2025", "V3.5")
@pytest.mark.parametrize("sends", SENDS)
@pytest.mark.parametrize("origin", STRANGE)
async def test_browser_page_of_another_origin_is_refused_with_a_valid_token(
    origin: str, sends: str, arena: Arena
) -> None:
    method, path, headers, body = SENDS[sends]
    token = {"Authorization": f"Bearer {arena.running.token()}"}
    if sends == "a socket":
        token = {"Sec-WebSocket-Protocol": f"tidemark.v1.json, bearer.{arena.running.token()}"}
    async with arena.holds(), wired(arena.url) as wire:
        answer = await wire.ask(method, path, headers | token | {"Origin": origin}, body)
    assert answer.verdict == (403, "forbidden")
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


#: Forms that a page of any origin may send without a preflight; a browser adds cookies, and no token.
SIMPLE: Final = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a")
#: Path -> how such a form is refused.
FORMS: Final = {
    "/v1/sync": (422, "invalid_message"),
    "/v1/heartbeat": (422, "invalid_message"),
    "/v1/telemetry": (422, "invalid_message"),
    "/v1/uploads": (412, "unsupported_version"),
}


@against("A01:2025", "V3.5")
@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize("path", FORMS)
async def test_browser_form_of_another_page_is_refused_and_its_cookie_ignored(
    path: str, kind: str, arena: Arena
) -> None:
    sent = {"Content-Type": kind, "Cookie": f"token={arena.running.token()}", "Sec-Fetch-Site": "cross-site"}
    async with arena.holds():
        reply = await arena.ask("POST", path, headers=sent, body=b'{"type":"sync","key":"k","items":[]}')
        assert reply.verdict == FORMS[path]
        reply = await arena.ask("GET", "/v1/changes", headers=sent)
        assert reply.verdict == (401, "unauthenticated")


@against("A01:2025", "V3.5")
@pytest.mark.parametrize("path", ["/v1/sync", "/v1/uploads", "/v1/changes"])
async def test_browser_listed_page_gets_no_credentials_and_no_private_network(
    path: str, arena: Arena
) -> None:
    sent = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
    }
    reply = await arena.ask("OPTIONS", path, headers=sent)
    assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (204, ORIGIN)
    for name in ("Access-Control-Allow-Credentials", "Access-Control-Allow-Private-Network", "Set-Cookie"):
        assert name not in reply.headers


#: A name that a stranger gives an address of this machine, so that a browser on it takes both for one origin.
REBOUND: Final = (
    "evil.example",
    "evil.example:80",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "a.b",
)


@against("API7:2023", "V3.5")
@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("host", REBOUND)
async def test_browser_rebound_name_is_no_program_of_this_machine(
    host: str, absolute: bool, path: str, arena: Arena
) -> None:
    target = f"http://{host}{path}" if absolute else path
    async with arena.holds(), wired(arena.url) as wire:
        answer = await wire.ask("GET", target, {"Host": host})
    if path == "/readyz":
        assert (answer.status, answer.message) == (200, {"status": "ready"})
    else:
        assert answer.verdict == (401, "unauthenticated")
