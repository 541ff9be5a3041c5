"""A key makes a message count once, however often, on whichever way and to whichever process it is sent."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from compose.server import SystemClock
from engine.wire.timestamps import to_text
from tests.harness.in_process_server import ON_SHARED, Running, Serve
from tests.harness.services import execute
from tests.harness.ws_device import Device, Json, item, put
from tests.security.catalogue import against

pytestmark = ON_SHARED


def frame(request_id: str, items: str, rest: str = "") -> bytes:
    """Write a sync by hand, so that its items' bytes are known."""
    return f'{{"type":"sync","id":"{request_id}","key":"k","items":{items}{rest}}}'.encode()


async def answer(phone: Device, sent: bytes) -> Json:
    await phone.send_frame(sent)
    return await phone.receive()


async def test_key_sent_again_repeats_the_answer_and_applies_nothing(shared: Running) -> None:
    phone = await shared.device()
    items = [put("a1", None, n=1), item("put", "nowhere", "a2", data={}), put("a1", None, n=2)]
    first = await phone.told("synced", "sync", key="k", items=items)
    again = await phone.told("synced", "sync", key="k", items=items)
    assert first["replayed"] is False
    assert again == first | {"id": again["id"], "replayed": True}
    (change,) = (await phone.pull())["changes"]
    assert (change["version"], change["seq"]) == (2, 2)


async def test_key_retry_repeats_the_old_answer_though_the_record_moved_on(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    first = await phone.sync("k", put("a1", None, n=1))
    await tablet.push(put("a1", 1, n=2))
    assert await phone.sync("k", put("a1", None, n=1)) == first
    assert (await phone.pull())["changes"][0]["data"] == {"n": 2}


ITEMS = '[{"domain":"task","id":"a1","op":"put","data":{"n":1}}]'
OTHER = {
    "other data": frame("2", ITEMS.replace("1}", "2}")),
    "one item more": frame("2", ITEMS.replace("]", ',{"domain":"task","id":"a2","op":"delete"}]')),
    "no item": frame("2", "[]"),
    "a space more": frame("2", ITEMS.replace(":1}", ": 1}")),
    "members in another order": frame("2", '[{"id":"a1","domain":"task","op":"put","data":{"n":1}}]'),
    "the number in another spelling": frame("2", ITEMS.replace("1}", "1.0}")),
    "atomic": frame("2", ITEMS, ',"atomic":true'),
}


@pytest.mark.parametrize("other", OTHER.values(), ids=OTHER)
@against("API6:2023", "V2.3")
async def test_key_with_another_message_is_refused(shared: Running, other: bytes) -> None:
    phone = await shared.device()
    assert (await answer(phone, frame("1", ITEMS)))["type"] == "synced"
    refusal = await answer(phone, other)
    assert (refusal["type"], refusal["id"], refusal["code"], refusal["retryable"]) == (
        "error",
        "2",
        "idempotency_key_reused",
        False,
    )
    assert (await answer(phone, frame("3", ITEMS)))["replayed"] is True
    assert len((await phone.pull())["changes"]) == 1


SAME = {
    "another id": frame("2", ITEMS),
    "not atomic, said so": frame("2", ITEMS, ',"atomic":false'),
    "spaces around the items": frame("2", f" {ITEMS} "),
    "an unknown field beside them": frame("2", ITEMS, ',"attempt":2'),
}


@pytest.mark.parametrize("same", SAME.values(), ids=SAME)
async def test_key_retry_needs_equal_items_only(shared: Running, same: bytes) -> None:
    phone = await shared.device()
    first = await answer(phone, frame("1", ITEMS))
    assert await answer(phone, same) == first | {"id": "2", "replayed": True}


@against("API6:2023", "V2.3")
async def test_key_retry_in_the_other_encoding_is_another_message(shared: Running) -> None:
    phone = await shared.device("phone")
    assert (await answer(phone, frame("1", ITEMS)))["type"] == "synced"
    phone = await shared.device("phone", encoding="msgpack")
    items = msgspec.json.decode(ITEMS)
    assert (await phone.refused("sync", key="k", items=items))["code"] == "idempotency_key_reused"
    assert (await phone.told("synced", "sync", key="k2", items=items))["replayed"] is False
    assert (await phone.told("synced", "sync", key="k2", items=items))["replayed"] is True


async def test_key_retry_may_come_over_http_or_socket(shared: Running) -> None:
    phone = await shared.device()
    over_socket = await answer(phone, frame("1", ITEMS))
    body = f'{{"type":"sync","key":"k","items":{ITEMS}}}'.encode()
    reply = await shared.post("/v1/sync", body)
    assert reply.message == {"type": "synced", "replayed": True, "results": over_socket["results"]}
    body = body.replace(b'"k"', b'"k2"')
    over_http = (await shared.post("/v1/sync", body)).message
    retried = await answer(phone, frame("2", ITEMS).replace(b'"k"', b'"k2"'))
    assert retried == over_http | {"id": "2", "replayed": True}


@against("API6:2023", "V2.3")
async def test_key_belongs_to_its_device_and_its_tenant(shared: Running) -> None:
    phones = [
        await shared.device("phone"),
        await shared.device("tablet"),
        await shared.device("phone", "globex"),
        await shared.device("tablet", "globex"),
    ]
    for number, phone in enumerate(phones):
        (result,) = await phone.sync("k", put(f"a{number}", None, n=number))
        assert result["status"] == "applied"
    for number, phone in enumerate(phones):
        items = [put(f"a{number}", None, n=number)]
        assert (await phone.told("synced", "sync", key="k", items=items))["replayed"] is True


async def test_key_outlives_its_connection(shared: Running) -> None:
    first = await (await shared.device()).sync("k", put("a1", None, n=1))
    again = await (await shared.device()).told("synced", "sync", key="k", items=[put("a1", None, n=1)])
    assert (again["replayed"], again["results"]) == (True, first)


REFUSED: dict[str, Json] = {
    "items that are no list": {"items": {}},
    "an item that is no object": {"items": [put("a1", None, n=1), 7]},
    "too many items": {"items": [put("a1", None, n=1)] * 501},
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
async def test_key_message_refused_with_an_error_has_not_used_its_key(shared: Running, fields: Json) -> None:
    phone = await shared.device()
    await phone.refused("sync", key="k", **fields)
    assert (await phone.pull())["changes"] == []
    synced = await phone.told("synced", "sync", key="k", items=[put("a1", None, n=1)])
    assert (synced["replayed"], synced["results"][0]["status"]) == (False, "applied")


async def test_key_of_1_and_of_128_characters_is_accepted(shared: Running) -> None:
    phone = await shared.device()
    for number, key in enumerate(["k", "ключ" * 32]):
        await phone.sync(key, put(f"a{number}", None, n=1))
        synced = await phone.told("synced", "sync", key=key, items=[put(f"a{number}", None, n=1)])
        assert synced["replayed"] is True


async def test_key_twice_in_flight_on_one_connection_applies_once(shared: Running) -> None:
    phone = await shared.device()
    for number in range(40):
        await phone.send_frame(frame(str(number), ITEMS))
    answers = [await phone.receive() for _ in range(40)]
    assert sorted(one["replayed"] for one in answers) == [False] + [True] * 39
    assert len({msgspec.json.encode(one["results"]) for one in answers}) == 1


@pytest.mark.asyncio(loop_scope="function")
async def test_key_twice_in_flight_on_two_processes_applies_once(serve: Serve) -> None:
    servers = [await serve(), await serve()]
    devices = [await servers[0].device(f"d{number}") for number in range(8)]

    def copy(number: int, turn: int) -> Json:
        items = [put(f"a{number}", turn or None, n=turn), put(f"b{number}-{turn}", None, n=1)]
        return {"key": f"k{turn}", "items": items}

    async def push(number: int, turn: int) -> Json:
        return await devices[number].told("synced", "sync", **copy(number, turn))

    async def post(number: int, turn: int) -> Json:
        """Over HTTP, for a device has one socket at a time."""
        sync = {"type": "sync", **copy(number, turn)}
        return (await servers[1].post("/v1/sync", sync, f"d{number}")).message

    for turn in range(5):
        answers = await asyncio.gather(*(send(number, turn) for number in range(8) for send in (push, post)))
        for one, other in zip(answers[::2], answers[1::2], strict=True):
            assert {one["replayed"], other["replayed"]} == {False, True}
            assert one["results"] == other["results"]
            assert [result["status"] for result in one["results"]] == ["applied", "applied"]
    page = await devices[0].pull()
    assert sorted(change["version"] for change in page["changes"]) == [1] * 40 + [5] * 8


_OLDER = "UPDATE sync_idempotency_record SET created_at = created_at - interval"


@pytest.mark.asyncio(loop_scope="function")
async def test_key_is_forgotten_after_its_lifetime(server: Running) -> None:
    phone = await server.device()
    await phone.sync("k", put("a1", None, n=1))
    execute(server.dsn, f"{_OLDER} '719 hours 59 minutes'")
    kept = await phone.told("synced", "sync", key="k", items=[put("a1", None, n=1)])
    assert kept["replayed"] is True
    execute(server.dsn, f"{_OLDER} '2 minutes'")
    fresh = await phone.told("synced", "sync", key="k", items=[put("a2", None, n=1)])
    assert fresh["replayed"] is False


@pytest.mark.parametrize("clock", [True, False], ids=["clock known", "no clock"])
@pytest.mark.asyncio(loop_scope="function")
async def test_key_retry_after_a_weekend_is_replayed(server: Running, clock: bool) -> None:
    phone = await server.device()
    if clock:
        await phone.send({"type": "hello", "clock": to_text(SystemClock.now_us())})
    items = [put("a1", None, n=1) | {"at": to_text(SystemClock.now_us() - 60 * 3_600_000_000)}]
    await phone.sync("k", *items)
    execute(server.dsn, f"{_OLDER} '60 hours'")
    retry = await phone.told("synced", "sync", key="k", items=items)
    assert retry["replayed"] is True
    assert (await phone.pull())["changes"][0]["version"] == 1


@pytest.mark.asyncio(loop_scope="function")
async def test_key_retry_of_an_edit_by_a_clock_that_was_days_ahead_and_set_right_is_replayed(
    server: Running,
) -> None:
    """By its ``at`` the message seems to be of this morning, and was sent three and a half days ago."""
    day_us = 86_400_000_000
    phone = await server.device()
    now_us = SystemClock.now_us()
    await phone.send({"type": "hello", "clock": to_text(now_us + 3 * day_us)})
    items = [put("a1", None, n=1) | {"at": to_text(now_us - day_us // 2)}]
    await phone.sync("k", *items)
    execute(server.dsn, f"{_OLDER} '84 hours'")
    phone = await server.device()
    await phone.send({"type": "hello", "clock": to_text(SystemClock.now_us())})
    retry = await phone.told("synced", "sync", key="k", items=items)
    assert retry["replayed"] is True


@pytest.mark.asyncio(loop_scope="function")
async def test_key_of_last_week_used_for_another_message_is_refused_counted_and_logged(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    phone = await server.device()
    await phone.sync("k", put("a1", None, n=1))
    execute(server.dsn, f"{_OLDER} '150 hours'")
    refusal = await phone.ask("sync", key="k", items=[put("a2", None, n=1)])
    assert refusal["code"] == "idempotency_key_reused"
    assert "old_key_reused" in capsys.readouterr().out
    metrics = (await server.get("/metrics")).body.decode()
    assert "tidemark_old_keys_reused_total 1.0" in metrics
