"""Work that is parted into steps, as generators: between two of them others may have the loop."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

_Result = TypeVar("_Result")


def run_steps(steps: Generator[object, None, _Result]) -> _Result:
    """Do all steps at a stretch, and return what they come to."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: _Result = done.value
            return result
