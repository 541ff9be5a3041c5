"""Writes figures of measured reports into the documentation: a page cannot say another one than its report.

A figure is a link to a report under ``docs/benchmarks/`` whose title names the scenario and the figure::

    [4.2 ms](benchmarks/whole.json "concurrent: p95")
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from bench.report.results import BUSY_CPUS, measured
from bench.report.statistics import number
from bench.report.written import Whole, read_whole

REPORTS: Final = Path(__file__).parent / "benchmarks"
#: A link to a report: its text, where it leads, the report's name, the scenario and the figure.
FIGURE: Final = re.compile(r'\[([^\]\n]*)\]\(((?:docs/)?benchmarks/([\w-]+)\.json) "([^":]+): ([^"]+)"\)')
_TABLE: Final = re.compile(
    r"(<!-- report ([\w-]+): written by python -m docs.generate -->\n).*?(<!-- end of report -->\n)",
    re.DOTALL,
)
#: Of these units a report's table has every figure of the scenarios; the others are parts of some figure.
_TOLD: Final = ("syncs/s", "changes/s", "MB/s", "KiB", "records/s", "a second")


@cache
def report(name: str) -> Whole:
    """Read a report by its name."""
    return read_whole(REPORTS / f"{name}.json")


def has_figures(text: str) -> bool:
    """Whether a page shows anything of a report."""
    return bool(FIGURE.search(text) or _TABLE.search(text))


def with_figures(text: str) -> str:
    """Return a page with the figures that its reports have.

    Raises:
        KeyError: A report has no figure of that name.
    """
    text = FIGURE.sub(
        lambda found: f'[{_figure(*found.groups()[2:])}]({found[2]} "{found[4]}: {found[5]}")', text
    )
    return _TABLE.sub(lambda found: f"{found[1]}\n{_table(found[2])}\n{found[3]}", text)


def _figure(name: str, scenario: str, figure: str) -> str:
    for one in report(name).reports:
        found = measured(one, figure) if one.scenario == scenario else None
        if found is not None:
            return f"{number(found.value)} {found.unit}".strip()
    raise KeyError(f"docs/benchmarks/{name}.json has no figure {figure!r} of {scenario}")


def _table(name: str) -> str:
    return "\n".join(_lines(name))


def _lines(name: str) -> Iterator[str]:
    whole = report(name)
    machine, origin = whole.reports[0].machine, whole.origin
    memory = f"{machine.memory_gib:.0f} GiB" if machine.memory_gib else ""
    yield f"[The report](benchmarks/{name}.json) and [its page](benchmarks/{name}.html) come from this"
    yield f"command, which took {origin.took_s / 60:.0f} minutes:"
    yield from ("", "```sh", f".venv/bin/python {origin.command}", "```", "")
    yield f"On {machine.cpus} CPUs ({machine.cpu}), {memory}, {machine.system}, Python {machine.python},"
    yield f"at the commit `{origin.commit}`."
    busy = max((other for one in whole.reports for other in one.other_cpus), default=0.0)
    if busy > BUSY_CPUS:
        yield f"**Other programs kept up to {busy:.1f} CPUs busy**: a machine of its own is faster."
    yield from ("", "| scenario | target | wanted | measured |", "|---|---|---|---|")
    for one in whole.targets:
        found = f"{one.told} {one.beside}".strip() + ("" if one.met else f", **{one.verdict}**")
        yield f"| `{one.scenario}` | {one.name} | {one.wanted} | {found} |"
    told = [
        f"| `{one.scenario}` | {figure.name} | {number(figure.value)} {figure.unit} | {figure.beside} |"
        for one in whole.reports
        for figure in one.figures
        if figure.unit in _TOLD
    ]
    if told:
        yield from ("", "| scenario | figure | measured | |", "|---|---|---|---|", *told)
