"""A batch is planned in steps: the loop is given back between them, and its messages' times are read.

Nothing of a batch is seen by others before it is committed, so that it may pause. Its tenants stay locked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Final

from engine.plan.batch import Plan
from engine.runtime.ports import WorkClock

#: After so long others get the loop, once the item under way is done.
TURN_S: Final = 0.005
#: Where others want the loop, what is laborious rests after each turn: it takes three tenths of the loop.
_REST: Final = 7 / 3
#: It rests for so long altogether: PostgreSQL ends a transaction that is idle for two seconds.
_LONGEST_REST_S: Final = 0.7
#: A message that works longer is refused: no record of it is so large that it could not be parted.
MESSAGE_S: Final = 1.0
#: From here on the work of a message is counted, which costs 0.5 µs a step.
_COUNTED_FROM_S: Final = 0.1


class TooLongError(Exception):
    """A message takes too long to plan: which of the batch, and what each took until then."""

    def __init__(self, index: int, spent_s: list[float]) -> None:
        super().__init__(index)
        self.index = index
        self.spent_s = spent_s


async def planned(
    steps: Generator[int, None, Plan], messages: int, clock: WorkClock, *, rests: bool = False
) -> tuple[Plan, list[float]]:
    """Plan a batch of so many messages.

    Args:
        steps: Of ``engine.plan.batch.steps``; each gives the index of the message that it was of. Messages
        that
            are passed over shared the step, and bear equal parts of it: they are small.
        messages: How many there are.
        clock: Read once after each step. The time is charged, and others get the loop by it. Whether a
            message is too long is told by the processor's time: no device is to lose a message because the
            host stood still or was busy with other things.
        rests: Others get seven tenths of the loop, not one turn of it.

    Returns:
        The plan, and the seconds that each message took.

    Raises:
        TooLongError: One message took more than ``MESSAGE_S`` of work, and there is more of it.
    """
    spent_s = [0.0] * messages
    last, long, worked_s, since_s, left_s = -1, -1, 0.0, 0.0, _LONGEST_REST_S
    look = clock.monotonic_s
    began_s = turn_s = look()
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
                    raise TooLongError(index, spent_s)
            if now_s - turn_s >= TURN_S:
                rest_s = min((now_s - turn_s) * _REST, left_s) if rests else 0.0
                left_s -= rest_s
                await asyncio.sleep(rest_s)
                now_s = turn_s = look()
            if index == long:
                since_s = clock.cpu_s()
            began_s = now_s
    except StopIteration as done:
        return done.value, spent_s
