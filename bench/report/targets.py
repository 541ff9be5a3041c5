"""What the field's system has to show, by scenario, and whether the reports of a run show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from bench.report.results import OPEN_CONNECTIONS, Bar, Bound, Report, measured
from bench.report.statistics import number


class Target(Bar, frozen=True):
    """A bar of the field's system, and the scenario that measures it."""

    scenario: str = ""

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


def _wanted(scenario: str, name: str, bound: Bound, limit: float, unit: str) -> Target:
    return Target(name, None, bound, limit, unit, scenario=scenario)


#: By scenario, the figure or bar of its report that each is read from.
WANTED: Final = (
    _wanted("concurrent", "connected", "at least", 99.8, "%"),
    _wanted("concurrent", "syncs stored in time", "at least", 99.8, "%"),
    _wanted("concurrent", "p95", "at most", 145, "ms"),
    _wanted("concurrent", "success", "at least", 98.5, "%"),
    _wanted("concurrent", "syncs refused or not answered", "at most", 0, ""),
    _wanted("concurrent", "policies read from memory", "at least", 85, "%"),
    _wanted("concurrent", "devices read from memory", "at least", 85, "%"),
    _wanted("concurrent", "cold read of policies, 95 % within", "at most", 1, "ms"),
    _wanted("concurrent", "warm read of policies, 95 % within", "at most", 1, "ms"),
    _wanted("concurrent", "cold read of devices, 95 % within", "at most", 1, "ms"),
    _wanted("concurrent", "requests to PostgreSQL", "at most", 2, "a sync"),
    _wanted("high_volume", "items stored", "at least", 100, "%"),
    _wanted("high_volume", "average of a sync", "at most", 95, "ms"),
    _wanted("uploads", "product, every chunk with its checksum", "at least", 45, "MB/s"),
    _wanted("uploads", "uploads whole, every chunk and file verified", "at least", 100, "%"),
    _wanted("uploads", "damaged chunks refused", "at least", 100, "%"),
    _wanted("conflicts", "outcomes as the policy says", "at least", 100, "%"),
    _wanted("conflicts", "settled without a person", "at least", 95, "%"),
    _wanted("conflicts", "average time to settled", "at most", 28, "ms"),
    _wanted("faults", "lost, applied twice or otherwise wrong", "at most", 0, ""),
    _wanted("cleanup", "records deleted a second", "at least", 1000, "records/s"),
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


def _judged(wanted: Target, report: Report | None) -> Target:
    found = None if report is None else measured(report, wanted.name)
    return wanted if found is None else replace(wanted, value=found.value, beside=found.beside)


def _of_all(reports: Sequence[Report]) -> list[Target]:
    """Judge what holds over all scenarios; a scenario that could not go on hides whether it does."""
    opened = {report.scenario: found for report in reports if (found := measured(report, OPEN_CONNECTIONS))}
    most, where = max(((found.value or 0.0, name) for name, found in opened.items()), default=(None, "none"))
    crashed = sum(
        report.logged.get(event, 0)
        for report in reports
        if report.scenario not in _KILLING
        for event in CRASHED
    )
    hidden = any(report.failed for report in reports)
    died = "server processes that ended by themselves"
    wanted = (
        (_wanted("all", OPEN_CONNECTIONS, "at most", 35, "open"), None if hidden else most, f"in {where}"),
        (_wanted("all", died, "at most", 0, ""), None if hidden and not crashed else crashed, ""),
    )
    return [replace(one, value=value, beside=beside) for one, value, beside in wanted]
