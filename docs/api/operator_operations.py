"""The operations of people and programs that watch a server, and those of the documents themselves."""

from __future__ import annotations

from typing import Any, Final

from docs.api import limits
from docs.api.components import ref
from docs.api.operation import ANY, Answer, Operation, Parameter
from handlers.operate.admin_health import MOST_HOURS

_TAG: Final = "Operation"
_DOCS: Final = "Documents"
_JSON: Final = "application/json"


def _status(*statuses: str, lists: str = "") -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"status": {"type": "string", "enum": list(statuses)}},
        "required": ["status"],
    }
    if lists:
        schema["properties"][lists] = {"type": "array", "items": {"type": "string"}}
    return schema


def _document(path: str, name: str, summary: str, media: str, schema: dict[str, Any]) -> Operation:
    return Operation(
        "GET",
        path,
        name,
        _DOCS,
        summary,
        "It needs no token, and has nothing of a tenant or of this installation.",
        {
            200: Answer("The document.", {media: schema}, headers={"ETag": "Changes with the document."}),
            304: Answer("`If-None-Match` names the document that is there."),
        },
        ANY,
        limits.CONNECTION,
        (
            Parameter(
                "If-None-Match", "header", {"type": "string"}, "The `ETag` of the document that is known."
            ),
        ),
        caller="anybody",
    )


OPERATIONS: Final = (
    Operation(
        "GET",
        "/v1/admin/health",
        "health",
        _TAG,
        "Ask for the health of tenants",
        "With a token of an operator or a viewer. A token of one tenant sees that tenant alone. The answer is"
        " that of `run.py monitor --json`.",
        {200: Answer("The judgement.", {_JSON: ref("Judgement")})},
        (*ANY, "unauthenticated", "forbidden", "rate_limited", "not_found", "invalid_message"),
        (*limits.CONNECTION, *limits.PERSON),
        (
            Parameter(
                "tenant", "query", {"type": "string"}, "The tenant. Missing: all that the token may see."
            ),
            Parameter(
                "hours",
                "query",
                {"type": "number", "exclusiveMinimum": 0, "maximum": MOST_HOURS, "default": 24},
                "The length of the window that is judged.",
                24,
            ),
        ),
        caller="person",
    ),
    Operation(
        "GET",
        "/healthz",
        "alive",
        _TAG,
        "Ask whether the process runs",
        "For a supervisor of processes.",
        {200: Answer("It runs.", {_JSON: _status("ok")}, {"status": "ok"})},
        ANY,
        limits.CONNECTION,
        caller="anybody",
    ),
    Operation(
        "GET",
        "/readyz",
        "ready",
        _TAG,
        "Ask whether devices may be sent here",
        "For a load balancer. Operators and programs of the same machine are told the reasons.",
        {
            200: Answer(
                "They may.", {_JSON: _status("ready", "degraded", lists="degraded")}, {"status": "ready"}
            ),
            503: Answer(
                "They may not.", {_JSON: _status("not ready", lists="faults")}, {"status": "not ready"}
            ),
        },
        ("malformed", "too_large", "internal"),
        limits.CONNECTION,
        caller="anybody",
    ),
    Operation(
        "GET",
        "/metrics",
        "metrics",
        _TAG,
        "Read the metrics",
        "In Prometheus' text format. On the server's own machine it needs no token, elsewhere one of an"
        " operator of all tenants. With `server.probe_port` only that port answers.",
        {200: Answer("The metrics.", {"text/plain": {"type": "string"}})},
        (*ANY, "unauthenticated", "forbidden", "not_found"),
        limits.CONNECTION,
        caller="machine",
    ),
    _document("/openapi.json", "openapi", "Read this document", _JSON, {"type": "object"}),
    _document("/asyncapi.json", "asyncapi", "Read the document of the WebSocket", _JSON, {"type": "object"}),
    _document("/docs", "docs", "Show this document", "text/html", {"type": "string"}),
    _document("/docs/messages", "docs_messages", "Show the messages", "text/html", {"type": "string"}),
    _document("/docs/{name}", "docs_part", "Read a part of these pages", "*/*", {"type": "string"})._replace(
        errors=(*ANY, "not_found"),
        parameters=(
            Parameter("name", "path", {"type": "string"}, "The part.", "page.css", required=True),
            Parameter("If-None-Match", "header", {"type": "string"}, "The `ETag` of the part that is known."),
        ),
    ),
)
