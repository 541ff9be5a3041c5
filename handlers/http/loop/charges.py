"""Charges devices for the time of the event loop that their messages take."""

from __future__ import annotations

import msgspec

from engine.cache.device_health import Device
from engine.runtime.loop_scheduler import LoopScheduler
from engine.runtime.loop_share import LoopShares, Rest
from engine.runtime.ports import Clock
from handlers.http.loop.watch import HELD_S, LoopWatch


class LoopCharges(msgspec.Struct, frozen=True):
    """The shares and slots of the loop, and the log of work that held it."""

    shares: LoopShares
    scheduler: LoopScheduler
    watch: LoopWatch
    clock: Clock

    def charge(self, device: Device, kind: str, spent_s: float, now_s: float) -> float:
        """Charge a device for work, and log work that others felt.

        Args:
            device: The device that caused the work.
            kind: A word for the log: the type of the message, or the request.
            spent_s: How long the loop was busy with it.
            now_s: The monotonic clock.

        Returns:
            The seconds until the device and its tenant are within their shares again; 0 if they are.
        """
        if spent_s > HELD_S:
            self.watch.log_held(spent_s, *device.key, kind)
        return self.shares.spend(device.key[0], device, spent_s, now_s)

    def charge_planning(self, device: Device, spent_s: float, message_s: float = 0.0) -> Rest | None:
        """Charge a device for the planning of its messages, as ``engine.commit.queue.Charge`` says."""
        device.bucket.charge(message_s)
        now_s = self.clock.monotonic_s()
        if not self.charge(device, "planning", spent_s, now_s):
            return None
        return self.shares.rest(device.key[0], device, now_s)
