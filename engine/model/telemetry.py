"""Telemetry: what a device counted itself in an hour. It is kept apart from all that the server measures.

A histogram comes as pairs of bucket and count, in the buckets of ``engine.model.minutes``. No encoded
histogram is decoded: 52 bytes of one can stand for 82 MiB.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from engine.model.commit_counts import HOUR_US
from engine.model.minutes import DURATION_BOUNDS_US
from engine.wire.codec import Codec, sentence
from engine.wire.errors import SyncError
from engine.wire.messages import Telemetry
from engine.wire.timestamps import to_us

MAX_COUNTERS: Final = 50
MAX_HISTOGRAMS: Final = 10
#: Of ``counters`` and ``histograms`` as they are sent. Ten histograms of 60 buckets take 5 KB.
MAX_BYTES: Final = 8192
#: Messages of one device about one hour: an app that starts again may send what it counted before and after.
MAX_PARTS: Final = 4
#: Names of counters and histograms, of all devices of a tenant and of those that one device brought up.
MAX_TENANT_NAMES: Final = 500
MAX_DEVICE_NAMES: Final = 100
#: An hour may have begun so long ago. A device that was off over a week of holidays tells less, not nothing.
MAX_AGE_US: Final = 7 * 24 * HOUR_US
#: A clock may be so far ahead.
MAX_AHEAD_US: Final = HOUR_US
#: Every integer up to this is exact as a double.
_MOST_VALUE: Final = 2**53
_MOST_COUNT: Final = 2**31 - 1
_BUCKETS: Final = len(DURATION_BOUNDS_US) + 1
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)


#: What makes a message the same: tenant, hour, device and key.
Identity = tuple[int, int, str, str]


class TelemetryRow(NamedTuple):
    """A checked ``telemetry``, with names in order.

    Of the histograms' pairs ``places`` has the place of the histogram in ``histograms``, from 1.
    ``key_hash`` is a hash of the key, 32 hex digits.
    """

    tenant_id: int
    device_id: str
    hour: int
    key_hash: str
    counters: tuple[str, ...]
    values: tuple[int, ...]
    histograms: tuple[str, ...]
    places: tuple[int, ...]
    buckets: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def identity(self) -> Identity:
        """What makes it the same message."""
        return self.tenant_id, self.hour, self.device_id, self.key_hash

    @property
    def size(self) -> int:
        """How many names and pairs it has: an ordinary message has 60, the largest about 1000."""
        return len(self.counters) + len(self.histograms) + len(self.buckets)


def telemetry_row(
    message: Telemetry, codec: Codec, tenant_id: int, device_id: str, now_us: int
) -> TelemetryRow:
    """Check a message.

    Args:
        message: The message.
        codec: Its encoding.
        tenant_id: The tenant of the device.
        device_id: The device.
        now_us: The server's time.

    Raises:
        SyncError: ``invalid_message`` or ``too_large``, with the name of the field.
    """
    hour = _hour(message, now_us)
    if len(message.counters) + len(message.histograms) > MAX_BYTES:
        raise SyncError(
            "too_large",
            f"counters and histograms: the limit is {MAX_BYTES} bytes: send some of them under another key",
        )
    counters = _decoded("counters", message.counters, codec.counters, MAX_COUNTERS)
    histograms = _decoded("histograms", message.histograms, codec.histograms, MAX_HISTOGRAMS)
    names = sorted(counters)
    values = tuple(_whole(f"counters.{name}", counters[name], _MOST_VALUE) for name in names)
    shown = sorted(histograms)
    pairs = [
        (place, bucket, count)
        for place, name in enumerate(shown, 1)
        for bucket, count in sorted(_filled(name, histograms[name]).items())
    ]
    places, buckets, counts = zip(*pairs, strict=True) if pairs else ((), (), ())
    key_hash = hashlib.blake2b(message.key.encode(), digest_size=16).hexdigest()
    return TelemetryRow(
        tenant_id, device_id, hour, key_hash, tuple(names), values, tuple(shown), places, buckets, counts
    )


def _hour(message: Telemetry, now_us: int) -> int:
    """Return the hour, counted from 1970."""
    start_us = to_us(message.hour)
    hour, rest_us = divmod(start_us, HOUR_US)
    if rest_us:
        raise SyncError("invalid_message", "hour: the beginning of an hour in UTC is required")
    if start_us > now_us + MAX_AHEAD_US:
        raise SyncError("invalid_message", "hour: it is yet to come: set the device's clock")
    if start_us < now_us - MAX_AGE_US:
        raise SyncError("invalid_message", "hour: it began more than 7 days ago: delete it on the device")
    return hour


def _decoded(field: str, raw: msgspec.Raw, decoder: Any, most: int) -> Mapping[str, Any]:
    if not raw:
        return {}
    try:
        found: dict[str, Any] = decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise SyncError("invalid_message", f"{field}: {sentence(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):  # raw bytes are not looked at before
        raise SyncError("invalid_message", f"{field}: an object of names is required") from None
    if len(found) > most:
        raise SyncError("too_large", f"{field}: the limit is {most} names: send fewer")
    for name in found:
        if not _NAME.fullmatch(name):
            raise SyncError(
                "invalid_message",
                f"{field}: a name has 1 to 64 characters of A-Z a-z 0-9 _ . - and begins with a letter",
            )
    return found


def _filled(name: str, pairs: list[tuple[float, float]]) -> dict[int, int]:
    """Return the counts of a histogram by bucket. Counts of one bucket add up."""
    filled: dict[int, int] = {}
    field = f"histograms.{name}"
    for told_bucket, told_count in pairs:
        bucket = _whole(field, told_bucket, _BUCKETS - 1)
        if count := _whole(field, told_count, _MOST_COUNT):
            filled[bucket] = filled.get(bucket, 0) + count
    if filled:
        _whole(field, max(filled.values()), _MOST_COUNT)
    return filled


def _whole(field: str, number: float, most: int) -> int:
    if 0 <= number <= most and (whole := int(number)) == number:
        return whole
    raise SyncError("invalid_message", f"{field}: whole numbers from 0 to {most} are required")
