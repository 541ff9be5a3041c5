"""Writes the checklist of ``run.py doctor --deployment`` into docs/checklist.md."""

from __future__ import annotations

from typing import Final

from engine.operate.checklist import CHECKLIST

BEGIN: Final = "<!-- checklist: written by python -m docs.generate -->\n"
END: Final = "<!-- end of checklist -->\n"


def with_checklist(text: str) -> str:
    """Return the page with its table of the checklist made anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    lines = [
        "| | point | what is wanted | how it is checked |",
        "|---|---|---|---|",
        *(
            f"| {number} | {point.name} | {point.wanted} | {point.looked} |"
            for number, point in enumerate(CHECKLIST, 1)
        ),
    ]
    return head + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + tail
