"""What is wrong with a message as a whole: one stable code, its id repeated, the connection stays."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from engine.wire import codec
from tests.harness.in_process_server import ON_SHARED, Running, Serve
from tests.harness.ws_device import Json, put
from tests.security.catalogue import against

pytestmark = ON_SHARED

ITEM = put("a1", None, n=1)


def sync(**fields: Any) -> Json:
    return {"type": "sync", "id": "1", "key": "k", "items": [ITEM], **fields}


def without(message: Json, name: str) -> Json:
    return {key: value for key, value in message.items() if key != name}


#: What is sent, the code, and the field that the message names first.
REFUSED: dict[str, tuple[Json, str, str | None]] = {
    "an unknown type": ({"type": "nope", "id": "1"}, "unknown_type", None),
    "an answer's type": ({"type": "synced", "id": "1", "results": []}, "unknown_type", None),
    "no type": ({"id": "1"}, "invalid_message", None),
    "a type that is no text": ({"type": 1, "id": "1"}, "invalid_message", "type"),
    "sync without a key": (without(sync(), "key"), "invalid_message", "key"),
    "sync with a null key": (sync(key=None), "invalid_message", "key"),
    "sync with an empty key": (sync(key=""), "invalid_message", "key"),
    "sync with a key of 129": (sync(key="x" * 129), "invalid_message", "key"),
    "sync without items": (without(sync(), "items"), "invalid_message", "items"),
    "sync with items that are an object": (sync(items={}), "invalid_message", "items"),
    "sync with items that are null": (sync(items=None), "invalid_message", "items"),
    "sync with an item that is a number": (sync(items=[ITEM, 7]), "invalid_message", "items[1]"),
    "sync with an item that is a list": (sync(items=[[]]), "invalid_message", "items[0]"),
    "sync with an item that is null": (sync(items=[ITEM, ITEM, None]), "invalid_message", "items[2]"),
    "sync with 501 items": (sync(items=[ITEM] * 501), "too_large", "items"),
    "sync with atomic as a text": (sync(atomic="true"), "invalid_message", "atomic"),
    "pull with a limit of 0": ({"type": "pull", "id": "1", "limit": 0}, "invalid_message", "limit"),
    "pull with a limit of 1001": ({"type": "pull", "id": "1", "limit": 1001}, "invalid_message", "limit"),
    "pull with a limit as text": ({"type": "pull", "id": "1", "limit": "5"}, "invalid_message", "limit"),
    "pull with one domain's name": (
        {"type": "pull", "id": "1", "domains": "task"},
        "invalid_message",
        "domains",
    ),
    "pull with a number for a domain": (
        {"type": "pull", "id": "1", "domains": [1]},
        "invalid_message",
        "domains",
    ),
    "pull with a cursor that is a number": (
        {"type": "pull", "id": "1", "cursor": 5},
        "invalid_message",
        "cursor",
    ),
    "subscribe with a limit of 0": ({"type": "subscribe", "id": "1", "limit": 0}, "invalid_message", "limit"),
    "unsubscribe of nothing": ({"type": "unsubscribe", "id": "1"}, "not_found", None),
    "heartbeat with a battery of 2": (
        {"type": "heartbeat", "id": "1", "battery": 2},
        "invalid_message",
        "battery",
    ),
    "heartbeat with a queue of -1": (
        {"type": "heartbeat", "id": "1", "queue_depth": -1},
        "invalid_message",
        "queue_depth",
    ),
    "conflicts with a limit of 0": ({"type": "conflicts", "id": "1", "limit": 0}, "invalid_message", "limit"),
    "resolve with an unknown choice": (
        {"type": "resolve", "id": "1", "conflict_id": "c", "choice": "mine", "version": 1},
        "invalid_message",
        "choice",
    ),
    "resolve without a version": (
        {"type": "resolve", "id": "1", "conflict_id": "c", "choice": "server"},
        "invalid_message",
        "version",
    ),
    "resolve on version 0": (
        {"type": "resolve", "id": "1", "conflict_id": "c", "choice": "server", "version": 0},
        "invalid_message",
        "version",
    ),
}


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
@pytest.mark.parametrize(("sent", "code", "names"), REFUSED.values(), ids=REFUSED)
async def test_error_wrong_message_is_named(
    shared: Running, encoding: str, sent: Json, code: str, names: str | None
) -> None:
    phone = await shared.device(encoding=encoding)
    await phone.send(sent)
    error = await phone.receive()
    message = error.pop("message")
    assert error == {"type": "error", "id": "1", "code": code, "retryable": False}
    assert names is None or names in message
    assert (await phone.pull())["changes"] == []


@pytest.mark.parametrize("kind", ["sync", "pull", "subscribe", "unsubscribe", "heartbeat", "conflicts"])
@pytest.mark.parametrize("wrong", [None, "", "x" * 65, 7])
async def test_error_request_needs_an_id(shared: Running, kind: str, wrong: object) -> None:
    phone = await shared.device()
    await phone.send(without(sync(type=kind, id=wrong), "" if wrong is not None else "id"))
    error = await phone.receive()
    assert (error["code"], error.get("id")) == ("invalid_message", None)
    assert "id" in error["message"]


async def test_error_id_of_64_characters_is_repeated(shared: Running) -> None:
    phone = await shared.device()
    name = '"ж🗺' + "x" * 61
    for kind in ("heartbeat", "pull", "conflicts", "subscribe", "unsubscribe", "sync", "resolve"):
        await phone.send(sync(type=kind, id=name, conflict_id="c", choice="server", version=1))
        assert (await phone.receive())["id"] == name


async def test_error_wrong_hello_is_answered_and_a_good_one_is_not(shared: Running) -> None:
    phone = await shared.device()
    await phone.send({"type": "hello", "clock": "yesterday"})
    error = await phone.receive()
    assert (error["code"], "clock" in error["message"], "id" in error) == ("invalid_message", True, False)
    await phone.send({"type": "hello", "clock": None, "app_version": "1.2", "os_version": "9", "more": 1})
    await phone.ask("heartbeat")
    assert phone.unasked == []


# -- malformed --------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """Make a sync that nests to ``depth``: the message is 1, items 2, the item 3, its data 4."""
    inner = b"[" * (depth - 4) + b"]" * (depth - 4)
    return (
        b'{"type":"sync","id":"1","key":"k","items":'
        b'[{"domain":"task","id":"a1","op":"put","data":{"a":%s}}]}' % inner
    )


MALFORMED = {
    "nothing": b"",
    "no JSON": b"hello",
    "cut short": b'{"type":"heartbeat","id":"1"',
    "more behind it": b'{"type":"heartbeat","id":"1"} {}',
    "NaN": b'{"type":"heartbeat","id":"1","battery":NaN}',
    "Infinity in an item": b'{"type":"sync","id":"1","key":"k","items":[{"data":{"a":Infinity}}]}',
    "a single quote": b"{'type':'heartbeat','id':'1'}",
    "a comma too many": b'{"type":"heartbeat","id":"1",}',
    "nested to 33": nested(33),
    "nested to 33 in a field nobody knows": b'{"type":"heartbeat","id":"1","x":'
    + b"[" * 32
    + b"]" * 32
    + b"}",
    "nested to 100,000": b"[" * 100_000,
}


@against("A08:2025", "V1.5")
@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
async def test_error_malformed_message_is_refused(shared: Running, frame: bytes) -> None:
    phone = await shared.device()
    await phone.send_frame(frame)
    error = await phone.receive()
    assert (error["type"], error["code"], error["retryable"]) == ("error", "malformed", False)
    assert (await phone.pull())["changes"] == []


async def test_error_32_levels_of_nesting_are_accepted(shared: Running) -> None:
    phone = await shared.device()
    await phone.send_frame(nested(32))
    assert (await phone.receive())["results"][0]["status"] == "applied"


async def test_error_json_that_is_no_object_is_malformed(shared: Running) -> None:
    phone = await shared.device()
    for frame in (b"[]", b'"sync"', b"7", b"null"):
        await phone.send_frame(frame)
        assert (await phone.receive())["code"] == "invalid_message"


# -- too much ---------------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="function")
async def test_error_rate_limited_has_a_retry_after(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine a message may take over 10 ms, and would count for several.
    monkeypatch.setattr("engine.runtime.rate_limit.EXPENSIVE_S", 3600.0)
    server = await serve(limits={"messages_per_minute": 600})
    phone = await server.device()
    assert phone.welcome["limits"]["messages_per_minute"] == 600
    for number in range(690):
        await phone.send({"type": "heartbeat", "id": str(number)})
    answers = [await phone.receive() for _ in range(690)]
    limited = [answer for answer in answers if answer["type"] == "error"]
    assert [answer["id"] for answer in answers] == [str(number) for number in range(690)]
    assert 1 <= len(limited) <= 90
    for error in limited:
        assert (error["code"], error["retryable"]) == ("rate_limited", True)
        assert 1 <= error["retry_after_ms"] <= 100


@pytest.mark.asyncio(loop_scope="function")
async def test_rate_of_a_device_is_shared_by_socket_and_http(serve: Serve) -> None:
    server = await serve(limits={"messages_per_minute": 5})
    phone = await server.device()
    for _ in range(5):
        await phone.ask("heartbeat")
    assert (await phone.refused("heartbeat"))["code"] == "rate_limited"
    reply = await server.get("/v1/changes")
    assert reply.verdict == (429, "rate_limited")
    assert int(reply.headers["Retry-After"]) * 1000 >= reply.message["retry_after_ms"] > 0
    assert reply.message["retry_after_ms"] > 1000
    refused = await (await server.device()).refused("sync", key="k", items=[ITEM])
    assert refused["code"] == "rate_limited"
    tablet = await server.device("tablet")
    assert (await tablet.pull())["changes"] == []


@pytest.mark.asyncio(loop_scope="function")
async def test_rate_expensive_message_counts_as_many(serve: Serve) -> None:
    server = await serve(limits={"messages_per_minute": 20})
    phone = await server.device()
    item = b'{"domain":"task","id":"a","op":"put","data":{"x":[' + b"1e300," * 150_000 + b"1]}}"
    await phone.send_frame(b'{"type":"sync","id":"0","key":"k","items":[' + item + b"]}")
    assert (await phone.receive())["type"] == "synced"
    assert (await phone.refused("heartbeat"))["code"] == "rate_limited"
    await (await server.device("tablet")).ask("heartbeat")
    sync = b'{"type":"sync","key":"k","items":[' + item + b"]}"
    assert (await server.post("/v1/sync", sync, "desk")).status == 200
    assert (await server.get("/v1/changes", "desk")).verdict == (429, "rate_limited")
    for number, path in enumerate(("/v1/sync", "/v1/heartbeat", "/v1/conflicts/c/resolution")):
        wrong = msgspec.msgpack.encode({"battery": 7, "x": [[1, 2]] * 300_000})
        sender, kind = f"till-{number}", {"Content-Type": "application/msgpack"}
        assert (await server.post(path, wrong, sender, headers=kind)).verdict == (422, "invalid_message")
        assert (await server.get("/v1/changes", sender)).verdict == (429, "rate_limited"), path


@pytest.mark.asyncio(loop_scope="function")
async def test_rate_push_that_is_expensive_to_plan_counts_as_many(serve: Serve) -> None:
    server = await serve(limits={"messages_per_minute": 20})
    phone, desk = await server.device(), await server.device("desk")
    await phone.sync("large", put("a", None, of={str(number): 0 for number in range(24_000)}))
    patch = {"domain": "task", "id": "a", "op": "patch", "base": 1}
    items = [patch | {"data": {"of": {"n": number}}} for number in range(30)]
    few = {"type": "sync", "id": "1", "key": "few", "items": items}
    await desk.send(few)
    assert (await desk.receive())["type"] == "synced"
    assert (await desk.refused("heartbeat"))["code"] == "rate_limited"
    body = msgspec.json.encode(few | {"key": "others"})
    assert (await server.post("/v1/sync", body, "till")).status == 200
    assert (await server.get("/v1/changes", "till")).verdict == (429, "rate_limited")


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("shown", [True, False])
async def test_rate_refusal_does_not_check_nesting(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    server = await serve(limits={"messages_per_minute": 1})
    phone = await server.device(encoding="msgpack")
    await phone.ask("heartbeat")

    def looked(_: bytes) -> bool:
        raise AssertionError("a frame of a device that sends too much was looked at twice")

    monkeypatch.setattr(codec, "msgpack_nesting_fault", looked)
    empties: list[Json] = [{}] * 5000
    named = {"type": "sync", "id": "7", "items": empties} if shown else {"id": "7", "type": empties}
    await phone.send(named)
    error = await phone.receive()
    assert (error["code"], error.get("id")) == ("rate_limited", "7" if shown else None)


@pytest.mark.asyncio(loop_scope="function")
async def test_rate_of_a_tenant_is_shared_by_its_devices_alone(serve: Serve) -> None:
    server = await serve(limits={"tenant_messages_per_minute": 5})
    phone, tablet = await server.device(), await server.device("tablet")
    for _ in range(5):
        await phone.ask("heartbeat")
    assert (await phone.refused("heartbeat"))["code"] == "rate_limited"
    # Its equal part is refused to no device: half of five, then a third.
    for _ in range(2):
        await tablet.ask("heartbeat")
    assert (await tablet.refused("heartbeat"))["code"] == "rate_limited"
    assert (await server.get("/v1/changes", device="desk")).status == 200
    assert (await server.get("/v1/changes", device="desk")).verdict == (429, "rate_limited")
    await (await server.device(tenant="globex")).ask("heartbeat")


@pytest.mark.asyncio(loop_scope="function")
async def test_error_full_queue_refuses_and_stores_nothing(serve: Serve) -> None:
    server = await serve(commit={"queue_messages": 4})
    phone = await server.device()
    for number in range(100):
        await phone.send(
            {"type": "sync", "id": str(number), "key": f"k{number}", "items": [put(f"a{number}", None)]}
        )
    answers = [await phone.receive() for _ in range(100)]
    refused = [answer for answer in answers if answer["type"] == "error"]
    assert 1 <= len(refused) < 100
    for error in refused:
        assert (error["code"], error["retryable"]) == ("overloaded", True)
        assert error["retry_after_ms"] > 0
    stored = {change["id"] for change in (await phone.pull())["changes"]}
    assert stored.isdisjoint(f"a{error['id']}" for error in refused)
    assert len(stored) == 100 - len(refused)
    # Until then it is held off, so that nothing overtakes what was refused.
    await asyncio.sleep(max(error["retry_after_ms"] for error in refused) / 1000)
    for error in refused:
        synced = await phone.told(
            "synced", "sync", key=f"k{error['id']}", items=[put(f"a{error['id']}", None)]
        )
        assert (synced["replayed"], synced["results"][0]["status"]) == (False, "applied")


async def test_error_33rd_subscription_is_refused(shared: Running) -> None:
    phone = await shared.device()
    for number in range(32):
        await phone.send({"type": "subscribe", "id": f"s{number}"})
        assert (await phone.receive())["type"] == "changes"
    refusal = await phone.refused("subscribe")
    assert (refusal["code"], "32" in refusal["message"]) == ("too_large", True)


async def test_error_second_subscription_of_one_id_is_refused_and_the_first_goes_on(shared: Running) -> None:
    phone = await shared.device()
    await phone.send({"type": "subscribe", "id": "s"})
    await phone.receive()
    await phone.send({"type": "subscribe", "id": "s"})
    error = await phone.receive()
    assert (error["code"], error["id"], error["message"].split(":")[0]) == ("invalid_message", "s", "id")
    await (await shared.device("tablet")).push(ITEM)
    assert (await phone.changes())["id"] == "s"


async def test_error_hundreds_of_pipelined_requests_are_all_answered(shared: Running) -> None:
    phone = await shared.device()
    kinds = ["pull", "heartbeat", "conflicts", "sync"]
    for number in range(600):
        kind = kinds[number % 4]
        await phone.send_frame(
            msgspec.json.encode(sync(type=kind, id=str(number), key=f"k{number}", items=[]))
        )
    answers = [await phone.receive() for _ in range(600)]
    assert sorted(int(answer["id"]) for answer in answers) == list(range(600))
    types = {"pull": "changes", "heartbeat": "heartbeat_ack", "conflicts": "conflicts", "sync": "synced"}
    assert all(answer["type"] == types[kinds[int(answer["id"]) % 4]] for answer in answers)
