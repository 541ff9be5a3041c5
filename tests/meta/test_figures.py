"""Each figure of a page that names a report equals the report's, and each report says how it was made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.figures import FIGURE, REPORTS, report, with_figures

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in REPORTS.glob("*.json"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOUND = [(page, found) for page in PAGES for found in FIGURE.finditer(page.read_text("utf-8"))]
#: A figure of speed or size outside of a link.
_BARE = re.compile(r"\b[\d,.]+ (?:ms|MB/s|syncs/s|KiB)\b")


@pytest.mark.parametrize(
    ("page", "found"), FOUND, ids=[f"{page.name}: {found[4]}: {found[5]}" for page, found in FOUND]
)
def test_page_figure_equals_the_one_of_its_report(page: Path, found: re.Match[str]) -> None:
    assert with_figures(found[0]) == found[0], f"{page.name}: run python -m docs.generate"
    assert (page.parent / found[2]).is_file()


def test_page_figure_that_differs_from_its_report_is_found() -> None:
    (_, found), *_ = FOUND
    other = found[0].replace(f"[{found[1]}]", f"[{found[1]}0]")
    assert with_figures(other) == found[0] != other


def test_page_figure_that_no_report_has_is_an_error() -> None:
    (_, found), *_ = FOUND
    with pytest.raises(KeyError, match="no figure 'speed of light'"):
        with_figures(found[0].replace(f": {found[5]}", ": speed of light"))


def test_readme_has_no_figure_without_a_report() -> None:
    assert _BARE.findall(FIGURE.sub("", (ROOT / "README.md").read_text("utf-8"))) == []


@pytest.mark.parametrize("name", NAMES)
def test_report_names_its_command_machine_and_commit_and_has_a_page(name: str) -> None:
    whole = report(name)
    assert whole.origin.command.startswith("run.py bench ")
    assert re.fullmatch(r"[0-9a-f]{7,}", whole.origin.commit), "measured on files that no commit has"
    assert whole.reports[0].machine.cpus
    assert f".venv/bin/python {whole.origin.command}\n" in (ROOT / "docs" / "benchmarks.md").read_text(
        "utf-8"
    )
    assert "<!doctype html>" in (REPORTS / f"{name}.html").read_text("utf-8")
