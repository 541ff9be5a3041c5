"""What attackers write: async generators of chunks for each attack of the scenario ``abuse``."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, NamedTuple

from bench.load.websocket_client import framed

Json = dict[str, Any]
Frames = Callable[["Attacker"], AsyncIterator[bytes]]
Prepared = Callable[["Attacker"], Iterator[Json]]

TEXT, TEXT_DEFLATED, TEXT_BEGINS, CONTINUATION, PING, PONG = 0x81, 0xC1, 0x01, 0x00, 0x89, 0x8A
#: Bytes that leave in one write, for attacks of many small frames.
_WRITE_BYTES: Final = 65_536
#: Just below ``limits.record_bytes`` and ``limits.frame_bytes`` as delivered.
_RECORD_BYTES: Final = 250_000
FRAME_BYTES: Final = 1_000_000
#: Large conflicts of each device whose lists are asked for.
_CONFLICTS: Final = 16
#: Events of one attack are dated so far ahead at least, which is past the days that have partitions.
_AHEAD_US: Final = 40 * 86_400_000_000


class Bus(NamedTuple):
    """The Redis of the server, the channel of its database, and others' devices with their tenant's id."""

    url: str
    channel: str
    victims: list[tuple[int, str]]


class Attacker(NamedTuple):
    """One device of the attackers' tenant. ``mark`` is new for each run, so that no id is used twice."""

    device: str
    token: str
    host: str
    mark: str
    bus: Bus | None = None

    def request(self, head: str, *headers: str) -> bytes:
        """Write the head of a request that carries the token, without the line that ends it."""
        lines = (f"{head} HTTP/1.1", f"Host: {self.host}", f"Authorization: Bearer {self.token}", *headers)
        return ("\r\n".join(lines) + "\r\n").encode()


def _text(message: Json) -> bytes:
    return framed(TEXT, _encoded(message))


def _encoded(message: Json) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def deflated(text: bytes) -> bytes:
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


async def slow_numbers(_: Attacker) -> AsyncIterator[bytes]:
    """Send syncs of 1 MB of slow numbers."""
    tail = deflated(b'"data":{"n":[' + b"1e308," * (FRAME_BYTES // 6) + b"0]}}]}")
    while True:
        mark = secrets.token_hex(8)
        head = f'{{"type":"sync","id":"{mark}","key":"{mark}","items":[{{"domain":"task","id":"n","op":"put",'
        yield framed(TEXT_DEFLATED, _deflated_before(head.encode()) + tail)


def stored(text: str) -> Callable[[Attacker], Iterator[Json]]:
    """Store a record of 250 KB of one value, and change it as another device."""

    def prepared(attacker: Attacker) -> Iterator[Json]:
        yield _sync(_item(f"{attacker.mark}-r", "put", None, {"n": _values(text, _RECORD_BYTES)}))
        yield _sync(_item(f"{attacker.mark}-r", "patch", 1, {"k": -1}))

    return prepared


def incompressible(attacker: Attacker) -> Iterator[Json]:
    """Store a record of 250 KB that does not compress, and change it as another device."""
    yield _sync(_item(f"{attacker.mark}-r", "put", None, {"n": secrets.token_hex(_RECORD_BYTES // 2)}))
    yield _sync(_item(f"{attacker.mark}-r", "patch", 1, {"k": -1}))


def patches(count: int) -> Callable[[Attacker], AsyncIterator[bytes]]:
    """Send syncs of so many patches that conflict."""

    async def frames(attacker: Attacker) -> AsyncIterator[bytes]:
        number = 0
        while True:
            patches = range(number, number := number + count)
            yield _text(_sync(*(_item(f"{attacker.mark}-r", "patch", 1, {"k": patch}) for patch in patches)))

    return frames


def _fields(count: int, value: int) -> Json:
    return {f"f{number}": value for number in range(count)}


def many_fields(count: int) -> Callable[[Attacker], Iterator[Json]]:
    """Store a record of so many fields, and change it as another device."""

    def prepared(attacker: Attacker) -> Iterator[Json]:
        yield _sync(_item(f"{attacker.mark}-f", "put", None, _fields(count, 0)))
        yield _sync(_item(f"{attacker.mark}-f", "patch", 1, {"f0": -1}))

    return prepared


def merges(count: int, items: int) -> Callable[[Attacker], AsyncIterator[bytes]]:
    """Send syncs of so many items that merge so many fields each."""

    async def frames(attacker: Attacker) -> AsyncIterator[bytes]:
        number = 0
        while True:
            rounds = range(number, number := number + items)
            yield _text(
                _sync(*(_item(f"{attacker.mark}-f", "put", 1, _fields(count, each)) for each in rounds))
            )

    return frames


# -- frames -----------------------------------------------------------------------------------


def same(frame: bytes, *, first: bytes = b"") -> Callable[[Attacker], AsyncIterator[bytes]]:
    """Send one frame again and again, after a first one."""

    async def frames(_: Attacker) -> AsyncIterator[bytes]:
        if first:
            yield first
        many = frame * max(1, _WRITE_BYTES // len(frame))
        while True:
            yield many

    return frames


def heartbeat(**more: Any) -> bytes:
    """Encode a heartbeat."""
    return _encoded({"type": "heartbeat", "id": "h", **more})


# -- reads ------------------------------------------------------------------------------------


def asked(count: int, message: Json, *, every_s: float) -> Callable[[Attacker], AsyncIterator[bytes]]:
    """Send one message so many times at once, and again after a while."""

    async def frames(_: Attacker) -> AsyncIterator[bytes]:
        while True:
            yield b"".join(_text({**message, "id": str(number)}) for number in range(count))
            await asyncio.sleep(every_s)

    return frames


def large_conflicts(attacker: Attacker) -> Iterator[Json]:
    """Store records of 200 KB, and change them as another device."""
    for number in range(_CONFLICTS):
        record = f"{attacker.mark}-{number}"
        yield _sync(_item(record, "put", None, {"text": "a" * 200_000}))
        yield _sync(_item(record, "patch", 1, {"text": "b" * 200_000}))


async def listed(attacker: Attacker) -> AsyncIterator[bytes]:
    """Conflict with large records, and have the conflicts listed again and again."""
    for number in range(_CONFLICTS):
        yield _text(_sync(_item(f"{attacker.mark}-{number}", "put", 1, {"text": "c" * 200_000})))
    async for chunk in asked(8, {"type": "conflicts", "limit": 1000}, every_s=0.2)(attacker):
        yield chunk


async def conflict_pages(attacker: Attacker) -> AsyncIterator[bytes]:
    """Conflict with large records, and get the list of conflicts over HTTP again and again."""
    for number in range(_CONFLICTS):
        data = {"text": "c" * 200_000}
        yield _posted(attacker, _sync(_item(f"{attacker.mark}-{number}", "put", 1, data)))
    while True:
        yield (attacker.request("GET /v1/conflicts?limit=1000") + b"\r\n") * 8
        await asyncio.sleep(0.2)


def _posted(attacker: Attacker, message: Json) -> bytes:
    body = _encoded(message)
    headers = "Content-Type: application/json", f"Content-Length: {len(body)}"
    return attacker.request("POST /v1/sync", *headers) + b"\r\n" + body


async def unread(attacker: Attacker) -> AsyncIterator[bytes]:
    """Ask for pages of changes."""
    while True:
        yield (attacker.request("GET /v1/changes?limit=1000") + b"\r\n") * 20
        await asyncio.sleep(0.1)


# -- requests ---------------------------------------------------------------------------------


async def empty_uploads(attacker: Attacker) -> AsyncIterator[bytes]:
    """Create uploads of unknown length."""

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


async def endless_headers(attacker: Attacker) -> AsyncIterator[bytes]:
    """Send headers of 32 KB, and no end of them."""
    yield f"GET /v1/sync HTTP/1.1\r\nHost: {attacker.host}\r\n".encode()
    for number in range(122):
        yield f"X-{number}: {'a' * 31_990}\r\n".encode()
    await asyncio.Future()


async def endless_bodies(attacker: Attacker) -> AsyncIterator[bytes]:
    """Send most of a body, and one more byte a second."""
    headers = "Content-Type: application/json", "Content-Length: 1000000"
    yield attacker.request("POST /v1/sync", *headers) + b"\r\n"
    for _ in range(14):
        yield b" " * _WRITE_BYTES
    while True:
        await asyncio.sleep(1.0)
        yield b" "


async def long_tokens(attacker: Attacker) -> AsyncIterator[bytes]:
    """Send requests with a token of 30 KB."""
    claims = base64.urlsafe_b64encode(_encoded({"did": "x", "pad": "a" * 22_000})).decode().rstrip("=")
    token = f"{attacker.token.partition('.')[0]}.{claims}.{'A' * 43}"
    while True:
        yield attacker._replace(token=token).request("GET /v1/changes") + b"\r\n"


async def quietly(attacker: Attacker) -> AsyncIterator[bytes]:
    """Send next to nothing: others feel only the rows that the tenant has."""
    number = 0
    while True:
        number += 1
        yield _text(_sync(_item(f"{attacker.mark}-{number}", "put", None, {"title": "a"})))
        await asyncio.sleep(0.1)


async def future_events(attacker: Attacker) -> AsyncIterator[bytes]:
    """Send events that are dated ahead."""
    number = 0
    while True:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _AHEAD_US / 1e6 + number))
        items = []
        for _ in range(20):
            number += 1
            data = {"event_id": str(number), "event_type": "a", "timestamp": at}
            named = {"domain": "behavioral", "id": f"{attacker.mark}-{number}"}
            items.append({**named, "op": "append", "at": at, "data": data})
        yield _text(_sync(*items))
        await asyncio.sleep(0.1)


async def forged(attacker: Attacker) -> AsyncIterator[bytes]:
    """Publish on the server's bus that others' devices are connected elsewhere, with a time far ahead."""
    assert attacker.bus is not None
    channel = attacker.bus.channel.encode()
    number = 0
    while True:
        number += 1
        opened = [
            [tenant_id, device, secrets.token_hex(8), time.time_ns() // 1000 + _AHEAD_US]
            for tenant_id, device in attacker.bus.victims
        ]
        at_us = time.time_ns() // 1000
        body = _encoded({"sender": attacker.mark, "at_us": at_us, "number": number, "opened": opened})
        yield b"".join(
            b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (len(verb), verb, len(channel), channel, len(body), body)
            for verb in (b"PUBLISH", b"SPUBLISH")
        )
        await asyncio.sleep(0.05)


async def nothing(_: Attacker) -> AsyncIterator[bytes]:
    """Send nothing, and be done."""
    for never in list[bytes]():
        yield never
