"""The schemas of the messages: complete, without dead rows, and as each transport takes them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from docs.api.components import REF
from docs.api.fields import EXTRA, REFINED, TEXTS
from docs.api.schema import MessageSchemas, Transport, compact, message_schemas, refs, said, structs

TRANSPORTS: tuple[Transport, ...] = ("socket", "http")
FIELDS = {
    (kind.__name__, field.encode_name) for kind in structs() for field in msgspec.structs.fields(kind)
} | {(kind.__name__, "type") for kind in structs() if kind.__struct_config__.tag}


def every_schema() -> list[dict[str, Any]]:
    return [schema for one in TRANSPORTS for schema in message_schemas(one).components.values()]


def test_schema_each_struct_and_extra_is_there() -> None:
    there = {schema["title"] for schema in every_schema()}
    assert there == {kind.__name__ for kind in structs()} | EXTRA.keys()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_schema_references_resolve(transport: Transport) -> None:
    components = message_schemas(transport).components
    assert {ref.removeprefix(REF) for ref in refs(components)} <= components.keys()


def test_schema_no_row_is_of_a_field_that_is_gone() -> None:
    names = {name for _, name in FIELDS}
    assert {row for row in REFINED if row not in FIELDS} == set()
    assert {row for row in TEXTS if row not in FIELDS and row not in names} == set()


def test_schema_raw_fields_are_refined() -> None:
    for schema in every_schema():
        for name, field in schema.get("properties", {}).items():
            assert field.keys() & {"type", "anyOf", "allOf", "enum"}, (schema["title"], name)


def test_schema_descriptions_name_no_module_of_ours() -> None:
    for schema in every_schema():
        assert schema["description"], schema["title"]
        assert "engine." not in schema["description"], schema["title"]
        assert "``" not in schema["description"], schema["title"]


def test_said_leaves_out_sentences_about_modules() -> None:
    assert said("One. It is in ``engine.wire``, and ``a`` too. ``b`` stays.\n\nLast.") == (
        "One. `b` stays.\n\nLast."
    )


def test_compact_writes_null_as_a_type_and_keeps_what_else_is_said() -> None:
    null = {"type": "null"}
    assert compact({"anyOf": [{"type": "string", "maxLength": 3}, null], "description": "d"}) == {
        "type": ["string", "null"],
        "maxLength": 3,
        "description": "d",
    }
    reference = {"anyOf": [{"$ref": "#/components/schemas/Data"}, null]}
    assert compact({"properties": {"data": reference}}) == {"properties": {"data": reference}}
    assert compact({"items": {"enum": ["a"]}}) == {"items": {"type": "string", "enum": ["a"]}}
    both = {"anyOf": [{"type": "string", "enum": ["a"]}, null]}
    assert compact(both) == both


def required(schemas: MessageSchemas, name: str) -> list[str]:
    found: list[str] = schemas.components[name]["required"]
    return found


def test_schema_id_is_required_on_a_socket_alone() -> None:
    socket, http = message_schemas("socket"), message_schemas("http")
    for name in ("Sync", "Synced", "Changes", "ConflictList", "Resolved", "HeartbeatAck", "TelemetryAck"):
        assert "id" in required(socket, name)
        assert "id" not in required(http, name)
    assert "id" not in required(socket, "Error")
    assert required(http, "Resolve") == ["choice", "version"]
    assert "clock" not in socket.components["Sync"]["properties"]


def test_schema_type_tells_messages_of_a_direction_apart() -> None:
    for transport in TRANSPORTS:
        schemas = message_schemas(transport)
        for named in (schemas.requests, schemas.answers):
            tags = {tag: schemas.components[name]["properties"]["type"] for tag, name in named.items()}
            assert {tag: field["const"] for tag, field in tags.items()} == {tag: tag for tag in tags}
