"""How much of the event loop one device and one tenant may take while others want it. Time is an argument.

Nothing is refused here: the socket of a device that is over its share is not read from for a while, so
that TCP holds its sender back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

import msgspec

from engine.runtime.metrics import Metric, counter

#: Parts of the loop's time that one device, and all devices of one tenant, may take in the long run.
DEVICE_PART: Final = 0.1
TENANT_PART: Final = 0.3
#: Seconds of work that may come at once: 5,000 edits after a weekend take half of the device's.
DEVICE_BURST_S: Final = 0.1
TENANT_BURST_S: Final = 0.3
#: Others want the loop if one of them was heard within this time.
WANTED_S: Final = 1.0
#: What is owed is forgiven past this wait: one message's own long work is not paid for with minutes of
#: silence. A tenant's bound is that of ten devices with messages of 0.3 s, the longest: with 0.5 s, ten
#: devices took 62 % of the loop.
LONGEST_WAIT_S: Final = 10.0
DEVICE_LONGEST_WAIT_S: Final = 3.0


class LoopShare(msgspec.Struct):
    """The seconds of work that are not paid back yet, as of ``at_s``."""

    owed_s: float
    at_s: float

    def spend(
        self, spent_s: float, now_s: float, part: float, burst_s: float, longest_s: float = LONGEST_WAIT_S
    ) -> float:
        """Add work.

        Returns:
            The seconds to wait until no more than ``burst_s`` is owed, 0 if that is so now.
        """
        owed_s = max(0.0, self.owed_s - (now_s - self.at_s) * part) + spent_s
        self.owed_s = min(owed_s, burst_s + longest_s * part)
        self.at_s = now_s
        return max(0.0, (self.owed_s - burst_s) / part)

    def ready_s(self, part: float, burst_s: float) -> float:
        """Return when no more than ``burst_s`` is owed, if nothing is spent until then."""
        return self.at_s + max(0.0, (self.owed_s - burst_s) / part)


class Rest(NamedTuple):
    """The seconds for which nothing more of a device, and of its whole tenant, is to be committed."""

    device_s: float
    tenant_s: float


class Sharing(Protocol):
    """A device; ``share`` is None until it took a millisecond of the loop."""

    share: LoopShare | None


class LoopShares:
    """The shares of all tenants of this process, and who was heard last.

    ``charged_s`` is all work that was charged so far, to anybody; nobody paid for the rest.
    """

    def __init__(self) -> None:
        self.tenant_id = 0
        self.charged_s = 0.0
        self._others_heard_at_s = float("-inf")
        self._tenants: dict[int, LoopShare] = {}

    def metrics(self) -> Iterator[Metric]:
        """Yield the work that was charged."""
        yield counter("tidemark_loop_charged_seconds", "Loop time charged to devices", self.charged_s)

    def note_active(self, tenant_id: int, now_s: float) -> None:
        """Note that a tenant speaks. A socket calls it ten times a second at most."""
        if self.tenant_id not in (0, tenant_id):
            self._others_heard_at_s = now_s
        self.tenant_id = tenant_id

    def spend(self, tenant_id: int, device: Sharing, spent_s: float, now_s: float) -> float:
        """Charge work to a device and its tenant.

        Returns:
            The seconds for which the device's socket is not to be read from: 0 while it is within its
            share, and while no other tenant wants the loop.
        """
        if self.tenant_id != tenant_id:  # who sends nothing but pongs is heard here alone
            self.note_active(tenant_id, now_s)
        self.charged_s += spent_s
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = self._tenants[tenant_id] = LoopShare(0.0, now_s)
        if device.share is None:
            device.share = LoopShare(0.0, now_s)
        wait_s = max(
            device.share.spend(spent_s, now_s, DEVICE_PART, DEVICE_BURST_S, DEVICE_LONGEST_WAIT_S),
            tenant.spend(spent_s, now_s, TENANT_PART, TENANT_BURST_S),
        )
        return wait_s if self.wanted(now_s) else 0.0

    def rest(self, tenant_id: int, device: Sharing, now_s: float) -> Rest:
        """Return how long a device and its tenant are to rest; each 0 within its share."""
        return Rest(
            max(0.0, self.device_ready_s(device) - now_s), max(0.0, self.tenant_ready_s(tenant_id) - now_s)
        )

    def device_ready_s(self, device: Sharing) -> float:
        """Return when a device is within its own share, if it takes nothing until then."""
        return float("-inf") if device.share is None else device.share.ready_s(DEVICE_PART, DEVICE_BURST_S)

    def tenant_ready_s(self, tenant_id: int) -> float:
        """Return when a tenant is within its share, if none of its devices takes anything until then."""
        tenant = self._tenants.get(tenant_id)
        return float("-inf") if tenant is None else tenant.ready_s(TENANT_PART, TENANT_BURST_S)

    def wanted(self, now_s: float) -> bool:
        """Return whether several tenants want the loop."""
        return now_s - self._others_heard_at_s < WANTED_S
