"""The schemas of the API documents, against which tests hold what a server sends."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from jsonschema_rs import Draft202012Validator

from docs.api.components import Schema, ref
from docs.api.schema import MessageSchemas, Transport, message_schemas

SCHEMAS: Final[dict[Transport, MessageSchemas]] = {
    "socket": message_schemas("socket"),
    "http": message_schemas("http"),
}


def faults(message: Any, name: str, transport: Transport) -> list[str]:
    """List what a message breaks of a schema, members that the schema does not name included."""
    return _listed(_validator(name, transport), message)


def answer_faults(message: dict[str, Any]) -> list[str]:
    """List what a message of the server breaks on a socket."""
    name = SCHEMAS["socket"].answers.get(message["type"])
    return faults(message, name, "socket") if name is not None else [f"no type {message['type']!r}"]


def faults_of_schema(value: Any, schema: Schema, components: dict[str, Any]) -> list[str]:
    """List what a value breaks of a schema that refers to ``components``."""
    return _listed(_made(schema, components), value)


@cache
def _validator(name: str, transport: Transport) -> Draft202012Validator:
    parts = SCHEMAS[transport].components
    strict = {
        part: {**schema, "additionalProperties": False} if "properties" in schema else schema
        for part, schema in parts.items()
    }
    return _made(ref(name), {"schemas": strict})


def _made(schema: Schema, components: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": components}, validate_formats=True)


def _listed(validator: Draft202012Validator, value: Any) -> list[str]:
    return [f"{'.'.join(map(str, one.instance_path))}: {one.message}" for one in validator.iter_errors(value)]
