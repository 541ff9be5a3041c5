"""Runs a plan in steps: between steps others get the event loop, and each message is timed.

A plan may pause because its rows are not visible to others before the commit. Its tenants stay locked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Final

from engine.plan.batch import Plan
from engine.runtime.ports import WorkClock

#: The event loop is given to others after this long, once the current item is done.
TIME_SLICE_S: Final = 0.005
#: The pause after each slice of an expensive plan, as a multiple of the slice: the plan gets three tenths of
#: the event loop while others want it.
_REST: Final = 7 / 3
#: The longest sum of pauses of a plan: PostgreSQL ends a transaction that is idle for two seconds.
_LONGEST_REST_S: Final = 0.7
#: A message that takes more work is refused. No record is so large that such a message could not be split.
MESSAGE_S: Final = 1.0
#: The work of a message is measured from here on, because that costs 0.5 µs a step.
_COUNTED_FROM_S: Final = 0.1


class TooLongError(Exception):
    """A message takes too long to plan.

    ``index`` is its place in the batch, ``spent_s`` the seconds of each message.
    """

    def __init__(self, index: int, spent_s: list[float]) -> None:
        super().__init__(index)
        self.index = index
        self.spent_s = spent_s


async def run_plan(
    steps: Generator[int, None, Plan],
    messages: int,
    clock: WorkClock,
    charge: Callable[[int, float], None] | None = None,
    *,
    rests: bool = False,
) -> tuple[Plan, list[float]]:
    """Plan a batch.

    Args:
        steps: ``engine.plan.batch.steps``. It yields the index of the message that a step belonged to. The
            messages since the step before shared the step, and bear equal parts of its time: they are small.
        messages: The number of messages in the batch.
        clock: Read once after each step, to charge the time and to give the event loop to others. Whether a
            message is too long is judged by processor time: no device loses a message because the host stood
            still or was busy with something else.
        charge: Called at the end of each time slice, and before a message is refused, with the index of the
            message under way and the seconds that it took so far.
        rests: Give others seven tenths of the event loop, not only one pass of it.

    Returns:
        The plan, and the seconds of each message.

    Raises:
        TooLongError: A message took more than ``MESSAGE_S`` of work and is not done.
    """
    spent_s = [0.0] * messages
    last, long, worked_s, since_s, left_s = -1, -1, 0.0, 0.0, _LONGEST_REST_S
    look = clock.monotonic_s
    began_s = slice_s = look()
    try:
        while True:
            index = next(steps)
            now_s = look()
            took_s = now_s - began_s
            if index - last > 1:
                took_s /= index - last
                spent_s[last + 1 : index] = [took_s] * (index - last - 1)
            last = index
            spent_s[index] += took_s
            if spent_s[index] > _COUNTED_FROM_S:
                worked_s = worked_s + clock.cpu_s() - since_s if index == long else 0.0
                long = index
                if worked_s > MESSAGE_S:
                    steps.close()
                    if charge is not None:
                        charge(index, spent_s[index])
                    raise TooLongError(index, spent_s)
            if now_s - slice_s >= TIME_SLICE_S:
                if charge is not None:
                    charge(index, spent_s[index])
                rest_s = min((now_s - slice_s) * _REST, left_s) if rests else 0.0
                left_s -= rest_s
                await asyncio.sleep(rest_s)
                now_s = slice_s = look()
            if index == long:
                since_s = clock.cpu_s()
            began_s = now_s
    except StopIteration as done:
        return done.value, spent_s
