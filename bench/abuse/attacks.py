"""The attacks of the scenario ``abuse``, as a table: what one device sends to take a worker for itself.

Attackers write the chunks of each connection as fast as they are taken, or as often as the table says, and
open the next connection where one was closed.
"""

from __future__ import annotations

import base64
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import msgspec

from bench.harness.stage import fill
from bench.load.websocket_client import framed
from engine.plan.context import MAX_FIELDS
from storage.postgres.blocking import connected

Json = dict[str, Any]

_TEXT, _TEXT_DEFLATED, _TEXT_BEGINS, _CONTINUATION, _PING, _PONG = 0x81, 0xC1, 0x01, 0x00, 0x89, 0x8A
#: Bytes that leave in one write, for attacks of many small frames.
_WRITE_BYTES: Final = 65_536
#: Just below ``limits.record_bytes`` and ``limits.frame_bytes`` as delivered.
_RECORD_BYTES, _FRAME_BYTES = 250_000, 1_000_000
#: Large conflicts of each device whose lists are asked for.
_CONFLICTS: Final = 16
#: Records of ``MAX_FIELDS`` fields. With 70, as many as fit a frame, the tenant has to pay for what prepares
#: ten devices during all of their phase, and they are not read.
_WIDE: Final = 16
#: Events are dated so far ahead at least, which is past the days that have partitions.
_AHEAD_US: Final = 40 * 86_400_000_000
#: Rows that a tenant has before an attack.
_FEED, _FUTURE, _EARLY = 200_000, 500_000, 20_000
#: Bounds of each tenant that an attack meets within a second, and others never.
_NARROW: Final = {"conflict_rows": 100, "future_event_rows": 500}
#: What never reaches nginx.
PAST_NGINX: Final = ("forged",)


class Attacker(NamedTuple):
    """One device of the attackers' tenant. ``mark`` is new for each run, so that no id is used twice.

    One that goes to the server's Redis has the URL of that, the channel of the server's database, and others'
    devices with their tenant's id.
    """

    token: str
    host: str
    mark: str
    redis_url: str = ""
    channel: str = ""
    victims: Sequence[tuple[int, str]] = ()

    def record(self, number: int) -> str:
        """Return the id of a record that only this device and its neighbour write."""
        return f"{self.mark}-{number}"

    def request(self, line: str, *headers: str) -> bytes:
        """Write the head of a request that carries the token."""
        lines = (f"{line} HTTP/1.1", f"Host: {self.host}", f"Authorization: Bearer {self.token}", *headers)
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def post(self, message: Json) -> bytes:
        """Write a message as a request."""
        body = msgspec.json.encode(message)
        headers = "Content-Type: application/json", f"Content-Length: {len(body)}"
        return self.request("POST /v1/sync", *headers) + body


class Stored(NamedTuple):
    """Records that a neighbour of each device stores and then changes: own changes do not conflict."""

    data: Callable[[], Json]
    change: Json
    records: int = 1

    def syncs(self, attacker: Attacker) -> Iterator[list[Json]]:
        """Yield the items of the neighbour's syncs, to be sent one after the other."""
        names = [attacker.record(number) for number in range(self.records)]
        for place in range(0, self.records, 4):  # of the largest, no more fit a frame
            some = names[place : place + 4]
            yield [_item(name, "put", None, self.data()) for name in some]
            yield [_item(name, "patch", 1, self.change) for name in some]


class Attack(NamedTuple):
    """One way. ``told`` says it in a few words.

    A connection begins with an upgrade, with one that offers permessage-deflate, or with nothing; or it goes
    to the server's Redis. It writes what ``first`` yields, then ``chunk`` of 0, 1, 2 and so on, ``every_s``
    apart. Without ``chunk`` it stays open after ``first``, and without either it ends at once.

    ``stored`` is there before, and rows of the tenant that ``seeded`` writes past the server, given its DSN.
    ``manual`` has the tenant's conflicts held for a person. Without ``reads`` no answer is read. In each
    phase ``beside`` cuts the next day off the partitions, or has another's photo attached. ``bounds`` are the
    tenant's, in place of those of the settings.
    """

    told: str
    chunk: Callable[[Attacker, int], bytes] | None = None
    opening: Literal["socket", "deflated", "nothing", "bus"] = "socket"
    connections: int = 1
    every_s: float = 0.0
    first: Callable[[Attacker], Iterator[bytes]] | None = None
    stored: Stored | None = None
    seeded: Callable[[str, str], None] | None = None
    manual: bool = False
    reads: bool = True
    beside: Literal["cut", "photo"] | None = None
    bounds: Mapping[str, int] = {}


Chunk = Callable[[Attacker, int], bytes]


def _item(record: str, op: str, base: int | None, data: Json) -> Json:
    return {"domain": "task", "id": record, "op": op, "base": base, "data": data}


def _sync(*items: Json) -> Json:
    mark = secrets.token_hex(8)
    return {"type": "sync", "id": mark, "key": mark, "items": list(items)}


def _text(message: Json) -> bytes:
    return framed(_TEXT, msgspec.json.encode(message))


def _deflated(text: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    return packer.compress(text) + packer.flush(flush)


def _fields(value: int) -> Json:
    return {f"f{number}": value for number in range(MAX_FIELDS)}


def _always(data: bytes) -> Chunk:
    return lambda _, __: data


def _frames(head: int, payload: bytes) -> Chunk:
    """Write one frame again and again, many at once where they are small."""
    frame = framed(head, payload)
    return _always(frame * max(1, _WRITE_BYTES // len(frame)))


def _changes(count: int, op: str, data: Callable[[int], Json], records: int = 1) -> Chunk:
    """Write a sync of so many changes, over so many records in turn, each of which conflicts."""

    def chunk(attacker: Attacker, number: int) -> bytes:
        changes = range(number * count, (number + 1) * count)
        return _text(_sync(*(_item(attacker.record(one % records), op, 1, data(one)) for one in changes)))

    return chunk


def _patches(count: int) -> Chunk:
    return _changes(count, "patch", lambda number: {"k": number})


def _asked(count: int, message: Json) -> Chunk:
    return _always(b"".join(_text({**message, "id": str(number)}) for number in range(count)))


def _got(count: int, path: str) -> Chunk:
    return lambda attacker, _: attacker.request(f"GET {path}") * count


#: The end of a sync of 1 MB of slow numbers, behind any beginning that is deflated apart from it.
_NUMBERS: Final = _deflated(b'"data":{"n":[' + b"1e308," * (_FRAME_BYTES // 6) + b"0]}}]}")[:-4]


def _slow_numbers(_: Attacker, __: int) -> bytes:
    mark = secrets.token_hex(8)
    head = f'{{"type":"sync","id":"{mark}","key":"{mark}","items":[{{"domain":"task","id":"n","op":"put",'
    return framed(_TEXT_DEFLATED, _deflated(head.encode(), zlib.Z_FULL_FLUSH) + _NUMBERS)


def _conflicts(attacker: Attacker) -> Iterator[Json]:
    """Yield syncs that conflict with each of the large records."""
    for number in range(_CONFLICTS):
        yield _sync(_item(attacker.record(number), "put", 1, {"text": "c" * 200_000}))


def _empty_uploads(attacker: Attacker) -> Iterator[bytes]:
    for number in range(4096):
        said = {"filename": f"{number}.pdf", "domain": "task", "record_id": attacker.mark}
        told = ",".join(f"{key} {base64.b64encode(text.encode()).decode()}" for key, text in said.items())
        headers = "Tus-Resumable: 1.0.0", "Upload-Defer-Length: 1", f"Upload-Metadata: {told}"
        yield attacker.request("POST /v1/uploads", *headers, "Content-Length: 0")


def _endless_headers(attacker: Attacker) -> Iterator[bytes]:
    """Yield headers of 32 KB, and no end of them."""
    yield f"GET /v1/sync HTTP/1.1\r\nHost: {attacker.host}\r\n".encode()
    for number in range(122):
        yield f"X-{number}: {'a' * 31_990}\r\n".encode()


def _most_of_a_body(attacker: Attacker) -> Iterator[bytes]:
    yield attacker.request("POST /v1/sync", "Content-Type: application/json", "Content-Length: 1000000")
    for _ in range(14):
        yield b" " * _WRITE_BYTES


_CLAIMS: Final = base64.urlsafe_b64encode(msgspec.json.encode({"did": "x", "pad": "a" * 22_000})).decode()


def _long_token(attacker: Attacker, _: int) -> bytes:
    token = f"{attacker.token.partition('.')[0]}.{_CLAIMS.rstrip('=')}.{'A' * 43}"
    return attacker._replace(token=token).request("GET /v1/changes")


def _small(attacker: Attacker, number: int) -> bytes:
    """Write next to nothing: others feel only the rows that the tenant has."""
    return _text(_sync(_item(attacker.record(number), "put", None, {"title": "a"})))


def _events_ahead(attacker: Attacker, number: int) -> bytes:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _AHEAD_US / 1e6 + number * 20))
    event = {"domain": "behavioral", "op": "append", "at": at}
    data = {"event_type": "a", "timestamp": at}
    numbers = range(number * 20, (number + 1) * 20)
    return _text(
        _sync(*({**event, "id": attacker.record(n), "data": {**data, "event_id": str(n)}} for n in numbers))
    )


def _forged(attacker: Attacker, number: int) -> bytes:
    """Publish on the server's bus that others' devices are connected elsewhere, with a time far ahead."""
    channel, at_us = attacker.channel.encode(), time.time_ns() // 1000
    opened = [(*victim, secrets.token_hex(8), at_us + _AHEAD_US) for victim in attacker.victims]
    told = {"sender": attacker.mark, "at_us": at_us, "number": number + 1, "opened": opened}
    parts = channel, msgspec.json.encode(told)
    return b"".join(
        b"*3\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in (verb, *parts))
        for verb in (b"PUBLISH", b"SPUBLISH")
    )


def _feed(dsn: str, tenant: str) -> None:
    fill(dsn, [tenant], _FEED)


def _rows(statement: str, dsn: str, tenant: str) -> None:
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s", (tenant,))
        ((tenant_id,),) = cursor.fetchall()
        cursor.execute(statement, {"tenant": tenant_id})
        cursor.execute("CHECKPOINT")


#: Spread over 400 days, from a fortnight ahead on, behind those that have partitions already.
_future = partial(
    _rows,
    f"""
INSERT INTO events (tenant_id, domain, id, sent_at_us, at_us, device_id, data)
SELECT %(tenant)s, 'behavioral', 'ahead-' || n, at_us, at_us, 'seed', '{{"event_id":"a","event_type":"b"}}'
FROM generate_series(1, {_FUTURE}) AS n,
LATERAL (SELECT ((floor(extract(epoch FROM now()) / 86400) + 15) * 86400000000)::bigint
+ n::bigint * {400 * 86_400_000_000 // _FUTURE} AS at_us) AS dated""",
)
_early = partial(
    _rows,
    f"""
INSERT INTO upload_session (tenant_id, upload_id, device_id, kind, file_name, content_type, domain, record_id,
metadata, size_bytes, reserved_bytes, offset_bytes, sha256, state, expires_at)
SELECT %(tenant)s, gen_random_uuid(), 'seed', 'whole', n || '.jpg', 'image/jpeg', 'task', 'never-' || n,
'', 1000, 1000, 1000, repeat('0', 64), 'stored', now() + interval '1 day'
FROM generate_series(1, {_EARLY}) AS n""",
)

_SLOW: Final = Stored(lambda: {"n": [1e308] * (_RECORD_BYTES // len("1e308,"))}, {"k": -1})
_ARRAYS: Final = Stored(lambda: {"n": [[]] * (_RECORD_BYTES // len("[],"))}, {"k": -1})
_RANDOM: Final = Stored(lambda: {"n": secrets.token_hex(_RECORD_BYTES // 2)}, {"k": -1})
_LARGE: Final = Stored(lambda: {"text": "a" * 200_000}, {"text": "b" * 200_000}, _CONFLICTS)
_ONE_WIDE: Final = Stored(lambda: _fields(0), {"f0": -1})
_HEARTBEAT: Final = b'{"type":"heartbeat","id":"h"}'
_INFLATING: Final = _deflated(b'{"type":"heartbeat","id":"h","pad":"%b"}' % (b"a" * _FRAME_BYTES))[:-4]
_BEGUN: Final = framed(_TEXT_BEGINS, b"{")
_PULLS: Final = _asked(150, {"type": "pull", "cursor": None, "domains": ["ticket"]})
_LISTS: Final = _asked(8, {"type": "conflicts", "limit": 1000})
_PAGES: Final = _got(8, "/v1/conflicts?limit=1000")
_CHANGES: Final = _got(20, "/v1/changes?limit=1000")

ATTACKS: Final[dict[str, Attack]] = {
    "numbers": Attack("1 MB of 1e308 in a sync, 1.6 KB deflated", _slow_numbers, "deflated"),
    "stored-numbers": Attack("30 patches a sync on 250 KB of 1e308", _patches(30), stored=_SLOW),
    "laborious": Attack("30 patches a sync on 250 KB of [[],[],…]", _patches(30), stored=_ARRAYS),
    "fields": Attack("20 merges of 1,000 fields a sync", _changes(20, "put", _fields), stored=_ONE_WIDE),
    "many-fields": Attack(
        f"{_WIDE} merges of 1,000 fields a sync, of as many records",
        _changes(_WIDE, "put", _fields, _WIDE),
        stored=_ONE_WIDE._replace(records=_WIDE),
    ),
    "pongs": Attack("pongs at full speed", _frames(_PONG, b"")),
    "pings": Attack("pings at full speed", _frames(_PING, b"")),
    "malformed": Attack("malformed messages at full speed", _frames(_TEXT, b"{")),
    "continuations": Attack(
        "empty continuations", _frames(_CONTINUATION, b""), first=lambda _: iter([_BEGUN])
    ),
    "heartbeats": Attack("heartbeats past the rate", _frames(_TEXT, _HEARTBEAT)),
    "inflating": Attack(
        "heartbeats of 1 KB that inflate to 1 MB", _frames(_TEXT_DEFLATED, _INFLATING), "deflated"
    ),
    "pulls": Attack("150 pulls by another domain of a long feed", _PULLS, every_s=0.5, seeded=_feed),
    "conflicts": Attack(
        "lists of large conflicts",
        _LISTS,
        every_s=0.2,
        first=lambda one: map(_text, _conflicts(one)),
        stored=_LARGE,
        manual=True,
    ),
    "patches": Attack("patches of 70 bytes on a record of 250 KB", _patches(1), stored=_RANDOM),
    "uploads": Attack("4,096 empty uploads of unknown length", opening="nothing", first=_empty_uploads),
    "headers": Attack("endless headers without a token", None, "nothing", 50, first=_endless_headers),
    "bodies": Attack("bodies that never end", lambda _, __: b" ", "nothing", 50, 1.0, first=_most_of_a_body),
    "tokens": Attack("tokens of 30 KB", _long_token, "nothing", 4),
    "unread": Attack("1 MB answers, not read", _CHANGES, "nothing", 20, 0.1, seeded=_feed, reads=False),
    "handshakes": Attack("handshakes as fast as they are answered", connections=4),
    "conflict-pages": Attack(
        "8 pages at once",
        _PAGES,
        "nothing",
        1,
        0.2,
        first=lambda one: map(one.post, _conflicts(one)),
        stored=_LARGE,
        manual=True,
    ),
    "full": Attack("conflicts past the tenant's bounds", _patches(1), stored=_RANDOM, bounds=_NARROW),
    "future": Attack(
        "events ahead while partitions are cut", _events_ahead, every_s=0.1, seeded=_future, beside="cut"
    ),
    "future-full": Attack("events ahead past the bound", _events_ahead, every_s=0.1, bounds=_NARROW),
    "early-files": Attack(
        "files before their records, and another's photo", _small, every_s=0.1, seeded=_early, beside="photo"
    ),
    "forged": Attack("messages on Redis that close others' sockets", _forged, "bus", every_s=0.05),
}
