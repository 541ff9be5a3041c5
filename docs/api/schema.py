"""JSON Schemas of all messages, made of the Structs in ``engine/wire/messages.py``."""

from __future__ import annotations

import inspect
import re
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec

from docs.api.components import REF, Schema
from docs.api.fields import CONDITIONS, EXTRA, REFINED, TEXTS
from engine.wire import messages
from engine.wire.messages import (
    Changes,
    ConflictList,
    DomainList,
    Error,
    Goodbye,
    HeartbeatAck,
    PoliciesChanged,
    Request,
    Resolved,
    Synced,
    TelemetryAck,
    Unsubscribed,
    Welcome,
)

Transport = Literal["socket", "http"]

_Kinds = tuple[type[msgspec.Struct], ...]
#: What a socket sends to a device: messages of its own, and answers.
_ON_SOCKET: Final[_Kinds] = (
    *(Welcome, Synced, Changes, Unsubscribed, HeartbeatAck, TelemetryAck, ConflictList, Resolved, Error),
    *(PoliciesChanged, Goodbye),
)
_OVER_HTTP: Final[_Kinds] = (
    *(Synced, Changes, ConflictList, Resolved, HeartbeatAck, TelemetryAck, DomainList, Error),
)
#: Over HTTP these messages are the body of a request. Fields that the route or its path stands for may be
#: missing, of a sync only the ``id``.
BODIES: Final[dict[str, tuple[str, ...]]] = {
    "Sync": (),
    "Resolve": ("type", "id", "conflict_id"),
    "Heartbeat": ("type", "id"),
    "Telemetry": ("type", "id"),
}
_SENTENCE: Final = re.compile(r"(?<=[.:])\s+(?=[A-Z`])")
#: A sentence for those who work on the server.
_INSIDE: Final = re.compile(r"``(engine|handlers)\.")


class MessageSchemas(NamedTuple):
    """The messages of one transport as JSON Schemas.

    Attributes:
        requests: Value of ``type`` -> name of the schema, for the messages of a device.
        answers: The same for the messages of the server.
        components: Name -> schema: the messages of both directions and their parts. ``$ref`` begins with
            ``REF``.
    """

    requests: dict[str, str]
    answers: dict[str, str]
    components: dict[str, Schema]


def message_schemas(transport: Transport = "socket") -> MessageSchemas:
    """Return the schemas of all messages.

    Args:
        transport: On a socket every request has an ``id``, and its answer repeats it. Over HTTP both may be
            missing.
    """
    requests: _Kinds = get_args(Request)
    answers = _ON_SOCKET
    if transport == "http":
        requests = tuple(kind for kind in requests if kind.__name__ in BODIES)
        answers = _OVER_HTTP
    kinds = structs()
    _, made = msgspec.json.schema_components(kinds, ref_template=REF + "{name}")
    components = {kind.__name__: _schema(kind, made[kind.__name__], transport) for kind in kinds}
    parts = _parts(components, [kind.__name__ for kind in (*requests, *answers)])
    return MessageSchemas(_by_tag(requests), _by_tag(answers), parts)


def structs() -> list[type[msgspec.Struct]]:
    """List every message and part of one."""
    return [
        kind
        for _, kind in inspect.getmembers(messages, inspect.isclass)
        if issubclass(kind, msgspec.Struct) and kind.__module__ == messages.__name__
    ]


def _by_tag(kinds: _Kinds) -> dict[str, str]:
    return {str(kind.__struct_config__.tag): kind.__name__ for kind in kinds}


def _parts(components: dict[str, Schema], names: list[str]) -> dict[str, Schema]:
    """Keep the named schemas, and those that they refer to."""
    found: dict[str, Schema] = {}
    components = components | EXTRA
    while names:
        name = names.pop()
        if name not in found:
            found[name] = components[name]
            names += [ref.removeprefix(REF) for ref in refs(found[name])]
    return {name: found[name] for name in sorted(found)}


def refs(value: Any) -> list[str]:
    """List the references in a schema."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for part in value.values() for ref in refs(part)]
    return [ref for part in value for ref in refs(part)] if isinstance(value, list) else []


def _schema(kind: type[msgspec.Struct], made: Schema, transport: Transport) -> Schema:
    name = kind.__name__
    properties: dict[str, Schema] = {}
    unset = {
        field.encode_name
        for field in msgspec.structs.fields(kind)
        if msgspec.UnsetType in get_args(field.type)
    }
    required = [field for field in made.get("required", ()) if field not in unset]
    for field, found in made["properties"].items():
        refined = REFINED.get((name, field), {})
        schema = refined if "anyOf" in refined or "type" in refined or "$ref" in refined else found | refined
        schema = {key: value for key, value in schema.items() if key != "default" or value is not None}
        if field == "type" and "enum" in schema:
            schema = {"type": "string", "const": schema["enum"][0]}
        text = TEXTS.get((name, field)) or TEXTS[field]
        properties[field] = ({"allOf": [schema]} if "$ref" in schema else schema) | {"description": text}
    if transport == "socket":
        if name == "Sync":
            required.insert(1, "id")
            properties["id"] = {
                **properties["id"]["anyOf"][0],
                "description": properties["id"]["description"],
            }
            del properties["clock"]
        elif "id" in unset and name != "Error":
            required.insert(1, "id")
    elif name in BODIES:
        required = [field for field in required if field not in BODIES[name]]
    return {
        "title": name,
        "description": said(kind.__doc__ or ""),
        "type": "object",
        "properties": properties,
        "required": required,
        **CONDITIONS.get(name, {}),
    }


def compact(value: Any) -> Any:
    """Return a schema in the form that pages show best: ``type`` has null in it, and an enum has a type."""
    if isinstance(value, list):
        return [compact(part) for part in value]
    if not isinstance(value, dict):
        return value
    made = {name: compact(part) for name, part in value.items()}
    match made.get("anyOf"):
        case [{"type": str(kind)} as schema, {"type": "null"}] if "enum" not in schema:
            del made["anyOf"]
            return schema | {"type": [kind, "null"]} | made
    if isinstance(made.get("enum"), list) and "type" not in made:
        return {"type": "string"} | made
    return made


def said(docstring: str) -> str:
    """Return the sentences of a docstring that concern those who write a device, as Markdown."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    kept = [
        " ".join(one for one in _SENTENCE.split(" ".join(paragraph.split())) if not _INSIDE.search(one))
        for paragraph in paragraphs
    ]
    return "\n\n".join(text.replace("``", "`") for text in kept if text)
