"""Writes the checklist of ``run.py doctor --deployment`` into docs/checklist.md."""

from __future__ import annotations

from docs.parts import with_part
from engine.operate.checklist import CHECKLIST


def with_checklist(text: str) -> str:
    """Return the page with its table of the checklist made anew."""
    lines = [
        "| | point | what is wanted | how it is checked |",
        "|---|---|---|---|",
        *(
            f"| {number} | {point.name} | {point.wanted} | {point.looked} |"
            for number, point in enumerate(CHECKLIST, 1)
        ),
    ]
    return with_part(text, "checklist", "\n".join(lines) + "\n")
