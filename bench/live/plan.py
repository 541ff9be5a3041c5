"""What subscribers in a process of their own are told on stdin and say on stdout, as lines of JSON."""

from __future__ import annotations

import msgspec


class WatchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Connection n goes to ``ports[n]`` with ``tokens[n]``, from ``sources[n]`` where there are any.

    With ``heartbeats`` each sends as many as the server asks for, spread evenly.
    """

    host: str
    ports: list[int]
    tokens: list[str]
    sources: list[str]
    heartbeats: bool


class Watching(msgspec.Struct, frozen=True, tag_field="event"):
    """Said once: how many are subscribed and have their backlog's first page, and why others are not."""

    subscribed: int
    refusals: dict[str, int]


class Seen(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """What came after the beginning, said last.

    The lists of pages go together: whose it was, its lowest and highest seq, how many changes, and when it
    was there in microseconds on the clock that processes share. ``digests`` tell a connection's records with
    their versions, all that ever came. ``short`` did not reach the seq that they were told to wait for;
    ``backwards`` counts changes with a lower version than the last one of the record. ``lag_us`` is how late
    timers went off, ``cpus`` how many CPUs this process kept busy.
    """

    connection: list[int]
    first_seq: list[int]
    last_seq: list[int]
    changes: list[int]
    at_us: list[int]
    digests: list[str]
    short: list[int]
    backwards: int
    heartbeats: int
    heartbeats_answered: int
    lag_us: list[int]
    cpus: float
    errors: dict[str, int]
