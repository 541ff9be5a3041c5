"""What values a record may hold, how they come back, and what becomes of a rejected item."""

from __future__ import annotations

import msgspec
import pytest

from tests.harness.in_process_server import ON_SHARED, SHARED, Running, Serve
from tests.harness.services import rows
from tests.harness.ws_device import Json, day, item, put
from tests.security.catalogue import against

pytestmark = ON_SHARED

RECORD_BYTES = 262_144


def sync(data: str, rest: str = "") -> bytes:
    """Write a sync of one put by hand, with ``data`` as it is, and a good item behind it."""
    return (
        '{"type":"sync","id":"1","key":"k","items":'
        f'[{{"domain":"task","id":"a1","op":"put","data":{data}{rest}}},'
        '{"domain":"task","id":"good","op":"put","data":{}}]}'
    ).encode()


KEPT = {
    "integers up to the bounds": ('{"a":9223372036854775807,"b":-9223372036854775808}', None),
    "doubles": (
        '{"a":1.5,"b":-0.0,"c":1e308,"d":5e-324,"e":1e0}',
        '{"a":1.5,"b":-0.0,"c":1e308,"d":5e-324,"e":1.0}',
    ),
    "texts of every plane": ('{"ключ":"ж🗺\\u2028\\u007f"}', None),
    "escapes": (r'{"a":"\"\\\/\b\f\n\r\té😀"}', None),
    "control characters but U+0000": (r'{"a":"\u0001\u001f"}', None),
    "of duplicate members the last": ('{"a":1,"b":2,"a":3}', '{"a":3,"b":2}'),
    "of duplicate inner members the last": ('{"a":{"x":1,"x":2}}', '{"a":{"x":2}}'),
    "null, true, false, empty": ('{"a":null,"b":true,"c":false,"d":{},"e":[],"":""}', None),
    "a record of nothing": ("{}", None),
    "28 levels": ('{"a":' * 28 + "{}" + "}" * 28, None),
}


@pytest.mark.parametrize(("sent", "stored"), KEPT.values(), ids=KEPT)
async def test_value_comes_back_as_it_was_sent(shared: Running, sent: str, stored: str | None) -> None:
    phone = await shared.device()
    await phone.send_frame(sync(sent))
    assert [one["status"] for one in (await phone.receive())["results"]] == ["applied", "applied"]
    data = (await phone.pull())["changes"][0]["data"]
    assert repr(data) == repr(msgspec.json.decode(stored or sent))


REJECTED = {
    "an integer above the bound": '{"a":9223372036854775808}',
    "an integer below the bound": '{"a":-9223372036854775809}',
    "an integer of 40 digits": '{"a":[{"b":' + "9" * 40 + "}]}",
    "a number past the doubles": '{"a":1e999}',
    "U+0000": r'{"a":"x\u0000y"}',
    "U+0000 in a name": r'{"a":{"x\u0000":1}}',
    "a lone surrogate": r'{"a":"\ud800"}',
    "a lone low surrogate": r'{"a":["\udc00\ud800"]}',
    "a lone surrogate in a name": r'{"\udfff":1}',
    "a list": "[1]",
    "a text": '"x"',
    "null": "null",
}


@against("A08:2025", "V1.5")
@pytest.mark.parametrize("sent", REJECTED.values(), ids=REJECTED)
async def test_value_wrong_one_rejects_its_item_alone(shared: Running, sent: str) -> None:
    phone = await shared.device()
    await phone.send_frame(sync(sent))
    wrong, good = (await phone.receive())["results"]
    assert (wrong["domain"], wrong["id"], wrong["status"]) == ("task", "a1", "rejected")
    assert wrong["error"]["code"] == "invalid_item"
    assert good["status"] == "applied"


# -- how large --------------------------------------------------------------------------------


def sized(size_bytes: int, letter: str = "x") -> Json:
    """Make data that take ``size_bytes`` as UTF-8 JSON."""
    text, rest = divmod(size_bytes - len('{"t":""}'), len(letter.encode()))
    return {"t": letter * text + "." * rest}


@pytest.mark.parametrize("letter", ["x", "ж", "🗺"])
async def test_value_record_is_measured_in_bytes_as_stored(shared: Running, letter: str) -> None:
    phone = await shared.device()
    fits, over = await phone.push(
        item("put", "task", "fits", data=sized(RECORD_BYTES, letter)),
        item("put", "task", "over", data=sized(RECORD_BYTES + 1, letter)),
    )
    assert fits["status"] == "applied"
    assert (over["status"], over["error"]["code"]) == ("rejected", "too_large")


async def test_value_patch_is_measured_by_the_record_that_it_makes(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(item("put", "task", "a1", data=sized(RECORD_BYTES - 20)))
    grown, shrunk = await phone.push(
        item("patch", "task", "a1", base=1, data={"more": "x" * 20}),
        item("patch", "task", "a1", base=1, data={"t": "", "more": "x" * 20}),
    )
    assert grown["error"]["code"] == "too_large"
    assert shrunk["status"] == "applied"


async def test_value_event_is_measured_too(shared: Running) -> None:
    phone = await shared.device()
    data = {"metric_name": "x" * RECORD_BYTES, "value": 1, "timestamp": day(1)}
    (result,) = await phone.push(item("append", "metrics", "m1", at=day(1), data=data))
    assert result["error"]["code"] == "too_large"


# -- status steps and required fields ---------------------------------------------------------

#: What stands, what is put on it, and the statuses that the refusal names; None where it is legal.
STEPS: dict[str, tuple[Json, Json, str | None]] = {
    "one step": ({"status": "ASSIGNED"}, {"status": "INPROGRESS"}, None),
    "several steps": ({"status": "ASSIGNED"}, {"status": "COMPLETED"}, None),
    "back over a circle": ({"status": "COMPLETED"}, {"status": "ASSIGNED"}, None),
    "the same": ({"status": "COMPLETED"}, {"status": "COMPLETED", "n": 1}, None),
    "none": ({"status": "COMPLETED"}, {"n": 1}, None),
    "any on a record without": ({"n": 1}, {"status": "COMPLETED"}, None),
    "an undeclared one": ({"status": "ASSIGNED"}, {"status": "LOST"}, "ASSIGNED"),
    "an undeclared one on a record without": ({"n": 1}, {"status": "LOST"}, "STANDBY"),
    "another spelling": ({"n": 1}, {"status": "assigned"}, "ASSIGNED"),
    "one that is no text": ({"n": 1}, {"status": 1}, "ASSIGNED"),
}


@pytest.mark.parametrize(("before", "after", "named"), STEPS.values(), ids=STEPS)
async def test_status_each_step_has_its_outcome(
    shared: Running, before: Json, after: Json, named: str | None
) -> None:
    phone = await shared.device()
    await phone.push(item("put", "task", "a1", data=before))
    (result,) = await phone.push(item("put", "task", "a1", base=1, data=after))
    if named is None:
        assert result["status"] == "applied"
    else:
        assert (result["status"], result["error"]["code"]) == ("rejected", "invalid_item")
        assert "data.status" in result["error"]["message"]
        assert named in result["error"]["message"]


async def test_status_step_that_is_not_allowed_names_the_allowed_ones(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(item("put", "work_order", "w1", data={"status": "completed"}))
    (result,) = await phone.push(item("put", "work_order", "w1", base=1, data={"status": "draft"}))
    assert result["error"]["message"].endswith("from completed to draft; allowed: closed")


async def test_status_of_a_first_version_may_be_any_declared_one(shared: Running) -> None:
    phone = await shared.device()
    good, wrong = await phone.push(
        item("put", "task", "a1", data={"status": "COMPLETED"}),
        item("put", "task", "a2", data={"status": "LOST"}),
    )
    assert (good["status"], wrong["status"]) == ("applied", "rejected")


async def test_value_rules_apply_to_the_outcome(shared: Running) -> None:
    """The policy keeps the server's status, so that the client's, never legal, does no harm."""
    phone, tablet = await shared.device("phone"), await shared.device("tablet")
    await phone.push(item("put", "ticket", "t1", data={"status": "CLOSED"}))
    (merged,) = await tablet.push(item("put", "ticket", "t1", data={"status": "NEW", "n": 1}))
    assert (merged["status"], merged["winner"]) == ("resolved", "merged")
    assert merged["data"] == {"status": "CLOSED", "n": 1}
    await phone.push(item("put", "task", "a1", data={"status": "COMPLETED"}) | {"at": day(5)})
    (lost,) = await tablet.push(item("put", "task", "a1", data={"status": "LOST"}) | {"at": day(1)})
    assert (lost["status"], lost["winner"]) == ("resolved", "server")
    (won,) = await tablet.push(item("put", "task", "a1", data={"status": "LOST"}) | {"at": day(9)})
    assert won["status"] == "rejected"


async def test_value_patch_may_rely_on_the_record_and_may_not_remove_a_required_field(
    shared: Running,
) -> None:
    phone = await shared.device()
    results = await phone.push(
        item("put", "visit", "v1", data={"n": 1}),
        item("put", "visit", "v1", data={"place": "gate", "n": 1}),
        item("patch", "visit", "v1", base=1, data={"n": 2}),
        item("patch", "visit", "v1", base=2, data={"place": None}),
        item("delete", "visit", "v1", base=2),
    )
    assert [one["status"] for one in results] == ["rejected", "applied", "applied", "rejected", "applied"]
    assert results[3]["error"]["message"] == "data.place is required"


# -- the quarantine ---------------------------------------------------------------------------

QUARANTINED: dict[str, tuple[str, str, str]] = {
    "a rule broken": (
        "task",
        '{"domain":"task","id":"q1","op":"put","base":1,"data":{"status":"LOST","n":1}}',
        "invalid_item",
    ),
    "an unknown domain": (
        "nowhere",
        '{"domain":"nowhere","id":"q1","op":"put","data":{"n":1}}',
        "unknown_domain",
    ),
    "an unknown base": (
        "task",
        '{"domain":"task","id":"q1","op":"patch","base":3,"data":{"n":1}}',
        "unknown_base",
    ),
    "a wrong type": (
        "task",
        '{"domain":"task","id":"q1","op":"put","base":"1", "data":{"n": 1}}',
        "invalid_item",
    ),
    "U+0000": ("task", r'{"domain":"task","id":"q1","op":"put","data":{"n":"\u0000"}}', "invalid_item"),
    "a large integer": (
        "task",
        '{"domain":"task","id":"q1","op":"put","data":{"n":%s}}' % ("9" * 30),
        "invalid_item",
    ),
}


@pytest.mark.parametrize(("domain", "sent", "code"), QUARANTINED.values(), ids=QUARANTINED)
async def test_value_rejected_item_can_be_recovered(
    shared: Running, domain: str, sent: str, code: str
) -> None:
    phone = await shared.device()
    await phone.send_frame(
        b'{"type":"sync","id":"1","key":"k","items":[%s,%s]}'
        % (b'{"domain":"task","id":"good","op":"put","data":{}}', sent.encode())
    )
    assert (await phone.receive())["results"][1]["error"]["code"] == code
    assert kept(shared) == [("phone", domain, "q1", sent, code)]


async def test_value_message_sent_twice_quarantines_its_item_once(shared: Running) -> None:
    phone = await shared.device()
    for _ in range(2):
        await phone.sync("k", item("put", "nowhere", "q1", data={}))
    assert len(kept(shared)) == 1


async def test_value_item_too_large_can_be_recovered(shared: Running) -> None:
    phone = await shared.device()
    sent = item("put", "task", "q1", data=sized(RECORD_BYTES + 1))
    await phone.push(sent)
    ((_, _, _, text, code),) = kept(shared)
    assert (msgspec.json.decode(str(text)), code) == (sent, "too_large")


async def test_value_rejected_item_of_messagepack_is_kept_as_json(shared: Running) -> None:
    phone = await shared.device(encoding="msgpack")
    sent = item("put", "nowhere", "q1", base=2, data={"n": [1, 2.5, None, "ж"]})
    await phone.push(sent)
    ((_, _, _, text, _),) = kept(shared)
    assert msgspec.json.decode(str(text)) == sent


def kept(shared: Running) -> list[tuple[object, ...]]:
    return rows(
        shared.dsn,
        "SELECT device_id, domain, record_id, item, code FROM quarantine JOIN tenants USING (tenant_id)"
        f" WHERE name = '{shared.tenant()}' ORDER BY at_us",
    )


@pytest.mark.asyncio(loop_scope="function")
async def test_value_sizes_of_the_welcome_are_enforced(serve: Serve) -> None:
    server = await serve(limits={"record_bytes": 1024, "items": 2}, **SHARED)
    phone = await server.device()
    limits = phone.welcome["limits"]
    assert (limits["record_bytes"], limits["items"]) == (1024, 2)
    fits, over = await phone.push(
        item("put", "task", "a1", data=sized(1024)), item("put", "task", "a2", data=sized(1025))
    )
    assert (fits["status"], over["error"]["code"]) == ("applied", "too_large")
    refusal = await phone.refused("sync", key="k", items=[put("a1", None, n=1)] * 3)
    assert refusal["code"] == "too_large"
    assert "2" in refusal["message"]


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_value_base_that_comes_as_a_float_is_that_version(encoding: str, shared: Running) -> None:
    phone = await shared.device(encoding=encoding)
    await phone.push(put("a1", None, n=1))
    items = [put("a1", 1, n=2.0) | {"base": 1.0}, put("a2", None, n=1), put("a1", 1, n=3) | {"base": 2.5}]
    results = await phone.push(*items)
    assert [one["status"] for one in results] == ["applied", "applied", "rejected"]
    assert results[2]["error"]["code"] == "invalid_item"
    changes = {one["id"]: one for one in (await phone.pull(limit=10.0))["changes"]}
    assert (changes["a1"]["version"], changes["a1"]["data"]) == (2, {"n": 2.0})
