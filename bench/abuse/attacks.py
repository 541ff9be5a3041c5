"""The attacks of the scenario ``abuse``, as a table: what one device sends to take a worker for itself.

An attack is an opening, an async generator of chunks, and what has to be there before. The driver writes the
chunks of each connection as fast as they are taken, and opens the next connection where one was closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

from bench.abuse import frames, seeds
from bench.abuse.frames import (
    CONTINUATION,
    FRAME_BYTES,
    PING,
    PONG,
    TEXT,
    TEXT_BEGINS,
    TEXT_DEFLATED,
    Frames,
    Prepared,
    deflated,
    heartbeat,
)
from bench.load.websocket_client import framed

#: How a connection begins: with an upgrade, with one that offers permessage-deflate, or with nothing; or it
#: goes to the server's Redis.
Opening = Literal["socket", "deflated", "nothing", "bus"]

#: What the bench does beside: it cuts the next day off the partitions, or has another's photo attached.
Beside = Literal["cut", "photo"]


class Attack(NamedTuple):
    """One way. ``told`` says it in a few words.

    ``prepared`` are messages that a neighbour of each device sends before, one after the other: a device's
    changes do not conflict with its own. ``seeded`` writes rows of the tenant past the server, ``manual`` has
    its conflicts held for a person. Without ``reads`` nothing of what comes back is read. ``beside`` is done
    in each phase, ``bounds`` are the tenant's, in place of those of the settings.
    """

    told: str
    frames: Frames
    opening: Opening = "socket"
    connections: int = 1
    prepared: Prepared | None = None
    seeded: Callable[[str, str], None] | None = None
    manual: bool = False
    reads: bool = True
    beside: Beside | None = None
    bounds: Mapping[str, int] = {}


#: Bounds of each tenant that an attack meets within a second, and others never.
_NARROW: Final = {"conflict_rows": 100, "future_event_rows": 500}

ATTACKS: Final[dict[str, Attack]] = {
    "numbers": Attack("1 MB of 1e308 in a sync, 1.6 KB deflated", frames.slow_numbers, "deflated"),
    "stored-numbers": Attack(
        "30 patches a sync on a record of 250 KB of 1e308",
        frames.patches(30),
        prepared=frames.stored("1e308"),
    ),
    "laborious": Attack(
        "30 patches a sync on a record of 250 KB of [[],[],…]",
        frames.patches(30),
        prepared=frames.stored("[]"),
    ),
    "fields": Attack(
        "field_merge of 1,000 fields, 20 in a sync",
        frames.merges(1000, 20),
        prepared=frames.many_fields(1000),
    ),
    "many-fields": Attack(
        "field_merge of 16,000 fields", frames.merges(16_000, 1), prepared=frames.many_fields(16_000)
    ),
    "pongs": Attack("pongs at full speed", frames.same(framed(PONG, b""))),
    "pings": Attack("pings at full speed", frames.same(framed(PING, b""))),
    "malformed": Attack("malformed messages at full speed", frames.same(framed(TEXT, b"{"))),
    "continuations": Attack(
        "empty continuation frames at full speed",
        frames.same(framed(CONTINUATION, b""), first=framed(TEXT_BEGINS, b"{")),
    ),
    "heartbeats": Attack("heartbeats past the rate", frames.same(framed(TEXT, heartbeat()))),
    "inflating": Attack(
        "heartbeats of 1 KB that inflate to 1 MB",
        frames.same(framed(TEXT_DEFLATED, deflated(heartbeat(pad="a" * FRAME_BYTES)))),
        "deflated",
    ),
    "pulls": Attack(
        "150 pulls by another domain, over a long feed",
        frames.asked(150, {"type": "pull", "cursor": None, "domains": ["ticket"]}, every_s=0.5),
        seeded=seeds.long_feed,
    ),
    "conflicts": Attack(
        "lists of large conflicts",
        frames.listed,
        prepared=frames.large_conflicts,
        manual=True,
    ),
    "patches": Attack(
        "patches of 70 bytes on a record of 250 KB", frames.patches(1), prepared=frames.incompressible
    ),
    "uploads": Attack("4,096 empty uploads of unknown length", frames.empty_uploads, "nothing"),
    "headers": Attack("headers that never end, without a token", frames.endless_headers, "nothing", 50),
    "bodies": Attack("bodies that never end", frames.endless_bodies, "nothing", 50),
    "tokens": Attack("tokens of 30 KB", frames.long_tokens, "nothing", 4),
    "unread": Attack(
        "answers of 1 MB that nobody reads", frames.unread, "nothing", 20, seeded=seeds.long_feed, reads=False
    ),
    "handshakes": Attack("handshakes as fast as they are answered", frames.nothing, connections=4),
    "conflict-pages": Attack(
        "GET /v1/conflicts of large conflicts, 8 at once",
        frames.conflict_pages,
        "nothing",
        prepared=frames.large_conflicts,
        manual=True,
    ),
    "full": Attack(
        "patches of 70 bytes that conflict, past the tenant's bounds",
        frames.patches(1),
        prepared=frames.incompressible,
        bounds=_NARROW,
    ),
    "future": Attack(
        f"events dated ahead beside {seeds.FUTURE_EVENTS:,} of them, while the day's partitions are cut",
        frames.future_events,
        seeded=seeds.future_events,
        beside="cut",
    ),
    "future-full": Attack(
        "events dated ahead, past the tenant's bound", frames.future_events, bounds=_NARROW
    ),
    "early-files": Attack(
        f"{seeds.EARLY_FILES:,} files before their records, and another's photo",
        frames.quietly,
        seeded=seeds.early_files,
        beside="photo",
    ),
    "forged": Attack("messages on Redis that close others' sockets", frames.forged, "bus"),
}

#: What never reaches nginx.
PAST_NGINX: Final = ("forged",)
