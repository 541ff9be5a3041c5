"""Durations, sizes and periods as people read them."""

from __future__ import annotations

from typing import Final

from engine.model.commit_counts import Unit

#: The characters of a period's beginning that name it.
_CHARS: Final[dict[Unit, int]] = {"hour": 16, "day": 10}


def duration(duration_ms: float | None) -> str:
    """Return a duration in milliseconds; nothing for None."""
    return "" if duration_ms is None else f"{duration_ms:,.1f} ms"


def size(size_bytes: float) -> str:
    """Return a size in the unit in which it has at most three digits before the point."""
    for unit in ("B", "KB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def period(start: str | None, by: Unit) -> str:
    """Return the hour or day that begins at a time; ``all`` for None, which is the sum of all periods."""
    return "all" if start is None else start[: _CHARS[by]].replace("T", " ")
