"""The offset of a device's clock, from the times that its messages carry.

A message carries the device's time ``c``. The server has received it at its own time ``now``, at most
``delay`` after it was sent. So the server's clock is ahead of the device's by at least ``now - c - delay``
and at most ``now - c``. Each message gives such an interval, and the true offset lies in all of them, as long
as nobody sets the clock.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

_SECOND_US: Final = 1_000_000
#: One interval is kept for each quarter of an hour, so that a device costs at most 600 bytes.
QUARTER_US: Final = 900 * _SECOND_US
#: Intervals are kept for an hour: of the current quarter and of three before it.
_QUARTERS: Final = 4


class _Quarter(NamedTuple):
    """The interval of the offset by all messages of one quarter of an hour; ``number`` counts from 1970."""

    number: int
    min_offset_us: int
    max_offset_us: int


class DeviceClock(msgspec.Struct, gc=False):
    """The intervals that one worker has of one device's clock, the latest last."""

    quarters: tuple[_Quarter, ...] = ()

    def observe(self, device_us: int, now_us: int, delay_us: int) -> int:
        """Add the interval of one message.

        Args:
            device_us: The device's time when it sent the message. A time in whole seconds may be rounded
                down.
            now_us: The server's time after it received the whole message.
            delay_us: The longest time that the message may have taken.

        Returns:
            The server's clock minus the device's, in microseconds: of all possible offsets the one nearest to
            0, so that a clock that is right is never corrected, on any line.
        """
        min_offset_us, max_offset_us = now_us - device_us - delay_us, now_us - device_us
        if device_us % _SECOND_US == 0:
            min_offset_us -= _SECOND_US
        number = now_us // QUARTER_US
        # An interval of a later quarter is from before the server's own clock was set back.
        known = [one for one in self.quarters if number - _QUARTERS < one.number <= number]
        if any(one.max_offset_us < min_offset_us or one.min_offset_us > max_offset_us for one in known):
            known = []  # the device's clock was set
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
