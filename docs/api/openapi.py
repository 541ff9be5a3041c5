"""``/openapi.json``: OpenAPI 3.1 of every route of a server."""

from __future__ import annotations

import inspect
import re
from typing import Final

import msgspec

from docs.api import operator_operations, sync_operations, upload_operations
from docs.api.components import REF, Schema, ref
from docs.api.errors import error_answers, error_examples, error_tables
from docs.api.examples import EXAMPLES, over_http
from docs.api.limits import CONNECTION, DEVICE, LEGEND, limits, limits_table
from docs.api.operation import Answer, Caller, Operation, Parameter
from docs.api.policies import policies_section
from docs.api.schema import BODIES, compact, message_schemas, said
from engine.operate.monitor.report import Finding, Judgement, Report, Values
from engine.wire.messages import PROTOCOL_VERSION

OPERATIONS: Final[tuple[Operation, ...]] = (
    *sync_operations.OPERATIONS,
    *upload_operations.OPERATIONS,
    *operator_operations.OPERATIONS,
)
VERSION: Final = f"{PROTOCOL_VERSION}.0.0"
LICENSE: Final = {"name": "Apache 2.0", "identifier": "Apache-2.0"}

_DESCRIPTION: Final = """\
The HTTP interface of Tidemark, a sync engine for devices of field workers. The messages of its WebSocket are
in `/asyncapi.json`.

- **Token.** Every request of a device has the header `Authorization: Bearer TOKEN`. The token is a JSON Web
  Token that the app's backend signs: it names the tenant (`tid`) and the device (`did`). Never put it into a
  URL.
- **Versions.** The server may add optional fields and routes. It removes and changes nothing without a new
  version. A device ignores fields that it does not know, and so does the server.
- **Encoding.** A message is JSON or MessagePack, by `Content-Type`; its answer has the same encoding. Without
  a body, `Accept` chooses. A body may be compressed with gzip. An error is always JSON.
- **Retries.** After a lost answer send the same message under the same `key`. After a refusal wait
  `retry_after_ms`, then send the same message again.
- **Events** (`append`) are in no answer of `/v1/changes`. An event is named by its domain, its `id` and its
  `at` as sent.
- **HEAD.** Every path that takes GET takes HEAD.
- **405.** A method that a path does not take is refused with `method_not_allowed`; the header `Allow` names
  the others.

The limits in this document are the defaults. An operator may set others where a setting is named; the welcome
of the WebSocket has those of the device.

"""
_TAGS: Final = {
    "Sync": "The messages of a device, for devices that cannot keep a WebSocket open.",
    "Files": "Uploads by tus 1.0.0 and by the IETF draft of resumable uploads, and downloads.",
    "Operation": "For people and programs that watch a server.",
    "Documents": "These documents.",
    "Preflight": "For browsers: what a page of another origin may send.",
}
_SECURITY: Final[dict[Caller, list[dict[str, list[str]]]]] = {
    "device": [{"device": []}],
    "person": [{"person": []}],
    "machine": [{"person": []}, {}],
    "anybody": [],
}
_SCHEMES: Final = {
    "device": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of a device, as `Authorization: Bearer TOKEN`. Never put it into a URL.",
    },
    "person": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A token of an operator or a viewer, by `run.py token --operator` or `--viewer`.",
    },
}
_PROBLEM: Final[Schema] = {
    "title": "Problem",
    "description": "An error in the words of the IETF draft of resumable uploads (RFC 9457).",
    "type": "object",
    "properties": {
        "type": {"type": "string", "format": "uri", "description": "The type of problem."},
        "title": {"type": "string", "description": "A sentence for a person."},
        "code": {"type": "string", "description": "The code of the error."},
        "message": {"type": "string", "description": "A sentence for a person."},
    },
    "required": ["type", "title", "code", "message"],
}
_ATTRIBUTE: Final = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)


def openapi() -> Schema:
    """Make the document."""
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    schemas = _with_examples(compact(message_schemas("http").components)) | compact(_judgement())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidemark",
            "version": VERSION,
            "description": _DESCRIPTION + policies_section() + _common_limits() + error_tables(),
            "license": LICENSE,
        },
        "servers": [{"url": "/", "description": "The server that has this document."}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas | {"Problem": _PROBLEM},
            "examples": error_examples(),
            "securitySchemes": _SCHEMES,
        },
    }


def _operation(operation: Operation) -> Schema:
    answers = {str(status): _answer(answer) for status, answer in operation.answers.items()}
    speaks_draft = operation.tag == "Files" and operation.method != "GET"
    for status, refusal in error_answers(operation.errors).items():
        if speaks_draft and status in {"400", "409"}:
            refusal["content"]["application/problem+json"] = {"schema": ref("Problem")}
        if status in answers:
            _join(answers[status], refusal)
        else:
            answers[status] = refusal
    made: Schema = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": f"{operation.text}\n\n{_own_limits(operation)}",
        "parameters": [_parameter(one) for one in operation.parameters],
        "responses": answers,
        "security": _SECURITY[operation.caller],
        "x-limits": limits(operation.costs),
    }
    if operation.body is not None:
        made["requestBody"] = {
            "required": operation.tag != "Files",
            "content": {kind: _content(schema, operation.example) for kind, schema in operation.body.items()},
        }
    return made


def _common_limits() -> str:
    return (
        f"## Limits of every request\n\n{LEGEND}{limits_table(CONNECTION)}\n\n## Limits of a device\n\n"
        f"They hold for every request with a device's token.\n\n{limits_table(DEVICE)}\n\n"
    )


def _own_limits(operation: Operation) -> str:
    """Say which limits a request takes of: a table of its own ones, a name of those of many."""
    common = "those of every request"
    if operation.caller == "device":
        common += " and of a device"
    own = [name for name in operation.costs if name not in {*CONNECTION, *DEVICE}]
    if not own:
        return f"Limits: {common}."
    return f"Limits, beside {common}:\n\n{limits_table(own)}"


def _join(answer: Schema, refusal: Schema) -> None:
    """Let an answer be an error, too, of the same status."""
    json: Schema = answer["content"]["application/json"]
    json["schema"] = {"anyOf": [json["schema"], refusal["content"]["application/json"]["schema"]]}
    answer["description"] += "\n\n" + refusal["description"]


def _parameter(one: Parameter) -> Schema:
    made: Schema = {
        "name": one.name,
        "in": one.place,
        "description": one.text,
        "required": one.required,
        "schema": one.schema,
    }
    if one.example is not None:
        made["example"] = one.example
    return made | ({"style": "form", "explode": False} if one.separated else {})


def _answer(answer: Answer) -> Schema:
    made: Schema = {"description": answer.text}
    if answer.headers:
        made["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    if answer.schema:
        made["content"] = {kind: _content(schema, answer.example) for kind, schema in answer.schema.items()}
    return made


def _content(schema: Schema, example: object) -> Schema:
    return {"schema": schema} | ({} if example is None else {"example": example})


def _with_examples(components: dict[str, Schema]) -> dict[str, Schema]:
    made = dict(components)
    for name in EXAMPLES.keys() & components.keys():
        shown = [over_http(one, *BODIES.get(name, ())) for one in EXAMPLES[name]]
        made[name] = components[name] | {"examples": shown}
    return made


def _judgement() -> dict[str, Schema]:
    """Make the schemas of the health of tenants, with the words of their docstrings."""
    kinds = (Judgement, Report, Finding, Values)
    _, found = msgspec.json.schema_components(kinds, ref_template=REF + "{name}")
    made: dict[str, Schema] = msgspec.json.decode(msgspec.json.encode(found))  # defaults are tuples
    for kind in kinds:
        words = inspect.cleandoc(kind.__doc__ or "")
        schema = made[kind.__name__]
        schema["description"] = said(words.partition("\n\n")[0])
        for name, text in _ATTRIBUTE.findall(words):
            if "$ref" not in schema["properties"].get(name, {"$ref": ""}):
                schema["properties"][name]["description"] = said(text)
    return made
