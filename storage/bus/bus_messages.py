"""What travels over the bus: one message tells the others everything that its sender has to tell.

A channel belongs to one database: two that share a Redis do not hear each other, nor does one that was
restored hear those who serve what it was restored from.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta
from redis.exceptions import RedisError

from engine.runtime.ports import StoreError
from storage.bus.nodes import publish_once
from storage.bus.signing import signed
from storage.postgres.blocking import connected

#: Of a database: its name and its epoch, the key of its bus, and for how long what is not signed is believed.
IDENTITY: Final = (
    "SELECT current_database()::text, epoch, bus_key,"
    " extract(epoch FROM bus_unsigned_until - now())::float8 FROM cluster_state"
)
#: From then on all sign.
ALL_SIGN: Final = (
    "UPDATE cluster_state SET bus_unsigned_until = now() WHERE bus_unsigned_until > now() RETURNING 1"
)
#: How long a command waits for Redis.
_ANNOUNCE_S: Final = 0.5

_Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class UnusableUrlError(Exception):
    """The URL is none of a Redis; one sentence says what it has to be."""


class Opened(NamedTuple):
    """A device's connection, opened ``at_us`` by its server's clock."""

    tenant_id: _Count
    device_id: str
    session_id: str
    at_us: _Count


class Wanted(NamedTuple):
    """An upload that a request somewhere waits for, and the request that has it."""

    tenant_id: _Count
    upload_id: str
    holder: str


class News(msgspec.Struct, omit_defaults=True, frozen=True):
    """``number`` counts the messages of ``sender``; with nothing else in it the message is only a ping.

    ``moved`` is how far tenants' feeds have come, by tenant_id; ``lost`` says that more may have happened
    than the sender told, ``back`` that it was away and does not know who connected elsewhere meanwhile.
    ``wanted`` are uploads that are to be given back. ``at_us`` is when it was sent, by its sender's clock.
    """

    sender: str
    at_us: _Count = 0
    number: _Count = 0
    generation: bool = False
    lost: bool = False
    back: bool = False
    moved: dict[_Count, _Count] = {}
    opened: list[Opened] = []
    wanted: list[Wanted] = []


encode: Final = msgspec.json.encode
_decode: Final = msgspec.json.Decoder(News).decode


def decode(body: object) -> News | None:
    """Read a message; None for what is none."""
    try:
        return _decode(body) if isinstance(body, bytes) else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def channel_of(database: str, epoch: str) -> str:
    """Name the channel of a database."""
    return f"tidemark:{database}:{epoch}"


def announce(url: str, dsn: str, moved: set[int]) -> None:
    """Tell running servers of what a command changed, and of the tenants whose feeds ``moved``.

    They would find out by themselves: when Redis does not answer at once, they do.
    """
    with suppress(StoreError, RedisError, OSError, ValueError):
        with connected(dsn) as connection, connection.cursor() as cursor:
            cursor.execute(IDENTITY)
            name, epoch, key, _ = cursor.fetchall()[0]
            channel = channel_of(name, epoch)
            seqs: dict[int, int] = {}
            if moved:
                cursor.execute(
                    "SELECT tenant_id, seq FROM tenant_counters WHERE tenant_id = ANY(%s)", (list(moved),)
                )
                seqs = dict(cursor.fetchall())
        news = News(sender="", at_us=time.time_ns() // 1000, generation=True, moved=seqs)
        publish_once(url, channel, signed(encode(news), bytes(key), channel), _ANNOUNCE_S)
