"""All connections of this process: one per device, watched for silence and expiry, drained together.

A connection replaces the device's older one when the device has sent its first frame on it: that shows that
the device got the answer to its handshake. An attempt to connect that the device gave up may reach a worker
late, behind the connection that the device has opened since. If it counted, the device would lose the
connection that it uses.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Literal

import anyio
import msgspec
from anyio.abc import TaskGroup

from engine.cache.revocations import Revocations
from engine.commit.validation import Session
from engine.runtime.metrics import Metric, gauge
from engine.runtime.ports import Clock
from engine.runtime.services import ServiceEndedError
from engine.wire.close_codes import CloseCode
from engine.wire.errors import SyncError
from engine.wire.messages import PoliciesChanged
from handlers.http.draining import Draining, jitter_ms
from handlers.sync.device_socket import DeviceSocket, TaskBody

_SWEEP_S: Final = 0.5
#: Connections looked at before other work gets its turn on the loop.
_VISITS_PER_TURN: Final = 500
#: Refusals are sent together: each write by itself wakes its reader, which costs half of a refusal.
_REFUSALS_S: Final = 0.005
#: A ping keeps proxies, which give up after 60 s, from closing a quiet connection.
PING_S: Final = 25.0
#: A drain waits this long for clients to confirm the close.
_CLOSING_S: Final = 2.0


class Connections:
    """Sockets by (tenant_id, device_id), and the task group of all their slow work.

    Args:
        clock: The clocks.
        idle_s: A device that sends nothing for this long is dismissed.
        revocations: Devices and tokens that are refused.
        policy_names: Maps each domain to the name of a tenant's policy.
        note_limited: Is told the session whose messages are refused for their rate.
    """

    def __init__(
        self,
        clock: Clock,
        idle_s: float,
        revocations: Revocations,
        policy_names: Callable[[int], dict[str, str]],
        note_limited: Callable[[Session], None],
    ) -> None:
        self.note_limited = note_limited
        self._clock = clock
        self._revocations = revocations
        self._idle_s = idle_s
        self._policy_names = policy_names
        self._by_device: dict[tuple[int, str], DeviceSocket] = {}
        #: Those on which the device sent no frame: at most one of a device, besides that of ``_by_device``.
        self._unconfirmed: dict[tuple[int, str], DeviceSocket] = {}
        self._open: set[DeviceSocket] = set()
        self._by_tenant: Counter[int] = Counter()
        self._all_gone = asyncio.Event()
        self._group: TaskGroup | None = None
        self._refusals: list[tuple[DeviceSocket, SyncError, str | None]] = []
        self.draining = Draining()
        #: The reason that a drain gives to devices: ``restart`` if a new process has taken this one's place.
        self.leaves_for: Literal["drain", "restart"] = "drain"

    def __len__(self) -> int:
        """Count the open connections."""
        return len(self._open)

    def __contains__(self, key: tuple[int, str]) -> bool:
        """Return whether a device is connected."""
        return key in self._by_device or key in self._unconfirmed

    def metrics(self) -> Iterator[Metric]:
        """Yield how many are open."""
        yield gauge("tidemark_connections", "WebSockets that are open", len(self))

    def count_of(self, tenant_id: int) -> int:
        """Count a tenant's open connections."""
        return self._by_tenant[tenant_id]

    def _forget(self, tenant_id: int) -> None:
        self._by_tenant[tenant_id] -= 1
        if not self._by_tenant[tenant_id]:
            del self._by_tenant[tenant_id]

    def start(self, work: TaskBody) -> None:
        """Run work that belongs to a connection."""
        if self._group is None:
            raise ServiceEndedError("connections")
        self._group.start_soon(work)

    def refuse_soon(self, socket: DeviceSocket, error: SyncError, request_id: str | None) -> None:
        """Send a refusal together with those of other connections."""
        if not self._refusals:
            asyncio.get_running_loop().call_later(_REFUSALS_S, self._say_refusals)
        self._refusals.append((socket, error, request_id))

    def _say_refusals(self) -> None:
        refusals, self._refusals = self._refusals, []
        for socket, error, request_id in refusals:
            socket.fail(error, request_id)

    def add(self, socket: DeviceSocket) -> None:
        """Add a connection. One of the same device that is not confirmed is dismissed as silent."""
        silent = self._unconfirmed.get(socket.key)
        self._unconfirmed[socket.key] = socket
        self._open.add(socket)
        self._by_tenant[socket.key[0]] += 1
        if silent is not None:  # as idle: should the device use it, it comes back
            silent.dismiss("idle", jitter_ms(0))
        if self._refuses(socket):  # revoked since its token was verified
            _revoke(socket)

    def confirm(self, socket: DeviceSocket) -> None:
        """Dismiss an older connection of the device, which has sent its first frame on this one."""
        self._unconfirmed.pop(socket.key, None)
        older = self._by_device.get(socket.key)
        self._by_device[socket.key] = socket
        if older is not None:
            older.dismiss("replaced", jitter_ms(0), listening=True)

    def opened_elsewhere(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Dismiss a device's connections that are older than a confirmed one at another process."""
        for kept in (self._by_device, self._unconfirmed):
            ours = kept.get((tenant_id, device_id))
            if ours is not None and (ours.opened_at_us, ours.session.session_id) < (at_us, session_id):
                ours.dismiss("replaced", jitter_ms(0), listening=True)

    def remove(self, socket: DeviceSocket) -> None:
        """Forget a connection that has ended."""
        if socket in self._open:
            self._open.remove(socket)
            self._forget(socket.key[0])
        for kept in (self._by_device, self._unconfirmed):
            if kept.get(socket.key) is socket:
                del kept[socket.key]
        if not self._open:
            self._all_gone.set()

    def policies_changed(self, tenant_id: int) -> None:
        """Send a tenant's devices their policies."""
        message: bytes | None = None
        for socket in self._open:
            if socket.key[0] == tenant_id:
                if message is None:
                    message = msgspec.json.encode(PoliciesChanged(self._policy_names(tenant_id)))
                socket.say(message)

    def tenant_removed(self, tenant_id: int) -> None:
        """Dismiss a tenant's devices."""
        for socket in list(self._open):
            if socket.key[0] == tenant_id:
                _revoke(socket)

    async def revoked(self) -> None:
        """Dismiss devices whose tokens are refused now."""
        for visited, socket in enumerate(list(self._open), start=1):
            if self._refuses(socket):
                _revoke(socket)
            if visited % _VISITS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _refuses(self, socket: DeviceSocket) -> bool:
        session = socket.session
        return self._revocations.refuses(socket.key, session.token_id, session.issued_at_s)

    async def run(self) -> None:
        """Dismiss devices that are silent or whose token expired, until cancelled."""
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                while True:
                    await self._sweep()
                    await asyncio.sleep(_SWEEP_S)
            finally:
                self._group = None

    async def _sweep(self) -> None:
        for visited, socket in enumerate(list(self._open), start=1):
            now_s = self._clock.monotonic_s()
            if socket.session.expires_at_s <= self._clock.now_us() / 1_000_000:
                socket.dismiss("expired", jitter_ms(0))
            elif now_s - socket.last_message_s > self._idle_s:
                socket.dismiss("idle", jitter_ms(0))
            elif now_s - max(socket.last_message_s, socket.pinged_at_s) > PING_S:
                socket.ping(now_s)
            if visited % _VISITS_PER_TURN == 0:
                await asyncio.sleep(0)

    async def say_goodbye(self) -> None:
        """Announce a drain: new messages are dropped, accepted ones are still answered."""
        self.draining.begun = True
        for socket in self._open:
            socket.announce(self.leaves_for, jitter_ms(len(self._open)))

    async def close_all(self) -> None:
        """Close all at once, each after its last answer; cut off clients that do not confirm in time."""
        for socket in list(self._open):
            socket.close(CloseCode.RESTARTING, "restarting")
        if self._open:
            self._all_gone.clear()
            with anyio.move_on_after(_CLOSING_S):
                await self._all_gone.wait()
        for socket in list(self._open):
            socket.abort()


def _revoke(socket: DeviceSocket) -> None:
    socket.dismiss("revoked", jitter_ms(0))
