"""What a byte of each kind of input costs: ``python -m bench.tools.input_cost``.

Each kind is one message that holds as much of one thing as fits: slow numbers, empty containers, escapes. It
goes the way that it goes in a server, in both encodings. Each stage is measured alone, in nanoseconds of one
core for a byte of the message, the best of some rounds:

decode: the codec reads the message, after it looked how deep it nests
intake: its items are decoded, checked, encoded and hashed
read: the stored record is decoded, as for a patch
compare: it is held against one of other order
transcode: it is turned into MessagePack for a device that pulls it

The ratio is to the record that every benchmark sends, one in a message. A kind whose sum passes 4 times the
record's is over the bar.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import click
import msgspec

from bench.load.workload import message
from engine.commit.validation import MessageValidator, Session
from engine.feed.cursor import Scope
from engine.model.domains import Domain, Domains
from engine.model.merge import decode_fields, encode_fields, same_content
from engine.model.rows import Conflict
from engine.model.tenants import Tenant
from engine.plan.work import Change, RejectedItem, Resolution
from engine.wire.codec import JSON, MSGPACK, Codec
from engine.wire.errors import SyncError
from engine.wire.messages import Pull, Request, Resolve, Sync
from engine.wire.nesting import MAX_DEPTH

#: The sum of a kind's stages may be this many times the bench's record's.
BAR: Final = 4.0
#: Messages of the bench that are measured together: it sends one record in each.
_MESSAGES: Final = 200
#: Bytes of the one record of other kinds: it has to fit ``limits.record_bytes`` of 256 KiB.
_RECORD_BYTES: Final = 200_000
#: Bytes of a message that is no sync.
_FRAME_BYTES: Final = 1_000_000
#: Kinds of which ``limits.items`` lets so few in a message that an item may cost as much as the bench's.
_COUNTED: Final = ("faulty items",)
_JSON_ALONE: Final = ("slow numbers", "escapes", "surrogate pairs", "lone surrogates", "duplicate keys")
_STAGES: Final = ("decode", "intake", "read", "compare", "transcode")
_NOW_US: Final = 1_767_323_045_000_000
#: The bound of fields is not looked at, so that a record of many costs what it would without.
_INTAKE: Final = MessageValidator(Domains({"task": Domain()}), 1000, 1 << 20)
_CONFLICT: Final = Conflict(
    tenant_id=1,
    conflict_id="c",
    domain="task",
    record_id="a",
    device_id="phone",
    policy="manual",
    outcome="open",
    server_version=1,
    server_data=b"{}",
    client_base=None,
    client_op="put",
    client_at_us=_NOW_US,
    client_data=b"{}",
    client_sent_at_us=_NOW_US,
    opened_at_us=_NOW_US,
)


class Kind(NamedTuple):
    """Messages of one kind, mostly a single one."""

    name: str
    codec: Codec
    frames: list[bytes]


class Cost(NamedTuple):
    """Nanoseconds a byte of each stage; ``refused`` is the code of what the codec refuses."""

    kind: Kind
    stages: dict[str, float]
    refused: str

    @property
    def total(self) -> float:
        """All stages of it."""
        return sum(self.stages.values())


def kinds() -> Iterator[Kind]:
    """Make every kind, the bench's record first in each encoding."""
    values = dict(_values())
    for codec in (JSON, MSGPACK):
        yield Kind("bench", codec, _bench(codec))
        for name, text in values.items():
            frame = _sync(b'{"n":' + text + b"}")
            if codec is MSGPACK:
                if name in _JSON_ALONE:
                    continue
                frame = msgspec.msgpack.encode(msgspec.json.decode(frame))
            yield Kind(name, codec, [frame])
        for name, other in _others():
            encode = msgspec.msgpack.encode if codec is MSGPACK else msgspec.json.encode
            yield Kind(name, codec, [encode(other)])
    numbers = _message({"n": [1e308] * (_RECORD_BYTES // 9)})
    yield Kind("slow numbers", MSGPACK, [msgspec.msgpack.encode(numbers)])


def _values() -> Iterator[tuple[str, bytes]]:
    """Yield one JSON value of each kind, about as large as a record may be."""

    def many(value: str) -> bytes:
        count = _RECORD_BYTES // (len(value) + 1)
        return b"[" + ",".join([value] * count).encode() + b"]"

    def members(name: Callable[[int], str], value: str, count: int) -> bytes:
        return b"{" + ",".join([f'"{name(at)}":{value}' for at in range(count)]).encode() + b"}"

    yield "coordinates", many("52.5200066,13.4049540")
    yield "slow numbers", many("1e308")
    yield "long numbers", many("0." + "1234567890" * 5)
    yield "integers", many("7")
    yield "nulls", many("null")
    yield "empty arrays", many("[]")
    yield "empty objects", many("{}")
    yield "pairs", many("[1,2]")
    yield "rows", many('{"a":1}')
    yield "empty objects in an object", members(lambda at: f"{at:x}", "{}", _RECORD_BYTES // 9)
    yield "empty strings", many('""')
    deep = "[" * (MAX_DEPTH - 5) + "]" * (MAX_DEPTH - 5)
    yield "deep arrays", many(deep)
    yield "deep objects", many('{"a":' * (MAX_DEPTH - 6) + "{}" + "}" * (MAX_DEPTH - 6))
    yield "24,000 fields", members(lambda at: f"{at:x}", "1", 24_000)
    yield "long keys", members(lambda at: "k" * 990 + f"{at:05}", "1", _RECORD_BYTES // 1000)
    yield "duplicate keys", members(lambda _: "a", "1", _RECORD_BYTES // 6)
    yield "one text", b'"' + b"x" * _RECORD_BYTES + b'"'
    yield "escapes", b'"' + b"\\n" * (_RECORD_BYTES // 2) + b'"'
    yield "surrogate pairs", b'"' + b"\\ud83d\\ude00" * (_RECORD_BYTES // 12) + b'"'
    yield "lone surrogates", b'"' + b"\\ud83d" * (_RECORD_BYTES // 6) + b'"'
    yield "umlauts", b'"' + "ü".encode() * (_RECORD_BYTES // 2) + b'"'


def _others() -> Iterator[tuple[str, object]]:
    count = _FRAME_BYTES // 4
    yield "300,000 domains", {"type": "pull", "id": "1", "domains": ["a"] * 300_000}
    yield "unknown member", {"type": "heartbeat", "id": "1", "x": [[]] * count}
    yield "unknown members", {"type": "heartbeat", "id": "1"} | {f"{at:x}": 1 for at in range(count // 3)}
    yield (
        "resolve",
        {
            "type": "resolve",
            "id": "1",
            "conflict_id": "c",
            "choice": "merged",
            "version": 1,
            "data": {"n": [[]] * count},
        },
    )
    yield "faulty items", {"type": "sync", "id": "1", "key": "k", "items": [{}] * 700}
    yield "too many items", {"type": "sync", "id": "1", "key": "k", "items": [{"a": 1}] * count}
    yield "items that are none", {"type": "sync", "id": "1", "key": "k", "items": [1] * count}
    yield (
        "changed",
        {
            "type": "sync",
            "id": "1",
            "key": "k",
            "items": [{"domain": "task", "id": "a", "op": "put", "data": {}, "changed": ["a"] * count}],
        },
    )


def _sync(data: bytes) -> bytes:
    return (
        b'{"type":"sync","id":"1","key":"k","items":[{"domain":"task","id":"a","op":"put","data":%b}]}' % data
    )


def _message(data: dict[str, Any]) -> dict[str, Any]:
    item = {"domain": "task", "id": "a", "op": "put", "data": data}
    return {"type": "sync", "id": "1", "key": "k", "items": [item]}


def _bench(codec: Codec) -> list[bytes]:
    frames = [message(b"device-0001", b"0a1b2c3d", number, number, 0) for number in range(_MESSAGES)]
    if codec is JSON:
        return frames
    return [msgspec.msgpack.encode(msgspec.json.decode(frame)) for frame in frames]


def measure(kind: Kind, rounds: int) -> Cost:
    """Measure every stage that the messages reach."""
    codec = kind.codec
    size_bytes = sum(map(len, kind.frames))
    stages = dict.fromkeys(_STAGES, 0.0)

    def timed(stage: str, work: Callable[[], object]) -> None:
        stages[stage] = min(_spent_ns(work) for _ in range(rounds)) / size_bytes

    timed("decode", lambda: [codec.decode(frame) for frame in kind.frames])
    try:
        requests = [codec.decode(frame) for frame in kind.frames]
    except SyncError as error:
        return Cost(kind, stages, error.code)
    timed("intake", lambda: [_taken(request, codec) for request in requests])
    records: list[dict[str, Any]] = []
    try:
        for request in requests:
            for taken in _taken(request, codec):
                if isinstance(taken, RejectedItem):
                    return Cost(kind, stages, taken.code)
                records.append(taken.fields or {})
    except SyncError as error:
        return Cost(kind, stages, error.code)
    stored = [encode_fields(record) for record in records]
    # Equal in length and not in bytes, so that what is compared has to be looked into.
    turned = [encode_fields(dict(reversed(record.items()))) for record in records]
    pairs = list(zip(stored, turned, strict=True))
    timed("read", lambda: [decode_fields(text) for text in stored])
    timed("compare", lambda: [same_content(*pair) for pair in pairs])
    timed("transcode", lambda: [MSGPACK.encode(text) for text in stored])
    return Cost(kind, stages, "")


def _taken(request: Request, codec: Codec) -> Sequence[Change | RejectedItem | Resolution]:
    session = Session(tenant=Tenant(1, "acme"), device_id="phone", session_id="s", codec=codec)
    if isinstance(request, Sync):
        return _INTAKE.push(request, session, _NOW_US).items
    if isinstance(request, Resolve):
        return [_INTAKE.resolution(request, session, _CONFLICT, _NOW_US)]
    if isinstance(request, Pull):
        Scope("epoch", 1, request.domains)
    return []


def _spent_ns(work: Callable[[], object]) -> int:
    begun_ns = time.thread_time_ns()  # of this thread alone, whatever else the machine does
    with suppress(SyncError):
        work()
    return time.thread_time_ns() - begun_ns


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Of each stage; the best one counts.")
def main(rounds: int) -> None:
    """Print nanoseconds a byte for each kind of input and stage, and the ratio to the bench's record.

    Exit with 1 when the ratio of a kind is above 4. What the stages are, the module's docstring says.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # as a server does
    head = "".join(f"{stage:>10}" for stage in (*_STAGES, "sum"))
    click.echo(f"{'kind':22}{'coded as':10}{head}{'ratio':>8}")
    over = False
    bench_ns = 0.0
    for kind in kinds():
        cost = measure(kind, rounds)
        if kind.name == "bench":
            bench_ns = cost.total
        ratio = cost.total / bench_ns
        over = over or (ratio > BAR and kind.name not in _COUNTED)
        click.echo(
            f"{kind.name:22}{kind.codec.name:10}"
            + "".join(f"{cost.stages[stage]:10.2f}" for stage in _STAGES)
            + f"{cost.total:10.2f}{ratio:8.2f}  {cost.refused}"
        )
    raise SystemExit(over)


if __name__ == "__main__":
    main()
