"""What the field's system has to show, by scenario, and whether the reports of a run show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from bench.report.results import OPEN_CONNECTIONS, Report, measured
from bench.report.statistics import number


class Wanted(NamedTuple):
    """One target: the figure or bar of a scenario's report that it is read from, and its limit."""

    scenario: str
    figure: str
    bound: Literal["at most", "at least"]
    limit: float
    unit: str


class Target(msgspec.Struct, frozen=True):
    """A target with what was measured, None where nothing was, and of how much."""

    scenario: str
    name: str
    bound: Literal["at most", "at least"]
    limit: float
    unit: str
    value: float | None
    beside: str = ""

    @property
    def met(self) -> bool:
        """Whether it was measured and holds."""
        if self.value is None or not math.isfinite(self.value):
            return False
        return self.value <= self.limit if self.bound == "at most" else self.value >= self.limit

    @property
    def verdict(self) -> str:
        """Say whether it is met."""
        return "met" if self.met else "not measured" if self.told == number(None) else "missed"

    @property
    def told(self) -> str:
        """Write what was measured."""
        told = number(self.value)
        return told if told == number(None) else f"{told} {self.unit}".strip()

    @property
    def wanted(self) -> str:
        """Write what it has to be."""
        return f"{self.bound} {number(self.limit)} {self.unit}".strip()


WANTED: Final = (
    Wanted("concurrent", "connected", "at least", 99.8, "%"),
    Wanted("concurrent", "syncs stored in time", "at least", 99.8, "%"),
    Wanted("concurrent", "p95", "at most", 145, "ms"),
    Wanted("concurrent", "success", "at least", 98.5, "%"),
    Wanted("concurrent", "syncs refused or not answered", "at most", 0, ""),
    Wanted("concurrent", "policies read from memory", "at least", 85, "%"),
    Wanted("concurrent", "devices read from memory", "at least", 85, "%"),
    Wanted("concurrent", "cold read of policies, 95 % within", "at most", 1, "ms"),
    Wanted("concurrent", "warm read of policies, 95 % within", "at most", 1, "ms"),
    Wanted("concurrent", "cold read of devices, 95 % within", "at most", 1, "ms"),
    Wanted("concurrent", "requests to PostgreSQL", "at most", 2, "a sync"),
    Wanted("high_volume", "items stored", "at least", 100, "%"),
    Wanted("high_volume", "average of a sync", "at most", 95, "ms"),
    Wanted("uploads", "product, every chunk with its checksum", "at least", 45, "MB/s"),
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
    return [*(_judged(one, by_name.get(one.scenario)) for one in WANTED), *_of_all(reports)]


def _judged(wanted: Wanted, report: Report | None) -> Target:
    found = None if report is None else measured(report, wanted.figure)
    return Target(*wanted, *((None, "") if found is None else (found.value, found.beside)))


def _of_all(reports: Sequence[Report]) -> list[Target]:
    """Judge what holds over all scenarios; a scenario that could not go on hides whether it does."""
    opened = {report.scenario: found for report in reports if (found := measured(report, OPEN_CONNECTIONS))}
    most, where = max(((found.value or 0.0, name) for name, found in opened.items()), default=(None, ""))
    crashed = sum(
        report.logged.get(event, 0)
        for report in reports
        if report.scenario not in _KILLING
        for event in CRASHED
    )
    hidden = any(report.failed for report in reports)
    died = "server processes that ended by themselves"
    return [
        Target(
            "all", OPEN_CONNECTIONS, "at most", 35, "open", None if hidden else most, where and f"in {where}"
        ),
        Target("all", died, "at most", 0, "", None if hidden and not crashed else crashed),
    ]
