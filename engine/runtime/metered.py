"""What a coroutine does on the event loop, measured between its waits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


@coroutine
def metered(
    work: Coroutine[Any, Any, _Result], clock_s: Callable[[], float], spent: Callable[[float], object]
) -> Generator[Any, Any, _Result]:
    """Run a coroutine; each stretch between two of its waits costs 0.3 µs more.

    Args:
        work: Whatever it awaits; other tasks are not measured with it.
        clock_s: A monotonic clock.
        spent: Is told the seconds of each stretch.

    Returns:
        What ``work`` returns. Raises what it raises.
    """
    step: Callable[[Any], Any] = work.send
    value: Any = None
    while True:
        began_s = clock_s()
        try:
            waited_for = step(value)
        except StopIteration as done:
            result: _Result = done.value
            return result
        finally:
            value = None  # an error that is kept would keep its request
            spent(clock_s() - began_s)
        try:
            value = yield waited_for
            step = work.send
        except GeneratorExit:
            work.close()
            raise
        except BaseException as error:  # it is raised where the coroutine waits
            step, value = work.throw, error
