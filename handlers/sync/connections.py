"""All connections of this process: one per device, watched for silence and expiry, drained together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Literal

import anyio
import msgspec
from anyio.abc import TaskGroup

from engine.cache.revocations import Revocations
from engine.runtime.ports import Clock
from engine.runtime.services import ServiceEndedError
from engine.wire.messages import PoliciesChanged
from handlers.http.draining import Draining, jitter_ms

if TYPE_CHECKING:
    from handlers.sync.device_socket import Line

CLOSE_RESTARTING: Final = 1012
CLOSE_EXPIRED: Final = 4401
CLOSE_FORBIDDEN: Final = 4403
CLOSE_IDLE: Final = 4408
CLOSE_REPLACED: Final = 4409

_SWEEP_S: Final = 0.5
#: Connections looked at before other work gets its turn on the loop.
_VISITS_PER_TURN: Final = 500
#: Refusals are sent together: each write by itself wakes whoever waits for it, which costs half of a refusal.
_REFUSALS_S: Final = 0.005
#: A ping keeps proxies, which give up after 60 s, from closing a quiet connection.
PING_S: Final = 25.0
#: How long a drain waits for clients to confirm the close.
_CLOSING_S: Final = 2.0


class Connections:
    """Connections by (tenant_id, device_id), and the task group of all their slow work."""

    def __init__(self, clock: Clock, idle_s: float, revocations: Revocations) -> None:
        self._clock = clock
        self._revocations = revocations
        self._idle_s = idle_s
        self._by_device: dict[tuple[int, str], Line] = {}
        self._open: set[Line] = set()
        self._by_tenant: Counter[int] = Counter()
        self._all_gone = asyncio.Event()
        self._group: TaskGroup | None = None
        self._refusals: list[tuple[Line, bytes]] = []
        self.draining = Draining()
        #: What devices are told of a drain: ``restart`` where a new process has taken this one's place.
        self.leaves_for: Literal["drain", "restart"] = "drain"

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def __contains__(self, key: tuple[int, str]) -> bool:
        """Whether a device is connected."""
        return key in self._by_device

    def count_of(self, tenant_id: int) -> int:
        """Count a tenant's open connections."""
        return self._by_tenant[tenant_id]

    def _forget(self, tenant_id: int) -> None:
        self._by_tenant[tenant_id] -= 1
        if not self._by_tenant[tenant_id]:
            del self._by_tenant[tenant_id]

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run work that belongs to a connection."""
        if self._group is None:
            raise ServiceEndedError("connections")
        self._group.start_soon(work)

    def refuse_soon(self, connection: Line, body: bytes) -> None:
        """Send a refusal, given as JSON, with those of other connections."""
        if not self._refusals:
            asyncio.get_running_loop().call_later(_REFUSALS_S, self._say_refusals)
        self._refusals.append((connection, body))

    def _say_refusals(self) -> None:
        refusals, self._refusals = self._refusals, []
        for connection, body in refusals:
            connection.say(body)

    def add(self, connection: Line) -> None:
        """Take a connection in; an older one of the same device goes."""
        older = self._by_device.get(connection.key)
        self._by_device[connection.key] = connection
        self._open.add(connection)
        self._by_tenant[connection.key[0]] += 1
        if older is not None:
            older.dismiss("replaced", CLOSE_REPLACED, jitter_ms(0), listening=True)
        if self._refuses(connection):  # since its token was looked at
            _revoke(connection)

    def opened_elsewhere(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Let a device's connection go if its other one, at another process, is the newer."""
        ours = self._by_device.get((tenant_id, device_id))
        if ours is not None and (ours.opened_at_us, ours.session_id) < (at_us, session_id):
            ours.dismiss("replaced", CLOSE_REPLACED, jitter_ms(0), listening=True)

    def remove(self, connection: Line) -> None:
        """Forget a connection that is gone."""
        if connection in self._open:
            self._open.remove(connection)
            self._forget(connection.key[0])
        if self._by_device.get(connection.key) is connection:
            del self._by_device[connection.key]
        if not self._open:
            self._all_gone.set()

    def policies_changed(self, tenant_id: int) -> None:
        """Tell a tenant's devices their policies."""
        told: bytes | None = None
        for connection in self._open:
            if connection.key[0] == tenant_id:
                if told is None:
                    told = msgspec.json.encode(PoliciesChanged(connection.policy_names()))
                connection.say(told)

    def tenant_removed(self, tenant_id: int) -> None:
        """Send a tenant's devices away."""
        for connection in list(self._open):
            if connection.key[0] == tenant_id:
                _revoke(connection)

    async def revoked(self) -> None:
        """Send devices away whose tokens are refused now."""
        for visited, connection in enumerate(list(self._open), start=1):
            if self._refuses(connection):
                _revoke(connection)
            if visited % _VISITS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _refuses(self, connection: Line) -> bool:
        return self._revocations.refuses(connection.key, connection.token_id, connection.issued_at_s)

    async def run(self) -> None:
        """Send away who says nothing or whose token expired, until cancelled."""
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                while True:
                    await self._sweep()
                    await asyncio.sleep(_SWEEP_S)
            finally:
                self._group = None

    async def _sweep(self) -> None:
        for visited, connection in enumerate(list(self._open), start=1):
            now_s = self._clock.monotonic_s()
            if connection.expires_at_s <= self._clock.now_us() / 1_000_000:
                connection.dismiss("expired", CLOSE_EXPIRED, jitter_ms(0))
            elif now_s - connection.heard_at_s > self._idle_s:
                connection.dismiss("idle", CLOSE_IDLE, jitter_ms(0))
            elif now_s - max(connection.heard_at_s, connection.pinged_at_s) > PING_S:
                connection.ping(now_s)
            if visited % _VISITS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def say_goodbye(self) -> None:
        """Announce a drain: nothing more is taken in, what was accepted is still answered."""
        self.draining.begun = True
        for connection in self._open:
            connection.announce(self.leaves_for, jitter_ms(len(self._open)))

    async def close_all(self) -> None:
        """Close all at once, each behind its last answer, and cut off who does not confirm in time."""
        for connection in list(self._open):
            connection.close(CLOSE_RESTARTING, "restarting")
        if self._open:
            self._all_gone.clear()
            with anyio.move_on_after(_CLOSING_S):
                await self._all_gone.wait()
        for connection in list(self._open):
            connection.abort()


def _revoke(connection: Line) -> None:
    connection.dismiss("revoked", CLOSE_FORBIDDEN, jitter_ms(0))
