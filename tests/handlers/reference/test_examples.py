"""The examples of the API documents, sent to a server in their order: it answers as they show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import pytest

from docs.api import examples
from docs.api.components import REF, ref
from docs.api.errors import error_example
from docs.api.examples import EXAMPLES, VOLATILE, over_http
from docs.api.openapi import OPERATIONS, openapi
from docs.api.operation import Operation
from docs.api.schema import BODIES, Transport
from engine.wire.errors import ERRORS
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.schemas import SCHEMAS, faults, faults_of_schema
from tests.harness.services import execute
from tests.harness.ws_device import Device, Json

#: The examples are of this time, the test of another one.
_MADE: Final = datetime(2026, 1, 2, 3, 10, tzinfo=UTC)
_NOW: Final = datetime.now(UTC).replace(microsecond=0)
#: Headers that only an unfinished upload has, and those that only a page of another origin gets.
_AT_TIMES: Final = {"Upload-Expires", "Access-Control-Allow-Methods", "Access-Control-Allow-Headers"}
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")


def today(value: Any) -> Any:
    """Move the instants of an example to the present."""
    if isinstance(value, str) and _INSTANT.fullmatch(value):
        moved = datetime.fromisoformat(value) - _MADE + _NOW
        return moved.replace(microsecond=0).isoformat().replace("+00:00", "Z")
    if isinstance(value, dict):
        return {name: today(part) for name, part in value.items()}
    return [today(part) for part in value] if isinstance(value, list) else value


def stable(value: Any) -> Any:
    """Leave out the values that differ each time, not their members."""
    if isinstance(value, dict):
        return {name: ... if name in VOLATILE else stable(part) for name, part in value.items()}
    return [stable(part) for part in value] if isinstance(value, list) else value


def check(answer: Json, example: Json, name: str, transport: Transport) -> None:
    """Compare an answer with its schema and with its example."""
    assert faults(answer, name, transport) == []
    assert stable(answer) == stable(today(example))


def present_hour() -> str:
    """Return the beginning of the present hour."""
    return _NOW.replace(minute=0, second=0).isoformat()


async def settled_by_hand(server: Running, device: Device) -> None:
    """Set the policy of tasks to ``manual``, and wait until the server follows it."""
    execute(
        server.dsn,
        "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy)"
        f" SELECT tenant_id, 'task', 'manual' FROM tenants WHERE name = '{server.tenant()}'",
        "UPDATE cluster_state SET generation = generation + 1",
    )
    told = await device.waited("policies")
    check(told, examples.POLICIES_CHANGED, "PoliciesChanged", "socket")
    assert told["policies"] == device.welcome["policies"] | {"task": "manual"}


# -- as schemas say ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_of_its_schema(name: str) -> None:
    for transport, schemas in SCHEMAS.items():
        for example in EXAMPLES[name] if name in schemas.components else ():
            shown = over_http(example, *BODIES.get(name, ())) if transport == "http" else example
            assert faults(shown, name, transport) == []


@pytest.mark.parametrize("code", [code for code, kind in ERRORS.items() if kind.http is not None])
def test_example_of_an_error_is_of_its_schema(code: str) -> None:
    assert faults(error_example(code), "Error", "http") == []


def test_examples_in_openapi_are_of_their_schemas() -> None:
    document = openapi()
    shown = 0
    for operation in (one for path in document["paths"].values() for one in path.values()):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (
            one for body in bodies for one in body.get("content", {}).values() if "example" in one
        ):
            assert faults_of_schema(content["example"], content["schema"], document["components"]) == []
            shown += 1
    assert shown > 20


def test_schema_refuses_what_an_example_lacks() -> None:
    assert faults(examples.SYNCED | {"results": [{"status": "done"}]}, "Synced", "socket") != []
    assert faults({"type": "sync", "key": "k", "items": []}, "Sync", "socket") == [
        ': "id" is a required property'
    ]


# -- on a socket ------------------------------------------------------------------------------


@ON_SHARED
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_examples_of_a_socket_are_answered_as_shown(shared: Running, encoding: str) -> None:
    phone = await shared.device("phone-7", encoding=encoding)
    check(phone.welcome, examples.WELCOME, "Welcome", "socket")
    met = {"hello", "welcome", "policies", "goodbye"}

    async def exchanged(request: Json, example: Json, **fields: Any) -> Json:
        """Send an example, with values of this session, and compare its answer."""
        sent = today(request) | fields
        assert faults(sent, SCHEMAS["socket"].requests[sent["type"]], "socket") == []
        await phone.send(sent)
        while (answer := await phone.receive()).get("id") != sent["id"]:
            phone.unasked.append(answer)
        check(answer, example, SCHEMAS["socket"].answers[answer["type"]], "socket")
        met.update((sent["type"], answer["type"]))
        return answer

    clock = datetime.now(UTC).isoformat()
    await phone.send(today(examples.HELLO) | {"clock": clock, "server_time": phone.welcome["server_time"]})
    await exchanged(examples.HEARTBEAT, examples.HEARTBEAT_ACK)
    await exchanged(examples.SYNC, examples.SYNCED)
    await exchanged(examples.PULL, examples.CHANGES)
    await exchanged(examples.SUBSCRIBE, examples.CHANGES | {"id": examples.SUBSCRIBE["id"]})
    await exchanged(examples.UNSUBSCRIBE, examples.UNSUBSCRIBED)
    await exchanged(examples.TELEMETRY, examples.TELEMETRY_ACK, hour=present_hour())
    await settled_by_hand(shared, phone)
    await (await shared.device("office")).push(examples.OTHERS_CHANGE)
    await exchanged(examples.CONFLICTING, examples.CONFLICTED)
    listed = await exchanged(examples.CONFLICTS, examples.CONFLICT_LIST)
    conflict_id = listed["conflicts"][0]["conflict_id"]
    await exchanged(examples.RESOLVE, examples.RESOLVED, conflict_id=conflict_id)
    await exchanged(examples.NOT_FOUND, examples.ERROR)
    await (await shared.device("phone-7")).socket.ping()
    check(await phone.waited("goodbye"), examples.GOODBYE, "Goodbye", "socket")
    assert met == SCHEMAS["socket"].requests.keys() | SCHEMAS["socket"].answers.keys()


# -- over HTTP --------------------------------------------------------------------------------


class Requests:
    """Sends the examples of operations as a device.

    Args:
        server: The server.
    """

    def __init__(self, server: Running) -> None:
        self._server = server
        self.sent: set[str] = set()

    async def ask(
        self, name: str, status: int, body: Any = None, **values: str
    ) -> tuple[Mapping[str, str], bytes]:
        """Send the example of an operation; ``values`` replace those of parameters."""
        (operation,) = [one for one in OPERATIONS if one.name == name]
        self.sent.add(name)
        path, query, headers = _placed(operation, values)
        if operation.caller == "device":
            headers |= self._server.headers("phone-7")
        data = msgspec.json.encode(body) if isinstance(body, dict) else body
        if operation.body is not None:
            headers["Content-Type"] = next(iter(operation.body))
        async with self._server.http.request(
            operation.method, self._server.url + path, params=query, headers=headers, data=data
        ) as answer:
            content = await answer.read()
            assert answer.status == status, content
            told = operation.answers[status]
            missing = {one for one in told.headers if one not in answer.headers}
            assert {one for one in missing if "IETF draft" not in told.headers[one]} <= _AT_TIMES
            return answer.headers, content

    async def message(self, name: str, **fields: Any) -> Json:
        """Send an example whose answer is a message, and compare that."""
        (operation,) = [one for one in OPERATIONS if one.name == name]
        body = None
        if operation.body is not None:
            body = today(operation.example) | fields
            assert faults(body, _schema_of(operation.body), "http") == []
        values = {"conflict_id": fields["conflict_id"]} if "{conflict_id}" in operation.path else {}
        if body is not None and values:
            del body["conflict_id"]
        _, content = await self.ask(name, 200, body, **values)
        answer: Json = msgspec.json.decode(content)
        told = operation.answers[200]
        check(answer, told.example, _schema_of(told.schema), "http")
        return answer


def _placed(operation: Operation, values: dict[str, str]) -> tuple[str, dict[str, str], dict[str, str]]:
    """Place the examples of parameters."""
    path = operation.path
    query: dict[str, str] = {}
    headers: dict[str, str] = {}
    for one in operation.parameters:
        value = values.get(one.name, one.example)
        if value is None:
            continue
        text = ",".join(value) if isinstance(value, list) else str(value)
        if one.place == "path":
            path = path.replace("{" + one.name + "}", text)
        else:
            (query if one.place == "query" else headers)[one.name] = text
    return path, query, headers


def _schema_of(content: Mapping[str, Json]) -> str:
    name: str = content["application/json"]["$ref"]
    return name.removeprefix(REF)


@ON_SHARED
async def test_examples_over_http_are_answered_as_shown(shared: Running) -> None:
    requests, watcher = Requests(shared), await shared.device("watcher")
    await requests.message("push")
    await requests.message("pull")
    await settled_by_hand(shared, watcher)
    await (await shared.device("office")).push(examples.OTHERS_CHANGE)
    reply = await shared.post("/v1/sync", today(over_http(examples.CONFLICTING)), "phone-7")
    check(reply.message, over_http(examples.CONFLICTED), "Synced", "http")
    listed = await requests.message("list_conflicts")
    await requests.message("resolve_conflict", conflict_id=listed["conflicts"][0]["conflict_id"])
    await requests.message("heartbeat")
    await requests.message("telemetry", hour=present_hour())
    await requests.message("list_domains")

    await requests.ask("upload_options", 204)
    headers, _ = await requests.ask("create_upload", 201)
    upload_id = headers["Location"].rpartition("/")[2]
    await requests.ask("upload_offset", 200, upload_id=upload_id)
    half = len(examples.FILE) // 2
    await requests.ask("append", 204, examples.FILE[:half], upload_id=upload_id)
    offset = {"upload_id": upload_id, "Upload-Offset": str(half)}
    await requests.ask("append_by_post", 204, examples.FILE[half:], **offset)
    headers, content = await requests.ask("download", 200, file_id=upload_id)
    assert content == examples.FILE
    await requests.ask("download", 304, **{"file_id": upload_id, "If-None-Match": headers["ETag"]})
    await requests.ask("download", 206, Range="bytes=0-3", file_id=upload_id)
    await requests.ask("download", 416, Range="bytes=900-", file_id=upload_id)
    await requests.ask("cancel_upload", 204, upload_id=upload_id)

    for name in ("alive", "ready", "metrics", "openapi", "asyncapi", "docs", "docs_messages", "docs_part"):
        await requests.ask(name, 200)
    preflights = {one.name for one in OPERATIONS if one.tag == "Preflight"}
    for name in preflights:
        await requests.ask(name, 204)
    assert {one.name for one in OPERATIONS} - requests.sent == {"open_socket", "health"}


@ON_SHARED
async def test_health_of_a_tenant_is_of_its_schema(shared: Running) -> None:
    bearer = {"Authorization": f"Bearer {shared.token(None, role='viewer')}"}
    async with shared.http.get(shared.url + "/v1/admin/health", headers=bearer) as answer:
        judgement = await answer.json()
    document = msgspec.json.decode((await shared.get("/openapi.json")).body)
    assert faults_of_schema(judgement, ref("Judgement"), document["components"]) == []
    assert judgement["reports"][0]["window_s"] == timedelta(hours=24).total_seconds()
