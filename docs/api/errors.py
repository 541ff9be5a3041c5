"""Errors as a page, and as answers of the API documents: both of the table in ``engine/wire/errors.py``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from docs.api.components import Schema, ref
from engine.wire.errors import ERRORS, ErrorKind

_HEAD: Final = """\
# Errors

`python -m docs.generate` makes this page from the table in `engine/wire/errors.py`. To change the page,
change the table.

The [wire contract](protocol.md#errors) shows an error: a stable code, a sentence for a person, and whether
the same message may succeed later.

![All codes in five groups, by what a device does about them](pictures/errors.svg)
"""
#: The fields that come with some codes, with values as an example.
DETAILS: Final[dict[str, dict[str, Any]]] = {
    "conflict_stale": {"version": 5, "changes": 1, "data": {"title": "Read the meter"}},
    "offset_mismatch": {"offset": 262144},
    "internal": {"error_id": "5f0c8a4e1b7d4c52a3f6d9e8b7c6a5d4"},
    "rate_limited": {"retry_after_ms": 10},
    "overloaded": {"retry_after_ms": 740},
    "unavailable": {"retry_after_ms": 1220},
    "insufficient_storage": {"retry_after_ms": 61200},
}


def errors_page() -> str:
    """Make docs/errors.md."""
    return _HEAD + "\n" + error_tables()


def error_tables() -> str:
    """Make the tables of all codes, those of messages and those of items."""
    whole = [kind for kind in ERRORS.values() if kind.http is not None]
    items = [kind for kind in ERRORS.values() if kind.http is None]
    lines = [
        "## Errors of a message as a whole",
        "",
        "| code | HTTP | retryable | cause | remedy |",
        "|---|---|---|---|---|",
        *(_row(kind, str(kind.http), "yes" if kind.retryable else "no") for kind in whole),
        "",
        "## Errors of one item",
        "",
        "The `error` of a rejected item has one of these codes. The server still applies the other items of",
        "the message, unless the message is atomic. An item over `record_bytes` is also rejected, with",
        "`too_large`. Do not send the same item again: it never succeeds.",
        "",
        "| code | cause | remedy |",
        "|---|---|---|",
        *(_row(kind) for kind in items),
    ]
    return "\n".join(lines) + "\n"


def _row(kind: ErrorKind, *columns: str) -> str:
    return " | ".join(("| `" + kind.code + "`", *columns, kind.cause, kind.remedy)) + " |"


def error_example(code: str) -> Schema:
    """Make an error message; its sentence is the cause of the code, where a server names the case."""
    kind = ERRORS[code]
    body = {"type": "error", "code": code, "message": kind.cause, "retryable": kind.retryable}
    return body | DETAILS.get(code, {})


def error_examples() -> dict[str, Schema]:
    """Make an example of each code, to which the answers refer."""
    codes = [code for code, kind in ERRORS.items() if kind.http is not None]
    return {code: {"summary": ERRORS[code].remedy, "value": error_example(code)} for code in codes}


def error_answers(codes: Iterable[str]) -> dict[str, Schema]:
    """Make the answers of the codes by HTTP status: each code with its cause and remedy."""
    by_status: dict[str, list[ErrorKind]] = {}
    for code in sorted({*codes}):
        by_status.setdefault(str(ERRORS[code].http), []).append(ERRORS[code])
    return {status: _answer(by_status[status]) for status in sorted(by_status)}


def _answer(kinds: list[ErrorKind]) -> Schema:
    examples = {kind.code: {"$ref": f"#/components/examples/{kind.code}"} for kind in kinds}
    codes = {"properties": {"code": {"enum": [kind.code for kind in kinds]}}}
    schema = {"allOf": [ref("Error"), codes]}
    answer: Schema = {
        "description": "\n\n".join(f"`{kind.code}`: {kind.cause} {kind.remedy}" for kind in kinds),
        "content": {"application/json": {"schema": schema, "examples": examples}},
        "x-codes": [kind.code for kind in kinds],
    }
    if any("retry_after_ms" in DETAILS.get(kind.code, {}) for kind in kinds):
        answer["headers"] = {
            "Retry-After": {
                "description": "`retry_after_ms` in whole seconds, rounded up.",
                "schema": {"type": "integer"},
            }
        }
    return answer
