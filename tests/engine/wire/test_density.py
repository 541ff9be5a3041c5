"""How many objects and arrays a message may hold, and that both ways to look how deep it nests agree."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.wire.codec import JSON, MSGPACK, Codec, MalformedError
from engine.wire.messages import Sync
from engine.wire.nesting import (
    FREE_BYTES,
    MAX_DEPTH,
    TOO_DEEP,
    TOO_DENSE,
    _fault_of_bytes,
    json_nesting_fault,
    msgpack_nesting_fault,
)
from engine.wire.steps import run_steps
from engine.wire.values import value_fault

Json = dict[str, Any]


def sync(data: Any) -> Json:
    """Make a sync of one item."""
    item = {"domain": "task", "id": "a", "op": "put", "data": data}
    return {"type": "sync", "id": "1", "key": "k", "items": [item]}


def chain(levels: int, innermost: Any) -> Any:
    """Wrap a value in arrays of one."""
    for _ in range(levels):
        innermost = [innermost]
    return innermost


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (MSGPACK, {"n": [[]] * 50_000}),
        (MSGPACK, {"n": [{}] * 50_000}),
        (MSGPACK, {"n": [chain(20, 1)] * 2_000}),
        (MSGPACK, {"n": [[[]]] * 50_000}),
        (JSON, {"n": [{}] * 50_000}),
        (JSON, {"n": [chain(20, 1)] * 2_000}),
    ],
    ids=["arrays", "objects", "chains", "pairs of arrays", "objects in json", "chains in json"],
)
def test_nesting_frame_of_only_containers_is_malformed(codec: Codec, data: Json) -> None:
    encode = msgspec.msgpack.encode if codec.binary else msgspec.json.encode
    with pytest.raises(MalformedError) as caught:
        codec.decode(encode(sync({"n": data["n"]})))
    assert caught.value.message == TOO_DENSE


@pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    "data",
    [
        {"stroke": [[1, 2]] * 50_000},
        {"rows": [{"a": 1}] * 50_000},
        {"points": [[52.52, 13.4]] * 5_000},
        {"few": [[]] * 700, "deep": [chain(20, 1)] * 20},
        {"text": "[{" * 50_000, "more": [[]] * 40},
        {"text": "ÄÖ" * 50_000, "more": [[]] * 40},
        {"text": 'a "quoted" [[[[' + "\\" * 7 + '"', "more": ["[" * 50] * 40},
    ],
    ids=lambda data: next(iter(data)),
)
def test_nesting_what_devices_send_passes(codec: Codec, data: Json) -> None:
    encode = msgspec.msgpack.encode if codec.binary else msgspec.json.encode
    assert isinstance(codec.decode(encode(sync(data))), Sync)


def test_nesting_bound_of_containers_is_exact() -> None:
    def packed(arrays: int) -> bytes:
        return b"\xdc" + arrays.to_bytes(2) + b"\x90" * arrays

    # 3 bytes for each array, the outer one included, may pass the message's own 3 + n by FREE_BYTES.
    most = FREE_BYTES // 2
    assert msgpack_nesting_fault(packed(most)) is None
    assert msgpack_nesting_fault(packed(most + 1)) == TOO_DENSE
    fits = FREE_BYTES - 4 + 1
    assert json_nesting_fault(b"[" + b",".join([b"{}"] * fits) + b"]") is None
    assert json_nesting_fault(b"[" + b",".join([b"{}"] * (fits + 2)) + b"]") == TOO_DENSE


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


_texts = st.text(max_size=4) | st.sampled_from(['"[', "\\", '\\"{', "é[" * 9])
_leaves = st.none() | st.integers(-200, 200) | _texts
_trees: st.SearchStrategy[Any] = st.recursive(
    _leaves | st.lists(st.just(0), max_size=50) | st.lists(st.builds(list), max_size=40),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=3), inner, max_size=20),
    max_leaves=30,
)


@given(tree=_trees, wraps=st.integers(0, 40), maps=st.booleans(), pretty=st.booleans())
def test_nesting_depth_by_values_bytes_and_json_is_equal(
    tree: Any, wraps: int, maps: bool, pretty: bool
) -> None:
    for _ in range(wraps):
        tree = {"a": tree, "b": [[]]} if maps else [0, tree]
    padded = [tree, [[]] * MAX_DEPTH]
    wanted = TOO_DEEP if _depth(padded) > MAX_DEPTH else None
    packed = msgspec.msgpack.encode(padded)
    assert msgpack_nesting_fault(packed) == wanted
    assert run_steps(_fault_of_bytes(packed)) == wanted
    # What does not decode is told from its bytes: as deep as before, with a text that is not UTF-8 besides.
    assert msgpack_nesting_fault(b"\x92\xa1\xff" + msgspec.msgpack.encode(tree)) == (
        TOO_DEEP if _depth([tree]) > MAX_DEPTH else None
    )
    assert json_nesting_fault(json.dumps(padded, indent=1 if pretty else None).encode()) == wanted
    assert json_nesting_fault(json.dumps(padded, ensure_ascii=False).encode()) == wanted


BAD = [2**63, -(2**63) - 1, float("nan"), float("-inf"), "a\0", b"x", {1: 2}, {"\0": 1}, [[b""]]]
GOOD = [2**63 - 1, -(2**63), 1.5, "a", "", None, True, [], {}, [1, [2]], {"a": {"b": 3}}]


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize("good", GOOD, ids=repr)
def test_value_fault_one_bad_value_among_many_is_found(good: Any, bad: Any) -> None:
    for many in ([good] * 100, {str(at): good for at in range(100)}, [[good]] * 100, [{"a": good}] * 100):
        assert value_fault({"n": many}) is None
        within = list(many.values()) if isinstance(many, dict) else many
        for mixed in ([*within, bad], [*within, [bad]], [*within, {"a": bad}], [bad, *within]):
            assert value_fault({"n": mixed}) is not None
            assert value_fault({"n": dict(zip(map(str, range(101)), mixed, strict=True))}) is not None
