"""What a person who waits is told on stderr: sentences, and on a terminal a line that is written anew."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Final

#: Goes to the beginning of the line and clears it.
_CLEAR: Final = "\r\x1b[K"
#: What the live line begins with, and when the whole run is expected to end; of one scenario nothing.
_whole: list[tuple[str, float]] = []


def progress(sentence: str) -> None:
    """Write what begins now."""
    sys.stderr.write(f"{_CLEAR if sys.stderr.isatty() else ''}{sentence}\n")
    sys.stderr.flush()


def part_begins(name: str, place: int, parts: int, part_s: float, left_s: float) -> None:
    """Tell which of several scenarios begins, how long it takes, and how long is left with it."""
    where = f"{place} of {parts}: {name}"
    _whole[:] = [(where, perf_counter() + left_s)]
    progress(f"{where}, about {_time(part_s)} of the {_time(left_s)} that are left")


def live(sentence: str) -> None:
    """Write what goes on, into the last line of a terminal; without a terminal nothing."""
    if sys.stderr.isatty():
        heads = [f"{where}, {_time(end_s - perf_counter())} left" for where, end_s in _whole]
        sys.stderr.write(f"{_CLEAR}{' | '.join([*heads, sentence])}")
        sys.stderr.flush()


def over() -> None:
    """Clear the live line."""
    _whole.clear()
    if sys.stderr.isatty():
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()


def _time(left_s: float) -> str:
    left_s = max(0.0, left_s)
    return f"{left_s:.0f} s" if left_s < 100 else f"{left_s / 60:.0f} min"
