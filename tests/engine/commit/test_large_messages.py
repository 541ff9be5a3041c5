"""Large messages are decoded and checked in steps: what comes of them is the same, and in the order sent."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache.device_health import Device
from engine.commit.validation import MessageValidator, Session
from engine.model.domains import Domain, Domains
from engine.model.tenants import Tenant
from engine.plan.work import Push, RejectedItem
from engine.runtime.loop_scheduler import LARGE_BYTES, LoopScheduler
from engine.wire import nesting, pieces, values
from engine.wire.codec import JSON, MSGPACK, Codec, MalformedError
from engine.wire.errors import SyncError
from engine.wire.floats import json_decoder
from engine.wire.messages import Resolve, Sync
from engine.wire.pieces import decode_in_pieces
from engine.wire.steps import run_steps
from engine.wire.values import value_fault, value_steps
from handlers.http.loop.charges import LoopCharges
from handlers.sync import connection
from tests.engine.commit.test_validation import CONFLICT
from tests.harness.in_process_server import Running

NOW_US = 1_767_323_045_000_000
#: So small that a few values make many pieces.
SMALL = 16

_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["\0", "[", "{,", '"', "a" * 200, 1e308])
)
_trees: st.SearchStrategy[Any] = st.recursive(
    _leaves | st.lists(st.floats(0, 1) | st.integers(0, 9) | st.none(), max_size=60),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=6), inner, max_size=6),
    max_leaves=30,
)
_items = st.fixed_dictionaries(
    {
        "domain": st.sampled_from(["task", "none"]),
        "id": st.sampled_from(["a", "b", ""]),
        "op": st.sampled_from(["put", "patch", "delete", "x"]),
    },
    optional={
        "data": st.dictionaries(st.text(max_size=6), _trees, max_size=6) | _trees,
        "base": st.sampled_from([1, 4.0, 0.5, -1]),
        "changed": st.lists(st.text(max_size=3), max_size=3),
        "more": _trees,
    },
)


@pytest.fixture(autouse=True)
def _many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", SMALL)
    monkeypatch.setattr("engine.commit.validation.PIECE_BYTES", SMALL)
    monkeypatch.setattr(values, "_AT_ONCE", 2)
    monkeypatch.setattr(nesting, "_AT_ONCE", 2)


def _pushed(codec: Codec, frame: bytes, *, in_steps: bool) -> Push | str:
    validator = MessageValidator(Domains({"task": Domain()}), 5)
    session = Session(tenant=Tenant(1, "acme"), device_id="phone", session_id="s", codec=codec)
    try:
        if in_steps:
            request = run_steps(codec.decode_steps(frame))
            assert isinstance(request, Sync)
            return run_steps(validator.push_steps(request, session, NOW_US))
        request = codec.decode(frame)
        assert isinstance(request, Sync)
        return validator.push(request, session, NOW_US)
    except SyncError as error:
        return error.code


def _without_sentences(push: Push | str) -> Any:
    if isinstance(push, str):
        return push
    items = [(one.domain, one.id, one.code) if isinstance(one, RejectedItem) else one for one in push.items]
    return msgspec.structs.replace(push, items=items)


@given(
    items=st.lists(_items | st.sampled_from([1, None, [], {}, {"domain": 1}]), max_size=7),
    binary=st.booleans(),
    pretty=st.booleans(),
)
def test_validator_push_in_steps_equals_one_go(items: list[Any], *, binary: bool, pretty: bool) -> None:
    message = {"type": "sync", "id": "1", "key": "k", "items": items}
    if binary:
        try:
            frame = msgspec.msgpack.encode(message)
        except OverflowError:
            return
    else:
        frame = json.dumps(message, indent=1 if pretty else None, ensure_ascii=pretty).encode()
    codec = MSGPACK if binary else JSON
    wanted = _without_sentences(_pushed(codec, frame, in_steps=False))
    assert _without_sentences(_pushed(codec, frame, in_steps=True)) == wanted


@given(tree=_trees, pretty=st.booleans())
def test_pieces_json_equals_one_go(tree: Any, *, pretty: bool) -> None:
    raw = json.dumps(tree, indent=1 if pretty else None).encode()
    try:
        wanted = json_decoder().decode(raw)
    except msgspec.DecodeError:
        with pytest.raises(msgspec.DecodeError):
            run_steps(decode_in_pieces(raw))
    else:
        assert repr(run_steps(decode_in_pieces(raw))) == repr(wanted)


@pytest.mark.parametrize("tail", [b"1e400]", b"[1e400]]", b'"a",1e400]'])
def test_pieces_infinity_is_refused(tail: bytes) -> None:
    with pytest.raises(msgspec.DecodeError, match="out of range"):
        run_steps(decode_in_pieces(b"[" + b"1," * 100 + tail))


@pytest.mark.parametrize(
    "tree", ["1e308," * 100 + "0", '"a",' + "1e308," * 100 + "0", "[" + "1e308," * 100 + "0]"]
)
def test_pieces_many_numbers_take_several_steps(tree: str) -> None:
    assert len(list(decode_in_pieces(f'{{"n":[{tree}]}}'.encode()))) > 100 * len("1e308,") / SMALL / 2


@given(st.dictionaries(st.text(max_size=4), _trees, max_size=6))
def test_value_steps_fault_equals_one_go(data: dict[str, Any]) -> None:
    assert (run_steps(value_steps(data)) is None) == (value_fault(data) is None)


@pytest.mark.parametrize("message", [{"n": [[1]] * 5000}, {"n": [[]] * 5000}])
def test_nesting_much_messagepack_takes_several_steps(message: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nesting, "_AT_ONCE", 500)
    frame = msgspec.msgpack.encode({"type": "sync", "id": "1", "key": "k", "items": [{"data": message}]})
    assert len(list(_quietly(frame))) > 2


def _quietly(frame: bytes) -> Any:
    try:
        yield from MSGPACK.decode_steps(frame)
    except MalformedError:
        return


def _large(mark: str) -> dict[str, Any]:
    item = {"domain": "task", "id": mark, "op": "put", "base": None, "data": {"n": "x" * LARGE_BYTES}}
    return {"type": "sync", "id": mark, "key": mark, "items": [item]}


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_socket_message_after_a_large_one_is_handled_after_it(
    encoding: str, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    handle = LoopScheduler.handle

    def noted(self: LoopScheduler, tenant_id: int, *rest: Any) -> None:
        taken.append(tenant_id)
        handle(self, tenant_id, *rest)

    monkeypatch.setattr(LoopScheduler, "handle", noted)
    phone = await server.device("phone", encoding=encoding)
    behind = {"domain": "task", "id": "a", "op": "patch", "base": 1, "data": {"m": 1}}
    await phone.send(_large("a"))
    await phone.send({"type": "sync", "id": "b", "key": "b", "items": [behind]})
    answers = [await phone.receive() for _ in range(2)]
    assert [(one["id"], one["results"][0]["version"]) for one in answers] == [("a", 1), ("b", 2)]
    await phone.send({"type": "sync", "id": "c", "key": "c", "items": [1] * LARGE_BYTES})
    refused = await phone.receive()
    assert (refused["id"], refused["code"], len(taken)) == ("c", "too_large", 2)


@pytest.mark.asyncio(loop_scope="function")
async def test_socket_large_message_of_a_closed_socket_is_dropped(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(LoopScheduler, "handle", lambda _, __, steps, ___: waiting.set_result(steps))
    ended, end = asyncio.Event(), connection.Connection.end

    def noted(self: connection.Connection) -> None:
        end(self)
        ended.set()

    monkeypatch.setattr(connection.Connection, "end", noted)
    phone = await server.device("phone")
    await phone.send(_large("a"))
    steps = await waiting
    assert steps.gi_frame is not None
    line = phone.socket._response.connection
    assert line is not None
    assert line.transport is not None
    line.transport.abort()
    async with asyncio.timeout(30):
        await ended.wait()
    assert steps.gi_frame is None


@pytest.mark.asyncio(loop_scope="function")
async def test_http_large_bodies_take_turns_with_the_same_result(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    handled = LoopScheduler.handled

    async def noted(self: LoopScheduler, tenant_id: int, *rest: Any) -> Any:
        taken.append(tenant_id)
        return await handled(self, tenant_id, *rest)

    monkeypatch.setattr(LoopScheduler, "handled", noted)
    plain, packed = _large("a"), _large("b")
    first = await server.post("/v1/sync", plain)
    assert (first.status, len(taken)) == (200, 2)
    second = await server.post(
        "/v1/sync", gzip.compress(json.dumps(packed).encode()), headers={"Content-Encoding": "gzip"}
    )
    assert (second.status, len(taken)) == (200, 5)
    wrong = await server.post("/v1/sync", {"key": "c", "items": [{}], "more": "x" * LARGE_BYTES})
    assert (wrong.status, json.loads(wrong.body)["code"]) == (422, "invalid_message")


@given(tree=_trees)
def test_codec_answer_in_steps_equals_one_go(tree: Any) -> None:
    body = json.dumps(tree).encode()
    for codec in (JSON, MSGPACK):
        try:
            wanted = codec.encode(body)
        except (msgspec.DecodeError, OverflowError):
            return
        assert run_steps(codec.encode_steps(body)) == wanted


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_codec_large_messagepack_answers_are_encoded_in_turns(
    encoding: Any, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[bytes] = []
    encoding_of = Codec.encode_steps

    def noted(self: Codec, body: bytes) -> Any:
        encoded.append(body)
        return encoding_of(self, body)

    monkeypatch.setattr(Codec, "encode_steps", noted)
    phone = await server.device("phone", encoding=encoding)
    await phone.told("synced", "sync", key="a", items=_large("a")["items"])
    page = await phone.told("changes", "pull", cursor=None)
    assert page["changes"][0]["data"] == _large("a")["items"][0]["data"]
    accept = {"Accept": "application/msgpack" if encoding == "msgpack" else "application/json"}
    reply = await server.get("/v1/changes", headers=accept)
    decode = msgspec.msgpack.decode if encoding == "msgpack" else msgspec.json.decode
    assert decode(reply.body)["changes"] == page["changes"]
    assert len(encoded) == (2 if encoding == "msgpack" else 0)


@pytest.mark.asyncio(loop_scope="function")
async def test_subscription_large_pages_are_charged_to_its_device(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged: list[tuple[str, str]] = []

    def noted(_: LoopCharges, device: Device, kind: str, *__: float) -> float:
        charged.append((device.key.device_id, kind))
        return 0.0

    phone = await server.device("phone")
    await phone.told("changes", "subscribe", cursor=None)
    other = await server.device("other")
    monkeypatch.setattr(LoopCharges, "charge", noted)
    await other.told("synced", "sync", key="a", items=_large("a")["items"])
    while not (await phone.receive()).get("changes"):
        pass
    assert ("phone", "answer") in charged


def test_validator_large_resolution_takes_several_steps() -> None:
    validator = MessageValidator(Domains({"task": Domain()}), 5)
    session = Session(tenant=Tenant(1, "acme"), device_id="phone", session_id="s")
    request = Resolve(id="1", conflict_id="c", choice="merged", version=1, data={"n": [[1]] * 100})
    assert len(list(validator.resolution_steps(request, session, CONFLICT, NOW_US))) > 10
