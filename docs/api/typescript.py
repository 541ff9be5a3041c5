"""TypeScript types of all messages, made of the same JSON Schemas as the API documents."""

from __future__ import annotations

import textwrap
from typing import Final

from docs.api.asyncapi import ANSWERS
from docs.api.components import REF, Schema
from docs.api.schema import MessageSchemas, message_schemas

_HEAD: Final = """\
// `python -m docs.generate` makes this file from the messages in engine/wire/messages.py.
//
// Types of all messages of the wire contract, version 1. A server explains them at /docs/messages (the
// WebSocket) and /docs (HTTP), with the policies of conflicts, the close codes and the errors. A later server
// may add optional fields, types of messages and codes of errors: ignore those that you do not know.
//
// The WebSocket is wss://HOST/v1/sync, with the subprotocol `tidemark.v1.json` or `tidemark.v1.msgpack`.
// The token goes into the header `Authorization: Bearer TOKEN`. A browser offers `bearer.TOKEN` as a second
// subprotocol.
"""
#: What the messages of both transports are built on; `Data` is without the words of a schema.
_COMMON: Final = """\
/** A value of JSON. Numbers are exact up to 2^53 only: store longer ones as text. */
export type Json = string | number | boolean | null | Json[] | { [name: string]: Json }
/** The content of a record or an event. */
export type Data = { [name: string]: Json }
/** An instant: RFC 3339 text with an offset, such as `2026-01-02T03:04:05.290173Z`. */
export type Instant = string
"""
_OVER_HTTP: Final = """\
/** Messages as they are over HTTP, where they differ: an `id` and what the path says may be missing. */
export namespace Http {
"""
#: A global of the language has the same name.
_RENAMED: Final = {"Error": "ErrorMessage"}
_PRIMITIVES: Final = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "null": "null",
}
#: A later server may add values to these fields.
_OPEN: Final = frozenset({"code"})
_WIDTH: Final = 120


def typescript() -> str:
    """Make docs/types/tidemark.d.ts."""
    socket, http = message_schemas("socket"), message_schemas("http")
    parts = {**http.components, **socket.components}
    differing = {name: schema for name, schema in http.components.items() if schema != parts[name]}
    blocks = [
        _HEAD,
        _COMMON,
        *(_interface(name, schema) for name, schema in sorted(parts.items()) if name != "Data"),
        _union("ClientMessage", "What a device sends on a socket.", socket.requests),
        _union("ServerMessage", "What the server sends on a socket.", socket.answers),
        _answers(socket),
        _OVER_HTTP + textwrap.indent(_namespace(http, differing), "  ") + "}\n",
    ]
    return "\n".join(blocks)


def _namespace(http: MessageSchemas, differing: dict[str, Schema]) -> str:
    answers = {tag: name for tag, name in http.answers.items() if name != "Error"}
    interfaces = [_interface(name, schema) for name, schema in sorted(differing.items())]
    return "\n".join([*interfaces, _union("Answer", "What a request is answered with.", answers)])


def _union(name: str, text: str, by_tag: dict[str, str]) -> str:
    members = "".join(f"\n  | {_name(member)}" for _, member in sorted(by_tag.items()))
    return f"/** {text} `type` tells them apart. */\nexport type {name} ={members}\n"


def _answers(socket: MessageSchemas) -> str:
    rows = [
        f"  {tag}: {_name(socket.answers[ANSWERS[tag]]) + ' | ErrorMessage' if tag in ANSWERS else 'never'}\n"
        for tag in sorted(socket.requests)
    ]
    text = "The answer to each request on a socket, by its `type`. A subscription has many answers."
    return f"/** {text} */\nexport interface Answers {{\n{''.join(rows)}}}\n"


def _interface(name: str, schema: Schema) -> str:
    lines = [*_comment(schema["description"], ""), f"export interface {_name(name)} {{"]
    for field, found in schema["properties"].items():
        mark = "" if field in schema["required"] else "?"
        text = [] if field == "type" else _comment(found["description"], "  ")
        kind = _type(found) + (" | (string & {})" if field in _OPEN else "")
        lines += [*text, *_folded(f"  {field}{mark}: {kind}")]
    return "\n".join([*lines, "}"]) + "\n"


def _folded(line: str) -> list[str]:
    """Give a member of a union a line of its own if the whole is too long."""
    if len(line) <= _WIDTH:
        return [line]
    head, *members = line.replace(": ", ": | ", 1).split(" | ")
    return [head, *(f"    | {member}" for member in members)]


def _comment(text: str, indent: str) -> list[str]:
    flat = " ".join(text.split())
    if len(flat) + len(indent) + 7 <= _WIDTH:
        return [f"{indent}/** {flat} */"]
    lines = textwrap.wrap(flat, _WIDTH - len(indent) - 3)
    return [f"{indent}/**", *(f"{indent} * {line}" for line in lines), f"{indent} */"]


def _name(schema: str) -> str:
    return _RENAMED.get(schema, schema)


def _type(schema: Schema) -> str:
    """Return the type of a value. Raises KeyError for a schema of no known kind."""
    if "$ref" in schema:
        return _name(schema["$ref"].removeprefix(REF))
    if "allOf" in schema:
        return " & ".join(_type(one) for one in schema["allOf"])
    if "anyOf" in schema:
        return " | ".join(_type(one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " | ".join(_literal(value) for value in schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if kind == "array":
        return _array(schema)
    if kind == "object":
        return f"{{ [name: string]: {_type(schema['additionalProperties'])} }}"
    return "Instant" if schema.get("format") == "date-time" else _PRIMITIVES[kind]


def _array(schema: Schema) -> str:
    element = _type(schema["items"])
    if schema.get("minItems") == schema.get("maxItems") == 2:  # a pair
        return f"[{element}, {element}]"
    return f"({element})[]" if "|" in element else f"{element}[]"


def _literal(value: object) -> str:
    return "null" if value is None else f"'{value}'"
