"""Requests drawn from /openapi.json, right and wrong ones: no server fails, and each answer is documented."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from docs.api.openapi import OPERATIONS
from docs.api.operation import Operation
from engine.wire.errors import ERRORS
from handlers.reference.documents import STATIC
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.uploads.tus_uploader import file_path, photo, uploader
from tests.harness.ws_device import item

pytestmark = ON_SHARED

DOCUMENT: Final = msgspec.json.decode((STATIC / "openapi.json").read_bytes())
SCHEMA: Final = schemathesis.openapi.from_dict(DOCUMENT)
POSITIVE, NEGATIVE = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
#: How many requests of an operation are drawn, right ones and as many wrong ones.
FEW: Final = 3
MANY: Final = 2_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 100
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/offset+octet-stream", "application/partial-upload")
def _bytes(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Write the bytes of a file."""
    del context
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


@schemathesis.serializer("application/msgpack")
def _packed(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Write a message in MessagePack, what it cannot hold as text."""
    del context
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, TypeError, ValueError):
        return msgspec.msgpack.encode(str(value))


@schemathesis.deserializer("application/msgpack")
def _unpacked(context: schemathesis.DeserializationContext, response: Response) -> Any:
    """Read an answer in MessagePack."""
    del context
    return msgspec.msgpack.decode(response.content)


def check(operation: Operation, case: Case[Any], response: Response) -> None:
    """Check an answer: its status, headers and body, and the code of an error."""
    case.validate_response(response, checks=CHECKS)
    if response.status_code not in operation.answers and operation.method != "HEAD":
        body: Any = msgspec.json.decode(response.content)
        assert body["code"] in operation.errors
        assert response.status_code == ERRORS[body["code"]].http


async def known(shared: Running, device: str) -> dict[str, str]:
    """Give a device an upload that lacks bytes, a file and an open conflict. Returns their ids."""
    uploads = uploader(shared, device)
    upload = await uploads.begun(1_000)
    file = await uploads.uploaded(photo(500))
    note = item("put", "note", device, data={})
    await (await shared.device("other")).push(note)
    (held,) = await (await shared.device(device)).push(note | {"data": {"mine": True}})
    ids = {"upload_id": upload, "file_id": file_path(file)}
    return {name: path.rpartition("/")[2] for name, path in ids.items()} | {
        "conflict_id": held["conflict_id"]
    }


async def drawn(shared: Running, operation: Operation, mode: GenerationMode, examples: int) -> None:
    """Send drawn requests of an operation, about what is not there and about what is."""
    headers = {}
    device = f"device-of-{operation.name}"
    if operation.caller == "device":
        headers = shared.headers(device)
    elif operation.caller == "person":
        headers = {"Authorization": f"Bearer {shared.token(None, role='viewer')}"}
    await sent(shared, operation, mode, examples, headers, {})
    named = {one.name for one in operation.parameters if one.place == "path"}
    if operation.caller == "device" and named:
        ids = await known(shared, device)
        headers |= {"Tus-Resumable": "1.0.0"}
        await sent(shared, operation, mode, examples, headers, {name: ids[name] for name in named})


async def sent(
    shared: Running,
    operation: Operation,
    mode: GenerationMode,
    examples: int,
    headers: dict[str, str],
    ids: dict[str, str],
) -> None:
    """Draw requests and send them."""
    at = SCHEMA[operation.path][operation.method]
    strategy = at.as_strategy(generation_mode=mode, path_parameters=ids or None)

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def run(case: Case[Any]) -> None:
        check(operation, case, case.call(base_url=shared.url, headers=headers))

    await asyncio.to_thread(run)


#: Of these a request can be wrong: its body, or a parameter that is no free text.
_MISTAKABLE: Final = [
    one
    for one in OPERATIONS
    if one.method != "OPTIONS"
    and (one.body is not None or any(parameter.schema != {"type": "string"} for parameter in one.parameters))
]
DRAWN: Final = [(one, POSITIVE) for one in OPERATIONS] + [(one, NEGATIVE) for one in _MISTAKABLE]


def _named(value: Operation | GenerationMode) -> str:
    return value.name if isinstance(value, Operation) else value.value


@pytest.mark.parametrize(("operation", "mode"), DRAWN, ids=_named)
async def test_drawn_request_has_an_answer_of_the_document(
    operation: Operation, mode: GenerationMode, shared: Running
) -> None:
    await drawn(shared, operation, mode, FEW)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "mode"), DRAWN, ids=_named)
async def test_many_drawn_requests_have_an_answer_of_the_document(
    operation: Operation, mode: GenerationMode, shared: Running
) -> None:
    await drawn(shared, operation, mode, MANY)
