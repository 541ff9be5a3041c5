"""From messages to checked work: what refuses one item, what refuses all, and what a retry repeats."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.commit.validation import MessageValidator, Session
from engine.model.domains import Domain, Domains
from engine.model.rows import Conflict, Quarantined, Snapshot
from engine.model.tenants import Tenant
from engine.plan import quarantine
from engine.plan.batch import plan
from engine.plan.context import PlanContext
from engine.plan.work import Change, Push, RejectedItem
from engine.wire.codec import JSON, MSGPACK, Codec
from engine.wire.errors import SyncError
from engine.wire.messages import Resolve, Sync
from engine.wire.timestamps import EARLIEST_US, corrected_us, to_text, to_us
from engine.wire.values import unescaped_fault, value_fault

Json = dict[str, Any]
Pack = Callable[[Any], bytes]

DOMAINS = Domains({"task": Domain(), "voice": Domain(kind="event")})
MAX_ITEMS = 5
VALIDATOR = MessageValidator(DOMAINS, MAX_ITEMS)
NOW_US = 1_767_323_045_000_000
NOW = "2026-01-02T03:04:05Z"
SECOND_US = 1_000_000

BOTH = pytest.mark.parametrize(
    ("codec", "pack"),
    [(JSON, lambda value: json.dumps(value).encode()), (MSGPACK, msgspec.msgpack.encode)],
    ids=["json", "msgpack"],
)


def session(codec: Codec = JSON, *, device_id: str = "phone", clock_offset_us: int = 0) -> Session:
    """Make a device's session."""
    return Session(
        tenant=Tenant(1, "acme"),
        device_id=device_id,
        session_id="s1",
        codec=codec,
        clock_offset_us=clock_offset_us,
    )


def pushed(frame: bytes, who: Session | None = None, now_us: int = NOW_US) -> Push:
    """Decode a sync and check it."""
    who = who or session()
    request = who.codec.decode(frame)
    assert isinstance(request, Sync)
    return VALIDATOR.push(request, who, now_us)


def framed(items: Any, **fields: Any) -> bytes:
    """Write a sync as JSON."""
    return json.dumps({"type": "sync", "id": "1", "key": "k", "items": items, **fields}).encode()


def item(**fields: Any) -> Json:
    """Make an item; ``...`` leaves a field out."""
    whole = {"domain": "task", "id": "a", "op": "put", "data": {}, **fields}
    return {name: value for name, value in whole.items() if value is not ...}


def only(frame: bytes, who: Session | None = None) -> Change | RejectedItem:
    """Check a sync of one item and give that item."""
    (one,) = pushed(frame, who).items
    return one


def refused_whole(frame: bytes, who: Session | None = None) -> SyncError:
    """Check a sync that is refused as a whole."""
    with pytest.raises(SyncError) as caught:
        pushed(frame, who)
    return caught.value


# -- one item's fault ---------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"id": ""}, "invalid_item", "id: "),
        ({"id": "x" * 129}, "invalid_item", "id: "),
        ({"id": "a\n"}, "invalid_item", "id: "),
        ({"id": "a\0"}, "invalid_item", "id: "),
        ({"id": "\x7f"}, "invalid_item", "id: "),
        ({"id": "\x85"}, "invalid_item", "id: "),
        ({"id": 5}, "invalid_item", "id: "),
        ({"id": ...}, "invalid_item", "Object missing required field `id`"),
        ({"domain": "nothing"}, "unknown_domain", "no domain 'nothing'"),
        ({"domain": ""}, "unknown_domain", "no domain ''"),
        ({"domain": "a\0b"}, "unknown_domain", "no domain 'a\\x00b'"),
        ({"domain": 5}, "invalid_item", "domain: "),
        ({"domain": ...}, "invalid_item", "Object missing required field `domain`"),
        ({"op": "upsert"}, "invalid_item", "op: "),
        ({"op": "a\0b"}, "invalid_item", "op: "),
        ({"op": None}, "invalid_item", "op: "),
        ({"op": "append"}, "invalid_item", "op: task is a record domain: put, patch or delete"),
        ({"domain": "voice"}, "invalid_item", "op: voice is an event domain: append"),
        ({"base": 0}, "invalid_item", "base: "),
        ({"base": -1}, "invalid_item", "base: "),
        ({"base": 2**63}, "invalid_item", "base: "),
        ({"base": "3"}, "invalid_item", "base: "),
        ({"base": True}, "invalid_item", "base: "),
        ({"base": 1.5}, "invalid_item", "base: "),
        ({"at": "noon"}, "invalid_item", "at: "),
        ({"at": "2026-01-02T03:04:05"}, "invalid_item", "at: "),
        ({"at": "2026-13-02T03:04:05Z"}, "invalid_item", "at: "),
        ({"at": 5}, "invalid_item", "at: "),
        ({"data": None}, "invalid_item", "data: an object is required"),
        ({"data": ...}, "invalid_item", "data: an object is required"),
        ({"data": [1]}, "invalid_item", "data: an object is required"),
        ({"data": "x"}, "invalid_item", "data: an object is required"),
        ({"op": "patch", "data": None}, "invalid_item", "data: an object is required"),
        ({"data": {"a": "\0"}}, "invalid_item", "data: U+0000"),
        ({"data": {"a\0": 1}}, "invalid_item", "data: U+0000"),
        ({"data": {"a": [{"b": [2**63]}]}}, "invalid_item", "data: integers must be"),
        ({"changed": "a"}, "invalid_item", "changed: "),
        ({"changed": [1]}, "invalid_item", "changed[0]: "),
        ({"domain": "voice", "op": "append"}, "invalid_item", "at: required for append"),
    ],
    ids=str,
)
def test_validator_faulty_item_is_rejected_alone(
    codec: Codec, pack: Pack, change: Json, code: str, message: str
) -> None:
    items = [item(id="before"), item(**change), item(id="behind")]
    frame = pack({"type": "sync", "id": "1", "key": "k", "items": items})
    before, faulty, behind = pushed(frame, session(codec)).items
    assert isinstance(before, Change)
    assert isinstance(behind, Change)
    assert isinstance(faulty, RejectedItem)
    assert faulty.code == code
    assert faulty.message.startswith(message)
    assert "\0" not in faulty.message
    named = items[1]
    assert faulty.domain == (named.get("domain") if isinstance(named.get("domain"), str) else None)
    assert faulty.id == (named.get("id") if isinstance(named.get("id"), str) else None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (rb'{"a":"\ud800"}', "data: U+0000 and lone surrogates"),
        (rb'{"\udfff":1}', "data: U+0000 and lone surrogates"),
        (b'{"a":1e400}', "data[...]: Number out of range"),
        (b'{"a":-1e400}', "data[...]: Number out of range"),
        (b'{"a":-9223372036854775809}', "data: integers must be"),
        (b'{"a":%s}' % (b"1" * 30), "data: integers must be"),
        (b'{"a":%s}' % (b"1" * 5000), "data[...]: Integer value out of range"),
        (b'{"a":"\xff"}', "'utf-8' codec"),
    ],
)
def test_validator_values_that_only_json_can_express_are_rejected(data: bytes, message: str) -> None:
    frame = framed([item(), item(data={"X": 1})]).replace(b'{"X": 1}', data)
    good, faulty = pushed(frame).items
    assert isinstance(good, Change)
    assert isinstance(faulty, RejectedItem)
    assert faulty.message.startswith(message)
    assert (faulty.domain, faulty.id) == ("task", "a")


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\xa1a\xc4\x01x",
        b"\x81\xa1a\xd4\x05x",
        b"\x81\xa1a\xd6\xff\x00\x00\x00\x01",
        b"\x81\x01\x01",
        b"\x81\xc4\x01x\x01",
        b"\x81\x91\x01\x01",
        b"\x81\x81\x01\x01\x01",
        b"\x81\xa1a\xa3\xed\xa0\x80",
        b"\x81\xa1a\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
        b"\x81\xa1a\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
        b"\x81\xa1a\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_validator_values_that_only_messagepack_can_express_are_rejected(data: bytes) -> None:
    frame = b"\x84\xa4type\xa4sync\xa2id\xa11\xa3key\xa1k\xa5items\x92"
    frame += msgspec.msgpack.encode(item())
    frame += b"\x84\xa6domain\xa4task\xa2id\xa1b\xa2op\xa3put\xa4data" + data
    push = pushed(frame, session(MSGPACK))
    assert isinstance(push.items[0], Change)
    faulty = push.items[1]
    assert isinstance(faulty, RejectedItem)
    assert (faulty.domain, faulty.id, faulty.code) == ("task", "b", "invalid_item")


def test_validator_unreadable_item_has_no_names() -> None:
    frame = b"\x84\xa4type\xa4sync\xa2id\xa11\xa3key\xa1k\xa5items\x91"
    frame += b"\x83\xa6domain\xa4task\xa2id\xa3\xed\xa0\x80\xa2op\xa6delete"
    refused = only(frame, session(MSGPACK))
    assert isinstance(refused, RejectedItem)
    assert (refused.domain, refused.id, refused.code) == (None, None, "invalid_item")


# -- the message's fault ------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("items", "message"),
    [
        (None, "items: an array of objects is required"),
        ({}, "items: an array of objects is required"),
        ("x", "items: an array of objects is required"),
        ([1], "items[0]: an object is required"),
        ([{}, None], "items[1]: an object is required"),
        ([{}, []], "items[1]: an object is required"),
        ([item(), "x", item()], "items[1]: an object is required"),
    ],
    ids=str,
)
def test_validator_item_that_is_no_object_refuses_the_message(
    codec: Codec, pack: Pack, items: Any, message: str
) -> None:
    frame = pack({"type": "sync", "id": "1", "key": "k", "items": items})
    error = refused_whole(frame, session(codec))
    assert (error.code, error.message) == ("invalid_message", message)


@pytest.mark.parametrize("faulty", [False, True])
def test_validator_too_many_items_refuse_the_message(faulty: bool) -> None:
    items = [item()] * MAX_ITEMS + [item(op="upsert" if faulty else "put")]
    error = refused_whole(framed(items))
    assert error.code == "too_large"
    assert error.message == "items: 6 of them, the limit is 5"
    assert len(pushed(framed(items[1:])).items) == MAX_ITEMS


def test_validator_no_items_are_accepted() -> None:
    assert pushed(framed([])).items == []


# -- what a change becomes ----------------------------------------------------------------------


def test_validator_change_has_what_was_sent() -> None:
    data = {"b": None, "a": 1}
    sent = item(op="patch", base=3, at="2026-01-02T05:04:04.25+02:00", data=data, changed=["a"])
    assert only(framed([sent])) == Change(
        "task",
        "a",
        "patch",
        3,
        NOW_US - 750_000,
        NOW_US - 750_000,
        data,
        b'{"b":null,"a":1}',
        ("a",),
    )


def test_validator_item_without_base_or_time_gets_defaults() -> None:
    for sent in (item(), item(base=None, at=None, changed=None)):
        change = only(framed([sent]))
        assert isinstance(change, Change)
        assert (change.base, change.at_us, change.sent_at_us, change.changed) == (0, NOW_US, NOW_US, None)


def test_validator_delete_drops_data() -> None:
    for data in (..., None, {"a": 1}, [1], "x"):
        change = only(framed([item(op="delete", data=data)]))
        assert isinstance(change, Change)
        assert (change.fields, change.data) == (None, b"")


def test_validator_duplicate_members_the_last_counts() -> None:
    frame = framed([item(data={"X": 1})]).replace(b'{"X": 1}', b'{"a":1,"a":2}')
    change = only(frame)
    assert isinstance(change, Change)
    assert change.data == b'{"a":2}'


@BOTH
def test_validator_ends_of_ranges_pass(codec: Codec, pack: Pack) -> None:
    data = {"a": 2**63 - 1, "b": -(2**63), "c": 1.7976931348623157e308, "ключ": "\U0001f600\ufffe\u2028"}
    sent = item(id="ä" * 128, data=data, base=2**63 - 1)
    frame = pack({"type": "sync", "id": "1", "key": "k", "items": [sent]})
    change = only(frame, session(codec))
    assert isinstance(change, Change)
    assert msgspec.json.decode(change.data) == data


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_says", "at", "corrected"),
    [
        (NOW, "2026-01-02T03:04:00Z", "2026-01-02T03:04:00Z"),
        ("2026-01-02T03:05:05Z", "2026-01-02T03:05:00Z", "2026-01-02T03:04:00Z"),
        ("2026-01-02T03:03:05Z", "2026-01-02T03:03:00Z", "2026-01-02T03:04:00Z"),
        (NOW, "2026-01-02T03:04:06Z", NOW),
        (NOW, "9999-12-31T23:59:59Z", NOW),
        ("2026-01-02T03:03:05Z", NOW, NOW),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", NOW),
        ("9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        (NOW, "0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00Z"),
    ],
)
def test_validator_at_is_corrected_and_at_most_now(device_says: str, at: str, corrected: str) -> None:
    offset_us = NOW_US - to_us(datetime.fromisoformat(device_says))
    change = only(framed([item(at=at)]), session(clock_offset_us=offset_us))
    assert isinstance(change, Change)
    assert to_text(change.at_us) == corrected
    assert change.sent_at_us == to_us(datetime.fromisoformat(at))


def test_validator_event_keeps_the_time_as_sent() -> None:
    sent = item(domain="voice", op="append", at="2026-01-02T03:04:00Z")
    one, other = (
        only(framed([sent]), session(clock_offset_us=offset_us)) for offset_us in (0, 60 * SECOND_US)
    )
    assert isinstance(one, Change)
    assert isinstance(other, Change)
    assert one.sent_at_us == other.sent_at_us
    assert one.at_us < other.at_us


@given(
    instant=st.datetimes(timezones=st.just(UTC)) | st.datetimes(timezones=st.timezones()),
    offset_us=st.integers(-(10**17), 10**17),
)
def test_timestamps_are_read_back_and_in_range(instant: datetime, offset_us: int) -> None:
    instant_us = to_us(instant)
    if instant_us >= EARLIEST_US and instant.year < 9999:
        assert to_us(datetime.fromisoformat(to_text(instant_us))) == instant_us
    corrected = corrected_us(instant_us, offset_us, NOW_US)
    assert EARLIEST_US <= corrected <= NOW_US
    assert to_text(corrected).endswith("Z")


@pytest.mark.parametrize(
    ("device_says", "ats", "may_be_old"),
    [
        (None, [NOW], True),
        (NOW, [NOW], False),
        (NOW, [], True),
        (NOW, [None], True),
        (NOW, ["2026-01-02T03:04:04Z"], False),
        (NOW, ["2026-01-01T03:04:05Z"], False),
        (NOW, ["2026-01-01T03:04:04Z"], True),
        (NOW, ["2025-01-01T03:04:04Z", None, "2026-01-02T03:04:00Z"], False),
        (NOW, ["2026-01-02T03:04:06Z", "2026-01-02T03:04:00Z"], True),
        ("2026-01-04T03:04:05Z", ["2026-01-04T03:04:00Z"], False),
        ("2026-01-04T03:04:05Z", ["2026-01-02T03:04:00Z"], True),
        ("2026-01-01T00:00:00Z", ["2026-01-01T00:00:00Z"], False),
    ],
)
def test_validator_push_may_be_old_unless_a_known_clock_dates_it(
    device_says: str | None, ats: list[str | None], may_be_old: bool
) -> None:
    who = session()
    if device_says is not None:
        who.clock_known = True
        who.clock_offset_us = NOW_US - to_us(datetime.fromisoformat(device_says))
    assert pushed(framed([item(at=at) for at in ats]), who).may_be_old is may_be_old
    who.retries_over = False
    assert pushed(framed([item(at=at) for at in ats]), who).may_be_old


# -- retries --------------------------------------------------------------------------------------


def identity(frame: bytes, who: Session | None = None) -> tuple[str, str]:
    """Give what a key and its request are known by."""
    push = pushed(frame, who)
    return push.key_hash, push.request_sha256


def test_validator_retry_is_recognized_by_its_items() -> None:
    first = identity(framed([item()]))
    assert identity(framed([item()], id="2", extra=True, clock=NOW)) == first
    assert identity(b'{"items": %s,"key":"k","type":"sync"}' % json.dumps([item()]).encode()) == first
    assert identity(framed([item()]), session(clock_offset_us=5)) == first


def test_validator_other_items_are_another_request() -> None:
    frame = framed([item()])
    key, request = identity(frame)
    for other in (
        framed([item(base=1)]),
        framed([item(), item()]),
        framed([]),
        framed([item()], atomic=True),
        frame.replace(b'"task"', b' "task"'),
    ):
        assert identity(other)[0] == key
        assert identity(other)[1] != request
    packed = msgspec.msgpack.encode({"type": "sync", "id": "1", "key": "k", "items": [item()]})
    assert identity(packed, session(MSGPACK))[0] == key
    assert identity(packed, session(MSGPACK))[1] != request


def test_validator_keys_belong_to_their_device() -> None:
    keys = {
        identity(framed([], key=key), session(device_id=device))[0]
        for device in ("phone", "phone-1", "p")
        for key in ("k", "-1k", "honek", "hone\0k")
    }
    assert len(keys) == 12
    assert all(len(key) == 32 for key in keys)


def test_validator_messagepack_retry_repeats_its_bytes() -> None:
    packed = msgspec.msgpack.encode({"type": "sync", "id": "1", "key": "k", "items": [item(data={"a": 1})]})
    who = session(MSGPACK)
    assert identity(packed, who) == identity(packed.replace(b"\xa11", b"\xa12"), who)
    assert identity(packed, who)[1] != identity(packed.replace(b"\xa1a\x01", b"\xa1a\xcc\x01"), who)[1]


# -- quarantine -----------------------------------------------------------------------------------


@BOTH
def test_quarantine_any_rejected_item_can_be_stored_and_read(codec: Codec, pack: Pack) -> None:
    items = [
        item(domain="a\0" + "x" * 300, id="\x07", data={"a": "\0"}),
        item(op="up\0", data={"b": [1.5, None, {"c": "ä"}]}),
        item(data={"a": 2**63}),
    ]
    push = pushed(pack({"type": "sync", "id": "1", "key": "k", "items": items}), session(codec))
    for row, sent in zip(_quarantined(push), items, strict=True):
        for text in (row.domain, row.record_id, row.message, row.item.decode()):
            assert text is None or "\0" not in text
        assert len(row.domain or "") <= 255
        assert json.loads(row.item) == sent


def test_quarantine_item_that_json_cannot_express_is_kept() -> None:
    frame = b"\x84\xa4type\xa4sync\xa2id\xa11\xa3key\xa1k\xa5items\x94"
    for data in (b"\xc4\x02\xff\x00", b"\xd4\x05x", b"\x81\x81\x01\x01\x01", b"\xa3\xed\xa0\x80"):
        frame += b"\x84\xa6domain\xa4task\xa2id\xa1b\xa2op\xa3put\xa4data" + data
    rows = _quarantined(pushed(frame, session(MSGPACK)))
    assert json.loads(rows[0].item)["data"] == "ff00"
    for row in rows:
        assert isinstance(json.loads(row.item), dict)
    assert bytes.fromhex(json.loads(rows[3].item)["msgpack_hex"]).endswith(b"\xed\xa0\x80")


def test_quarantine_lone_surrogate_is_kept_as_nul() -> None:
    frame = framed([item(data={"X": 1})]).replace(b'"X"', rb'"\ud800"')
    (row,) = _quarantined(pushed(frame))
    assert json.loads(row.item)["data"] == {"\0": 1}


@BOTH
def test_quarantine_items_are_decoded_once(codec: Codec, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    class Counting:
        def decode(self, raw: bytes) -> list[msgspec.Raw]:
            decoded.append(raw)
            items: list[msgspec.Raw] = codec.raw_items.decode(raw)
            return items

    monkeypatch.setitem(quarantine._decoders, codec.name, Counting())
    items = [item(id=f"r{number}", op="no such") for number in range(MAX_ITEMS - 1)] + [item()]
    rows = _quarantined(pushed(pack({"type": "sync", "id": "1", "key": "k", "items": items}), session(codec)))
    assert [json.loads(row.item)["id"] for row in rows] == ["r0", "r1", "r2", "r3"]
    assert len(decoded) == 1


def _quarantined(push: Push) -> list[Quarantined]:
    """Let a batch of this message alone quarantine what it rejects."""
    ids = itertools.count()
    context = PlanContext(DOMAINS, lambda _: DOMAINS.default_policies, lambda: f"q{next(ids)}", 1000, 1000)
    return plan([push], Snapshot({1: 0}, {}, {}, {}, {}, {}), context).writes.quarantine


# -- values ---------------------------------------------------------------------------------------


_any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


def _storable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_storable(name) and _storable(part) for name, part in value.items())
    if isinstance(value, list):
        return all(map(_storable, value))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return "\0" not in value
    return not isinstance(value, bytes) and (value is None or -(2**63) <= value < 2**63)


@given(data=st.dictionaries(st.text(max_size=3), _any, max_size=4))
def test_value_fault_passes_exactly_what_can_be_stored(data: Json) -> None:
    assert (value_fault(data) is None) is _storable(data)


_unescaped = st.text(st.characters(codec="utf-8", exclude_characters='"\\', min_codepoint=32), max_size=3)
_of_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _unescaped,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_unescaped, inner, max_size=40),
    max_leaves=10,
)


@given(data=st.dictionaries(_unescaped, _of_json, max_size=40))
def test_unescaped_fault_passes_exactly_what_can_be_stored(data: Json) -> None:
    sent = msgspec.json.encode([{"domain": "note", "id": "a", "op": "put", "data": data}])
    assert b"\\" not in sent
    (item,) = JSON.items.decode(sent)
    assert (unescaped_fault(item.data) is None) is _storable(data)


@pytest.mark.parametrize(
    "text",
    [b"\0", b"x\0y", b"\x1f", b"\xed\xa0\x80", b"\xc0\x80"],
    ids=["nul", "nul inside", "control", "surrogate", "long nul"],
)
def test_unescaped_fault_bad_text_needs_an_escape(text: bytes) -> None:
    for data in (b'{"a":"%b"}', b'{"%b":1}', b'{"a":[{"%b":1}]}'):
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            JSON.items.decode(b'[{"domain":"note","id":"a","op":"put","data":' + data % text + b"}]")


# -- resolve --------------------------------------------------------------------------------------


CONFLICT = Conflict(
    tenant_id=1,
    conflict_id="c1",
    domain="task",
    record_id="a",
    device_id="phone",
    policy="manual",
    outcome="open",
    server_version=2,
    server_data=b"{}",
    client_base=1,
    client_op="put",
    client_at_us=NOW_US,
    client_data=b"{}",
    opened_at_us=NOW_US,
)


@pytest.mark.parametrize("data", [None, [1], "x", {"a": "\0"}, {"a": 2**63}])
def test_validator_merged_record_must_be_storable(data: Any) -> None:
    request = Resolve("1", "c1", "merged", 2, data)
    with pytest.raises(SyncError) as caught:
        VALIDATOR.resolution(request, session(), CONFLICT, NOW_US)
    assert caught.value.code == "invalid_message"
    assert caught.value.message.startswith("data: ")


def test_validator_same_decision_in_any_order_of_members_is_equal() -> None:
    def decision(**fields: Any) -> str:
        whole: Json = {"id": "1", "conflict_id": "c1", "choice": "merged", "version": 2, **fields}
        request = Resolve(**whole)
        return VALIDATOR.resolution(request, session(), CONFLICT, NOW_US).request_sha256

    first = decision(data={"a": 1, "b": {"c": 1, "d": 2}})
    assert decision(data={"b": {"d": 2, "c": 1}, "a": 1}, id="2") == first
    others: list[Json] = [
        {"data": {"a": 1}},
        {"data": {"a": 1.0, "b": {"c": 1, "d": 2}}},
        {"data": {"a": 1, "b": {"c": 1, "d": 2}}, "version": 3},
    ]
    for other in others:
        assert decision(**other) != first
    assert decision(choice="client") == decision(choice="client", data={"ignored": 1})
    assert decision(choice="client") != decision(choice="server")
