"""Who may be asked from where: pages of other origins, proxies that say how they were asked, odd hosts."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.http.client_address import networks, stripped_prefix
from tests.harness.in_process_server import Running, Serve
from tests.harness.raw_http import Answer, wired
from tests.harness.uploads.tus_uploader import CHUNK, TUS, described, encoded, file_path, photo, uploader

PAGE = "https://app.example.org"
STRANGE = "https://elsewhere.example.org"
DRAFT = {
    "Upload-Draft-Interop-Version": "8",
    "Upload-Complete": "?1",
    "Content-Type": "image/jpeg",
    "Upload-Metadata": encoded(described()),
}


@pytest.fixture
async def paged(serve: Serve) -> Running:
    """A server whose files and uploads a page may have."""
    return await serve(server={"origins": [PAGE]})


async def created(server: Running, headers: dict[str, str]) -> Answer:
    """Upload a file by the draft."""
    async with wired(server.url) as wire:
        return await wire.ask("POST", "/v1/uploads", server.headers() | DRAFT | headers, photo(100))


def listed(headers: str) -> set[str]:
    return {name.strip().lower() for name in headers.split(",")}


@pytest.mark.parametrize("kind", ["files", "uploads"])
async def test_cors_preflight_lists_what_may_be_sent(kind: str, paged: Running) -> None:
    path = f"/v1/{kind}/{'0' * 32}"
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    reply = await uploader(paged).ask("OPTIONS", path, asked | {"Origin": PAGE})
    assert reply.status == 204
    assert reply.headers["Access-Control-Allow-Origin"] == PAGE
    assert "authorization" in listed(reply.headers["Access-Control-Allow-Headers"])
    methods = {"files": {"get", "head"}, "uploads": {"post", "head", "patch", "delete"}}[kind]
    assert methods <= listed(reply.headers["Access-Control-Allow-Methods"])
    assert (await uploader(paged).ask("OPTIONS", path, asked | {"Origin": STRANGE})).status == 403


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_cors_file_and_refusal_readable(method: str, paged: Running) -> None:
    phone = uploader(paged)
    path = file_path(await phone.uploaded(photo(1000)))
    given = await phone.ask(method, path, {"Origin": PAGE})
    part = await phone.ask(method, path, {"Origin": PAGE, "Range": "bytes=1-2"})
    known = await phone.ask(method, path, {"Origin": PAGE, "If-None-Match": given.headers["ETag"]})
    none = await phone.ask(method, "/v1/files/" + "0" * 32, {"Origin": PAGE})
    statuses = [reply.status for reply in (given, part, known, none)]
    assert statuses == [200, 206 if method == "GET" else 200, 304, 404]
    for reply in (given, part, known, none):
        assert reply.headers["Access-Control-Allow-Origin"] == PAGE
        assert {"etag", "content-disposition"} <= listed(reply.headers["Access-Control-Expose-Headers"])
        assert "origin" in listed(reply.headers["Vary"])
    assert listed(given.headers["Vary"]) == {"authorization", "origin"}
    native = await phone.ask(method, path, {})
    assert "Access-Control-Allow-Origin" not in native.headers
    assert listed(native.headers["Vary"]) == {"authorization", "origin"}, "or a cache gives it to the page"
    strange = await phone.ask(method, path, {"Origin": STRANGE})
    assert (strange.status, "Access-Control-Allow-Origin" in strange.headers) == (403, False)


async def test_cors_upload_allowed(paged: Running) -> None:
    phone = uploader(paged)
    begun = await phone.create(1000, origin=PAGE)
    assert begun.status == 201
    asked = await phone.ask("HEAD", begun.headers["Location"], TUS | {"Origin": PAGE})
    for reply in (begun, asked):
        assert reply.headers["Access-Control-Allow-Origin"] == PAGE
        assert {"location", "upload-offset"} <= listed(reply.headers["Access-Control-Expose-Headers"])
    assert (await phone.create(1000, origin=STRANGE)).verdict == (403, "forbidden")


PREFIXES = {
    "one": (["/sync"], "/sync"),
    "with a slash behind it": (["/sync/"], "/sync"),
    "of several segments": (["/a/b-c/d.e~f"], "/a/b-c/d.e~f"),
    "of two proxies in one line": (["/outer, /inner/"], "/outer/inner"),
    "of two proxies in two lines": (["/outer", "/inner"], "/outer/inner"),
    "escaped": (["/%C3%9C"], "/%C3%9C"),
    "empty": ([""], ""),
    "the root": (["/"], ""),
    "a host": (["//evil.example"], ""),
    "a host behind one proxy": (["/", "/", "//evil.example"], ""),
    "a URL": (["https://evil.example/a"], ""),
    "relative": (["sync"], ""),
    "up": (["/a/../b"], ""),
    "up at its end": (["/a/.."], ""),
    "here": (["/./a"], ""),
    "a query": (["/a?b"], ""),
    "a blank": (["/a b"], ""),
    "a backslash": (["/\\\\evil.example"], ""),
    "bytes": (["/\udcff"], ""),
    "a letter beyond ASCII": (["/\u00fc"], ""),
    "long": (["/" + "a" * 64], ""),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_stripped_prefix_from_a_trusted_proxy_used(name: str) -> None:
    lines, prefix = PREFIXES[name]
    trusted = networks(["127.0.0.0/8"])
    assert stripped_prefix("127.0.0.1", lines, trusted) == prefix
    assert stripped_prefix("203.0.113.7", lines, trusted) == ""
    assert stripped_prefix(None, lines, trusted) == ""
    assert stripped_prefix("127.0.0.1", lines, ()) == ""


@given(st.lists(st.text(max_size=12), max_size=3))
def test_stripped_prefix_with_a_host_ignored(lines: list[str]) -> None:
    path = stripped_prefix("127.0.0.1", lines, networks(["127.0.0.1"])) + "/v1/uploads/1"
    address = urlsplit(urljoin("https://own.example/x", path))
    assert (address.scheme, address.netloc, address.query) == ("https", "own.example", "")
    assert address.path.endswith("/v1/uploads/1")


@pytest.mark.parametrize("trusted", [["127.0.0.0/8"], ["10.0.0.0/8"]])
async def test_location_has_the_stripped_prefix(trusted: list[str], serve: Serve) -> None:
    server = await serve(server={"trusted_proxies": trusted})
    root = "/field/v1/uploads/" if trusted == ["127.0.0.0/8"] else "/v1/uploads/"
    said = {
        "X-Forwarded-Prefix": "/field/",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "host=evil.example;proto=https",
        "Host": "files.example.org:8443",
    }
    drafted = await created(server, said)
    assert drafted.status == 201
    assert drafted.headers["Location"].startswith(root)
    assert drafted.interim[0].headers["Location"] == drafted.headers["Location"]
    phone = uploader(server)
    parts = []
    for _ in range(2):
        part = {"Upload-Length": "1", "Upload-Concat": "partial"}
        begun = await phone.ask("POST", "/v1/uploads", TUS | said | part)
        parts.append(begun.headers["Location"])
        path = begun.headers["Location"].removeprefix("/field")
        await phone.ask("PATCH", path, TUS | {"Upload-Offset": "0", "Content-Type": CHUNK}, b"a")
    metadata = encoded(described(filetype="text/plain"))
    joins = {"Upload-Concat": f"final;{' '.join(parts)}", "Upload-Metadata": metadata}
    joined = await phone.ask("POST", "/v1/uploads", TUS | said | joins)
    asked = await phone.ask("HEAD", joined.headers["Location"].removeprefix("/field"), TUS | said)
    assert all(where.startswith(root) for where in [*parts, joined.headers["Location"]])
    assert asked.headers["Upload-Concat"] == joins["Upload-Concat"]
