"""What the load generator of ``overload`` is told on stdin and what it says on stdout, as lines of JSON.

It says Ready when it is connected, is then told on one line when to begin, and says at the end what happened.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final

import msgspec

from bench.overload.workload import Backlog

#: What every run knows of: not answered yet, and stored.
CODES: Final = ("unanswered", "synced")


class Step(msgspec.Struct, frozen=True):
    """A stretch of time at one rate, over all connections."""

    name: str
    per_s: float
    duration_s: float


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Connection n is device n with token n.

    An open loop, step after step; or, with ``pipelined``, a closed one for as long as all steps take, that
    keeps so many syncs under way on each connection.
    """

    host: str
    port: int
    prefix: str
    devices: list[str]
    tokens: list[str]
    backlog: Backlog
    steps: list[Step]
    pipelined: int = 0
    seed: int = 1

    @property
    def bounds_us(self) -> list[tuple[int, int]]:
        """When each step begins and ends, in microseconds of the run."""
        ends = [round(end_s * 1e6) for end_s in accumulate(step.duration_s for step in self.steps)]
        return list(zip([0, *ends], ends, strict=False))


class Ready(msgspec.Struct, frozen=True, tag_field="event"):
    """Said once everybody is connected or was refused, by reason."""

    connected: int
    refusals: dict[str, int]


class Happened(msgspec.Struct, kw_only=True, tag_field="event"):
    """What came of a run; entry n of the first five is sync n's. Times are microseconds of the run.

    ``device`` is its connection's place in the plan. ``due_us`` is when it was meant to leave and
    ``sent_us`` when it left, -1 where its connection was gone. ``code`` is the place in ``codes`` of what it
    was answered, 0 while it was not; ``done_us`` is when. ``seqs`` are those of all items of all syncs that
    were answered ``synced``, sync after sync. ``lag_us`` is how late timers of the generator went off.
    ``ended`` counts connections that the server ended, and goodbyes.
    """

    device: list[int]
    due_us: list[int]
    sent_us: list[int]
    done_us: list[int]
    code: list[int]
    codes: list[str]
    seqs: list[int]
    lag_us: list[int]
    ended: dict[str, int]
