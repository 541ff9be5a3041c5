"""The order of one device's own changes: by ``at`` as the device sent it.

A device's clock may be wrong, and what the server believes of it may change from one message to the next. So
the corrected ``at`` orders changes of different devices alone. Those of one device follow its own clock.
"""

from __future__ import annotations

from engine.model.rows import Record
from engine.plan.work import Change
from engine.wire.timestamps import EARLIEST_US


def is_own(row: Record, device_id: str) -> bool:
    """Return whether the version that stands was written by this device, and not by a person's decision."""
    return row.device_id == device_id and row.chain_from <= row.version


def follows(item: Change, row: Record) -> bool:
    """Return whether an item comes after the version of its own device that stands; a tie does.

    An item without ``at`` comes after whatever came before it. Of a row without ``sent_at_us``, which an
    earlier release wrote, only the corrected time is known.
    """
    if not item.dated:
        return True
    if row.sent_at_us is None:
        return item.at_us >= row.at_us
    return item.sent_at_us >= row.sent_at_us


def kept_sent_at_us(item: Change, row: Record | None, device_id: str, *, settled: bool = False) -> int:
    """Return the time that is kept with a new version, for the order of the device's later changes.

    An item without ``at`` leaves it as it was: the server's clock would be no measure for the device's. On
    the version that stands it begins anew, as the device's clock may have been set since. What won a
    conflict (``settled``) with a later version of its own device does not set it back.
    """
    if item.dated and not settled:
        return item.sent_at_us
    before_us = None
    if row is not None and item.base != row.version and is_own(row, device_id):
        before_us = row.sent_at_us
    if not item.dated:
        return EARLIEST_US if before_us is None else before_us
    return item.sent_at_us if before_us is None else max(before_us, item.sent_at_us)
