"""Which devices are stalled: their syncs succeed, but their queues grow hour by hour. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

#: The last hours in which a device told its queue: with fewer, one busy hour would count.
STALLED_HOURS: Final = 3
#: Items by which the queue has to have grown since the first of these hours: a few wait at any moment.
STALLED_ITEMS: Final = 10


class DeviceHour(NamedTuple):
    """One hour of a device: its syncs that succeeded, and the last length of its queue that it told."""

    succeeded: int
    queue_depth: int


def is_stalled(hours: Sequence[DeviceHour]) -> bool:
    """Return True if a queue grew in each of the last hours, though syncs succeeded in each.

    Args:
        hours: The hours in which the device told its queue, in order.
    """
    last = hours[-STALLED_HOURS:]
    depths = [hour.queue_depth for hour in last]
    return (
        len(last) == STALLED_HOURS
        and all(hour.succeeded for hour in last)
        and all(before < after for before, after in pairwise(depths))
        and depths[-1] - depths[0] >= STALLED_ITEMS
    )
