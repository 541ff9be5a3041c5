"""Messages on the bus. One message carries everything that its sender has to tell since the last one.

A channel belongs to one database and one epoch. So two databases can share a Redis, and servers of a restored
database do not hear servers of the original.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, field
from redis.exceptions import RedisError

from engine.runtime.ports import StoreError
from storage.bus.nodes import publish_once
from storage.bus.signing import signed
from storage.postgres.blocking import connected
from storage.postgres.cell.dsn import schema_of

#: Reads a database's name and epoch, the key of its bus, and for how many seconds more messages without a
#: signature are accepted.
IDENTITY: Final = (
    "SELECT current_database()::text, epoch, bus_key,"
    " extract(epoch FROM bus_unsigned_until - now())::float8 FROM cluster_state"
)
#: Ends the time in which messages without a signature are accepted, for all processes.
REQUIRE_SIGNATURES: Final = (
    "UPDATE cluster_state SET bus_unsigned_until = now() WHERE bus_unsigned_until > now() RETURNING 1"
)
#: A command waits at most this long for Redis.
_ANNOUNCE_S: Final = 0.5

_Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class UnusableUrlError(Exception):
    """The URL is not one of a Redis; the sentence says which form it has to have."""


class Connected(NamedTuple):
    """A device's connection. ``at_us`` is when it was opened, by its server's clock."""

    tenant_id: _Count
    device_id: str
    session_id: str
    at_us: _Count


class RequestedUpload(NamedTuple):
    """An upload that a request waits for, and the request that has its lock."""

    tenant_id: _Count
    upload_id: str
    lock_owner: str


class BusMessage(msgspec.Struct, omit_defaults=True, frozen=True):
    """What one process tells all others. Without any of the optional fields it is only a ping.

    The names on the wire stay as they are, since processes of an older version read them.

    - ``sender``: the process; empty if the message comes from a command.
    - ``at_us``: when it was sent, by its sender's clock.
    - ``number``: counts the messages of the sender.
    - ``generation``: tenants, policies or revocations changed.
    - ``lost``: more may have happened than the sender told.
    - ``rejoined``: the sender was off the bus, and does not know which devices connected elsewhere.
    - ``feed_seqs``: by tenant_id, a seq that the tenant's feed has reached.
    - ``connected``: devices that connected to the sender.
    - ``requested_uploads``: uploads whose locks are to be released.
    """

    sender: str
    at_us: _Count = 0
    number: _Count = 0
    generation: bool = False
    lost: bool = False
    rejoined: bool = field(default=False, name="back")
    feed_seqs: dict[_Count, _Count] = field(default_factory=dict, name="moved")
    connected: list[Connected] = field(default_factory=list, name="opened")
    requested_uploads: list[RequestedUpload] = field(default_factory=list, name="wanted")


encode: Final = msgspec.json.encode
_decode: Final = msgspec.json.Decoder(BusMessage).decode


def decode(body: object) -> BusMessage | None:
    """Read a message. Returns None if ``body`` is not a message."""
    try:
        return _decode(body) if isinstance(body, bytes) else None
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def channel_of(database: str, epoch: str, schema: str = "") -> str:
    """Return the name of a database's channel, or of a cell's in it."""
    return f"tidemark:{database}:{schema}:{epoch}" if schema else f"tidemark:{database}:{epoch}"


def announce(url: str, dsn: str, tenant_ids: set[int]) -> None:
    """Tell running servers that a command changed something, and which tenants' feeds advanced.

    Servers also find out by asking the database. So if Redis does not answer at once, nothing is told.

    Args:
        url: The URL of Redis.
        dsn: The database that the command changed.
        tenant_ids: Tenants whose feeds advanced.
    """
    with suppress(StoreError, RedisError, OSError, ValueError):
        with connected(dsn) as connection, connection.cursor() as cursor:
            cursor.execute(IDENTITY)
            name, epoch, key, _ = cursor.fetchall()[0]
            channel = channel_of(name, epoch, schema_of(dsn))
            seqs: dict[int, int] = {}
            if tenant_ids:
                cursor.execute(
                    "SELECT tenant_id, seq FROM tenant_counters WHERE tenant_id = ANY(%s)",
                    (list(tenant_ids),),
                )
                seqs = dict(cursor.fetchall())
        message = BusMessage(sender="", at_us=time.time_ns() // 1000, generation=True, feed_seqs=seqs)
        publish_once(url, channel, signed(encode(message), bytes(key), channel), _ANNOUNCE_S)
