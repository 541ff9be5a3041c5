"""Every block of commands of the book is run, or has a reason why not."""

from __future__ import annotations

import re

import pytest

from tests.book.blocks import COMMANDS, PAGES, ROOT, blocks_of, read
from tests.book.tables import NOT_RUN, RUN_BY, RUNS

BLOCKS = [block for page in PAGES for block in read(page) if block.language in COMMANDS]
TABLES = NOT_RUN | RUN_BY


@pytest.mark.parametrize("page", PAGES)
def test_block_is_run_or_has_a_reason(page: str) -> None:
    for block in BLOCKS:
        if block.page == page:
            names = [name for name in TABLES if block.is_named(name)]
            assert len(names) <= 1, f"{block.place} has more than one line in tests/book/tables.py: {names}"
            assert names or page in RUNS, (
                f"{block.place} is run by nothing. In tests/book/tables.py add the page to RUNS,"
                f" or ({page!r}, {block.text.splitlines()[0]!r}) to RUN_BY with its test,"
                " or to NOT_RUN with the reason"
            )


def test_block_without_language_has_one_if_it_is_a_command() -> None:
    for page in PAGES:
        for block in read(page):
            if block.language in {"", "text"} and not block.behind:
                assert not re.match(r"\$ |\.venv/bin/|make ", block.text), f"{block.place}: mark it as sh"


@pytest.mark.parametrize("name", TABLES, ids=": ".join)
def test_table_names_a_block_or_a_section(name: tuple[str, str]) -> None:
    found = [block for block in BLOCKS if block.is_named(name)]
    section = name in RUN_BY and name[1] in {"", found[0].heading if found else None}
    assert found, f"no block of {name[0]} begins with {name[1]!r}: take its line out of tests/book/tables.py"
    assert section or len(found) == 1, (
        f"{name[1]!r} names {[block.place for block in found]}: say more of the line"
    )


def test_block_writes_no_live_file_by_a_program_that_may_fail() -> None:
    for block in BLOCKS:
        text = block.text.replace("\\\n", " ")
        for target in re.findall(r"run\.py [^\n|;&>]*(?<!\d)>(?!>)\s*([^\s;&]+)", text):
            assert target.endswith(".new") or target == "/dev/null" or "/" not in target, (
                f"{block.place}: if run.py fails, {target} is left empty; write {target}.new, and mv it"
            )


def test_table_reasons_are_short() -> None:
    assert not NOT_RUN.keys() & RUN_BY.keys()
    assert RUNS.keys() <= {block.page for block in BLOCKS}
    assert all(0 < len(reason) < 100 for reason in NOT_RUN.values())


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_table_named_test_exists(test: str) -> None:
    path, _, name = test.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), test


def test_parser_finds_indented_and_adjacent_blocks() -> None:
    page = "# T\n\n```sh\na  # why\n```\n\n```text\nb\n```\n\n## U\n\n- c:\n\n  ```sql\n  d\n    e\n  ```\n"
    first, second, third = blocks_of("p.md", page)
    assert (first.text, first.heading, first.behind) == ("a  # why\n", "# T", False)
    assert first.is_named(("p.md", "# T"))
    assert first.is_named(("p.md", "a"))
    assert not first.is_named(("q.md", "a"))
    assert (second.language, second.behind) == ("text", True)
    assert (third.text, third.heading, third.number, third.line) == ("d\n  e\n", "## U", 3, 15)
