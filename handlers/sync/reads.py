"""The requests of one connection that wait for the store: all but pushes.

Each runs in a task of its own, so that no push waits behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from engine.cache.device_health import Device
from engine.feed.feed import Feed
from engine.feed.pages import with_id
from engine.model.telemetry import TelemetryRow
from engine.plan.work import Resolution
from engine.runtime.loop_scheduler import LARGE_BYTES
from engine.runtime.read_limiter import Reader
from engine.wire.errors import SyncError
from engine.wire.messages import Conflicts, Pull, Resolve, Subscribe, Telemetry, Unsubscribe, Unsubscribed
from handlers.http.errors import as_sync_error
from handlers.http.loop.charges import LoopCharges
from handlers.sync.device_socket import DeviceSocket, TaskBody
from handlers.sync.operations import Operations
from handlers.sync.subscription_sink import SubscriptionSink

MAX_SUBSCRIPTIONS: Final = 32

_encode = msgspec.json.encode


class Reads:
    """The reads and subscriptions of one connection.

    Attributes:
        count: Reads that are not answered yet.
    """

    __slots__ = (
        "_charge",
        "_device",
        "_feed",
        "_loop",
        "_operations",
        "_reader",
        "_socket",
        "_submit",
        "_subscriptions",
        "count",
    )

    def __init__(
        self,
        socket: DeviceSocket,
        device: Device,
        *,
        operations: Operations,
        feed: Feed,
        loop: LoopCharges,
        submit: Callable[[Resolution, str], None],
    ) -> None:
        self._operations = operations
        self._feed = feed
        self._loop = loop
        self._socket = socket
        self._device = device
        self._submit = submit
        self._charge = partial(loop.charge, device, "answer")
        self._reader = Reader(*socket.key)
        self._subscriptions: dict[str, SubscriptionSink] = {}
        self.count = 0

    def resume(self) -> None:
        """Let subscriptions go on that waited for room."""
        for sink in list(self._subscriptions.values()):
            sink.resume()

    def end(self) -> None:
        """End all subscriptions, and let go of them: they know these reads."""
        for sink in self._subscriptions.values():
            sink.end()
        self._subscriptions.clear()

    def pull(self, request: Pull) -> None:
        """Answer ``pull``."""
        self._begin(request.id, partial(self._pull, request))

    def conflicts(self, request: Conflicts) -> None:
        """Answer ``conflicts``."""
        self._begin(request.id, partial(self._conflicts, request))

    def resolve(self, request: Resolve) -> None:
        """Check a ``resolve`` against its conflict, and submit it."""
        self._begin(request.id, partial(self._resolve, request))

    def telemetry(self, request: Telemetry) -> None:
        """Check a ``telemetry`` at once, which the device is charged for, and store it. Raises SyncError."""
        row = self._operations.telemetry_row(self._socket.session, self._device, request)
        self._begin(request.id, partial(self._telemetry, row, request.id))

    def subscribe(self, request: Subscribe) -> None:
        """Open a subscription. Raises SyncError."""
        if request.id in self._subscriptions:
            raise SyncError("invalid_message", "id: a subscription of this id is open: use another id")
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            raise SyncError("too_large", f"subscriptions: the limit is {MAX_SUBSCRIPTIONS}: end one first")
        sink = SubscriptionSink(self._feed, self._socket, request, self._forget)
        self._subscriptions[request.id] = sink
        self._begin(request.id, partial(self._open, sink))

    def unsubscribe(self, request: Unsubscribe) -> None:
        """End a subscription. Raises SyncError ``not_found``."""
        sink = self._subscriptions.pop(request.id, None)
        if sink is None:
            raise SyncError("not_found", "there is no subscription of this id")
        sink.end()
        self._socket.say(_encode(Unsubscribed(request.id)))

    def _begin(self, request_id: str, work: TaskBody) -> None:
        self._socket.start(partial(self._run, request_id, work))
        self.count += 1

    async def _run(self, request_id: str, work: TaskBody) -> None:
        session = self._socket.session
        try:
            await work()
        except Exception as error:
            told = as_sync_error(error, tenant=session.tenant.name, device_id=session.device_id)
            self._socket.fail(told, request_id)
        finally:
            self.count -= 1
            self._socket.frames.go_on()

    async def _pull(self, request: Pull) -> None:
        body = await self._operations.pull(self._socket.session, request)
        await self._answer(with_id(body, request.id))

    async def _conflicts(self, request: Conflicts) -> None:
        session = self._socket.session
        await self._answer(await self._operations.list_conflicts(session, request, request.id))

    async def _resolve(self, request: Resolve) -> None:
        job = await self._operations.resolution(self._socket.session, self._device, request)
        self._submit(job, request.id)

    async def _telemetry(self, row: TelemetryRow, request_id: str) -> None:
        self._socket.say(await self._operations.store_telemetry(row, request_id))

    async def _open(self, sink: SubscriptionSink) -> None:
        try:
            session = self._socket.session
            await self._operations.yield_to_writes(session)
            await sink.open(self._reader, session.session_id)
        except Exception:
            self._forget(sink)
            if not sink.ended:
                raise
        if self._socket.closing:
            sink.end()

    async def _answer(self, body: bytes) -> None:
        """Send an answer; a large one is encoded in steps where its encoding is not JSON."""
        codec = self._socket.session.codec
        if not codec.binary or len(body) < LARGE_BYTES:
            self._socket.say(body)
            return
        steps = codec.encode_steps(body)
        tenant_id = self._reader.tenant_id
        self._socket.say_encoded(await self._loop.scheduler.handled(tenant_id, steps, self._charge))

    def _forget(self, sink: SubscriptionSink) -> None:
        """Free the id of a subscription that is over."""
        if self._subscriptions.get(sink.request_id) is sink:
            del self._subscriptions[sink.request_id]
