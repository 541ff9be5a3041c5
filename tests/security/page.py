"""Write the number of attacks by category into docs/security.md: ``python -m tests.security.page``."""

from __future__ import annotations

import importlib
import inspect
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from tests.security.catalogue import CATEGORIES, SECTIONS

TESTS: Final = Path(__file__).parents[1]
PAGE: Final = TESTS.parent / "docs" / "security.md"
BEGIN: Final = "<!-- attacks: written by python -m tests.security.page -->\n"
END: Final = "<!-- end of attacks -->\n"
_IMPORT: Final = "from tests.security.catalogue import"


class Attacks(NamedTuple):
    """A test: where it stands, how many attacks it is, and what they are against."""

    name: str
    rows: int
    owasp: str | None
    asvs: str | None


def modules() -> Iterator[ModuleType]:
    """Import the files of tests in this folder, and those elsewhere that mark attacks."""
    for path in sorted(TESTS.rglob("test_*.py")):
        if path.parent == Path(__file__).parent or _IMPORT in path.read_text("utf-8"):
            yield importlib.import_module(".".join(path.relative_to(TESTS.parent).with_suffix("").parts))


def attacks_of(module: ModuleType) -> Iterator[Attacks]:
    """List the tests of a file; a test that is no attack has no category."""
    of_module = getattr(module, "pytestmark", [])
    of_module = of_module if isinstance(of_module, list) else [of_module]
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if not name.startswith("test_") or function.__module__ != module.__name__:
            continue
        # The mark nearest to the test counts.
        marks = [*getattr(function, "pytestmark", []), *(one.mark for one in of_module)]
        count = math.prod(len(list(one.args[1])) for one in marks if one.name == "parametrize")
        said: dict[str, Any] = next((one.kwargs for one in marks if one.name == "security"), {})
        yield Attacks(f"{module.__name__}.{name}", count, said.get("owasp"), said.get("asvs"))


def every_attack() -> list[Attacks]:
    """List all attacks of the project."""
    return [one for module in modules() for one in attacks_of(module) if one.owasp is not None]


def table() -> str:
    """Make the part of the page."""
    by_category: Counter[str] = Counter()
    by_section: Counter[str] = Counter()
    for one in every_attack():
        by_category[one.owasp or ""] += one.rows
        by_section[one.asvs or ""] += one.rows
    lines = [
        f"{by_category.total()} attacks:",
        "",
        "| category of OWASP | | attacks |",
        "|---|---|---|",
        *(
            f"| {code} | {name} | {by_category[code]} |"
            for code, name in CATEGORIES.items()
            if by_category[code]
        ),
        "",
        "| section of ASVS 5.0 | | attacks |",
        "|---|---|---|",
        *(f"| {code} | {name} | {by_section[code]} |" for code, name in SECTIONS.items() if by_section[code]),
    ]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Put the table into the text of the page."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin, f"docs/security.md lacks {BEGIN}"
    assert end, f"docs/security.md lacks {END}"
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
