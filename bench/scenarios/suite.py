"""Which scenarios ``--scenario all`` and ``--quick`` run, with what, and how long each takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from bench.conflicts.scenario import conflicts
from bench.faults.scenario import faults
from bench.harness.stage import Options
from bench.live.scenario import CONNECTIONS, connections, live
from bench.overload.scenario import overload
from bench.report.results import Report
from bench.scenarios.cleanup import cleanup
from bench.scenarios.concurrent import DURATION_S, PROFILED_S, WARMUP_S, concurrent, high_volume
from bench.scenarios.limits import limits
from bench.scenarios.scaling import scaling
from bench.uploads.scenario import uploads

Scenario = Callable[[Options], Awaitable[Report]]
Suite = Literal["all", "quick"]


class Part(NamedTuple):
    """One scenario of a suite.

    ``rest_s`` is what it takes on two idle cores besides ``--duration``, which is for ``concurrent`` alone.
    """

    scenario: Scenario
    rest_s: float
    changes: Mapping[str, Any] = {}


SUITES: Final[Mapping[Suite, Sequence[Part]]] = {
    "all": (
        Part(concurrent, 50),
        Part(high_volume, 70),
        Part(uploads, 190),
        Part(conflicts, 25),
        Part(faults, 200, {"rounds": 21}),
        Part(cleanup, 105, {"fill_records": 50_000}),
        Part(limits, 245),
        Part(overload, 160),
        Part(scaling, 120, {"rounds": 2}),
        Part(live, 60, {"rounds": 1}),
        Part(connections, 70, {"connections": CONNECTIONS}),
    ),
    "quick": (
        Part(concurrent, 17),
        Part(high_volume, 14, {"duration_s": 6.0}),
        Part(uploads, 25, {"rounds": 1}),
        Part(conflicts, 22),
        Part(faults, 42, {"rounds": 2}),
        Part(cleanup, 49, {"fill_records": 5_000}),
    ),
}
QUICK_S: Final = 10.0


def options_of(part: Part, options: Options, suite: Suite) -> Options:
    """Return the options of one part, of those of the command line."""
    own = part.scenario is concurrent
    duration_s = _duration_s(options, suite) if own else None
    fields = {"history": None, "duration_s": duration_s, "rounds": None, **part.changes}
    return msgspec.structs.replace(options, **fields)


def expected_s(part: Part, options: Options, suite: Suite) -> float:
    """Return about how long a part takes on two idle cores. An audit takes a twentieth of what it audits."""
    if part.scenario is not concurrent:
        return part.rest_s
    flames_s = PROFILED_S + WARMUP_S if options.flame_graph else 0.0
    return part.rest_s + 1.05 * _duration_s(options, suite) + flames_s


def _duration_s(options: Options, suite: Suite) -> float:
    return options.duration_s or (DURATION_S if suite == "all" else QUICK_S)
