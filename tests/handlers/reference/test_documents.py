"""/openapi.json, /asyncapi.json and /docs over HTTP, and the documents against the routes of a server."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from compose.edge import Edge
from docs.api import limits
from docs.api.asyncapi import ANSWERS, asyncapi
from docs.api.errors import DETAILS, error_example
from docs.api.examples import EXAMPLES
from docs.api.openapi import OPERATIONS, openapi
from docs.api.schema import message_schemas, refs
from docs.costs.page import COSTS, default_settings
from engine.model.domains import OUTCOMES
from engine.wire.close_codes import CloseCode
from engine.wire.codec import JSON, MSGPACK
from engine.wire.errors import ERRORS
from handlers.http.response_headers import FOR_BROWSERS
from handlers.reference.documents import FILES, STATIC
from tests.harness.in_process_server import ON_SHARED, Running, Serve
from tests.harness.schemas import faults, faults_of_schema

RAPIDOC = STATIC / "rapidoc"
#: What a limit answers, if a client notices it.
_TOLD = {*ERRORS, *CloseCode}


# -- against the code -------------------------------------------------------------------------


def routes_of(app: web.Application) -> set[tuple[str, str]]:
    """List the routes of an application: HEAD of what takes GET, and what refuses a method, left out."""
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "*"
    }
    return {(method, path) for method, path in routes if method != "HEAD" or ("GET", path) not in routes}


async def test_openapi_has_every_route_of_a_server_and_no_other(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges: list[Edge] = []
    build = Edge.application

    def noted(edge: Edge) -> web.Application:
        edges.append(edge)
        return build(edge)

    monkeypatch.setattr(Edge, "application", noted)
    await serve()
    (edge,) = edges
    documented = {(one.method, one.path) for one in OPERATIONS}
    assert routes_of(build(edge)) == documented, "docs/api/ has an operation of each route"
    assert routes_of(edge.probe_application()) <= documented


def test_openapi_names_each_operation_once() -> None:
    names = [one.name for one in OPERATIONS]
    assert len(names) == len(set(names)) == len({(one.method, one.path) for one in OPERATIONS})


def test_documents_have_every_error_with_cause_and_remedy() -> None:
    document = openapi()
    for code, kind in ERRORS.items():
        for text in (document["info"]["description"], asyncapi()["info"]["description"]):
            assert f"| `{code}` |" in text
            assert kind.cause in text
            assert kind.remedy in text
    answered = {code for one in OPERATIONS for code in one.errors}
    whole = {code for code, kind in ERRORS.items() if kind.http is not None}
    assert answered == whole
    assert document["components"]["examples"].keys() == whole
    assert DETAILS.keys() <= whole


def test_documents_have_every_limit_that_a_client_is_told_of() -> None:
    named = {name for names in vars(limits).values() if isinstance(names, tuple) for name in names}
    costs = [cost for section in COSTS.values() for cost in section]
    met = {cost.taken for cost in costs if cost.owner != "worker" and set(cost.answer) & _TOLD}
    assert met - named == set(), "name it in docs/api/limits.py, for the routes that it limits"
    told = {
        row["what"]
        for path in openapi()["paths"].values()
        for one in path.values()
        for row in one["x-limits"]
    }
    document = asyncapi()
    told |= {row["what"] for row in document["channels"]["sync"]["x-limits"]}
    for message in document["components"]["messages"].values():
        told |= {row["what"] for row in message.get("x-limits", ())}
    assert told == named


def test_asyncapi_has_every_message_with_an_example_and_each_request_its_answer() -> None:
    document, schemas = asyncapi(), message_schemas("socket")
    assert ANSWERS.keys() == schemas.requests.keys() - {"hello"}
    assert set(ANSWERS.values()) <= schemas.answers.keys()
    messages = {name for named in document["operations"].values() for name in refs(named["messages"])}
    messages |= {
        name for named in document["operations"].values() if "reply" in named for name in refs(named["reply"])
    }
    assert messages - {"#/channels/sync"} == {
        f"#/channels/sync/messages/{name}" for name in document["components"]["messages"]
    }
    assert all(message["examples"] for message in document["components"]["messages"].values())
    kinds = {*schemas.requests.values(), *schemas.answers.values(), *message_schemas("http").answers.values()}
    assert kinds == EXAMPLES.keys()


def test_asyncapi_has_every_message_that_the_server_sends_by_itself() -> None:
    operations = asyncapi()["operations"]
    sent = {name: one for name, one in operations.items() if one["action"] == "send"}
    answers = message_schemas("socket").answers
    unasked = {*answers} - {*ANSWERS.values()} | {"changes", "error"}
    assert sent.keys() == {f"send_{tag}" for tag in unasked}
    for name, one in sent.items():
        assert refs(one["messages"]) == [f"#/channels/sync/messages/server_{name.removeprefix('send_')}"]
    assert "refused" in sent["send_error"]["summary"]


def test_asyncapi_names_the_encoding_of_each_subprotocol() -> None:
    channel = asyncapi()["channels"]["sync"]
    protocols = channel["bindings"]["ws"]["headers"]["properties"]["Sec-WebSocket-Protocol"]["enum"]
    assert protocols == [codec.subprotocol for codec in (JSON, MSGPACK)]
    assert channel["x-content-types"] == {codec.subprotocol: codec.content_type for codec in (JSON, MSGPACK)}


def test_openapi_error_of_a_status_has_only_its_codes() -> None:
    document = openapi()
    error = error_example("quota_exceeded")
    create = document["paths"]["/v1/uploads"]["post"]["responses"]
    fits = {
        status: faults_of_schema(
            error, answer["content"]["application/json"]["schema"], document["components"]
        )
        == []
        for status, answer in create.items()
        if status != "201"
    }
    assert [status for status, fit in fits.items() if fit] == ["413"]
    for path in document["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                for code in answer.get("x-codes", ()):
                    assert str(ERRORS[code].http) == status


def test_schema_of_an_append_requires_its_time() -> None:
    event = {"domain": "metrics", "id": "m", "op": "append", "data": {}}
    assert faults(event, "Item", "socket") == [': "at" is a required property']
    assert faults(event | {"at": None}, "Item", "http") != []
    assert faults(event | {"at": "2026-01-02T03:04:05Z"}, "Item", "socket") == []
    assert faults(event | {"op": "put"}, "Item", "socket") == []


def test_openapi_no_part_is_unused() -> None:
    document = openapi()
    used = set(refs(document))
    for kind, parts in document["components"].items():
        if kind != "securitySchemes":
            assert {f"#/components/{kind}/{name}" for name in parts} - used == set()


# -- by the standards -------------------------------------------------------------------------


def test_openapi_is_valid() -> None:
    document = msgspec.json.decode((STATIC / "openapi.json").read_bytes())
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_asyncapi_is_valid(node_packages: Path) -> None:
    ended = subprocess.run(
        ["node", str(node_packages / "asyncapi.mjs")],  # noqa: S607  # the one of the machine
        input=(STATIC / "asyncapi.json").read_bytes(),
        capture_output=True,
        check=True,
    )
    messages = len(asyncapi()["components"]["messages"])
    assert msgspec.json.decode(ended.stdout) == {"messages": messages, "said": []}


# -- vendored ---------------------------------------------------------------------------------


def test_rapidoc_is_the_one_that_its_readme_names() -> None:
    rows = re.findall(
        r"^\| `(.+?)` \| `([0-9a-f]{64})` \|$", (RAPIDOC / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert dict(rows) == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in RAPIDOC.iterdir()
        if path.name != "README.md"
    }
    packed = (RAPIDOC / "rapidoc-min.js.gz").read_bytes()
    assert gzip.decompress(packed) == (RAPIDOC / "rapidoc-min.js").read_bytes()


# -- over HTTP --------------------------------------------------------------------------------


async def ask(
    server: Running, path: str, method: str = "GET", **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    """Ask without a token; a body comes as it was sent."""
    async with server.http.request(
        method,
        server.url + path,
        headers=headers,
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding",),
    ) as answer:
        return answer.status, answer.headers, await answer.read()


@ON_SHARED
@pytest.mark.parametrize("path", FILES)
async def test_document_is_sent_whole_packed_and_not_again(path: str, shared: Running) -> None:
    name, media, own = FILES[path]
    content = (STATIC / name).read_bytes()
    status, headers, body = await ask(shared, path)
    assert (status, body, headers["Content-Type"]) == (200, content, media)
    assert (headers["Cache-Control"], headers["Vary"]) == ("no-cache", "Accept-Encoding")
    wanted = FOR_BROWSERS | dict(own)
    assert {name: headers[name] for name in wanted} == wanted
    status, packed_headers, packed = await ask(shared, path, **{"Accept-Encoding": "gzip"})
    assert (status, gzip.decompress(packed), len(packed) < len(content)) == (200, content, True)
    assert packed_headers["Content-Encoding"] == "gzip"
    assert packed_headers["ETag"] != headers["ETag"]
    for tag in (headers["ETag"], f"W/{headers['ETag']}", f'"other", {headers["ETag"]}', "*"):
        status, known, body = await ask(shared, path, **{"If-None-Match": tag})
        assert (status, body, known["ETag"]) == (304, b"", headers["ETag"])
    status, again, body = await ask(shared, path, "HEAD")
    assert (status, body, again["Content-Length"]) == (200, b"", str(len(content)))


@ON_SHARED
async def test_document_travels_in_pieces_so_that_no_slow_reader_holds_it_whole(
    shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = web.StreamResponse.write

    async def noted(response: web.StreamResponse, data: memoryview) -> None:
        sizes.append(len(data))
        await write(response, data)

    monkeypatch.setattr(web.StreamResponse, "write", noted)
    _, _, body = await ask(shared, "/docs/rapidoc-min.js")
    assert (max(sizes), sum(sizes)) == (65_536, len(body))


@ON_SHARED
@pytest.mark.parametrize("name", ["nothing.js", "rapidoc", "README.md", "..", "requests.html", "%2e%2e%2fx"])
async def test_document_of_another_name_is_not_found(name: str, shared: Running) -> None:
    status, _, body = await ask(shared, f"/docs/{name}")
    assert (status, msgspec.json.decode(body)["code"]) == (404, "not_found")


@ON_SHARED
async def test_document_takes_no_other_method(shared: Running) -> None:
    status, headers, _ = await ask(shared, "/openapi.json", "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("document", [openapi, asyncapi])
def test_documents_explain_every_policy(document: Callable[[], dict[str, Any]]) -> None:
    described: str = document()["info"]["description"]
    for policy, text in OUTCOMES.items():
        assert f"| `{policy}` | {text.partition(' ([')[0]}" in described
    assert "(#" not in described  # a link of protocol.md leads nowhere here


def test_metadata_of_an_upload_names_each_accepted_type() -> None:
    described = {
        one.name: one.text
        for one in next(one for one in OPERATIONS if one.name == "create_upload").parameters
    }["Upload-Metadata"]
    uploads = default_settings()["uploads"]
    for kind in ("image", "document", "voice"):
        assert all(f"`{media}`" in described for media in uploads[f"{kind}_types"])
