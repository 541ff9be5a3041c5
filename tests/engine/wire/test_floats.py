"""Numbers of JSON without a declared type: read fast, infinity refused, in every decoder of such data."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.commit.validation import MessageValidator, Session
from engine.model.merge import decode_fields
from engine.model.tenants import Tenant
from engine.operate.quarantine_retry import _with_data
from engine.plan.work import RejectedItem
from engine.wire.codec import JSON, MSGPACK
from engine.wire.errors import SyncError
from engine.wire.floats import finite, json_decoder
from engine.wire.messages import Sync
from tests.engine.wire.test_codec import refused
from tests.harness.strategies import ENGINE_DOMAINS

ROOT = Path(__file__).parents[3]
NOW_US = 1_767_323_045_000_000
#: What msgspec's own reading is slow at.
SLOW = ["1e308", "5e-324", "-1.7976931348623157e308", "2.2250738585072011e-308", "9" * 40 + "e-300"]
PUT = '{"domain":"task","id":"a","op":"put","data":{"n":%s}}'
INFINITE = ["1e400", "-1e400", "1e999999", "9" * 400 + ".0"]


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_json_decoder_double_is_read_back_unchanged(value: float) -> None:
    assert json_decoder().decode(repr(value).encode()) == value
    assert json_decoder(dict[str, Any]).decode(b'{"a":[%b]}' % repr(value).encode()) == {"a": [value]}


@pytest.mark.parametrize("digits", SLOW)
def test_finite_number_is_read_as_python_reads_it(digits: str) -> None:
    assert finite(digits) == float(digits)


@pytest.mark.parametrize("digits", INFINITE)
def test_finite_number_beyond_a_double_is_refused(digits: str) -> None:
    with pytest.raises(ValueError, match="Number out of range"):
        finite(digits)


# -- every decoder ------------------------------------------------------------------------------


def _untyped(kind: Any) -> bool:
    """Whether a type holds what nobody declared."""
    seen: set[int] = set()

    def look(node: Any) -> bool:
        if isinstance(node, msgspec.inspect.AnyType):
            return True
        if isinstance(node, list | tuple):
            return any(map(look, node))
        if not isinstance(node, msgspec.Struct) or id(node) in seen:
            return False
        seen.add(id(node))
        return any(look(getattr(node, name)) for name in node.__struct_fields__ if name != "cls")

    return look(msgspec.inspect.type_info(kind))


def _decoders() -> Iterator[tuple[str, ast.Call, list[str], dict[str, Any]]]:
    """Yield every place that makes a JSON decoder of msgspec's, its type, and the module's names."""
    for folder in ("engine", "handlers", "storage", "compose", "bench/client"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                if called not in {"msgspec.json.Decoder", "msgspec.json.decode"}:
                    continue
                named = [ast.unparse(one) for one in node.args[called.endswith("decode") :]]
                named += [ast.unparse(one.value) for one in node.keywords if one.arg == "type"]
                importlib.import_module(name)
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node, named, vars(sys.modules[name])


def test_json_decoder_source_has_no_decoder_without_the_hook() -> None:
    found = list(_decoders())
    assert len(found) > 10
    for where, node, named, known in found:
        if any(one.arg == "float_hook" for one in node.keywords):
            assert where.startswith("engine/wire/floats.py:"), f"{where}: use engine.wire.floats.json_decoder"
            continue
        assert named, f"{where}: untyped JSON is read by engine.wire.floats.json_decoder"
        kind = eval(named[0], known)  # noqa: S307  # our own source
        assert not _untyped(kind), f"{where}: {named[0]} is untyped, use engine.wire.floats.json_decoder"


def test_codec_decoders_read_numbers_by_the_hook() -> None:
    decoders: list[Any] = [JSON.items, JSON.any, JSON.names, JSON._item, JSON._request, JSON._head]
    for decoder in decoders:
        assert decoder.float_hook is finite


# -- infinity -----------------------------------------------------------------------------------


def push(item: str) -> Any:
    """Check a message of one item, and give what became of the item."""
    request = JSON.decode(b'{"type":"sync","id":"1","key":"k","items":[%b]}' % item.encode())
    assert isinstance(request, Sync)
    session = Session(tenant=Tenant(1, "acme"), device_id="phone", session_id="s")
    (checked,) = MessageValidator(ENGINE_DOMAINS, 500).push(request, session, NOW_US).items
    return checked


@pytest.mark.parametrize("digits", INFINITE)
@pytest.mark.parametrize(
    "item",
    [
        PUT,
        '{"domain":"task","id":"a","op":"put","data":{"n":{"m":[[%s]]}}}',
        '{"domain":"task","id":"a","op":"put","data":{"n":%s,"n":1}}',
        '{"domain":"task","id":"a","op":"patch","base":1,"data":{"n":%s}}',
        '{"domain":"task","id":"a","op":"delete","data":{"n":%s}}',
        '{"domain":"task","id":"a","op":"put","base":4.0,"data":{"n":%s}}',
    ],
)
def test_validator_infinite_number_anywhere_rejects_its_item(item: str, digits: str) -> None:
    checked = push(item.replace("%s", digits))
    assert isinstance(checked, RejectedItem)
    assert checked.code == "invalid_item"
    assert "Number out of range" in checked.message or "4.0" in item


@pytest.mark.parametrize("digits", SLOW)
def test_validator_slow_numbers_are_stored_unchanged(digits: str) -> None:
    checked = push(PUT.replace("%s", digits))
    assert decode_fields(checked.data) == {"n": float(digits)}
    assert msgspec.msgpack.decode(MSGPACK.encode(checked.data)) == {"n": float(digits)}


@pytest.mark.parametrize("digits", INFINITE)
def test_codec_infinite_number_is_never_encoded_again(digits: str) -> None:
    body = b'{"n":%b}' % digits.encode()
    for decode in (JSON.any.decode, decode_fields, MSGPACK.encode):
        with pytest.raises(msgspec.DecodeError, match="Number out of range"):
            decode(body)
    resolve = b'{"type":"resolve","id":"1","conflict_id":"c","choice":"%b","version":1,"data":%b}'
    for choice in (b"merged", b"server"):
        with pytest.raises(SyncError) as caught:
            JSON.decode(resolve % (choice, body))
        assert (caught.value.code, caught.value.details) == ("invalid_message", {"id": "1"})
    assert refused(JSON, b'{"type":"pull","id":"1","limit":7.0,"cursor":%b}' % digits.encode()).code == (
        "invalid_message"
    )


@pytest.mark.parametrize("digits", INFINITE)
def test_quarantine_retry_infinite_number_is_refused(digits: str) -> None:
    with pytest.raises(SyncError, match="Number out of range"):
        _with_data(b'{"domain":"task","id":"a","op":"put","data":{}}', b'{"n":[%b]}' % digits.encode())
