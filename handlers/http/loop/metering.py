"""Charges the loop time of a connection over HTTP to its device, or to its address without a valid token."""

from __future__ import annotations

from collections.abc import Callable

from engine.runtime.unauthenticated_scheduler import UnauthenticatedScheduler

#: Called with the seconds of work on a request, and the monotonic time.
Payer = Callable[[float, float], object]


class Bill:
    """The time of one connection that is not charged yet.

    A request is charged to its device as a whole, with its head and its answer, once the device is known.
    Work without a valid token is charged to the ``address``; a trusted proxy, whose address is None, is not
    charged.
    """

    __slots__ = ("_clock_s", "_payer", "_scheduler", "_spent_s", "address", "unauthenticated")

    def __init__(self, scheduler: UnauthenticatedScheduler, clock_s: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._clock_s = clock_s
        self._payer: Payer | None = None
        self._spent_s = 0.0
        self.address: str | None = None
        self.unauthenticated = True

    def begin(self, address: str | None) -> None:
        """Note where the connection came from."""
        self.address = address
        self.unauthenticated = address is not None

    def waits(self) -> bool:
        """Return whether the connection has to wait for a turn of the loop."""
        return self.unauthenticated and self.address is not None and self._scheduler.waits(self.address)

    def worked(self, spent_s: float) -> None:
        """Count work."""
        self._spent_s += spent_s
        if self.unauthenticated:
            self._scheduler.worked(spent_s)
        elif self._payer is not None:  # a socket's handler waits until it is closed
            self.settle()

    def charge_to(self, payer: Payer) -> None:
        """Charge a device for the work so far, and for all work until ``over``."""
        self._payer = payer
        self.settle()

    def over(self) -> None:
        """End a request. Behind a proxy the next one may be another device's."""
        self.settle()
        self._payer = None

    def settle(self) -> None:
        """Charge the work so far."""
        spent_s, self._spent_s = self._spent_s, 0.0
        if not spent_s:
            return
        if self._payer is not None:
            self._payer(spent_s, self._clock_s())
        elif self.address is not None:
            self._scheduler.charge(self.address, spent_s)
