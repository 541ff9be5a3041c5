"""``docs/outages.md`` as data: the alerts of each cause, and the commands that find and mend it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from tests.book.blocks import blocks_of

PAGE: Final = Path(__file__).parents[3] / "docs" / "outages.md"
#: The parts of each cause, in their order.
PARTS: Final = ("Symptom", "Alert", "Diagnosis", "Root cause", "Recovery")


class Section(NamedTuple):
    """A cause as the page has it. ``alerts`` are rules of Prometheus, the others are texts of blocks."""

    title: str
    parts: dict[str, str]
    alerts: tuple[str, ...]
    diagnosis: str
    recovery: str


def first_minutes() -> str:
    """The commands that the page runs first in any outage."""
    text = PAGE.read_text("utf-8").partition("\n## The first five minutes\n")[2].partition("\n## ")[0]
    return _blocks(text)


def sections() -> dict[str, Section]:
    """The causes by their names, such as ``database_down``, in the order of the page."""
    _, _, causes = PAGE.read_text("utf-8").partition("\n## Causes\n")
    causes = re.split(r"^## ", causes, flags=re.MULTILINE)[0]
    found = [_section(text) for text in re.split(r"^### ", causes, flags=re.MULTILINE)[1:]]
    return {one.title.lower().replace(" ", "_"): one for one in found}


def _section(text: str) -> Section:
    title, _, rest = text.partition("\n")
    _, *cut = re.split(r"^\*\*([A-Z][a-z ]+)\.\*\*", rest, flags=re.MULTILINE)
    parts = dict(zip(cut[::2], cut[1::2], strict=True))
    assert tuple(parts) == PARTS, f"{title} has {', '.join(parts)} and not {', '.join(PARTS)}"
    alerts = re.findall(r"\[(Tidemark\w+)\]\(runbook\.md#", parts["Alert"])
    return Section(title, parts, tuple(alerts), _blocks(parts["Diagnosis"]), _blocks(parts["Recovery"]))


def _blocks(text: str) -> str:
    return "".join(block.text for block in blocks_of(PAGE.name, text) if block.language == "sh")
