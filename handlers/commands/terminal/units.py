"""Durations and sizes as people read them."""

from __future__ import annotations


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
