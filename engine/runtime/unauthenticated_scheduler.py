"""Turns of the event loop for connections that have shown no valid token: a bounded part of each pass.

The time of a connection is charged to its device as soon as the device is known. An address pays only for the
rest: heads that never end, refused heads, connections that send nothing. An address over its share waits. All
unauthenticated connections wait once a pass of the loop has spent ``PASS_S`` on them. None is refused here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from engine.runtime.loop_scheduler import Handle, Loop, Slot
from engine.runtime.loop_share import DEVICE_BURST_S, DEVICE_LONGEST_WAIT_S, DEVICE_PART, LoopShare

#: Work on unauthenticated connections in one pass of the loop. A handshake takes a millisecond. 10,000 phones
#: that come back are served as fast as without turns: after a pass without other work comes the next at once.
PASS_S: Final = 0.002
#: Of addresses that owe something, so many are remembered before those that paid are looked for.
REMEMBERED_ADDRESSES: Final = 1024


class UnauthenticatedScheduler:
    """Gives turns to connections without a valid token, to one address after the other.

    An address that waits stands once in ``_due`` or, while it owes too much, in ``_later`` by when it is due.
    So a turn costs the same, however many addresses wait.

    ``charged_s`` is all work that was charged so far, to any address.
    """

    def __init__(self, clock_s: Callable[[], float], loop: Loop | None = None) -> None:
        self._clock_s = clock_s
        self._loop = loop
        self._shares: dict[str, LoopShare] = {}
        self._waiting: dict[str, deque[Slot]] = {}
        self._due: deque[str] = deque()
        self._later: list[tuple[float, str]] = []
        self._spent_s = 0.0  # in this pass of the loop
        self._passing = False
        self._call: Handle | None = None
        self._call_at_s = 0.0
        self.charged_s = 0.0

    def waits(self, address: str) -> bool:
        """Return whether a connection of an address has to wait for a turn."""
        if self._waiting or self._spent_s > PASS_S:
            return True
        share = self._shares.get(address)
        return share is not None and _ready_s(share) > self._clock_s()

    def take(self, address: str, work: Callable[[], None]) -> Slot:
        """Have ``work`` called in a turn. It says with ``worked`` what it took."""
        slot = Slot(work)
        queue = self._waiting.get(address)
        if queue is None:
            self._waiting[address] = deque((slot,))
            self._due.append(address)
        else:
            queue.append(slot)
        self._call_when_due()
        return slot

    def worked(self, spent_s: float) -> None:
        """Count work in this pass of the loop."""
        self._spent_s += spent_s
        if not self._passing:
            self._passing = True
            self._of_loop().call_soon(self._pass)

    def charge(self, address: str, spent_s: float) -> None:
        """Charge an address for work that came to nothing."""
        now_s = self._clock_s()
        self.charged_s += spent_s
        share = self._shares.get(address)
        if share is None:
            if len(self._shares) >= REMEMBERED_ADDRESSES:
                self._shares = {
                    name: share
                    for name, share in self._shares.items()
                    if share.owed_s > (now_s - share.at_s) * DEVICE_PART
                }
            share = self._shares[address] = LoopShare(0.0, now_s)
        share.spend(spent_s, now_s, DEVICE_PART, DEVICE_BURST_S, DEVICE_LONGEST_WAIT_S)

    def _of_loop(self) -> Loop:
        return self._loop or asyncio.get_running_loop()

    def _pass(self) -> None:
        self._passing = False
        self._spent_s = 0.0

    def _call_when_due(self) -> None:
        if not self._waiting:
            return
        now_s = self._clock_s()
        due_s = now_s if self._due else max(now_s, self._later[0][0])
        if self._call is not None:
            if self._call_at_s <= due_s:
                return
            self._call.cancel()
        self._call_at_s = due_s
        loop = self._of_loop()
        self._call = loop.call_later(due_s - now_s, self._run) if due_s > now_s else loop.call_soon(self._run)

    def _due_s(self, address: str) -> float:
        share = self._shares.get(address)
        return float("-inf") if share is None else _ready_s(share)

    def _run(self) -> None:
        self._call = None
        try:
            while self._spent_s <= PASS_S and (address := self._next()) is not None:
                queue = self._waiting[address]
                one = queue.popleft()
                if queue:
                    self._due.append(address)
                else:
                    del self._waiting[address]
                one.run()
        finally:
            self._call_when_due()

    def _next(self) -> str | None:
        now_s = self._clock_s()
        while self._later and self._later[0][0] <= now_s:
            self._due.append(heappop(self._later)[1])
        while self._due:
            address = self._due.popleft()
            due_s = self._due_s(address)
            if due_s <= now_s:
                return address
            heappush(self._later, (due_s, address))
        return None


def _ready_s(share: LoopShare) -> float:
    return share.ready_s(DEVICE_PART, DEVICE_BURST_S)
