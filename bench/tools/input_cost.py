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
from bench.report.text import table
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
#: Bytes of the one record of other kinds, which has to fit ``limits.record_bytes`` of 256 KiB.
_RECORD_BYTES: Final = 200_000
#: Members of a message of 1 MB that is no sync.
_MANY: Final = 250_000
#: Kinds of which ``limits.items`` lets so few in a message that an item may cost as much as the bench's.
_COUNTED: Final = ("faulty items",)
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
    """Nanoseconds a byte of each stage, and the code of what is refused at some stage."""

    stages: dict[str, float]
    refused: str

    @property
    def total(self) -> float:
        """All stages of it."""
        return sum(self.stages.values())


def _many(value: str) -> str:
    return f"[{','.join([value] * (_RECORD_BYTES // (len(value) + 1)))}]"


def _members(name: Callable[[int], str], value: str, count: int) -> str:
    return "{" + ",".join(f'"{name(at)}":{value}' for at in range(count)) + "}"


#: One JSON value of each kind, about as large as a record may be.
_VALUES: Final[dict[str, str]] = {
    "coordinates": _many("52.5200066,13.4049540"),
    "slow numbers": _many("1e308"),
    "long numbers": _many("0." + "1234567890" * 5),
    "integers": _many("7"),
    "nulls": _many("null"),
    "empty arrays": _many("[]"),
    "empty objects": _many("{}"),
    "pairs": _many("[1,2]"),
    "rows": _many('{"a":1}'),
    "empty objects in an object": _members(lambda at: f"{at:x}", "{}", _RECORD_BYTES // 9),
    "empty strings": _many('""'),
    "deep arrays": _many("[" * (MAX_DEPTH - 5) + "]" * (MAX_DEPTH - 5)),
    "deep objects": _many('{"a":' * (MAX_DEPTH - 6) + "{}" + "}" * (MAX_DEPTH - 6)),
    "24,000 fields": _members(lambda at: f"{at:x}", "1", 24_000),
    "long keys": _members(lambda at: "k" * 990 + f"{at:05}", "1", _RECORD_BYTES // 1000),
    "one text": f'"{"x" * _RECORD_BYTES}"',
    "umlauts": f'"{"ü" * (_RECORD_BYTES // 2)}"',
}
#: Those that are said in JSON alone.
_IN_JSON: Final[dict[str, str]] = {
    "duplicate keys": _members(lambda _: "a", "1", _RECORD_BYTES // 6),
    "escapes": '"' + "\\n" * (_RECORD_BYTES // 2) + '"',
    "surrogate pairs": '"' + "\\ud83d\\ude00" * (_RECORD_BYTES // 12) + '"',
    "lone surrogates": '"' + "\\ud83d" * (_RECORD_BYTES // 6) + '"',
}
_RESOLVE: Final = {"type": "resolve", "id": "1", "conflict_id": "c", "choice": "merged", "version": 1}
_SYNC: Final = {"type": "sync", "id": "1", "key": "k"}
_ITEM: Final = {"domain": "task", "id": "a", "op": "put"}
_HEARTBEAT: Final = {"type": "heartbeat", "id": "1"}
#: Whole messages.
_OTHERS: Final[dict[str, Any]] = {
    "300,000 domains": {"type": "pull", "id": "1", "domains": ["a"] * 300_000},
    "unknown member": {**_HEARTBEAT, "x": [[]] * _MANY},
    "unknown members": _HEARTBEAT | {f"{at:x}": 1 for at in range(_MANY // 3)},
    "resolve": {**_RESOLVE, "data": {"n": [[]] * _MANY}},
    "faulty items": {**_SYNC, "items": [{}] * 700},
    "too many items": {**_SYNC, "items": [{"a": 1}] * _MANY},
    "items that are none": {**_SYNC, "items": [1] * _MANY},
    "changed": {**_SYNC, "items": [{**_ITEM, "data": {}, "changed": ["a"] * _MANY}]},
}


def kinds() -> Iterator[Kind]:
    """Make every kind, the bench's record first in each encoding."""
    frames = [message(b"device-0001", b"0a1b2c3d", number, number, 0) for number in range(200)]
    whole = {name: [_sync(f'{{"n":{text}}}')] for name, text in _VALUES.items()}
    whole |= {name: [msgspec.json.encode(other)] for name, other in _OTHERS.items()}
    for name, said in {"bench": frames, **whole}.items():
        yield Kind(name, JSON, said)
    for name, text in _IN_JSON.items():
        yield Kind(name, JSON, [_sync(f'{{"n":{text}}}')])
    numbers = {**_SYNC, "items": [{**_ITEM, "data": {"n": [1e308] * (_RECORD_BYTES // 9)}}]}
    for name, said in {"bench": frames, **whole, "slow numbers": [msgspec.json.encode(numbers)]}.items():
        yield Kind(name, MSGPACK, [msgspec.msgpack.encode(msgspec.json.decode(frame)) for frame in said])


def _sync(data: str) -> bytes:
    item = f'{{"domain":"task","id":"a","op":"put","data":{data}}}'
    return f'{{"type":"sync","id":"1","key":"k","items":[{item}]}}'.encode()


def measure(kind: Kind, rounds: int) -> Cost:
    """Measure every stage that the messages reach."""
    codec, size_bytes = kind.codec, sum(map(len, kind.frames))
    stages = dict.fromkeys(_STAGES, 0.0)

    def timed(stage: str, work: Callable[[], object]) -> None:
        stages[stage] = min(_spent_ns(work) for _ in range(rounds)) / size_bytes

    timed("decode", lambda: [codec.decode(frame) for frame in kind.frames])
    try:
        requests = [codec.decode(frame) for frame in kind.frames]
        timed("intake", lambda: [_taken(request, codec) for request in requests])
        items = [item for request in requests for item in _taken(request, codec)]
    except SyncError as error:
        return Cost(stages, error.code)
    for item in items:
        if isinstance(item, RejectedItem):
            return Cost(stages, item.code)
    records = [item.fields or {} for item in items if not isinstance(item, RejectedItem)]
    stored = [encode_fields(record) for record in records]
    # Equal in length and not in bytes, so that what is compared has to be looked into.
    turned = [encode_fields(dict(reversed(record.items()))) for record in records]
    timed("read", lambda: [decode_fields(text) for text in stored])
    timed("compare", lambda: [same_content(*pair) for pair in zip(stored, turned, strict=True)])
    timed("transcode", lambda: [MSGPACK.encode(text) for text in stored])
    return Cost(stages, "")


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
    """Print nanoseconds a byte of each kind, and the ratio to the bench's record; exit with 1 above 4."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # as a server does
    rows: list[tuple[str, ...]] = [("kind", "coded as", *_STAGES, "sum", "ratio", "")]
    over, bench_ns = False, 0.0
    for kind in kinds():
        cost = measure(kind, rounds)
        bench_ns = cost.total if kind.name == "bench" else bench_ns
        ratio = cost.total / bench_ns
        over = over or (ratio > BAR and kind.name not in _COUNTED)
        figures = [f"{figure:.2f}" for figure in (*cost.stages.values(), cost.total, ratio)]
        rows.append((kind.name, kind.codec.name, *figures, cost.refused))
    for line in table(rows):
        click.echo(line)
    raise SystemExit(over)


if __name__ == "__main__":
    main()
