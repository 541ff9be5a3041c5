"""What the load generator is told on stdin and what it says on stdout, as lines of JSON."""

from __future__ import annotations

from typing import Literal

import msgspec

Mode = Literal["open", "closed", "idle"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Connection n is device n with token n; ``devices`` are their names, which no other run uses.

    ``ports`` are those of the connections, where they go to several; else all go to ``port``.
    ``open`` sends ``rate_per_s`` syncs over all connections at times fixed beforehand, ``closed`` keeps one
    sync under way on each connection, ``idle`` subscribes and waits.
    """

    host: str
    port: int
    ports: list[int] = []
    devices: list[str]
    tokens: list[str]
    mode: Mode
    duration_s: float
    rate_per_s: float = 0.0
    warmup_s: float = 0.0
    seed: int = 1
    deflate: bool = False


class Acks(msgspec.Struct):
    """Every acknowledged item of a run, one entry in each list; ``number`` is its sync's on its device.

    ``due_us`` and ``answered_us`` are microseconds on the clock that processes share: when its sync was to be
    sent, and when its acknowledgement was there.
    """

    device: list[int] = []
    number: list[int] = []
    record: list[int] = []
    version: list[int] = []
    seq: list[int] = []
    due_us: list[int] = []
    answered_us: list[int] = []


class Unsure(msgspec.Struct, frozen=True):
    """An item that was sent and not acknowledged."""

    device: int
    number: int
    record: int


class Mark(msgspec.Struct, frozen=True, tag_field="event"):
    """Said when the measured phase begins and when it ends, so that CPU time is read at both."""

    phase: Literal["begins", "ends"]


class Second(msgspec.Struct, frozen=True):
    """One second of the measured phase, by intended time."""

    answered: int
    p50_ms: float
    p99_ms: float


class Outcome(msgspec.Struct, kw_only=True, tag_field="event"):
    """What came of a run, said last.

    ``began_s`` is when the measured phase began, on the clock that processes share.
    ``answered`` and ``histogram`` (microseconds, base64 as HDR encodes it) count the syncs whose intended
    time lies in the measured phase; ``completed`` counts the answers that arrived within it. ``lateness`` is
    the histogram of how long after its intended time a sync was sent; ``cpu_ms`` is the generator's own in
    the measured phase. All else counts the warm-up, too. ``unanswered`` had no answer at the end; ``unsure``
    are these and what was refused: they may have been stored or not.
    """

    asked: int
    connected: int
    connect_s: float
    refusals: dict[str, int]
    sent: int = 0
    answered: int = 0
    completed: int = 0
    new_records: int = 0
    errors: dict[str, int] = {}
    unanswered: int = 0
    began_s: float = 0.0
    duration_s: float = 0.0
    histogram: str = ""
    lateness: str = ""
    seconds: list[Second] = []
    cpu_ms: float = 0.0
    acks: Acks = msgspec.field(default_factory=Acks)
    unsure: list[Unsure] = []
