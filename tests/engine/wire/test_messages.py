"""The wire is pinned: what devices rely on cannot change by accident."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from msgspec import UNSET, Raw, UnsetType

from engine.feed.cursor import Scope
from engine.feed.pages import encode_change, page_body, with_id
from engine.model.rows import Record
from engine.plan.work import PushAnswer, ResolveAnswer
from engine.wire import messages
from engine.wire.close_codes import CloseCode
from engine.wire.errors import ERRORS, SyncError
from engine.wire.messages import (
    JSON_SUBPROTOCOL,
    MSGPACK_SUBPROTOCOL,
    PROTOCOL_VERSION,
    Changes,
    Error,
    Item,
    ItemError,
    Request,
    Resolved,
    Result,
    Synced,
)
from handlers.http.errors import error_body

#: Of ``wire_schema()``. A field may be added as optional; whatever else changes is a new version of the
#: contract. Whoever means it writes the new hash here, and the change into CHANGELOG.md.
WIRE_SCHEMA_SHA256 = "d7a817eb7ac17e37cfb0cce092cae3276a62448776771b94f50e1580f4af77f4"


def _without_words(value: Any) -> Any:
    """Leave out what describes and does not decide."""
    if isinstance(value, dict):
        return {
            name: _without_words(part)
            for name, part in value.items()
            if name not in {"description", "title"} or isinstance(part, dict)
        }
    return [_without_words(part) for part in value] if isinstance(value, list) else value


def wire_schema() -> Any:
    """Describe every message in both directions."""
    structs = [
        kind
        for _, kind in inspect.getmembers(messages, inspect.isclass)
        if issubclass(kind, msgspec.Struct) and kind.__module__ == messages.__name__
    ]
    return _without_words(list(msgspec.json.schema_components([Request, Item, Result, *structs])))


def test_wire_schema_is_as_pinned() -> None:
    schema = json.dumps(wire_schema(), sort_keys=True)
    found = hashlib.sha256(schema.encode()).hexdigest()
    assert found == WIRE_SCHEMA_SHA256, "the wire changed: see WIRE_SCHEMA_SHA256"


def test_wire_names_of_the_version_are_as_pinned() -> None:
    assert PROTOCOL_VERSION == 1
    assert (JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL) == ("tidemark.v1.json", "tidemark.v1.msgpack")


def test_errors_status_and_retryable_are_as_pinned() -> None:
    assert {code: (kind.http, kind.retryable) for code, kind in ERRORS.items()} == {
        "malformed": (400, False),
        "invalid_message": (422, False),
        "unknown_type": (422, False),
        "too_large": (413, False),
        "unauthenticated": (401, False),
        "forbidden": (403, False),
        "not_found": (404, False),
        "method_not_allowed": (405, False),
        "idempotency_key_reused": (409, False),
        "conflict_stale": (409, False),
        "conflict_closed": (409, False),
        "cursor_expired": (410, False),
        "offset_mismatch": (409, False),
        "upload_complete": (400, False),
        "inconsistent_length": (400, False),
        "unsupported_checksum": (400, False),
        "unsupported_version": (412, False),
        "upload_gone": (410, False),
        "locked": (423, True),
        "checksum_mismatch": (460, False),
        "unsupported_type": (415, False),
        "quota_exceeded": (413, False),
        "insufficient_storage": (507, True),
        "rate_limited": (429, True),
        "overloaded": (503, True),
        "unavailable": (503, True),
        "internal": (500, True),
        "invalid_item": (None, False),
        "unknown_domain": (None, False),
        "unknown_base": (None, False),
        "creation_rejected": (None, False),
        "batch_aborted": (None, False),
    }
    for code, kind in ERRORS.items():
        assert kind.code == code
        assert kind.cause.endswith(".")
        assert kind.remedy.endswith(".")


def test_close_codes_and_when_to_connect_again_are_as_pinned() -> None:
    assert {one.name: (int(one), one.again) for one in CloseCode} == {
        "NORMAL": (1000, "yes"),
        "PROTOCOL_ERROR": (1002, "yes"),
        "NOT_UTF8": (1007, "yes"),
        "TOO_LARGE": (1009, "yes"),
        "RESTARTING": (1012, "yes"),
        "BAD_FRAMES": (4400, "no"),
        "EXPIRED": (4401, "with a fresh token"),
        "FORBIDDEN": (4403, "no"),
        "IDLE": (4408, "yes"),
        "REPLACED": (4409, "once"),
        "RATE_IGNORED": (4429, "after a minute"),
        "UNAVAILABLE": (4503, "yes"),
    }


@pytest.mark.parametrize("request_id", [None, "7", 'quote " and ü'])
def test_fast_encoders_frames_are_json(request_id: str | None) -> None:
    own_id = {} if request_id is None else {"id": request_id}
    answer = PushAnswer(b'[{"domain":"task"}]', replayed=True).frame(request_id)
    assert json.loads(answer) == {
        "type": "synced",
        **own_id,
        "replayed": True,
        "results": [{"domain": "task"}],
    }
    assert json.loads(PushAnswer(b"[]", replayed=False).frame(request_id))["replayed"] is False
    assert json.loads(ResolveAnswer("c", 5, 99).frame(request_id)) == {
        "type": "resolved",
        **own_id,
        "conflict_id": "c",
        "version": 5,
        "seq": 99,
    }
    refusal = SyncError("conflict_stale", "moved on", version=7, data=msgspec.Raw(b'{"a":1}'))
    assert json.loads(error_body(refusal, request_id)) == {
        "type": "error",
        **own_id,
        "code": "conflict_stale",
        "message": "moved on",
        "retryable": False,
        "version": 7,
        "data": {"a": 1},
    }


def _decodable(hint: Any) -> Any:
    """Return a type with any value in place of ``Raw``, which msgspec does not decode beside other types."""
    if hint is Raw:
        return Any
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        hints = get_type_hints(hint, include_extras=True)
        fields: list[Any] = []
        for one in msgspec.structs.fields(hint):
            kind = _decodable(hints[one.name])
            is_optional = UnsetType in get_args(hints[one.name])
            fields.append((one.name, kind, UNSET) if is_optional else (one.name, kind))
        config = hint.__struct_config__
        return msgspec.defstruct(
            hint.__name__,
            fields,
            kw_only=True,
            tag_field=config.tag_field,
            tag=config.tag,
            forbid_unknown_fields=True,
        )
    if get_origin(hint) is list:
        return list[_decodable(get_args(hint)[0])]  # type: ignore[misc]  # it is made here
    if get_origin(hint) is UnionType:
        return Union[tuple(_decodable(part) for part in get_args(hint))]  # noqa: UP007  # of parts made here
    return hint


@pytest.mark.parametrize("request_id", [None, "7"])
def test_fast_encoders_answers_match_the_declared_structs(request_id: str | None) -> None:
    error = ItemError("invalid_item", "data: an object is required")
    results = [
        Result(domain="task", id="a", status="applied", version=1, seq=2),
        Result(domain=None, id=None, status="rejected", error=error),
        Result(domain="task", id="b", status="conflict", version=3, seq=4, conflict_id="c", data=Raw(b"{}")),
    ]
    scope = Scope("e1", 1, ["task", "gone"], ["task"])
    record = Record(1, "task", "a", 4, 91, 0, "phone", 4, b'{"a":1}', attachments=b'[{"file_id":"f"}]')
    frames: list[tuple[bytes, type[msgspec.Struct]]] = [
        (PushAnswer(msgspec.json.encode(results), replayed=False).frame(request_id), Synced),
        (ResolveAnswer("c", 5, 99).frame(request_id), Resolved),
        (with_id(page_body(scope, 92, [encode_change(record)], more=True), request_id), Changes),
    ]
    for code, details in (
        ("conflict_stale", {"version": 7, "changes": 2, "data": Raw(b'{"a":1}')}),
        ("offset_mismatch", {"offset": 5}),
        ("internal", {"error_id": "e"}),
        ("overloaded", {"retry_after_ms": 200}),
    ):
        frames.append((error_body(SyncError(code, "why", **details), request_id), Error))
    for frame, kind in frames:
        msgspec.json.decode(frame, type=_decodable(kind))
        assert json.loads(frame).get("id") == request_id


def test_sync_error_details_are_fields_of_the_declared_error() -> None:
    """Details become fields of the message, so one that is not declared would be no part of the contract."""
    root = Path(messages.__file__).parents[2]
    for path in [*(root / "engine").rglob("*.py"), *(root / "handlers").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SyncError":
                named = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                assert named <= set(Error.__struct_fields__), f"{path}:{node.lineno}"


@pytest.mark.parametrize("kind", [Synced, Error, Changes], ids=lambda kind: kind.__name__)
def test_protocol_page_every_field_of_an_answer_is_named(kind: type[msgspec.Struct]) -> None:
    page = (Path(messages.__file__).parents[2] / "docs" / "protocol.md").read_text()
    for name in kind.__struct_fields__:
        assert re.search(rf'[`"]{name}[`"]', page), name


@pytest.mark.parametrize("request_id", [None, "9", 'quote " and ü'])
def test_fast_encoders_pages_are_json(request_id: str | None) -> None:
    scope = Scope("e1", 1, None)
    changes = [
        encode_change(Record(1, "task", 'ä"', 4, 91, 1_767_323_045_000_000, "phone", 4, b'{"a":null}')),
        encode_change(Record(1, "task", "b", 2, 92, 1_767_323_045_000_001, None, 3, None)),
    ]
    page = json.loads(with_id(page_body(scope, 92, changes, more=True), request_id))
    assert page == {
        "type": "changes",
        **({} if request_id is None else {"id": request_id}),
        "cursor": scope.cursor(92),
        "more": True,
        "changes": [
            {
                "domain": "task",
                "id": 'ä"',
                "version": 4,
                "seq": 91,
                "deleted": False,
                "at": "2026-01-02T03:04:05Z",
                "device_id": "phone",
                "data": {"a": None},
            },
            {
                "domain": "task",
                "id": "b",
                "version": 2,
                "seq": 92,
                "deleted": True,
                "at": "2026-01-02T03:04:05.000001Z",
                "device_id": None,
                "data": None,
            },
        ],
    }
    empty = json.loads(with_id(page_body(scope, 0, [], more=False), request_id))
    assert (empty["changes"], empty["more"], scope.seq(empty["cursor"])) == ([], False, 0)
