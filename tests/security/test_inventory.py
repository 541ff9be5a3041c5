"""Every route of a server is known and asks for the token that it should; the API documents tell nothing."""

from __future__ import annotations

import re
from typing import Final

import pytest

from docs.api.openapi import OPERATIONS
from docs.api.operation import Operation
from handlers.reference.documents import FILES
from tests.harness.in_process_server import ON_SHARED, ORIGIN, SHARED
from tests.harness.raw_http import wired
from tests.security.arena import Arena
from tests.security.catalogue import against

pytestmark = ON_SHARED

#: A request from another machine, by a proxy.
STRANGER: Final = {"X-Forwarded-For": "203.0.113.9"}
#: Where documents of other servers, and the files of this one, would be.
PATHS: Final = (
    "/docs/",
    "/docs/..",
    "/docs/../config.toml",
    "/docs/%2e%2e/config.toml",
    "/docs/..%2f..%2f..%2fconfig.toml",
    "/docs/..%5c..%5cconfig.toml",
    "/docs/%00",
    "/docs//page.css",
    "/docs/page.css/",
    "/docs/PAGE.CSS",
    "/docs/page.css%00.html",
    "/docs/requests.html",
    "/docs/rapidoc/LICENSE",
    "/docs/rapidoc-min.js.gz",
    "/docs/rapidoc-min.js.map",
    "/docs/documents.py",
    "/docs/__init__.py",
    "/docs/static/openapi.json",
    "/docs/openapi.json",
    "/openapi.json/",
    "/openapi.yaml",
    "/openapi",
    "/swagger.json",
    "/api-docs",
    "/redoc",
    "/v1/openapi.json",
)


def path_of(operation: Operation) -> str:
    """Return the path of the operation's example."""
    return operation.path.format(**{one.name: one.example for one in operation.parameters})


@against("API9:2023", "V8.3")
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
async def test_inventory_route_without_a_token_is_open_only_if_it_says_so(
    operation: Operation, arena: Arena
) -> None:
    sent = STRANGER | {"Tus-Resumable": "1.0.0", "Content-Type": "application/json"}
    async with arena.holds():
        reply = await arena.ask(operation.method, path_of(operation), headers=sent)
    if operation.caller == "anybody":
        assert reply.status in operation.answers
    elif operation.method == "HEAD":
        assert (reply.status, reply.body) == (401, b"")
    else:
        assert reply.verdict in {(401, "unauthenticated"), (405, "method_not_allowed")}


@against("API9:2023", "V13.4")
@pytest.mark.parametrize("path", PATHS)
async def test_inventory_path_beside_the_documents_is_not_there(path: str, arena: Arena) -> None:
    async with arena.holds(), wired(arena.url) as wire:
        answer = await wire.ask("GET", path, STRANGER)
    assert answer.verdict == (404, "not_found")
    assert answer.message["message"] == "Not Found"


@against("API9:2023", "V13.4")
@pytest.mark.parametrize("path", FILES)
async def test_inventory_document_has_nothing_of_the_installation(path: str, arena: Arena) -> None:
    tokens = [None, arena.running.token("owner"), arena.running.token(None, role="operator", tid=None)]
    replies = [await arena.ask("GET", path, token) for token in tokens]
    assert {reply.status for reply in replies} == {200}
    assert len({reply.body for reply in replies}) == 1
    told = replies[0].body.decode()
    for secret in (
        arena.running.suffix,
        ORIGIN,
        arena.running.dsn,
        *(SHARED["domains"].keys() - {"note", "form", "report", "visit"}),
    ):
        assert secret not in told
    assert "Set-Cookie" not in replies[0].headers


@against("API8:2023", "V3.4")
@pytest.mark.parametrize("path", [path for path, (name, _, _) in FILES.items() if name.endswith(".html")])
async def test_inventory_page_may_run_its_own_scripts_and_nothing_else(path: str, arena: Arena) -> None:
    reply = await arena.ask("GET", path)
    policy = dict(
        part.strip().partition(" ")[::2] for part in reply.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["sandbox"] == "allow-scripts"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    page = reply.body.decode()
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"\son\w+=|javascript:|https?://", page) == []
