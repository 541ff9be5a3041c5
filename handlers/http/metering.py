"""Who pays for the time of a connection over HTTP, and how that is measured."""

from __future__ import annotations

from collections.abc import Callable

from engine.runtime.unauthenticated_scheduler import UnauthenticatedScheduler

#: Is told the seconds of work on a request, and the time.
Payer = Callable[[float, float], object]


class Bill:
    """The time of one connection that nobody paid for yet.

    The device of a request pays for all of it, its head and its answer included, once it is known. What shows
    no valid token, the ``address`` pays for; that of a proxy, which is None, pays for nothing.
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
        """Return whether nothing is to be done for the connection but in a turn."""
        return self.unauthenticated and self.address is not None and self._scheduler.waits(self.address)

    def worked(self, spent_s: float) -> None:
        """Count work."""
        self._spent_s += spent_s
        if self.unauthenticated:
            self._scheduler.worked(spent_s)
        elif self._payer is not None:  # a socket's handler waits until it is closed
            self.settle()

    def pay(self, payer: Payer) -> None:
        """Have a device pay for what was worked, and for what is until ``over``."""
        self._payer = payer
        self.settle()

    def over(self) -> None:
        """A request is over: the next one may be another device's, behind a proxy."""
        self.settle()
        self._payer = None

    def settle(self) -> None:
        """Have somebody pay now."""
        spent_s, self._spent_s = self._spent_s, 0.0
        if not spent_s:
            return
        if self._payer is not None:
            self._payer(spent_s, self._clock_s())
        elif self.address is not None:
            self._scheduler.charge(self.address, spent_s)
