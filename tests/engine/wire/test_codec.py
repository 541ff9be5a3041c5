"""Frames to requests in both encodings: what is refused, how, and that nothing else is raised."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.wire.codec import JSON, MSGPACK, Codec, MalformedError, _Numbers
from engine.wire.errors import SyncError
from engine.wire.messages import Conflicts, Heartbeat, Hello, Item, Pull, Request, Resolve, Subscribe, Sync
from engine.wire.nesting import MAX_DEPTH, json_nesting_fault, msgpack_nesting_fault

#: Bytes of the numbers of MessagePack from 0xca on.
_SIZES = (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)

Json = dict[str, Any]
Pack = Callable[[Any], bytes]


def pack_json(value: Any) -> bytes:
    """Write JSON as a careless client would, NaN included."""
    return json.dumps(value).encode()


BOTH = pytest.mark.parametrize(
    ("codec", "pack"), [(JSON, pack_json), (MSGPACK, msgspec.msgpack.encode)], ids=["json", "msgpack"]
)


def sync(items: Any, **fields: Any) -> Json:
    """Make a sync message."""
    return {"type": "sync", "id": "1", "key": "k", "items": items, **fields}


def put(data: Any, **fields: Any) -> Json:
    """Make an item."""
    return {"domain": "task", "id": "a", "op": "put", "data": data, **fields}


def nested(depth: int, innermost: Any) -> Any:
    """Wrap a value in ``depth`` lists."""
    for _ in range(depth):
        innermost = [innermost]
    return innermost


def refused(codec: Codec, frame: bytes) -> SyncError:
    """Decode what must be refused, and give the refusal."""
    with pytest.raises(SyncError) as caught:
        codec.decode(frame)
    return caught.value


# -- messages ---------------------------------------------------------------------------------


@BOTH
def test_codec_message_of_every_kind_is_decoded(codec: Codec, pack: Pack) -> None:
    request = codec.decode(pack(sync([put({"a": 1})], atomic=True, unknown={"x": [1]})))
    assert isinstance(request, Sync)
    assert (request.id, request.key, request.atomic) == ("1", "k", True)
    assert codec.any.decode(request.items) == [put({"a": 1})]
    assert codec.decode(pack({"type": "pull", "id": "8", "cursor": None})) == Pull("8")
    assert codec.decode(pack({"type": "hello"})) == Hello()
    assert isinstance(codec.decode(pack({"type": "heartbeat", "id": "1", "battery": 1})), Heartbeat)
    resolve = {"type": "resolve", "id": "1", "conflict_id": "c", "choice": "merged", "version": 1, "data": {}}
    assert codec.decode(pack(resolve)) == Resolve("1", "c", "merged", 1, {})


@BOTH
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"key": ""}, "key"),
        ({"key": "k" * 129}, "key"),
        ({"key": 1}, "key"),
        ({"key": None}, "key"),
        ({"id": ""}, "id"),
        ({"id": "1" * 65}, "id"),
        ({"id": 1}, "id"),
        ({"atomic": 1}, "atomic"),
        ({"clock": "noon"}, "clock"),
        ({"clock": "2026-01-02T03:04:05"}, "clock"),
    ],
)
def test_codec_wrong_envelope_error_names_the_field(
    codec: Codec, pack: Pack, change: Json, field: str
) -> None:
    error = refused(codec, pack(sync([]) | change))
    assert error.code == "invalid_message"
    assert error.message.startswith(f"{field}: ")
    assert error.details.get("id") == (None if field == "id" else "1")


# -- integers that come as floats ---------------------------------------------------------------


def _integers(kind: Any) -> set[str]:
    """The fields of a message or an item that are integers."""
    fields = msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]  # a struct
    return {
        field.name
        for field in fields
        for part in getattr(field.type, "types", (field.type,))
        if isinstance(part, msgspec.inspect.IntType)
    }


def test_codec_integer_field_sent_as_float_is_accepted() -> None:
    wire = set().union(*(_integers(kind) for kind in (*get_args(Request), Item)))
    assert wire == set(_Numbers.__struct_fields__)


RESOLVE = {"type": "resolve", "id": "1", "conflict_id": "c", "choice": "merged", "data": {"n": 2.0}}


@BOTH
@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ({"type": "pull", "id": "1", "limit": 7.0}, Pull("1", limit=7)),
        ({"type": "subscribe", "id": "1", "limit": 1e3}, Subscribe("1", limit=1000)),
        ({"type": "conflicts", "id": "1", "limit": 7.0}, Conflicts("1", limit=7)),
        ({"type": "heartbeat", "id": "1", "queue_depth": 4.0}, Heartbeat("1", queue_depth=4)),
        ({"type": "heartbeat", "id": "1", "queue_depth": -0.0}, Heartbeat("1", queue_depth=0)),
        (RESOLVE | {"version": 3.0, "changes": 2.0}, Resolve("1", "c", "merged", 3, {"n": 2.0}, 2)),
        (RESOLVE | {"version": 2.0**53, "changes": 1.0}, Resolve("1", "c", "merged", 2**53, {"n": 2.0}, 1)),
    ],
    ids=str,
)
def test_codec_whole_float_becomes_an_integer(codec: Codec, pack: Pack, message: Json, wanted: Any) -> None:
    request = codec.decode(pack(message))
    assert request == wanted
    assert all(type(getattr(request, name)) is int for name in _integers(type(request)))
    if isinstance(request, Resolve):
        assert type(request.data["n"]) is float, "what a record holds stays as it is"


@BOTH
@pytest.mark.parametrize(
    "value", [7.5, 0.5, -1.0, 0.0, 1001.0, 2.0**54, 1e300, "7", "7.0", True, [7.0]], ids=str
)
def test_codec_fraction_or_number_out_of_range_is_refused(codec: Codec, pack: Pack, value: Any) -> None:
    error = refused(codec, pack({"type": "pull", "id": "1", "limit": value}))
    assert (error.code, error.details) == ("invalid_message", {"id": "1"})
    assert error.message.startswith("limit: ")


@BOTH
def test_codec_whole_float_beside_another_fault_names_the_fault(codec: Codec, pack: Pack) -> None:
    error = refused(codec, pack({"type": "pull", "id": "1", "limit": 7.0, "cursor": 5}))
    assert error.message.startswith("cursor: ")
    error = refused(codec, pack(sync([put({})], limit=7.0, atomic="yes")))
    assert error.message.startswith("atomic: ")


@BOTH
@given(
    base=st.none()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**54), 2**54).map(float)
    | st.text(max_size=3)
    | st.booleans()
)
def test_codec_item_base_becomes_an_integer(codec: Codec, pack: Pack, base: Any) -> None:
    [raw] = codec.raw_items.decode(pack([put({"n": 1.0}, base=base)]))
    is_whole = type(base) is float and base.is_integer() and abs(base) <= 2**53
    if type(base) is int or base is None or is_whole:
        item = codec.item(raw)
        assert (item.base, type(item.base)) == (base, type(None) if base is None else int)
    else:
        with pytest.raises(msgspec.DecodeError):
            codec.item(raw)


@BOTH
@pytest.mark.parametrize("unknown", [-1, -1.0, -0.5, None])
def test_codec_heartbeat_with_negative_facts_is_accepted(codec: Codec, pack: Pack, unknown: Any) -> None:
    message = {"type": "heartbeat", "id": "1", "battery": unknown, "storage_free_mb": unknown}
    assert isinstance(codec.decode(pack(message)), Heartbeat)


@BOTH
def test_codec_missing_field_is_named(codec: Codec, pack: Pack) -> None:
    error = refused(codec, pack({"type": "sync", "id": "1", "items": []}))
    assert (error.code, error.details) == ("invalid_message", {"id": "1"})
    assert "`key`" in error.message


@BOTH
@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "teleport", "id": "1"}, "unknown_type"),
        ({"type": "welcome", "id": "1"}, "unknown_type"),
        ({"type": "", "id": "1"}, "unknown_type"),
        ({"type": 7, "id": "1"}, "invalid_message"),
        ({"id": "1"}, "invalid_message"),
    ],
)
def test_codec_unknown_type_is_refused(codec: Codec, pack: Pack, message: Json, code: str) -> None:
    error = refused(codec, pack(message))
    assert (error.code, error.details) == (code, {"id": "1"})


@BOTH
@pytest.mark.parametrize("value", [None, 1, "sync", [], [1, 2]])
def test_codec_frame_without_object_is_refused(codec: Codec, pack: Pack, value: Any) -> None:
    assert refused(codec, pack(value)).code == "invalid_message"


@pytest.mark.parametrize("limit", [1, 500, 1000])
def test_codec_limit_in_range_is_accepted(limit: int) -> None:
    assert JSON.decode(pack_json({"type": "pull", "id": "1", "limit": limit})) == Pull("1", limit=limit)


@pytest.mark.parametrize("limit", [0, -1, 1001, 10**30, 2.5, "5", True, None])
def test_codec_limit_out_of_range_is_refused(limit: Any) -> None:
    error = refused(JSON, pack_json({"type": "pull", "id": "1", "limit": limit}))
    assert error.code == "invalid_message"


@BOTH
@pytest.mark.parametrize(
    "message",
    [
        {"type": "conflicts", "id": "1", "after": "\0"},
        {"type": "resolve", "id": "1", "conflict_id": "\0", "choice": "server", "version": 1},
        {"type": "heartbeat", "id": "1", "network": "4g\0"},
    ],
)
def test_codec_name_with_nul_is_refused(codec: Codec, pack: Pack, message: Json) -> None:
    assert refused(codec, pack(message)).code == "invalid_message"


# -- malformed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b" ",
        b"{",
        b"sync",
        b'{"type":"hello"} x',
        b'\xef\xbb\xbf{"type":"hello"}',
        b'{"type":"hello","battery":NaN}',
        b'{"type":"hello","battery":-Infinity}',
        b'{"type":"sync","id":"1","key":"k","items":[{"data":{"a":NaN}}]}',
        b'{"type":"sync","id":"1","key":"k","items":[{"data":{"a":Infinity}}]}',
        b'{"type":"pull","id":5,',
        b"[1,",
        rb'{"type":"sync","id":"1","key":"k","items":[{"data":{"a":"\q"}}]}',
        rb'{"type":"sync","id":"1","key":"k","items":[{"data":{"a":"\ud800\q"}}]}',
        b'{"type":"sync","id":"1","key":"k","items":[{"data":{"a":"\0"}}]}',
        b'{"type":"sync","id":"1","key":"k","items":[{"data":{"a":01}}]}',
        b'{"type":"sync","id":"1","key":"\xff","items":[]}',
    ],
)
def test_codec_invalid_json_is_malformed(frame: bytes) -> None:
    assert isinstance(refused(JSON, frame), MalformedError)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x81",
        b'{"type":"hello"}',
        msgspec.msgpack.encode({"type": "hello"}) + b"\x01",
        msgspec.msgpack.encode({"type": "sync", "id": "1", "key": "k", "items": []})[:-1],
        b"\x82\xa4type\xa5hello\xabapp_version\xa3\xed\xa0\x80",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_codec_invalid_messagepack_is_malformed(frame: bytes) -> None:
    assert isinstance(refused(MSGPACK, frame), MalformedError)


@BOTH
@pytest.mark.parametrize("innermost", [1, [], {}])
def test_nesting_depth_32_passes_and_33_is_refused(codec: Codec, pack: Pack, innermost: Any) -> None:
    # The message is depth 1, its items 2, an item 3, its data 4.
    fits = MAX_DEPTH - 4 - (innermost != 1)
    padding = [put({"a": [[]] * 40})]
    assert isinstance(codec.decode(pack(sync([put({"a": nested(fits, innermost)}), *padding]))), Sync)
    error = refused(codec, pack(sync([put({"a": nested(fits + 1, innermost)}), *padding])))
    assert (error.code, error.message) == ("malformed", "nested deeper than 32")


@BOTH
def test_nesting_depth_outside_of_items_counts(codec: Codec, pack: Pack) -> None:
    assert codec.decode(pack({"type": "hello", "x": nested(31, 1)})) == Hello()
    assert isinstance(refused(codec, pack({"type": "hello", "x": nested(32, 1)})), MalformedError)


def test_nesting_brackets_in_strings_do_not_count() -> None:
    text = '[{"' * 40 + "\\\\" + '\\"[' * 40
    assert isinstance(JSON.decode(pack_json(sync([put({"a": text, "b": [[]] * 40})]))), Sync)
    packed = msgspec.msgpack.encode(sync([put({"a": "\x91" * 100, "b": b"\x91" * 100})]))
    assert isinstance(MSGPACK.decode(packed), Sync)


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
def test_nesting_very_deep_frame_is_refused_without_recursion(codec: Codec) -> None:
    for frame in (b"[" * 1_000_000, b'{"a":' * 200_000, b"\x91" * 1_000_000, b"\x81\xa1a" * 300_000):
        assert isinstance(refused(codec, frame), MalformedError)


@pytest.mark.parametrize(
    "frame",
    [
        b"[" * 40 + b'"' + b'\\"' * 500_000,
        b"[" * 40 + b'"' + b"\\" * 1_000_000,
        b"[" * 40 + b'""' * 500_000,
        b"[" * 40 + b'"\n' * 500_000,
    ],
)
def test_nesting_any_frame_is_checked_in_a_moment(frame: bytes) -> None:
    """Time in the square of the length would be an hour here, and the suite would not end."""
    assert json_nesting_fault(frame) == "nested deeper than 32"


_OPENER = b"\x91"  # an array of one: what is read out of step is full of them


@pytest.mark.parametrize(
    "value",
    [
        b"\x01",
        b"\xe0",
        b"\xc0",
        b"\xc3",
        b"\xc4\x28" + _OPENER * 40,
        b"\xc5\x00\x28" + _OPENER * 40,
        b"\xc6\x00\x00\x00\x28" + _OPENER * 40,
        b"\xc7\x28\x05" + _OPENER * 40,
        b"\xc7\x00\x91",
        b"\xc8\x00\x28\x05" + _OPENER * 40,
        b"\xc9\x00\x00\x00\x28\x05" + _OPENER * 40,
        *[bytes([first]) + _OPENER * size for first, size in zip(range(0xCA, 0xD4), _SIZES, strict=True)],
        *[bytes([0xD4 + power]) + _OPENER * (1 + 2**power) for power in range(5)],
        b"\xa0",
        b"\xbf" + _OPENER * 31,
        b"\xd9\x28" + _OPENER * 40,
        b"\xda\x00\x28" + _OPENER * 40,
        b"\xdb\x00\x00\x00\x28" + _OPENER * 40,
        b"\x90",
        b"\x80",
        b"\xdc\x00\x00",
        b"\xdd\x00\x00\x00\x00",
        b"\xde\x00\x00",
        b"\xdf\x00\x00\x00\x00",
        b"\x9f" + b"\x01" * 15,
        b"\x8f" + b"\x01" * 30,
        b"\xdc\x00\x10" + b"\x01" * 16,
        b"\xdd\x00\x00\x00\x10" + b"\x01" * 16,
        b"\xde\x00\x10" + b"\x01" * 32,
        b"\xdf\x00\x00\x00\x10" + b"\x01" * 32,
    ],
)
def test_nesting_messagepack_value_of_every_kind_is_skipped(value: bytes) -> None:
    many = b"\xdc\x00\x28" + value * 39
    assert msgpack_nesting_fault(many + _OPENER * 31 + b"\x01") is None
    assert msgpack_nesting_fault(many + _OPENER * 32 + b"\x01")


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(["x" * 31, "x" * 32, "x" * 300, "x" * 70_000, b"\x91" * 70_000, '"[{\\']),
    st.binary(max_size=40),
    st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary(max_size=20)),
)
_trees = st.recursive(
    _leaves | st.lists(st.just(0), max_size=70_000).map(lambda zeros: zeros * 3),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20),
    max_leaves=30,
)


@given(tree=_trees, wraps=st.integers(0, 40), maps=st.booleans())
def test_nesting_depth_of_messagepack_is_read_from_its_bytes(tree: Any, wraps: int, maps: bool) -> None:
    for _ in range(wraps):
        tree = {"a": tree, "b": [[]]} if maps else [0, tree]
    assert msgpack_nesting_fault(msgspec.msgpack.encode(tree)) == (
        "nested deeper than 32" if _depth(tree) > MAX_DEPTH else None
    )


# -- values of items, which are the item's fault alone -------------------------------------------


def test_codec_lone_surrogate_in_an_item_becomes_nul() -> None:
    request = JSON.decode(rb'{"type":"sync","id":"1","key":"k","items":[{"data":{"a":"x\ud800y\uDFFF"}}]}')
    assert isinstance(request, Sync)
    assert JSON.any.decode(request.items) == [{"data": {"a": "x\0y\0"}}]


def test_codec_surrogate_pairs_and_escaped_backslashes_stay() -> None:
    request = JSON.decode(
        rb'{"type":"sync","id":"1","key":"k","items":["\ud83d\ude00","\\ud800","\ude00\ud83d","\\\ud800"]}'
    )
    assert isinstance(request, Sync)
    assert JSON.any.decode(request.items) == ["\U0001f600", "\\ud800", "\0\0", "\\\0"]


@pytest.mark.parametrize("field", ["key", "id"])
def test_codec_lone_surrogate_in_the_envelope_is_refused(field: str) -> None:
    one, other = (refused(JSON, pack_json(sync([]) | {field: text})) for text in ("\ud800", "\udc00"))
    for error in (one, other):
        assert error.code == "invalid_message"
        assert error.message == f"{field}: lone surrogates are not allowed"
        assert error.details.get("id") == ("1" if field == "key" else None)


@pytest.mark.parametrize("domains", [["task", "\ud800"], ["\udfff"]])
def test_codec_lone_surrogate_in_a_list_of_the_envelope_is_refused(domains: list[str]) -> None:
    assert refused(JSON, pack_json({"type": "pull", "id": "1", "domains": domains})).code == "invalid_message"


@pytest.mark.parametrize("padding", [0, 40])
@pytest.mark.parametrize(
    "data",
    [
        b"\x81\xa1a\xa3\xed\xa0\x80",
        b"\x81\xa1a\xa1\xff",
        b"\x81\x81\x01\x01\x01",
        b"\x81\xc0\x01",
        b"\x81\xa1a\xc4\x01x",
        b"\x81\xa1a\xd4\x05x",
    ],
)
def test_codec_bad_value_in_one_item_keeps_the_message(data: bytes, padding: int) -> None:
    frame = b"\x84\xa4type\xa4sync\xa2id\xa11\xa3key\xa1k\xa5items\x92"
    frame += b"\x84\xa6domain\xa4task\xa2id\xa1a\xa2op\xa3put\xa4data" + data
    frame += msgspec.msgpack.encode(put({"a": [[]] * padding}))
    request = MSGPACK.decode(frame)
    assert isinstance(request, Sync)
    assert len(MSGPACK.raw_items.decode(request.items)) == 2


def test_codec_duplicate_members_the_last_counts() -> None:
    request = JSON.decode(b'{"type":"sync","id":"1","id":"2","key":"a","key":"b","items":[1],"items":[]}')
    assert isinstance(request, Sync)
    assert (request.id, request.key, bytes(request.items)) == ("2", "b", b"[]")


# -- whatever comes -----------------------------------------------------------------------------


_openers = st.binary(max_size=3).map(
    lambda head: b"\x84\xa4type\xa4sync\xa2id\xa11\xa3key\xa1k\xa5items" + head
)
_halves = st.sampled_from(
    [
        b'{"type":"sync","id":"1","key":"k","items":[',
        b'{"type":"pull","id":"',
        b'{"type":"resolve","id":"1","conflict_id":"c","choice":"merged","version":1,"data":',
        rb'{"type":"hello","app_version":"\ud8',
        b"\x82\xa4type\xa5hello\xa5clock\xd7\xff",
        b"\x82\xa4type\xa5hello\xa5clock\xc7\x0c\xff",
    ]
)


def _refusal(codec: Codec, frame: bytes) -> SyncError | None:
    try:
        codec.decode(frame)
    except SyncError as error:
        return error
    return None


def _answered(codec: Codec, frame: bytes) -> None:
    """Decode; anything but a refusal that can be sent is the test's failure."""
    refusal = _refusal(codec, frame)
    if refusal is not None:
        assert refusal.code in {"malformed", "invalid_message", "unknown_type"}
        codec.encode(msgspec.json.encode({"message": refusal.message, **refusal.details}))


@given(frame=st.binary(max_size=300) | st.binary(max_size=80).map(lambda tail: b"[" * 40 + tail))
@example(b"\x82\xa4type\xa5hello\xa5clock\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff")
def test_codec_random_bytes_raise_only_refusals(frame: bytes) -> None:
    _answered(JSON, frame)
    _answered(MSGPACK, frame)


@given(head=_halves | _openers, tail=st.binary(max_size=60), padding=st.sampled_from([b"", b"\x90" * 40]))
def test_codec_broken_messages_raise_only_refusals(head: bytes, tail: bytes, padding: bytes) -> None:
    _answered(JSON, head + tail + padding)
    _answered(MSGPACK, head + tail + padding)


@given(message=st.data(), cut=st.integers(0, 200))
def test_codec_message_cut_or_changed_raises_only_refusals(message: st.DataObject, cut: int) -> None:
    value = sync([put({"a": "\U0001f600", "b": [1.5, None, {"c": "ä"}]}, base=1, at="2026-01-02T03:04:05Z")])
    for codec, pack in ((JSON, pack_json), (MSGPACK, msgspec.msgpack.encode)):
        frame = pack(value)
        at = cut % len(frame)
        assert isinstance(refused(codec, frame[:at]), SyncError)
        changed = bytearray(frame)
        changed[at] = message.draw(st.integers(0, 255))
        _answered(codec, bytes(changed))


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
_VALUES = st.recursive(
    _SCALARS | st.text(max_size=5) | st.sampled_from(["put", "mine", "2026-01-02T03:04:05Z", 4.0, -1, 2**53]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.sampled_from(
    sorted({name for kind in get_args(Request) for name in kind.__struct_encode_fields__})
)
_TYPES = st.sampled_from([kind.__struct_config__.tag for kind in get_args(Request)]) | st.text(max_size=3)
_MESSAGES = st.builds(
    lambda kind, some, fields: {"type": kind, "id": "1", "key": "k", **some, **fields},
    _TYPES,
    st.sampled_from([{}, {"items": []}, {"domains": ["task"]}, {"conflict": "c", "choice": "mine"}]),
    st.dictionaries(_FIELDS, _VALUES, max_size=3),
)


def _outcome(codec: Codec, frame: bytes) -> Any:
    """Decode a message to what is the same in both encodings; a refusal to its code and its id."""
    try:
        request = codec.decode(frame)
    except SyncError as error:
        return error.code, error.details.get("id")
    if isinstance(request, Sync):
        return request.id, request.key, codec.any.decode(request.items)
    return request


@settings(max_examples=50)
@given(value=_MESSAGES)
def test_codec_message_is_decoded_or_refused_alike_in_both_encodings(value: Json) -> None:
    assert _outcome(JSON, pack_json(value)) == _outcome(MSGPACK, msgspec.msgpack.encode(value))


# -- answers --------------------------------------------------------------------------------------


@given(value=st.dictionaries(st.text(), st.integers(-(2**63), 2**63 - 1) | st.text() | st.none()))
def test_codec_answers_are_equal_in_both_encodings(value: Json) -> None:
    body = msgspec.json.encode(value)
    assert JSON.encode(body) is body
    assert msgspec.msgpack.decode(MSGPACK.encode(body)) == value


def test_codec_finite_numbers_keep_their_kind_in_messagepack() -> None:
    packed = MSGPACK.encode(b'{"a":1.0,"b":1,"c":-9223372036854775808}')
    assert packed == b"\x83\xa1a\xcb" + struct.pack("!d", 1.0) + b"\xa1b\x01\xa1c\xd3\x80" + bytes(7)
