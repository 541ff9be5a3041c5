"""Who may be asked from where: pages of other origins, proxies that say how they were asked, odd hosts."""

from __future__ import annotations

import pytest

from tests.services import rows
from tests.serving import Running, Serve
from tests.uploading import TUS, described, encoded, file_path, photo, uploader
from tests.wire import Answer, wired

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
async def test_a_page_is_told_what_it_may_send(kind: str, paged: Running) -> None:
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
async def test_a_page_may_read_a_file_and_why_there_is_none(method: str, paged: Running) -> None:
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


async def test_a_page_may_upload(paged: Running) -> None:
    phone = uploader(paged)
    begun = await phone.create(1000, origin=PAGE)
    assert begun.status == 201
    asked = await phone.ask("HEAD", begun.headers["Location"], TUS | {"Origin": PAGE})
    for reply in (begun, asked):
        assert reply.headers["Access-Control-Allow-Origin"] == PAGE
        assert {"location", "upload-offset"} <= listed(reply.headers["Access-Control-Expose-Headers"])
    assert (await phone.create(1000, origin=STRANGE)).verdict == (403, "forbidden")


@pytest.mark.parametrize(
    ("trusted", "said", "scheme"),
    [
        (["127.0.0.0/8"], "https", "https"),
        (["127.0.0.0/8"], "https, http", "https"),
        (["127.0.0.0/8"], "HTTPS", "https"),
        (["127.0.0.0/8"], "javascript", "http"),
        (["127.0.0.0/8"], "https://evil.example/?", "http"),
        (["127.0.0.0/8"], "", "http"),
        ([], "https", "http"),
        (["10.0.0.0/8"], "https", "http"),
    ],
)
async def test_a_proxy_alone_is_believed_how_it_was_asked(
    trusted: list[str], said: str, scheme: str, serve: Serve
) -> None:
    server = await serve(server={"trusted_proxies": trusted})
    answer = await created(server, {"X-Forwarded-Proto": said, "Host": "files.example.org:8443"})
    assert answer.status == 201
    assert answer.headers["Location"].startswith(f"{scheme}://files.example.org:8443/v1/uploads/")
    assert answer.headers["Location"] == answer.interim[0].headers["Location"]


async def test_a_host_that_is_none_begins_nothing(server: Running) -> None:
    for host in ("h\u00f6st", "a\udcff", "a b", "a/b", "a,b", "", "a@b", "a:b", "[::1", "a:1:2", "a\tb"):
        answer = await created(server, {"Host": host})
        assert (answer.status, answer.interim) == (400, []), host
    assert rows(server.dsn, "SELECT count(*) FROM upload_session") == [(0,)]
    for host in ("localhost", "my_host.example:80", "127.0.0.1:1", "[::1]:8080", "[fe80::1]"):
        answer = await created(server, {"Host": host})
        assert answer.status == 201, host
        assert answer.headers["Location"].startswith(f"http://{host}/v1/uploads/")
