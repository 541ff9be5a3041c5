"""What the load generator reads from stdin and writes to stdout, as lines of JSON.

It writes Ready when all devices are connected, reads the time to begin at, and writes Outcome at the end.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final, Literal

import msgspec

from bench.load.workload import Backlog

Loop = Literal["open", "closed"]

#: The codes that every run knows: a sync without an answer, and one that was stored.
CODES: Final = ("unanswered", "synced")


class Step(msgspec.Struct, frozen=True):
    """A stretch of time at one rate over all connections."""

    name: str
    per_s: float
    duration_s: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Connection n is device n with token n, on port n.

    ``open`` sends each step's syncs at times that are fixed beforehand, by chance or at ``even`` intervals.
    ``closed`` keeps ``under_way`` syncs under way on each connection for as long as all steps take. A
    sync is one task, or ``backlog``. ``prefix`` is eight characters that no other run has. ``identities`` are
    the names that the server knows devices by, if they have others than in records.
    """

    host: str
    ports: list[int]
    prefix: str
    devices: list[str]
    tokens: list[str]
    steps: list[Step]
    loop: Loop = "open"
    backlog: Backlog | None = None
    under_way: int = 1
    even: bool = False
    seed: int = 1
    identities: list[str] = []

    @property
    def bounds_us(self) -> list[tuple[int, int]]:
        """When each step begins and ends, in microseconds of the run."""
        ends = [round(end_s * 1e6) for end_s in accumulate(step.duration_s for step in self.steps)]
        return list(zip([0, *ends], ends, strict=False))


class Ready(msgspec.Struct, frozen=True):
    """How many devices are connected, and how many were refused, by reason."""

    connected: int
    connect_s: float
    refusals: dict[str, int]


class Outcome(msgspec.Struct, kw_only=True):
    """What came of a run. Entry n of the first five lists is sync n's; times are microseconds of the run.

    ``device`` is the place of its connection in the plan. ``due_us`` is when it was meant to leave and
    ``sent_us`` when it left, -1 if its connection was gone. ``code`` is the place in ``codes`` of its answer,
    0 without one; ``done_us`` is when the answer came, else -1. ``record`` and ``base`` are those of a task.
    ``seqs`` has the seqs of all items of all stored syncs, sync after sync. ``lag_us`` is how late timers of
    the generator were. ``ended`` counts closed connections, goodbyes and answers that belong to no sync.
    """

    device: list[int] = []
    due_us: list[int] = []
    sent_us: list[int] = []
    done_us: list[int] = []
    code: list[int] = []
    codes: list[str] = msgspec.field(default_factory=lambda: list(CODES))
    record: list[int] = []
    base: list[int] = []
    seqs: list[int] = []
    lag_us: list[int] = []
    ended: dict[str, int] = {}
