"""The attacks of the scenario ``abuse``, as a table: what one device sends to take a worker for itself.

An attack is an opening, an async generator of chunks, and what has to be there before. The driver writes the
chunks of each connection as fast as they are taken, and opens the next connection where one was closed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Literal, NamedTuple

from bench.wire import framed

Json = dict[str, Any]

#: How a connection begins: with an upgrade, with one that offers permessage-deflate, or with nothing.
Opening = Literal["socket", "deflated", "nothing"]

_TEXT, _TEXT_DEFLATED, _TEXT_BEGINS, _CONTINUATION, _PING, _PONG = 0x81, 0xC1, 0x01, 0x00, 0x89, 0x8A
#: Bytes that leave in one write, for attacks of many small frames.
_WRITE_BYTES: Final = 65_536
#: Just below ``limits.record_bytes`` and ``limits.frame_bytes`` as delivered.
_RECORD_BYTES: Final = 250_000
_FRAME_BYTES: Final = 1_000_000
#: Large conflicts of each device whose lists are asked for.
_CONFLICTS: Final = 16
#: Records that the feed has where an attack reads it.
LONG_FEED: Final = 200_000


class Attacker(NamedTuple):
    """One device of the attackers' tenant. ``mark`` is new for each run, so that no id is used twice."""

    device: str
    token: str
    host: str
    mark: str

    def request(self, head: str, *headers: str) -> bytes:
        """Write the head of a request that carries the token, without the line that ends it."""
        lines = (f"{head} HTTP/1.1", f"Host: {self.host}", f"Authorization: Bearer {self.token}", *headers)
        return ("\r\n".join(lines) + "\r\n").encode()


class Attack(NamedTuple):
    """One way. ``told`` says it in a few words.

    ``prepared`` are messages that a neighbour of each device sends before, one after the other: a device's
    changes do not conflict with its own. ``feed_records`` are written into the tenant's feed before,
    ``manual`` has its conflicts held for a person. Without ``reads`` nothing of what comes back is read.
    """

    told: str
    frames: Callable[[Attacker], AsyncIterator[bytes]]
    opening: Opening = "socket"
    connections: int = 1
    prepared: Callable[[Attacker], Iterator[Json]] | None = None
    feed_records: int = 0
    manual: bool = False
    reads: bool = True


def _text(message: Json) -> bytes:
    return framed(_TEXT, _encoded(message))


def _encoded(message: Json) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _deflated(text: bytes) -> bytes:
    """Deflate a message, or the last part of one."""
    packer = zlib.compressobj(9, wbits=-15)
    return (packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def _deflated_before(text: bytes) -> bytes:
    """Deflate the first part of a message, so that any deflated last part fits behind it."""
    packer = zlib.compressobj(1, wbits=-15)
    return packer.compress(text) + packer.flush(zlib.Z_FULL_FLUSH)


def _item(record: str, op: str, base: int | None, data: Any) -> Json:
    return {"domain": "task", "id": record, "op": op, "base": base, "data": data}


def _sync(*items: Json) -> Json:
    mark = secrets.token_hex(8)
    return {"type": "sync", "id": mark, "key": mark, "items": list(items)}


def _values(text: str, size_bytes: int) -> list[Any]:
    value = json.loads(text)
    return [value] * (size_bytes // (len(text) + 1))


# -- numbers and laborious records ------------------------------------------------------------


async def _slow_numbers(_: Attacker) -> AsyncIterator[bytes]:
    tail = _deflated(b'"data":{"n":[' + b"1e308," * (_FRAME_BYTES // 6) + b"0]}}]}")
    while True:
        mark = secrets.token_hex(8)
        head = f'{{"type":"sync","id":"{mark}","key":"{mark}","items":[{{"domain":"task","id":"n","op":"put",'
        yield framed(_TEXT_DEFLATED, _deflated_before(head.encode()) + tail)


def _stored(text: str) -> Callable[[Attacker], Iterator[Json]]:
    def prepared(attacker: Attacker) -> Iterator[Json]:
        yield _sync(_item(f"{attacker.mark}-r", "put", None, {"n": _values(text, _RECORD_BYTES)}))
        yield _sync(_item(f"{attacker.mark}-r", "patch", 1, {"k": -1}))

    return prepared


def _incompressible(attacker: Attacker) -> Iterator[Json]:
    yield _sync(_item(f"{attacker.mark}-r", "put", None, {"n": secrets.token_hex(_RECORD_BYTES // 2)}))
    yield _sync(_item(f"{attacker.mark}-r", "patch", 1, {"k": -1}))


def _patches(count: int) -> Callable[[Attacker], AsyncIterator[bytes]]:
    async def frames(attacker: Attacker) -> AsyncIterator[bytes]:
        number = 0
        while True:
            patches = range(number, number := number + count)
            yield _text(_sync(*(_item(f"{attacker.mark}-r", "patch", 1, {"k": patch}) for patch in patches)))

    return frames


def _fields(count: int, value: int) -> Json:
    return {f"f{number}": value for number in range(count)}


def _many_fields(count: int) -> Callable[[Attacker], Iterator[Json]]:
    def prepared(attacker: Attacker) -> Iterator[Json]:
        yield _sync(_item(f"{attacker.mark}-f", "put", None, _fields(count, 0)))
        yield _sync(_item(f"{attacker.mark}-f", "patch", 1, {"f0": -1}))

    return prepared


def _merges(count: int, items: int) -> Callable[[Attacker], AsyncIterator[bytes]]:
    async def frames(attacker: Attacker) -> AsyncIterator[bytes]:
        number = 0
        while True:
            rounds = range(number, number := number + items)
            yield _text(
                _sync(*(_item(f"{attacker.mark}-f", "put", 1, _fields(count, each)) for each in rounds))
            )

    return frames


# -- frames -----------------------------------------------------------------------------------


def _same(frame: bytes, *, first: bytes = b"") -> Callable[[Attacker], AsyncIterator[bytes]]:
    async def frames(_: Attacker) -> AsyncIterator[bytes]:
        if first:
            yield first
        many = frame * max(1, _WRITE_BYTES // len(frame))
        while True:
            yield many

    return frames


def _heartbeat(**more: Any) -> bytes:
    return _encoded({"type": "heartbeat", "id": "h", **more})


# -- reads ------------------------------------------------------------------------------------


def _asked(count: int, message: Json, *, every_s: float) -> Callable[[Attacker], AsyncIterator[bytes]]:
    async def frames(_: Attacker) -> AsyncIterator[bytes]:
        while True:
            yield b"".join(_text({**message, "id": str(number)}) for number in range(count))
            await asyncio.sleep(every_s)

    return frames


def _large_conflicts(attacker: Attacker) -> Iterator[Json]:
    for number in range(_CONFLICTS):
        record = f"{attacker.mark}-{number}"
        yield _sync(_item(record, "put", None, {"text": "a" * 200_000}))
        yield _sync(_item(record, "patch", 1, {"text": "b" * 200_000}))


async def _listed(attacker: Attacker) -> AsyncIterator[bytes]:
    for number in range(_CONFLICTS):
        yield _text(_sync(_item(f"{attacker.mark}-{number}", "put", 1, {"text": "c" * 200_000})))
    async for chunk in _asked(8, {"type": "conflicts", "limit": 1000}, every_s=0.2)(attacker):
        yield chunk


async def _unread(attacker: Attacker) -> AsyncIterator[bytes]:
    while True:
        yield (attacker.request("GET /v1/changes?limit=1000") + b"\r\n") * 20
        await asyncio.sleep(0.1)


# -- requests ---------------------------------------------------------------------------------


async def _empty_uploads(attacker: Attacker) -> AsyncIterator[bytes]:
    def named(key: str, value: str) -> str:
        return f"{key} {base64.b64encode(value.encode()).decode()}"

    for number in range(4096):
        meta = {"filename": f"{number}.pdf", "domain": "task", "record_id": attacker.mark}
        yield (
            attacker.request(
                "POST /v1/uploads",
                "Tus-Resumable: 1.0.0",
                "Upload-Defer-Length: 1",
                f"Upload-Metadata: {','.join(named(*pair) for pair in meta.items())}",
                "Content-Length: 0",
            )
            + b"\r\n"
        )
    await asyncio.Future()


async def _endless_headers(attacker: Attacker) -> AsyncIterator[bytes]:
    yield f"GET /v1/sync HTTP/1.1\r\nHost: {attacker.host}\r\n".encode()
    for number in range(122):
        yield f"X-{number}: {'a' * 31_990}\r\n".encode()
    await asyncio.Future()


async def _endless_bodies(attacker: Attacker) -> AsyncIterator[bytes]:
    headers = "Content-Type: application/json", "Content-Length: 1000000"
    yield attacker.request("POST /v1/sync", *headers) + b"\r\n"
    for _ in range(14):
        yield b" " * _WRITE_BYTES
    while True:
        await asyncio.sleep(1.0)
        yield b" "


async def _long_tokens(attacker: Attacker) -> AsyncIterator[bytes]:
    claims = base64.urlsafe_b64encode(_encoded({"did": "x", "pad": "a" * 22_000})).decode().rstrip("=")
    token = f"{attacker.token.partition('.')[0]}.{claims}.{'A' * 43}"
    while True:
        yield attacker._replace(token=token).request("GET /v1/changes") + b"\r\n"


async def _nothing(_: Attacker) -> AsyncIterator[bytes]:
    for never in list[bytes]():
        yield never


ATTACKS: Final[dict[str, Attack]] = {
    "numbers": Attack("1 MB of 1e308 in a sync, 1.6 KB deflated", _slow_numbers, "deflated"),
    "stored-numbers": Attack(
        "30 patches a sync on a record of 250 KB of 1e308", _patches(30), prepared=_stored("1e308")
    ),
    "laborious": Attack(
        "30 patches a sync on a record of 250 KB of [[],[],…]", _patches(30), prepared=_stored("[]")
    ),
    "fields": Attack(
        "field_merge of 1,000 fields, 20 in a sync", _merges(1000, 20), prepared=_many_fields(1000)
    ),
    "many-fields": Attack("field_merge of 16,000 fields", _merges(16_000, 1), prepared=_many_fields(16_000)),
    "pongs": Attack("pongs at full speed", _same(framed(_PONG, b""))),
    "pings": Attack("pings at full speed", _same(framed(_PING, b""))),
    "malformed": Attack("malformed messages at full speed", _same(framed(_TEXT, b"{"))),
    "continuations": Attack(
        "empty continuation frames at full speed",
        _same(framed(_CONTINUATION, b""), first=framed(_TEXT_BEGINS, b"{")),
    ),
    "heartbeats": Attack("heartbeats past the rate", _same(framed(_TEXT, _heartbeat()))),
    "inflating": Attack(
        "heartbeats of 1 KB that inflate to 1 MB",
        _same(framed(_TEXT_DEFLATED, _deflated(_heartbeat(pad="a" * _FRAME_BYTES)))),
        "deflated",
    ),
    "pulls": Attack(
        "150 pulls by another domain, over a long feed",
        _asked(150, {"type": "pull", "cursor": None, "domains": ["ticket"]}, every_s=0.5),
        feed_records=LONG_FEED,
    ),
    "conflicts": Attack(
        "lists of large conflicts",
        _listed,
        prepared=_large_conflicts,
        manual=True,
    ),
    "patches": Attack(
        "patches of 70 bytes on a record of 250 KB", _patches(1), prepared=_incompressible
    ),
    "uploads": Attack("4,096 empty uploads of unknown length", _empty_uploads, "nothing"),
    "headers": Attack("headers that never end, without a token", _endless_headers, "nothing", 50),
    "bodies": Attack("bodies that never end", _endless_bodies, "nothing", 50),
    "tokens": Attack("tokens of 30 KB", _long_tokens, "nothing", 4),
    "unread": Attack(
        "answers of 1 MB that nobody reads", _unread, "nothing", 20, feed_records=LONG_FEED, reads=False
    ),
    "handshakes": Attack("handshakes as fast as they are answered", _nothing, connections=4),
}
