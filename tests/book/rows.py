"""Tables of the pages: their rows, cell by cell."""

from __future__ import annotations


def table(text: str, first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column has that heading, cell by cell, without backticks."""
    lines = text[text.index(f"| {first_heading} |") :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows
