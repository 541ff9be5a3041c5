"""A batch is planned in steps: the loop is given back between them, and its messages' times are read.

Nothing of a batch is seen by others before it is committed, so that it may pause. Its tenants stay locked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Final

from engine.batch import Plan
from engine.ports import Clock

#: After so long others get the loop, once the item under way is done.
TURN_S: Final = 0.005
#: A message that takes longer to plan is refused: no record of it is so large that it could not be parted.
MESSAGE_S: Final = 1.0
#: A step counts for no more than this towards ``MESSAGE_S``. No item takes as long: it is the host that stood
#: still, and no device is to lose a message for that.
_LONGEST_STEP_S: Final = 0.1


class TooLongError(Exception):
    """A message takes too long to plan: which of the batch, and what each took until then."""

    def __init__(self, index: int, spent_s: list[float]) -> None:
        super().__init__(index)
        self.index = index
        self.spent_s = spent_s


async def planned(
    steps: Generator[int, None, Plan], messages: int, clock: Clock
) -> tuple[Plan, list[float]]:
    """Plan a batch of so many messages.

    Args:
        steps: Of ``engine.batch.steps``; each gives the index of the message that it was of.
        messages: How many there are.
        clock: Read once after each step.

    Returns:
        The plan, and the seconds that each message took.

    Raises:
        TooLongError: One message took more than ``MESSAGE_S``.
    """
    spent_s = [0.0] * messages
    counted_s, counted = 0.0, -1
    began_s = turn_s = clock.monotonic_s()
    while True:
        try:
            index = next(steps)
        except StopIteration as done:
            return done.value, spent_s
        now_s = clock.monotonic_s()
        took_s = now_s - began_s
        spent_s[index] += took_s
        if index != counted:
            counted_s, counted = 0.0, index
        counted_s += min(took_s, _LONGEST_STEP_S)
        if counted_s > MESSAGE_S:
            steps.close()
            raise TooLongError(index, spent_s)
        if now_s - turn_s >= TURN_S:
            await asyncio.sleep(0)
            now_s = turn_s = clock.monotonic_s()
        began_s = now_s
