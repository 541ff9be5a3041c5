"""Tables and counts, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence


def counts(found: Mapping[str, int]) -> str:
    """Write counts by name."""
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items())) or "none"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lay out columns: the first to the left, the others too, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
