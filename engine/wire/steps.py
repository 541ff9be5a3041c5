"""Work that is divided into steps, as generators: between two steps the event loop may be given to others."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

_Result = TypeVar("_Result")
_Number = TypeVar("_Number")


def run_steps(steps: Generator[object, None, _Result]) -> _Result:
    """Run all steps without a pause and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: _Result = done.value
            return result


def numbered(steps: Generator[object, None, _Result], number: _Number) -> Generator[_Number, None, _Result]:
    """Run steps, yielding ``number`` after each of them, and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: _Result = done.value
            return result
        yield number
