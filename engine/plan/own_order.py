"""The order of one device's own changes: by ``at`` as the device sent it.

A device's clock may be wrong, and the server's estimate of its offset may change from one message to the
next. So the corrected ``at`` orders changes of different devices only. The changes of one device are ordered
by its own clock.
"""

from __future__ import annotations

from engine.model.rows import Record
from engine.plan.work import Change
from engine.wire.timestamps import EARLIEST_US


def is_own(row: Record, device_id: str) -> bool:
    """Return whether this device wrote the current version, and not a person who settled a conflict."""
    return row.device_id == device_id and row.chain_from <= row.version


def follows(item: Change, row: Record) -> bool:
    """Return whether an item comes after the current version, which its own device wrote.

    At the same time, it does. So does an item without ``at``. A row without ``sent_at_us`` was written by an
    earlier release, and is compared by its corrected time.
    """
    if not item.dated:
        return True
    if row.sent_at_us is None:
        return item.at_us >= row.at_us
    return item.sent_at_us >= row.sent_at_us


def sent_at_us_to_store(item: Change, row: Record | None, device_id: str, *, won: bool = False) -> int:
    """Return the ``sent_at_us`` of a new version, which orders the device's later changes.

    An item without ``at`` leaves it unchanged, because the server's clock cannot be compared with the
    device's. If such an item is made on the current version, the order starts again: the device's clock may
    have been set since. A change that won a conflict (``won``) with a later version of its own device
    does not set the time back.
    """
    if item.dated and not won:
        return item.sent_at_us
    before_us = None
    if row is not None and item.base != row.version and is_own(row, device_id):
        before_us = row.sent_at_us
    if not item.dated:
        return EARLIEST_US if before_us is None else before_us
    return item.sent_at_us if before_us is None else max(before_us, item.sent_at_us)
