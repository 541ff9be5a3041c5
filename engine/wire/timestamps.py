"""Instants as integers, microseconds since 1970-01-01 UTC, and as RFC 3339 text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_WITHOUT_ZONE = datetime(1970, 1, 1)  # noqa: DTZ001  # of the text, which ends with its zone
_MICROSECOND = timedelta(microseconds=1)

#: 0001-01-01T00:00:00Z, the earliest instant that can be written as text.
EARLIEST_US = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND


def to_us(instant: datetime) -> int:
    """Return the microseconds since 1970-01-01 UTC of an aware datetime."""
    delta = instant - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def to_text(instant_us: int) -> str:
    """Return RFC 3339 text in UTC, with microseconds only if there are any."""
    # A page has 500 of them. By position, and without a zone to take off again, it costs half.
    return (_EPOCH_WITHOUT_ZONE + timedelta(0, 0, instant_us)).isoformat() + "Z"


def corrected_us(sent_us: int, clock_offset_us: int, now_us: int) -> int:
    """Return a device's instant corrected by its clock offset, at most the server's now."""
    at_us = sent_us + clock_offset_us
    if at_us > now_us:
        return now_us
    if at_us < EARLIEST_US:
        return EARLIEST_US
    return at_us
