"""Texts of messages that would be statements, commands or paths elsewhere: they are texts, or refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple

import pytest
import pytest_asyncio

from tests.harness.in_process_server import ON_SHARED
from tests.harness.ws_device import Device, Json, day, item, put
from tests.security.arena import Arena
from tests.security.catalogue import against
from tests.security.texts import CONTROLS, TEXTS

#: Encoding -> the tenant whose device sends in it: neither finds what the other left.
TENANTS: Final = {"json": "acme", "msgpack": "globex"}
pytestmark = [
    ON_SHARED,
    against("A05:2025", "V1.2"),
    pytest.mark.parametrize("phone", list(TENANTS), indirect=True, scope="module"),
]

EVERY: Final = TEXTS | CONTROLS
EVERY_TEXT = pytest.mark.parametrize("text", EVERY.values(), ids=EVERY)
#: For places that are only echoed or looked up, and for those where no text belongs, fewer do.
OTHERS: Final = ("a quote", "a union", "an array", "a shell", "a template", "a path", *CONTROLS)
OTHER_TEXTS = pytest.mark.parametrize("text", [EVERY[name] for name in OTHERS], ids=OTHERS)
SOME: Final = ("a quote", "a second statement", "an array", "an operator", "a NUL")
SOME_TEXTS = pytest.mark.parametrize("text", [EVERY[name] for name in SOME], ids=SOME)
STORED: Final = ("records", "sync_idempotency_record", "tenant_counters")
REJECTED: Final = ("quarantine", "sync_idempotency_record", "tenant_counters")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def phone(request: pytest.FixtureRequest, arena: Arena) -> AsyncIterator[Device]:
    """The device that attacks, in each encoding."""
    encoding = request.param
    yield await arena.running.device("phone", TENANTS[encoding], role="supervisor", encoding=encoding)


def _tenant(phone: Device) -> str:
    return TENANTS[phone.encoding]


def _holds(arena: Arena, phone: Device, *changing: str) -> AbstractAsyncContextManager[None]:
    return arena.holds(*changing, tenants=(_tenant(phone),))


class Place(NamedTuple):
    """A field of a message that a text goes into, and the code that refuses the message."""

    kind: str
    fields: Callable[[str], Json]
    code: str


RESOLUTION: Final[Json] = {"conflict_id": "0", "choice": "client", "version": 1}
TELEMETRY: Final[Json] = {"key": "k", "hour": "2026-01-01T00:00:00Z"}
REFUSED: Final = {
    "the type": Place("", lambda text: {"type": text}, "unknown_type"),
    "items": Place("sync", lambda text: {"key": "k", "items": text}, "invalid_message"),
    "one of the items": Place("sync", lambda text: {"key": "k", "items": [text]}, "invalid_message"),
    "atomic": Place("sync", lambda text: {"key": "k", "items": [], "atomic": text}, "invalid_message"),
    "a cursor": Place("pull", lambda text: {"cursor": text}, "invalid_message"),
    "a cursor of a subscription": Place("subscribe", lambda text: {"cursor": text}, "invalid_message"),
    "a limit": Place("pull", lambda text: {"limit": text}, "invalid_message"),
    "domains": Place("pull", lambda text: {"domains": text}, "invalid_message"),
    "the limit of conflicts": Place("conflicts", lambda text: {"limit": text}, "invalid_message"),
    "a choice": Place("resolve", lambda text: RESOLUTION | {"choice": text}, "invalid_message"),
    "a version": Place("resolve", lambda text: RESOLUTION | {"version": text}, "invalid_message"),
    "a battery": Place("heartbeat", lambda text: {"battery": text}, "invalid_message"),
    "a queue": Place("heartbeat", lambda text: {"queue_depth": text}, "invalid_message"),
    "an hour": Place("telemetry", lambda text: TELEMETRY | {"hour": text}, "invalid_message"),
}


@SOME_TEXTS
@pytest.mark.parametrize("place", REFUSED.values(), ids=REFUSED)
async def test_text_where_none_belongs_is_refused(
    place: Place, text: str, arena: Arena, phone: Device
) -> None:
    async with _holds(arena, phone):
        answer = await phone.ask(place.kind, **place.fields(text))
    assert (answer["type"], answer["code"], answer["retryable"]) == ("error", place.code, False)


@EVERY_TEXT
async def test_text_as_the_id_of_a_conflict_finds_none(text: str, arena: Arena, phone: Device) -> None:
    async with _holds(arena, phone):
        answer = await phone.ask("resolve", **RESOLUTION | {"conflict_id": text})
        after = await phone.ask("conflicts", after=text)
    code = "invalid_message" if "\0" in text else "not_found"
    assert (answer["type"], answer["code"]) == ("error", code)
    if "\0" in text:
        assert after["code"] == "invalid_message"
    else:
        assert (after["type"], after["conflicts"], after["after"]) == ("conflicts", [], None)


@OTHER_TEXTS
async def test_text_as_a_domain_reads_nothing(text: str, arena: Arena, phone: Device) -> None:
    async with _holds(arena, phone):
        answer = await phone.ask("pull", domains=[text])
    if "\0" in text:
        assert (answer["type"], answer["code"]) == ("error", "invalid_message")
    else:
        assert (answer["type"], answer["changes"], answer["more"]) == ("changes", [], False)


ITEMS: Final[dict[str, tuple[Callable[[str], Json], str]]] = {
    "the domain": (lambda text: item("put", text, "a1", data={}), "unknown_domain"),
    "the op": (lambda text: item(text, "task", "a1", data={}), "invalid_item"),
    "the base": (lambda text: item("put", "task", "a1", base=text, data={}), "invalid_item"),
    "the time": (lambda text: item("put", "task", "a1", at=text, data={}), "invalid_item"),
    "the data": (lambda text: item("put", "task", "a1", data=text), "invalid_item"),
    "the changed fields": (lambda text: item("put", "task", "a1", data={}, changed=text), "invalid_item"),
}


@SOME_TEXTS
@pytest.mark.parametrize("place", ITEMS.values(), ids=ITEMS)
async def test_text_in_an_item_where_none_belongs_rejects_it_alone(
    place: tuple[Callable[[str], Json], str], text: str, arena: Arena, phone: Device
) -> None:
    make, code = place
    async with _holds(arena, phone, *REJECTED):
        (result,) = await phone.push(make(text))
    assert (result["status"], result["error"]["code"]) == ("rejected", code)
    [(kept,)] = arena.rows(
        "SELECT code FROM quarantine WHERE tenant_id = %s ORDER BY place DESC LIMIT 1",
        arena.seeded[_tenant(phone)].tenant_id,
    )
    assert kept == code


@EVERY_TEXT
async def test_text_as_an_id_is_an_id_or_rejected(text: str, arena: Arena, phone: Device) -> None:
    hostile = text in CONTROLS.values()
    async with _holds(arena, phone, *(REJECTED if hostile else STORED)):
        (result,) = await phone.push(put(text, None, n=1))
    if hostile:
        assert (result["status"], result["error"]["code"]) == ("rejected", "invalid_item")
        return
    assert (result["status"], result["id"], result["version"]) == ("applied", text, 1)
    assert _record(arena, phone, text) == [{"n": 1}]


@EVERY_TEXT
async def test_text_in_data_is_stored_as_it_is(text: str, arena: Arena, phone: Device) -> None:
    data = {text: [text, {text: text}]}
    name = f"with {sorted(EVERY.values()).index(text)}"
    async with _holds(arena, phone, *(REJECTED if "\0" in text else STORED)):
        (result,) = await phone.push(item("put", "task", name, data=data))
    if "\0" in text:
        assert (result["status"], result["error"]["code"]) == ("rejected", "invalid_item")
        return
    assert (result["status"], result["version"]) == ("applied", 1)
    assert _record(arena, phone, name) == [data]


@EVERY_TEXT
async def test_text_as_a_key_is_a_key(text: str, arena: Arena, phone: Device) -> None:
    name = f"keyed {sorted(EVERY.values()).index(text)}"
    async with _holds(arena, phone, *STORED):
        first = await phone.ask("sync", key=text, items=[put(name, None, n=1)])
        again = await phone.ask("sync", key=text, items=[put(name, None, n=1)])
    assert (first["type"], first["replayed"]) == ("synced", False)
    assert again == first | {"id": again["id"], "replayed": True}


@OTHER_TEXTS
async def test_text_as_the_id_of_a_request_is_repeated(text: str, arena: Arena, phone: Device) -> None:
    async with _holds(arena, phone):
        answer = await phone.ask("heartbeat", id=text[:64])
    assert (answer["type"], answer["id"]) == ("heartbeat_ack", text[:64])


@OTHER_TEXTS
async def test_text_as_a_fact_of_a_device_is_a_fact(text: str, arena: Arena, phone: Device) -> None:
    async with _holds(arena, phone):
        answer = await phone.ask("heartbeat", network=text, app_version=text, os_version=text)
    wanted = ("error", "invalid_message") if "\0" in text else ("heartbeat_ack", None)
    assert (answer["type"], answer.get("code")) == wanted


@OTHER_TEXTS
@pytest.mark.parametrize("kind", ["counters", "histograms"])
async def test_text_as_a_name_of_telemetry_is_refused(
    kind: str, text: str, arena: Arena, phone: Device
) -> None:
    hour = phone.welcome["server_time"][:13] + ":00:00Z"
    named: Any = {text: 1 if kind == "counters" else [[1, 1]]}
    async with _holds(arena, phone):
        answer = await phone.ask("telemetry", **TELEMETRY | {"hour": hour, kind: named})
    assert (answer["type"], answer["code"]) == ("error", "invalid_message")


def _record(arena: Arena, phone: Device, record_id: str) -> list[Any]:
    statement = "SELECT data::jsonb FROM records WHERE tenant_id = %s AND domain = 'task' AND id = %s"
    return [data for (data,) in arena.rows(statement, arena.seeded[_tenant(phone)].tenant_id, record_id)]


#: Where a text, a number or an array belongs, and a query of another database has an operator.
OPERATORS: Final[dict[str, Any]] = {
    "not equal": {"$ne": None},
    "greater": {"$gt": ""},
    "a pattern": {"$regex": ".*"},
    "code": {"$where": "1"},
    "one of": ["globex", {"$in": ["acme"]}],
    "a constructor": {"__proto__": {"admin": True}, "__class__": {}},
    "a number": 0,
    "true": True,
}
NAMED: Final[dict[str, tuple[str, Json]]] = {
    "the key": ("sync", {"items": [], "key": ...}),
    "a cursor": ("pull", {"cursor": ...}),
    "a domain": ("pull", {"domains": [...]}),
    "a limit": ("pull", {"limit": [...]}),
    "a conflict": ("resolve", RESOLUTION | {"conflict_id": ...}),
    "a place in the list": ("conflicts", {"after": ...}),
    "a network": ("heartbeat", {"network": ...}),
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("name", NAMED)
async def test_operator_in_place_of_a_text_is_refused(
    name: str, operator: Any, arena: Arena, phone: Device
) -> None:
    kind, fields = NAMED[name]
    sent = {
        field: operator if value is ... else [operator] if value == [...] else value
        for field, value in fields.items()
    }
    async with _holds(arena, phone):
        answer = await phone.ask(kind, **sent)
    assert (answer["type"], answer["code"]) == ("error", "invalid_message")


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("field", ["domain", "id", "op", "at"])
async def test_operator_in_an_item_rejects_it(field: str, operator: Any, arena: Arena, phone: Device) -> None:
    async with _holds(arena, phone, *REJECTED):
        (result,) = await phone.push(item("put", "task", "a1", at=day(1), data={}) | {field: operator})
    assert (result["status"], result["error"]["code"]) == ("rejected", "invalid_item")
