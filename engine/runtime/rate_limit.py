"""Who may send how much, and what is refused when more comes than can be stored. Time is an argument."""

from __future__ import annotations

import math
import random
from typing import Final

import msgspec

#: From here on a message counts for more than one; those of ordinary devices stay far below.
EXPENSIVE_S: Final = 0.01
#: So many bytes of a message count for one message more: 1 KB that inflates to 1 MiB counts for 17.
COUNTED_BYTES: Final = 1 << 16
_MINUTE_S: Final = 60.0


class TokenBucket(msgspec.Struct):
    """``tokens`` as of ``at_s``; a full bucket holds one minute's worth.

    ``taken`` counts what a device sent in its tenant's ``minute`` (``TenantRates``).
    """

    tokens: float
    at_s: float
    minute: int = -1
    taken: int = 0

    def take(self, per_minute: int, now_s: float, most: float | None = None) -> int:
        """Take one token of ``most``; return 0, or the milliseconds until there is one."""
        if most is None:
            most = per_minute
        tokens = self.tokens + (now_s - self.at_s) * per_minute / 60.0
        self.at_s = now_s
        if tokens > most:
            tokens = float(most)
        if tokens >= 1.0:
            self.tokens = tokens - 1.0
            return 0
        self.tokens = tokens
        return max(1, math.ceil((1.0 - tokens) * 60_000 / per_minute))

    def weigh(self, size_bytes: int) -> None:
        """Take a further token for each ``COUNTED_BYTES`` of a message, as they are once inflated."""
        self.tokens -= size_bytes // COUNTED_BYTES

    def charge(self, spent_s: float) -> None:
        """Take a token for each millisecond that a laborious message kept everybody waiting."""
        if spent_s > EXPENSIVE_S:
            self.tokens -= spent_s * 1000


class _TenantRate(msgspec.Struct):
    """A tenant's bucket, and how many devices spoke in its minute, which has a number, and in the last."""

    bucket: TokenBucket
    ends_s: float
    minute: int = 0
    devices: int = 0
    devices_before: int = 0


class TenantRates:
    """A bucket for each tenant, for all of its devices on this process together.

    An empty bucket refuses no device that sent less than its equal part in this minute, so that one device
    takes nothing from the others. So a tenant may get twice its rate while its devices change places.
    """

    def __init__(self, messages_per_minute: int) -> None:
        self._per_minute = messages_per_minute
        self._tenants: dict[int, _TenantRate] = {}

    def take(self, tenant_id: int, device: TokenBucket, now_s: float) -> int:
        """Take one token for a device; return 0, or the milliseconds until there is one."""
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            bucket = TokenBucket(float(self._per_minute), now_s)
            tenant = self._tenants[tenant_id] = _TenantRate(bucket, now_s + _MINUTE_S)
        if now_s >= tenant.ends_s:
            tenant.ends_s = now_s + _MINUTE_S
            tenant.minute += 1
            tenant.devices_before, tenant.devices = tenant.devices, 0
        if device.minute != tenant.minute:
            device.minute, device.taken = tenant.minute, 0
            tenant.devices += 1
        wait_ms = tenant.bucket.take(self._per_minute, now_s)
        if wait_ms and (device.taken + 1) * max(tenant.devices, tenant.devices_before) > self._per_minute:
            return wait_ms
        device.taken += 1
        return 0


def retry_soon_ms() -> int:
    """Return when to come again after something that is over in a moment, so that not all come at once."""
    return random.randint(500, 1500)


def retry_later_ms() -> int:
    """Return when to come again after something that a person has to mend, such as a full disk.

    A minute or so: each try costs the device's line a chunk, and a disk does not empty itself in a second.
    """
    return random.randint(45_000, 90_000)
