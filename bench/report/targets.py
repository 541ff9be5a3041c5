"""What the field's system has to show, by scenario, and whether the reports of a run show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from bench.report.results import Report, named
from bench.report.statistics import number


class Wanted(NamedTuple):
    """One target: the figure or bar of a scenario's report that it is read from, and its limit."""

    scenario: str
    figure: str
    bound: Literal["at most", "at least"]
    limit: float
    unit: str


class Target(msgspec.Struct, frozen=True):
    """A target with what was measured, None where nothing was."""

    scenario: str
    name: str
    bound: Literal["at most", "at least"]
    limit: float
    unit: str
    value: float | None

    @property
    def met(self) -> bool:
        """Whether it was measured and holds."""
        if self.value is None:
            return False
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit

    @property
    def verdict(self) -> str:
        """Say whether it is met."""
        return "met" if self.met else "not measured" if self.value is None else "missed"

    @property
    def told(self) -> str:
        """Write what was measured."""
        return "-" if self.value is None else f"{number(self.value)} {self.unit}".strip()

    @property
    def wanted(self) -> str:
        """Write what it has to be."""
        return f"{self.bound} {number(self.limit)} {self.unit}".strip()


#: The syncs of an open loop come by chance: in ten seconds 12,000 +- 110 of them.
_CHANCE: Final = 0.97

WANTED: Final = (
    Wanted("concurrent", "connected", "at least", 99.8, "%"),
    Wanted("concurrent", "syncs stored a second", "at least", 1200 * _CHANCE, "syncs/s"),
    Wanted("concurrent", "p95", "at most", 145, "ms"),
    Wanted("concurrent", "success", "at least", 98.5, "%"),
    Wanted("concurrent", "policies read from memory", "at least", 85, "%"),
    Wanted("concurrent", "devices read from memory", "at least", 85, "%"),
    Wanted("concurrent", "read of policies, 95 % within", "at most", 1, "ms"),
    Wanted("concurrent", "connections to PostgreSQL", "at most", 35, "open"),
    Wanted("concurrent", "requests to PostgreSQL", "at most", 2, "a sync"),
    Wanted("high_volume", "items stored", "at least", 100, "%"),
    Wanted("high_volume", "average of a sync", "at most", 95, "ms"),
    Wanted("uploads", "product", "at least", 45, "MB/s"),
    Wanted("uploads", "uploads whole, every chunk and file verified", "at least", 100, "%"),
    Wanted("uploads", "damaged chunks refused", "at least", 100, "%"),
    Wanted("conflicts", "outcomes as the policy says", "at least", 100, "%"),
    Wanted("conflicts", "settled without a person", "at least", 95, "%"),
    Wanted("conflicts", "average time to settled", "at most", 28, "ms"),
    Wanted("faults", "lost, applied twice or otherwise wrong", "at most", 0, ""),
    Wanted("cleanup", "records deleted a second", "at least", 1000, "records/s"),
)
#: Scenarios that kill servers themselves.
_KILLING: Final = ("faults", "outages", "behind_nginx")
#: Log events that tell of a server process that ended by itself.
CRASHED: Final = ("server_ended", "worker_died")


def targets_of(reports: Sequence[Report], *, every: bool) -> list[Target]:
    """Judge every target, or only those of the scenarios that were run."""
    by_name = {report.scenario: report for report in reports}
    if not every:
        return [one for one in targets_of(reports, every=True) if one.scenario in by_name]
    found = [
        Target(
            one.scenario,
            *(one.figure, one.bound, one.limit, one.unit),
            named(by_name[one.scenario], one.figure) if one.scenario in by_name else None,
        )
        for one in WANTED
    ]
    crashed = sum(
        report.logged.get(event, 0)
        for report in reports
        if report.scenario not in _KILLING
        for event in CRASHED
    )
    return [*found, Target("all", "server processes that ended by themselves", "at most", 0, "", crashed)]
