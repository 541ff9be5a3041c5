"""What becomes of each item of a sync, and in which order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.ws_device import Json, day, item, put

pytestmark = ON_SHARED

VOICE = {"verification_id": "v", "timestamp": day(1), "verified": True}


def voice(**fields: Any) -> Json:
    return item("append", "voice", "v1", **{"at": day(1), "data": VOICE, **fields})


ABSENT = [item("delete", "task", "a1", base=1)]
V1 = [put("a1", None, title="x")]
V2 = [*V1, put("a1", 1, title="y")]
TOMBSTONE = [*V1, item("delete", "task", "a1", base=1)]
EVENT = [voice()]

APPLIED_1 = {"status": "applied", "version": 1, "seq": 1}
APPLIED_2 = {"status": "applied", "version": 2, "seq": 2}
APPLIED_3 = {"status": "applied", "version": 3, "seq": 3}
UNCHANGED_1 = {"status": "unchanged", "version": 1, "seq": 1}
UNCHANGED_2 = {"status": "unchanged", "version": 2, "seq": 2}
NOTHING = {"status": "unchanged", "version": None, "seq": None}

#: What is there, what is sent, its result, and the (version, data) that then stand in the feed.
CASES: dict[str, tuple[list[Json], Json, Json, tuple[int, Json | None] | None]] = {
    "a put creates": ([], put("a1", None, n=1), APPLIED_1, (1, {"n": 1})),
    "a put of any base creates": ([], put("a1", 7, n=1), APPLIED_1, (1, {"n": 1})),
    "a put on its base": (V1, put("a1", 1, n=1), APPLIED_2, (2, {"n": 1})),
    "a put of the same content": (V1, put("a1", 1, title="x"), UNCHANGED_1, (1, {"title": "x"})),
    "the same content on a base ahead": (V1, put("a1", 9, title="x"), UNCHANGED_1, (1, {"title": "x"})),
    "the same content without a base": (V2, put("a1", None, title="y"), UNCHANGED_2, (2, {"title": "y"})),
    "true is not 1": ([put("a1", None, n=1)], put("a1", 1, n=True), APPLIED_2, (2, {"n": True})),
    "1.0 is not 1": ([put("a1", None, n=1)], put("a1", 1, n=1.0), APPLIED_2, (2, {"n": 1.0})),
    "members in another order": (
        [put("a1", None, a=1, b={"c": 1, "d": 2})],
        put("a1", 1, b={"d": 2, "c": 1}, a=1),
        UNCHANGED_1,
        (1, {"a": 1, "b": {"c": 1, "d": 2}}),
    ),
    "a put brings a tombstone back": (TOMBSTONE, put("a1", 2, n=1), APPLIED_3, (3, {"n": 1})),
    "a patch of no base creates": (
        [],
        item("patch", "task", "a1", base=None, data={"n": 1, "m": None}),
        APPLIED_1,
        (1, {"n": 1}),
    ),
    "a patch on its base": (
        [put("a1", None, a=1, b={"c": 1, "d": 2}, e=[1, 2])],
        item("patch", "task", "a1", base=1, data={"a": None, "b": {"c": None, "f": 3}, "e": [3]}),
        APPLIED_2,
        (2, {"b": {"d": 2, "f": 3}, "e": [3]}),
    ),
    "a patch that changes nothing": (
        V1,
        item("patch", "task", "a1", base=1, data={"title": "x", "none": None}),
        UNCHANGED_1,
        (1, {"title": "x"}),
    ),
    "a patch of a tombstone": (
        TOMBSTONE,
        item("patch", "task", "a1", base=2, data={"n": 1, "title": None}),
        APPLIED_3,
        (3, {"n": 1}),
    ),
    "a delete on its base": (V1, item("delete", "task", "a1", base=1), APPLIED_2, (2, None)),
    "a delete of nothing": ([], item("delete", "task", "a1", base=1), NOTHING, None),
    "a delete of nothing twice": (ABSENT, item("delete", "task", "a1"), NOTHING, None),
    "a delete of a tombstone": (TOMBSTONE, item("delete", "task", "a1", base=1), UNCHANGED_2, (2, None)),
    "an event": ([], voice(), {"status": "applied"}, None),
    "an event again": (EVENT, voice(), {"status": "unchanged"}, None),
    "an event of another time": (EVENT, voice(at=day(2)), {"status": "applied"}, None),
    "unknown fields are ignored": (
        [],
        put("a1", None, n=1) | {"colour": "red", "version": 8},
        APPLIED_1,
        (1, {"n": 1}),
    ),
}


@pytest.mark.parametrize(("before", "sent", "result", "stands"), CASES.values(), ids=CASES)
async def test_sync_item_each_case_has_its_outcome(
    shared: Running,
    before: list[Json],
    sent: Json,
    result: Json,
    stands: tuple[int, Json | None] | None,
) -> None:
    phone = await shared.device()
    await phone.push(*before)
    assert await phone.push(sent) == [{"domain": sent["domain"], "id": sent["id"]} | result]
    changes = (await phone.pull())["changes"]
    assert repr([(change["version"], change["data"]) for change in changes]) == repr(
        [stands] if stands else []
    )


REJECTED: dict[str, tuple[list[Json], Json, str, str]] = {
    "a patch of nothing on a base": (
        [],
        item("patch", "task", "a1", base=1, data={}),
        "unknown_base",
        "no version 1",
    ),
    "an event with other data": (
        EVENT,
        voice(data=VOICE | {"verified": False}),
        "invalid_item",
        "other data",
    ),
    "an event without at": ([], voice(at=None), "invalid_item", "at"),
    "an event without a required field": (
        [],
        voice(data={"verification_id": "v", "timestamp": "t"}),
        "invalid_item",
        "data.verified is required",
    ),
    "a put of an event": ([], item("put", "voice", "v1", at=day(1), data=VOICE), "invalid_item", "append"),
    "an append of a record": ([], item("append", "task", "a1", at=day(1), data={}), "invalid_item", "put"),
    "an unknown domain": ([], item("put", "weather", "a1", data={}), "unknown_domain", "weather"),
    "an unknown op": ([], item("upsert", "task", "a1", data={}), "invalid_item", "op"),
    "a put without data": ([], item("put", "task", "a1"), "invalid_item", "data"),
    "a put of a list": ([], item("put", "task", "a1", data=[]), "invalid_item", "data"),
    "a base of 0": ([], put("a1", 0, n=1), "invalid_item", "base"),
    "a base that is a text": ([], item("put", "task", "a1", base="1", data={}), "invalid_item", "base"),
    "a time without its offset": (
        [],
        item("put", "task", "a1", at="2024-01-01T00:00:00", data={}),
        "invalid_item",
        "at",
    ),
    "an empty id": ([], item("put", "task", "", data={}), "invalid_item", "id"),
    "an id of 129 characters": ([], item("put", "task", "x" * 129, data={}), "invalid_item", "id"),
    "an id with a control character": ([], item("put", "task", "a\n1", data={}), "invalid_item", "id"),
    "changed that is no list": (
        [],
        put("a1", None, n=1) | {"changed": "n"},
        "invalid_item",
        "changed",
    ),
}


@pytest.mark.parametrize(("before", "sent", "code", "names"), REJECTED.values(), ids=REJECTED)
async def test_sync_wrong_item_is_rejected_and_the_others_go_on(
    shared: Running, before: list[Json], sent: Json, code: str, names: str
) -> None:
    phone = await shared.device()
    await phone.push(*before)
    wrong, good = await phone.push(sent, put("good", None, n=1))
    assert names in wrong["error"].pop("message")
    assert wrong == {
        "domain": sent["domain"],
        "id": sent["id"],
        "status": "rejected",
        "error": {"code": code},
    }
    assert good["status"] == "applied"


async def test_sync_id_of_128_characters_of_any_script_is_accepted(shared: Running) -> None:
    phone = await shared.device()
    name = "ж" * 127 + "🗺"
    assert (await phone.push(put(name, None, n=1)))[0]["id"] == name
    assert (await phone.pull())["changes"][0]["id"] == name


async def test_sync_item_that_names_nothing_keeps_its_place(shared: Running) -> None:
    phone = await shared.device()
    results = await phone.push(put("a1", None, n=1), {"op": "put"}, put("a2", None, n=1))
    assert [(one["id"], one["status"]) for one in results] == [
        ("a1", "applied"),
        (None, "rejected"),
        ("a2", "applied"),
    ]


async def test_sync_results_stand_in_the_order_of_items_and_items_on_one_record_apply_in_it(
    shared: Running,
) -> None:
    phone = await shared.device()
    results = await phone.push(
        put("a1", None, n=1),
        put("b1", None, n=1),
        put("a1", 1, n=2),
        item("delete", "task", "b1", base=1),
        item("patch", "task", "a1", base=2, data={"m": 3}),
        put("b1", 2, n=4),
    )
    assert [(one["id"], one["version"], one["seq"]) for one in results] == [
        ("a1", 1, 1),
        ("b1", 1, 2),
        ("a1", 2, 3),
        ("b1", 2, 4),
        ("a1", 3, 5),
        ("b1", 3, 6),
    ]
    changes = (await phone.pull())["changes"]
    assert [(one["id"], one["seq"], one["data"]) for one in changes] == [
        ("a1", 5, {"n": 2, "m": 3}),
        ("b1", 6, {"n": 4}),
    ]


async def test_sync_pipelined_messages_apply_in_the_order_sent(shared: Running) -> None:
    phone = await shared.device()
    for number in range(50):
        await phone.send(
            {
                "type": "sync",
                "id": str(number),
                "key": f"k{number}",
                "items": [put("a1", number or None, n=number)],
            }
        )
    answers = {answer["id"]: answer for answer in [await phone.receive() for _ in range(50)]}
    for number in range(50):
        (result,) = answers[str(number)]["results"]
        assert (result["status"], result["version"]) == ("applied", number + 1)


async def test_sync_without_items_is_answered(shared: Running) -> None:
    assert await (await shared.device()).push() == []


async def test_sync_answered_is_in_the_next_pull(shared: Running) -> None:
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    for number in range(10):
        await phone.push(put(f"a{number}", None, n=number))
        assert len((await tablet.pull())["changes"]) == number + 1


# -- time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("2024-01-02T03:04:05Z", "2024-01-02T03:04:05Z"),
        ("2024-01-02T03:04:05.120+05:30", "2024-01-01T21:34:05.120000Z"),
        ("2024-01-02T03:04:05.123456-00:15", "2024-01-02T03:19:05.123456Z"),
    ],
)
async def test_sync_times_in_the_feed_are_utc(shared: Running, sent: str, stored: str) -> None:
    phone = await shared.device()
    await phone.push(put("a1", None, n=1) | {"at": sent})
    assert (await phone.pull())["changes"][0]["at"] == stored


async def test_sync_hello_corrects_every_later_at_by_the_devices_clock(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(put("before", None, n=1) | {"at": day(10)})
    behind = timedelta(days=2)
    await phone.send({"type": "hello", "clock": (datetime.now(UTC) - behind).isoformat()})
    await phone.push(put("after", None, n=1) | {"at": day(10)})
    before, after = (await phone.pull())["changes"]
    assert before["at"] == day(10)
    assert abs(_instant(after["at"]) - (_instant(day(10)) + behind)) < timedelta(minutes=1)


@pytest.mark.parametrize("at", ["2999-01-01T00:00:00Z", None])
async def test_sync_time_in_the_future_or_none_is_the_servers_now(shared: Running, at: str | None) -> None:
    phone = await shared.device()
    earliest = datetime.now(UTC)
    await phone.push(put("a1", None, n=1) | {"at": at})
    assert earliest <= _instant((await phone.pull())["changes"][0]["at"]) <= datetime.now(UTC)


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


# -- one answer is bounded --------------------------------------------------------------------


async def test_sync_answer_past_the_bound_of_data_omits_the_rest(shared: Running) -> None:
    """Four records of 250,000 bytes fit into 1 MiB, a fifth does not, nor a small one behind it."""
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    names = ["a1", "a2", "a3", "a4", "a5", "a6"]
    for name in names:
        text = "x" if name == "a6" else "x" * 250_000
        await phone.push(item("put", "attendance", name, data={"text": text}))
    results = await tablet.push(*(item("put", "attendance", name, data={"n": 1}) for name in names))
    assert {(one["status"], one["winner"]) for one in results} == {("resolved", "server")}
    assert ["data" in one for one in results] == [True] * 4 + [False] * 2
