"""Each page that is run: its blocks in order, as they stand."""

from __future__ import annotations

import pytest

from tests.book.blocks import Block, read
from tests.book.runner import BlockError, Ground, matches, pairs, run_page, script
from tests.book.tables import NOT_RUN, RUN_BY, RUNS

PATIENCE_S = 600.0


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if run.slow else []) for page, run in RUNS.items()],
)
def test_page_blocks_run_in_order(page: str) -> None:
    left_out = NOT_RUN | RUN_BY
    blocks = [block for block in read(page) if not any(map(block.is_named, left_out))]
    run_page(blocks, RUNS[page].ground, PATIENCE_S)


def block(text: str, language: str = "sh", *, behind: bool = False) -> Block:
    """A block of a page that nobody reads."""
    return Block("docs/page.md", "## Title", 1, 1, language, text, behind)


def test_runner_block_that_fails_names_it() -> None:
    with pytest.raises(BlockError, match=r"Title, block 1\) ended with 1:\nfirst\n$"):
        run_page([block("echo first\nfalse\necho never\n")], Ground.CHECKOUT, PATIENCE_S)


def test_runner_other_output_fails() -> None:
    with pytest.raises(BlockError, match="The page shows"):
        run_page([block("echo 7\n"), block("8\n", "text", behind=True)], Ground.CHECKOUT, PATIENCE_S)


def test_runner_page_changes_no_file_of_the_checkout() -> None:
    shown = block("…/tidemark-book-…\nlink\n", "text", behind=True)
    command = block("pwd >place\ncat place\n[ -L run.py ] && echo link\n")
    run_page([command, shown], Ground.CHECKOUT, PATIENCE_S)


def test_runner_text_not_right_behind_is_no_output() -> None:
    assert not list(pairs([block("echo 7\n"), block("8\n", "text")]))


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a … c\n", "a b c\n", True),
        ('"…"\n', '"x","y"\n', False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nd\n", True),
        ("a\n", "a\nb\n", False),
        ("a.b\n", "axb\n", False),
    ],
)
def test_runner_output_wildcard_matches(shown: str, printed: str, *, same: bool) -> None:
    assert matches(shown, printed) is same


@pytest.mark.parametrize(
    ("line", "run"),
    [
        ("make run     # a server", "background make --assume-old=.venv/installed run"),
        (".venv/bin/python run.py serve --port 8081", "background .venv/bin/python run.py serve --port 101"),
        (".venv/bin/python run.py serve & echo", ".venv/bin/python run.py serve & echo"),
        ("curl 127.0.0.1:8080/readyz", "curl 127.0.0.1:100/readyz"),
        ("echo 18080 80800", "echo 18080 80800"),
    ],
)
def test_runner_server_and_port_are_replaced(line: str, run: str) -> None:
    assert script([block(f"{line}\n")], Ground.CHECKOUT, 100).splitlines()[-1] == run
