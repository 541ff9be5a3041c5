"""Turns of the event loop for what would hold it: one at a time in the process, the loop given back after.

Two lines wait for them, and neither waits for the other. What a well-behaved device sends takes no turn.

- Sockets that brought more than one turn of reading holds, or that are over their share.
- Large messages, which are decoded and checked in steps, and large answers, which are encoded so: of each
  tenant one after the other. After a long step its tenant rests, so that others have the loop: a sync passes
  it five times, and is not to meet a step each time.

Tenants whose share allows it have their turns one after the other, in the order in which they came to wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Final, Protocol, TypeVar

from engine.runtime.loop_share import LoopShares, Sharing
from engine.runtime.ports import Clock

#: A message from this size on is handled in steps: a byte costs 75 ns at most until it is planned, so a
#: smaller one takes 2.5 ms.
LARGE_BYTES: Final = 1 << 15
#: A step that takes longer is followed by a rest.
LONG_S: Final = 0.005
#: Of the length of the step: large messages of a tenant so take three tenths of the loop.
REST: Final = 7 / 3
#: Others may fall silent, or speak up, while something waits for its share: it is looked at so often.
_LOOK_S: Final = 0.25
_NEVER: Final = float("inf")
_NOW: Final = float("-inf")

_Result = TypeVar("_Result")

Steps = Generator[None, None, None]
Charge = Callable[[float, float], object]


class Handle(Protocol):
    """A call that is due."""

    def cancel(self) -> None:
        """Have it not come."""


class Loop(Protocol):
    """The part of an event loop that is used."""

    def call_soon(self, call: Callable[[], None], /) -> Handle:
        """Call in the next pass."""

    def call_later(self, wait_s: float, call: Callable[[], None], /) -> Handle:
        """Call after some time."""


class Slot:
    """Work that waits for its turn on the loop."""

    __slots__ = ("_work",)

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work

    @property
    def cancelled(self) -> bool:
        """True if the work is not wanted any more; it then takes no turn."""
        return self._work is None

    def cancel(self) -> None:
        """Drop the work."""
        self._work = None

    def run(self) -> None:
        """Do the work, unless it was cancelled."""
        if self._work is not None:
            self._work()


class LoopScheduler:
    """Gives the turns of one process."""

    def __init__(self, shares: LoopShares, clock: Clock, loop: Loop | None = None) -> None:
        self._shares = shares
        self._clock = clock
        self._sockets = _Sockets(shares, clock, loop)
        self._messages = _Messages(shares, clock, loop)

    def waits(self, tenant_id: int) -> bool:
        """Whether something of a tenant waits, so that what may be laborious of it waits, too."""
        return self._sockets.waits(tenant_id) or self._messages.waits(tenant_id)

    def take(self, tenant_id: int, device: Sharing, work: Callable[[], None]) -> Slot:
        """Have ``work`` called in a turn; it charges its time itself."""
        slot = Slot(work)
        self._sockets.add(tenant_id, device, slot)
        return slot

    async def within_share(self, tenant_id: int, device: Sharing) -> None:
        """Wait until a device and its tenant are within their shares, while other tenants want the loop."""
        shares, now_s = self._shares, self._clock.monotonic_s()
        ready_s = max(shares.device_ready_s(device), shares.tenant_ready_s(tenant_id))
        if ready_s <= now_s or not shares.wanted(now_s):
            return
        came = asyncio.Event()
        slot = self.take(tenant_id, device, came.set)
        try:
            await came.wait()
        finally:
            slot.cancel()

    def handle(self, tenant_id: int, steps: Steps, charge: Charge) -> None:
        """Have a large message handled.

        Args:
            tenant_id: Whose it is.
            steps: The work, one step a turn. It raises nothing.
            charge: Is told the seconds of each step, and the time at its end.
        """
        self._messages.add(tenant_id, steps, charge)

    async def handled(self, tenant_id: int, steps: Generator[None, None, _Result], charge: Charge) -> _Result:
        """Handle a message as ``handle`` does, and return what ``steps`` returns. Raises what it raises."""
        done: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self.handle(tenant_id, _told(steps, done), charge)
        return await done


class _Queue:
    """One line: a call of ``_next`` for each turn, when the first of those who wait is due.

    A tenant that is due stands once in ``_due``, behind those that were due before it. All others wait in
    ``_later`` by when they are. So a turn costs the same, however many wait.
    """

    def __init__(self, shares: LoopShares, clock: Clock, loop: Loop | None) -> None:
        self._shares = shares
        self._clock_s = clock.monotonic_s
        self._loop = loop
        self._due: deque[int] = deque()
        self._later: list[tuple[float, int]] = []
        #: Where each tenant stands: its time in ``_later``, or ``_NOW`` in ``_due``. Other entries are stale.
        self._places: dict[int, float] = {}
        self._call: Handle | None = None
        self._call_at_s = 0.0
        self._busy = False

    def _ready_s(self, tenant_id: int, now_s: float) -> float:
        """Return when a tenant may have a turn, ``_NEVER`` if it wants none."""
        raise NotImplementedError

    def _serve(self, tenant_id: int, now_s: float) -> None:
        """Give a tenant its turn."""
        raise NotImplementedError

    def _added(self, tenant_id: int) -> None:
        now_s = self._clock_s()
        self._place(tenant_id, self._ready_s(tenant_id, now_s), now_s)
        if not self._busy:  # else the turn that is under way looks at its end
            self._call_next(now_s)

    def _place(self, tenant_id: int, ready_s: float, now_s: float) -> None:
        """Let a tenant wait, unless it waits for no longer already."""
        if ready_s >= self._places.get(tenant_id, _NEVER):
            return
        if ready_s <= now_s:
            self._places[tenant_id] = _NOW
            self._due.append(tenant_id)
        else:
            self._places[tenant_id] = ready_s
            heappush(self._later, (ready_s, tenant_id))

    def _call_next(self, now_s: float) -> None:
        if not (self._due or self._later):
            return
        due_s = now_s if self._due else min(self._later[0][0], now_s + _LOOK_S)
        if self._call is not None:
            if self._call_at_s <= due_s:
                return
            self._call.cancel()
        self._call_at_s = due_s
        loop = self._loop or asyncio.get_running_loop()
        # Not in this pass: what came from others since is read before it.
        self._call = loop.call_later(due_s - now_s, self._run) if due_s > now_s else loop.call_soon(self._run)

    def _run(self) -> None:
        self._call = None
        self._busy = True
        try:
            self._next(self._clock_s())
        finally:
            self._busy = False
            self._call_next(self._clock_s())

    def _next(self, now_s: float) -> None:
        later, due, places = self._later, self._due, self._places
        wanted = self._shares.wanted(now_s)
        while later and (later[0][0] <= now_s or not wanted):
            ready_s, tenant_id = heappop(later)
            if places.get(tenant_id) == ready_s:
                places[tenant_id] = _NOW
                due.append(tenant_id)
        while due:
            tenant_id = due.popleft()
            del places[tenant_id]
            ready_s = self._ready_s(tenant_id, now_s)
            if ready_s > now_s:  # it was charged since, or waits for nothing
                self._place(tenant_id, ready_s, now_s)
                continue
            try:
                self._serve(tenant_id, now_s)
            finally:
                now_s = self._clock_s()
                self._place(tenant_id, self._ready_s(tenant_id, now_s), now_s)
            return


class _Sockets(_Queue):
    """Of each tenant a heap of turns, by when their device's share allows them."""

    def __init__(self, shares: LoopShares, clock: Clock, loop: Loop | None) -> None:
        super().__init__(shares, clock, loop)
        self._numbers = count()
        self._heaps: dict[int, list[tuple[float, int, Sharing, Slot]]] = {}

    def waits(self, tenant_id: int) -> bool:
        return tenant_id in self._heaps

    def add(self, tenant_id: int, device: Sharing, slot: Slot) -> None:
        place = self._shares.device_ready_s(device), next(self._numbers), device, slot
        heappush(self._heaps.setdefault(tenant_id, []), place)
        self._added(tenant_id)

    def _ready_s(self, tenant_id: int, now_s: float) -> float:
        heap, shares = self._heaps.get(tenant_id), self._shares
        if heap is None:
            return _NEVER
        wanted = shares.wanted(now_s)
        while heap:
            ready_s, number, device, slot = heap[0]
            if slot.cancelled:
                heappop(heap)
            elif wanted and ready_s < (since_s := shares.device_ready_s(device)):
                heapreplace(heap, (since_s, number, device, slot))  # it was charged since it came
            else:
                return max(ready_s, shares.tenant_ready_s(tenant_id)) if wanted else now_s
        del self._heaps[tenant_id]
        return _NEVER

    def _serve(self, tenant_id: int, now_s: float) -> None:  # noqa: ARG002
        heap = self._heaps[tenant_id]
        slot = heappop(heap)[-1]
        if not heap:
            del self._heaps[tenant_id]
        slot.run()


class _Waiting:
    """Large messages of one tenant: the first is under way once it had a step."""

    __slots__ = ("is_under_way", "messages", "rest_until_s")

    def __init__(self) -> None:
        self.messages: deque[tuple[Steps, Charge]] = deque()
        self.is_under_way = False
        self.rest_until_s = float("-inf")


class _Messages(_Queue):
    """Of each tenant its large messages, of which one is under way."""

    def __init__(self, shares: LoopShares, clock: Clock, loop: Loop | None) -> None:
        super().__init__(shares, clock, loop)
        self._waiting: dict[int, _Waiting] = {}

    def waits(self, tenant_id: int) -> bool:
        waiting = self._waiting.get(tenant_id)
        return waiting is not None and bool(waiting.messages)

    def add(self, tenant_id: int, steps: Steps, charge: Charge) -> None:
        self._waiting.setdefault(tenant_id, _Waiting()).messages.append((steps, charge))
        self._added(tenant_id)

    def _ready_s(self, tenant_id: int, now_s: float) -> float:
        waiting, shares = self._waiting[tenant_id], self._shares
        if not waiting.messages:  # the rest behind the last one
            if waiting.rest_until_s > now_s:
                return waiting.rest_until_s
            del self._waiting[tenant_id]
            return _NEVER
        if not shares.wanted(now_s):
            return now_s
        if waiting.is_under_way:
            return waiting.rest_until_s
        return max(waiting.rest_until_s, shares.tenant_ready_s(tenant_id))

    def _serve(self, tenant_id: int, now_s: float) -> None:
        waiting = self._waiting[tenant_id]
        steps, charge = waiting.messages[0]
        waiting.is_under_way = next(steps, steps) is not steps
        if not waiting.is_under_way:
            waiting.messages.popleft()
        ended_s = self._clock_s()
        spent_s = ended_s - now_s
        if spent_s > LONG_S and self._shares.wanted(ended_s):
            waiting.rest_until_s = ended_s + spent_s * REST
        charge(spent_s, ended_s)


def _told(steps: Generator[None, None, _Result], done: asyncio.Future[_Result]) -> Steps:
    try:
        result = yield from steps
    except Exception as error:
        if not done.done():
            done.set_exception(error)
    else:
        if not done.done():
            done.set_result(result)
