"""Each measured figure of the documentation names the command that it comes from.

Measured is a figure in µs or ns, and another time, rate or part of which a sentence says that something takes
or costs it. Behind a word of a bound ("at most", "every", "after") a figure is chosen and not measured. On
the page of benchmarks the figures of tables are measured, but for those of bars.

A figure of a report is a link to it (``docs/figures.py``). Any other stands in a section with a line that
says where it comes from, or in a paragraph with a link to such a section of ``docs/benchmarks.md``::

    Measured by `python -m bench.tools.sealing` at `0a1b2c3`, 2026-11-30, on two quiet cores (AMD EPYC).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from bench.cli import SCENARIOS
from docs.figures import FIGURE

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
BENCHMARKS: Final = DOCS / "benchmarks.md"
#: Written from the comments of migrations, which are not changed.
MIGRATIONS: Final = DOCS / "migrations.md"
PAGES: Final = [ROOT / "README.md", *sorted({*DOCS.rglob("*.md")} - {MIGRATIONS})]

_NUMBER: Final = r"(?<![\w.,])\d[\d,.]*(?: to \d[\d,.]*)?"
_BOUND: Final = (
    r"\b(?:(?:more|less|fewer|longer) than|at (?:most|least)|up to|above|below|past|over|under|within|every"
    r"|after|for|of|from)\s"
)
_FIGURES: Final = re.compile(
    rf"(?P<bound>{_BOUND})?(?:(?P<small>{_NUMBER} (?:ns|µs))"
    rf"|(?P<other>{_NUMBER} (?:ms|s|%|(?:MB|syncs|rows|records|changes|frames)/s)))(?!\w)"
)
_COSTS: Final = re.compile(r"\b(?:takes?|took|costs?|lasted|measured)\b")
_SENTENCES: Final = re.compile(r"(?<=[.:;])\s+")
#: Code blocks, what ``docs.generate`` writes, and tables of bars.
_NOT_READ: Final = re.compile(
    r"^```.*?^```$|<!-- report .*?<!-- end of report -->|^\| bar\b.*?(?:\n\n|\Z)", re.DOTALL | re.MULTILINE
)
_SECTIONS: Final = re.compile(r"^(?=##+ )", re.MULTILINE)
_PARAGRAPHS: Final = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=\|)")
_SOURCE: Final = re.compile(
    r"^Measured by `(?P<command>[^`]+)` at `[0-9a-f]{7,}`, \d{4}-\d\d-\d\d, on ", re.MULTILINE
)
_LINK: Final = re.compile(r"\(((?:\.\./)?(?:docs/)?benchmarks\.md)#([\w-]+)\)")


def sections(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the headings of a page, each with its section."""
    for section in _SECTIONS.split(_NOT_READ.sub("\n", page.read_text("utf-8"))):
        yield section.partition("\n")[0].lstrip("# "), section


def measured(paragraph: str, *, on_benchmarks: bool = False) -> list[str]:
    """Return the measured figures of a paragraph that are no links to a report."""
    row = on_benchmarks and paragraph.startswith("|")
    return [
        found["small"] or found["other"]
        for sentence in _SENTENCES.split(" ".join(FIGURE.sub("", paragraph).split()))
        for found in _FIGURES.finditer(sentence)
        if not found["bound"] and (row or found["small"] or _COSTS.search(sentence))
    ]


def without_source(page: Path) -> Iterator[tuple[str, str]]:
    """Yield each figure of a page that names no command, behind the heading of its section."""
    for heading, section in sections(page):
        if not _SOURCE.search(section):
            for paragraph in _PARAGRAPHS.split(section):
                if not _LINK.search(paragraph):
                    for figure in measured(paragraph, on_benchmarks=page == BENCHMARKS):
                        yield heading, figure


def anchor(heading: str) -> str:
    """Return the part of a link that leads to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


#: The commands of sections of the benchmarks, by their anchors.
SOURCES: Final = {
    anchor(heading): found["command"]
    for heading, section in sections(BENCHMARKS)
    for found in _SOURCE.finditer(section)
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_measured_figure_names_its_command(page: Path) -> None:
    assert list(without_source(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_measured_figure_links_to_a_section_that_names_a_command(page: Path) -> None:
    linked = {
        found[2]
        for _, section in sections(page)
        for paragraph in _PARAGRAPHS.split(section)
        if measured(paragraph)
        for found in _LINK.finditer(paragraph)
    }
    assert linked <= {*SOURCES, "what-was-measured"}


@pytest.mark.parametrize("command", sorted(set(SOURCES.values())))
def test_measured_figure_names_a_command_that_there_is(command: str) -> None:
    tool = re.match(r"python -m (bench\.tools\.\w+)", command)
    scenario = re.match(r"run\.py bench --scenario (\w+)", command)
    assert (tool and find_spec(tool[1])) or (scenario and scenario[1] in SCENARIOS)


def test_measured_figure_is_told_from_a_chosen_one() -> None:
    chosen = "The loop is given back after 5 ms, at most every 20 ms. It waits 2 s. It costs more than 3 %."
    reported = ' A sync took [4 ms](benchmarks/whole.json "concurrent: p95").'
    found = " To seal takes 1.5 ms of 14. A refusal: 3 µs. In all it costs 1 to 2 %."
    assert measured(chosen + reported + found) == ["1.5 ms", "3 µs", "1 to 2 %"]


def test_measured_figure_of_a_table_of_the_benchmarks_is_found() -> None:
    row = "| a lone sync | 1.01 ms |"
    assert (measured(row, on_benchmarks=True), measured(row)) == (["1.01 ms"], [])
