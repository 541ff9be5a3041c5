"""Pages of other origins: what a browser lets them send and read, on every route that is not a socket."""

from __future__ import annotations

import pytest

from tests.harness.in_process_server import ON_SHARED, ORIGIN, Running
from tests.harness.raw_http import Answer, wired

pytestmark = ON_SHARED

STRANGE = "https://elsewhere.example.org"
UPLOAD = "/v1/uploads/" + "0" * 32
FILE = "/v1/files/" + "0" * 32
#: Each route with the methods that a page uses there.
ROUTES = {
    "/v1/sync": {"POST"},
    "/v1/changes": {"GET"},
    "/v1/conflicts": {"GET"},
    "/v1/conflicts/c1/resolution": {"POST"},
    "/v1/heartbeat": {"POST"},
    "/v1/domains": {"GET"},
    "/v1/uploads": {"POST"},
    UPLOAD: {"HEAD", "PATCH", "DELETE"},
    FILE: {"GET", "HEAD"},
}
#: What clients send: tus-js-client, Uppy, clients of the draft, and pages by hand.
SENT = {
    "/v1/sync": "authorization, content-type, content-encoding, x-request-id, x-requested-with",
    "/v1/uploads": "authorization, content-type, tus-resumable, upload-length, upload-metadata,"
    " upload-offset, upload-checksum, upload-concat, upload-defer-length, x-http-method-override,"
    " x-request-id, x-requested-with, upload-complete, upload-incomplete, upload-draft-interop-version,"
    " content-digest, repr-digest, content-disposition",
    FILE: "authorization, range, if-range, if-none-match, x-request-id",
}
#: What they read.
READ = {
    "/v1/sync": "retry-after",
    "/v1/uploads": "location, retry-after, tus-resumable, tus-version, upload-offset, upload-length,"
    " upload-metadata, upload-defer-length, upload-concat, upload-expires, upload-complete,"
    " upload-incomplete, upload-draft-interop-version, upload-limit",
    FILE: "etag, repr-digest, retry-after, accept-ranges, content-range, content-length, content-disposition",
}


def listed(headers: str) -> set[str]:
    """The names in a list, in lower case."""
    return {name.strip().lower() for name in headers.split(",")}


async def asked(
    shared: Running, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> Answer:
    async with wired(shared.url) as wire:
        return await wire.ask(method, path, headers, body)


@pytest.mark.parametrize("path", ROUTES)
async def test_cors_preflight_of_a_listed_origin_allows_what_the_route_takes(
    path: str, shared: Running
) -> None:
    for method in ROUTES[path]:
        headers = {"Origin": ORIGIN, "Access-Control-Request-Method": method}
        answer = await asked(shared, "OPTIONS", path, headers)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, ORIGIN)
        assert method.lower() in listed(answer.headers["Access-Control-Allow-Methods"])
        assert "authorization" in listed(answer.headers["Access-Control-Allow-Headers"])
        assert int(answer.headers["Access-Control-Max-Age"]) > 0


@pytest.mark.parametrize("path", ROUTES)
async def test_cors_preflight_of_an_unlisted_origin_is_refused(path: str, shared: Running) -> None:
    headers = {"Origin": STRANGE, "Access-Control-Request-Method": "POST"}
    answer = await asked(shared, "OPTIONS", path, headers)
    assert answer.verdict == (403, "forbidden")
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("path", SENT)
async def test_cors_preflight_allows_and_exposes_what_clients_send_and_read(
    path: str, shared: Running
) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    answer = await asked(shared, "OPTIONS", path, headers)
    assert listed(SENT[path]) <= listed(answer.headers["Access-Control-Allow-Headers"])
    assert listed(READ[path]) <= listed(answer.headers["Access-Control-Expose-Headers"])


@pytest.mark.parametrize("path", ROUTES)
async def test_cors_answer_to_a_page_may_be_read_whatever_it_is(path: str, shared: Running) -> None:
    for method in ROUTES[path]:
        refused = await asked(shared, method, path, {"Origin": ORIGIN})
        answered = await asked(shared, method, path, shared.headers() | {"Origin": ORIGIN}, b"{}")
        for answer in (refused, answered):
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN, answer
            assert "origin" in listed(answer.headers["Vary"])
            assert "retry-after" in listed(answer.headers["Access-Control-Expose-Headers"])
        strange = await asked(shared, method, path, shared.headers() | {"Origin": STRANGE}, b"{}")
        assert (strange.status, "Access-Control-Allow-Origin" in strange.headers) == (403, False)
        native = await asked(shared, method, path, shared.headers(), b"{}")
        assert "Access-Control-Allow-Origin" not in native.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/sync", "GET, HEAD, OPTIONS, POST"),
        ("DELETE", "/v1/changes", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/heartbeat", "OPTIONS, POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", FILE, "GET, HEAD, OPTIONS"),
        ("PUT", "/v1/uploads", "OPTIONS, POST"),
        ("PUT", UPLOAD, "DELETE, HEAD, OPTIONS, PATCH"),
        ("LOCK", "/v1/domains", "GET, HEAD, OPTIONS"),
    ],
)
async def test_cors_method_that_a_path_does_not_take_is_answered_with_those_that_it_takes(
    method: str, path: str, allowed: str, shared: Running
) -> None:
    answer = await asked(shared, method, path, shared.headers())
    assert answer.verdict == (405, "method_not_allowed")
    assert answer.headers.getall("Allow") == [allowed]
    assert answer.message["message"] == f"{method}: this path takes {allowed}"
