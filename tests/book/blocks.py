"""Blocks of the pages: what a person copies into a terminal, and the output that the page shows behind it."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
#: Pages with commands. Those below docs/ have them in their own folders too, such as docs/adr.
PAGES: Final = sorted(
    str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
#: What is run: by a shell, or by ``psql`` as the owner of the tables.
COMMANDS: Final = frozenset({"sh", "bash", "sql"})
#: What may stand right behind a block of commands as its output.
OUTPUTS: Final = frozenset({"text", "json"})

_LINE: Final = re.compile(r"^(?P<indent> *)(?:```(?P<language>[\w-]*)|(?P<heading>#+ .*))$")


class Block(NamedTuple):
    """A fenced block: where it stands, and what it says without its indentation."""

    page: str
    heading: str
    number: int
    """Its place among all fenced blocks of the page, from 1 on."""
    line: int
    language: str
    text: str
    behind: bool
    """Whether only empty lines are between it and the block before."""

    @property
    def place(self) -> str:
        """The place for a person: page, line, heading and number."""
        return f"{self.page}:{self.line} ({self.heading.lstrip('# ')}, block {self.number})"

    def is_named(self, name: tuple[str, str]) -> bool:
        """Whether a page with the heading of a section, or with a beginning of this text, names it."""
        page, beginning = name
        return page == self.page and (self.heading == beginning or self.text.startswith(beginning))


def blocks_of(page: str, text: str) -> list[Block]:
    """Find the fenced blocks of a page, in order."""
    found: list[Block] = []
    heading, begun, behind = "", None, False
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.match(line)
        if begun is not None:
            if line.strip() == "```":
                body = textwrap.dedent("\n".join(lines)) + "\n"
                place = len(found) + 1
                found.append(Block(page, heading, place, begun[0], begun[1], body, behind))
                begun, behind = None, True
            else:
                lines.append(line)
        elif match and match["language"] is not None:
            begun, lines = (number, match["language"]), []
        elif match:
            heading, behind = match["heading"], False
        elif line.strip():
            behind = False
    assert begun is None, f"{page}: its last block has no end"
    return found


def read(page: str) -> list[Block]:
    """Read the blocks of a page of the checkout."""
    return blocks_of(page, (ROOT / page).read_text("utf-8"))


def block_with(page: str, part: str) -> Block:
    """Return the one block of a page that has a text."""
    [found] = [block for block in read(page) if part in block.text]
    return found
