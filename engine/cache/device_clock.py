"""How far a device's clock is off: from what it showed when messages were sent, on lines fast and slow.

A message that shows ``c`` and has come by the server's time ``now`` was sent at most ``way`` ago. So the
server's clock is ahead of the device's by at least ``now - c - way`` and at most ``now - c``. Each message
gives such an interval, and the truth lies in all of them, as long as nobody sets the clock.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

_SECOND_US: Final = 1_000_000
#: Intervals are kept by the quarter of an hour in which they came, so that a device costs 600 bytes at most.
QUARTER_US: Final = 900 * _SECOND_US
#: The last hour: the quarter under way and those before it.
_QUARTERS: Final = 4


class _Quarter(NamedTuple):
    """Where the difference lies by all that came in one quarter of an hour; ``number`` counts from 1970."""

    number: int
    min_offset_us: int
    max_offset_us: int


class DeviceClock(msgspec.Struct, gc=False):
    """What one worker knows of one device's clock."""

    quarters: tuple[_Quarter, ...] = ()

    def observe(self, device_us: int, now_us: int, delay_us: int) -> int:
        """Take in what the device's clock showed when it sent a message.

        Args:
            device_us: The device's time. One of whole seconds may be up to a second more in truth.
            now_us: The server's time after the whole message has come.
            delay_us: The most that the message may have been under way.

        Returns:
            The server's clock less the device's, in microseconds: of all differences that are possible the
            one nearest to 0, so that a clock that is right stays right on any line.
        """
        min_offset_us, max_offset_us = now_us - device_us - delay_us, now_us - device_us
        if device_us % _SECOND_US == 0:
            min_offset_us -= _SECOND_US
        number = now_us // QUARTER_US
        # One of a quarter to come is from before the server's own clock was set back.
        known = [one for one in self.quarters if number - _QUARTERS < one.number <= number]
        if any(one.max_offset_us < min_offset_us or one.min_offset_us > max_offset_us for one in known):
            known = []  # the clock was set
        if known and known[-1].number == number:
            last = known.pop()
            known.append(
                _Quarter(
                    number, max(last.min_offset_us, min_offset_us), min(last.max_offset_us, max_offset_us)
                )
            )
        else:
            known.append(_Quarter(number, min_offset_us, max_offset_us))
        self.quarters = tuple(known)
        min_offset_us = max(one.min_offset_us for one in known)
        max_offset_us = min(one.max_offset_us for one in known)
        return max(min_offset_us, min(max_offset_us, 0))
