"""MessagePack: the same messages in binary frames, and what it can say that JSON cannot."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from aiohttp import WSMsgType

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.ws_device import Json, item, put
from tests.security.catalogue import against

pytestmark = ON_SHARED


async def test_msgpack_every_request_is_answered_as_in_json(shared: Running) -> None:
    """Devices of two tenants do the same, each in its encoding; their answers agree but for ids and times."""
    seen: dict[str, list[Any]] = {}
    for encoding, tenant in (("json", "acme"), ("msgpack", "globex")):
        phone = await shared.device("phone", tenant, encoding=encoding)
        tablet = await shared.device("tablet", tenant, encoding=encoding)
        assert phone.socket.protocol == f"tidemark.v1.{encoding}"
        await phone.send({"type": "hello", "app_version": "1", "clock": datetime.now(UTC).isoformat()})
        answers = [
            await tablet.ask("subscribe"),
            await phone.ask(
                "sync", key="k", items=[put("a1", None, n=1), item("put", "note", "n1", data={})]
            ),
            await phone.ask(
                "sync", key="k", items=[put("a1", None, n=1), item("put", "note", "n1", data={})]
            ),
            await tablet.changes(),
            await tablet.ask("sync", key="k", items=[item("put", "note", "n1", data={"n": 2.5, "ж": None})]),
            await tablet.ask("conflicts"),
            await phone.ask("pull", limit=1),
            await phone.ask("pull", cursor="x"),
            await phone.ask("heartbeat", battery=0.5),
            await phone.ask("nonsense"),
        ]
        (held,) = answers[5]["conflicts"]
        decision = {"conflict_id": held["conflict_id"], "choice": "client", "version": 1}
        answers.append(await tablet.ask("resolve", **decision))
        seen[encoding] = [
            {
                name: value
                for name, value in one.items()
                if name not in ("cursor", "conflict_id", "server_time")
            }
            for one in answers
        ]
    for one, other in zip(seen["json"], seen["msgpack"], strict=True):
        assert _settled(one) == _settled(other)


def _settled(value: Any) -> Any:
    """Leave out of nested answers what no two tenants have in common."""
    if isinstance(value, list):
        return [_settled(one) for one in value]
    if isinstance(value, dict):
        own = ("at", "opened_at", "conflict_id")
        return {name: _settled(one) for name, one in value.items() if name not in own}
    return value


async def test_msgpack_welcome_is_a_binary_frame_with_the_same_fields(shared: Running) -> None:
    one, other = await shared.device("a"), await shared.device("b", encoding="msgpack")
    assert list(one.welcome) == list(other.welcome)
    assert one.welcome["limits"] == other.welcome["limits"]


@pytest.mark.parametrize(
    "data",
    [
        {"a": 2**63 - 1, "b": -(2**63), "c": 0, "d": 127, "e": 128, "f": -33},
        {"a": 1.5, "b": -0.0, "c": 1e308, "d": 1.0},
        {"ключ": "ж🗺", "empty": "", "long": "x" * 70_000},
        {"a": None, "b": True, "c": False, "d": {}, "e": [], "f": [[{"g": [1, "2", 3.0]}]]},
    ],
)
@pytest.mark.parametrize("encodings", [("msgpack", "json"), ("json", "msgpack"), ("msgpack", "msgpack")])
async def test_msgpack_values_cross_between_the_encodings(
    shared: Running, encodings: tuple[str, str], data: Json
) -> None:
    writer = await shared.device("writer", encoding=encodings[0])
    reader = await shared.device("reader", encoding=encodings[1])
    (result,) = await writer.push(item("put", "task", "a1", data=data))
    assert result["status"] == "applied"
    assert repr((await reader.pull())["changes"][0]["data"]) == repr(data)


async def test_msgpack_content_sent_in_the_other_encoding_is_unchanged(shared: Running) -> None:
    data = {"n": 1, "f": 2.0, "t": "ж", "l": [1, None]}
    await (await shared.device("a")).push(item("put", "task", "a1", data=data))
    (result,) = await (await shared.device("b", encoding="msgpack")).push(
        item("put", "task", "a1", data=data)
    )
    assert result["status"] == "unchanged"


REJECTED: dict[str, object] = {
    "an integer above the bound": 2**63,
    "the largest integer": 2**64 - 1,
    "NaN": math.nan,
    "Infinity": [math.inf],
    "binary": b"x",
    "an extension": [msgspec.msgpack.Ext(5, b"x")],
    "a time": datetime.now(UTC),
    "a name that is a number": {"x": {1: 2}},
    "a name that is binary": {b"x": 2},
    "a name that is null": {None: 2},
    "U+0000": "x\0",
    "U+0000 in a name": {"\0": 1},
}


@against("A08:2025", "V1.5")
@pytest.mark.parametrize("value", REJECTED.values(), ids=REJECTED)
async def test_msgpack_value_that_no_record_may_hold_rejects_its_item_alone(
    shared: Running, value: object
) -> None:
    phone = await shared.device(encoding="msgpack")
    wrong, good = await phone.push(put("a1", None, v=value), put("good", None, n=1))
    assert (wrong["id"], wrong["status"], wrong["error"]["code"]) == ("a1", "rejected", "invalid_item")
    assert good["status"] == "applied"


async def test_msgpack_text_that_is_not_utf8_rejects_its_item_alone(shared: Running) -> None:
    phone = await shared.device(encoding="msgpack")
    wrong = msgspec.msgpack.encode(put("a1", None, t="XX")).replace(b"XX", b"\xff\xfe")
    await phone.send_frame(message(msgspec.Raw(wrong), put("good", None, n=1)), WSMsgType.BINARY)
    results = (await phone.receive())["results"]
    assert [(one["id"], one["status"]) for one in results] == [("a1", "rejected"), ("good", "applied")]


async def test_msgpack_of_duplicate_members_the_last_counts(shared: Running) -> None:
    phone = await shared.device(encoding="msgpack")
    data = b"\x82" + b"\xa1a\x01" + b"\xa1a\x02"
    twice = msgspec.Raw(msgspec.msgpack.encode(put("a1", None) | {"data": msgspec.Raw(data)}))
    await phone.send_frame(message(twice), WSMsgType.BINARY)
    assert (await phone.receive())["results"][0]["status"] == "applied"
    assert (await phone.pull())["changes"][0]["data"] == {"a": 2}


def message(*items: object) -> bytes:
    return msgspec.msgpack.encode({"type": "sync", "id": "1", "key": "k", "items": list(items)})


def nested(depth: int) -> bytes:
    """Make a sync that nests to ``depth``: the message is 1, items 2, the item 3, its data 4."""
    inner = msgspec.Raw(b"\x91" * (depth - 5) + b"\x90")
    return message(item("put", "task", "a1", data={"a": inner}))


MALFORMED = {
    "nothing": b"",
    "a byte that means nothing": b"\xc1",
    "cut short": message(put("a1", None, n=1))[:-1],
    "more behind it": message(put("a1", None, n=1)) + b"\xc0",
    "nested to 33": nested(33),
    "nested to 100,000": b"\x91" * 100_000,
    "a length without its bytes": b"\xdf\xff\xff\xff\xff",
}


@against("A08:2025", "V1.5")
@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
async def test_msgpack_malformed_message_is_refused(shared: Running, frame: bytes) -> None:
    phone = await shared.device(encoding="msgpack")
    await phone.send_frame(frame, WSMsgType.BINARY)
    error = await phone.receive()
    assert (error["type"], error["code"], error["retryable"]) == ("error", "malformed", False)
    assert (await phone.pull())["changes"] == []


async def test_msgpack_32_levels_of_nesting_are_accepted(shared: Running) -> None:
    phone = await shared.device(encoding="msgpack")
    await phone.send_frame(nested(32), WSMsgType.BINARY)
    assert (await phone.receive())["results"][0]["status"] == "applied"


async def test_msgpack_battery_that_is_no_number_is_refused(shared: Running) -> None:
    phone = await shared.device(encoding="msgpack")
    refusal = await phone.refused("heartbeat", battery=math.nan)
    assert refusal["code"] in ("malformed", "invalid_message")
