"""The pushes of one connection: checked, submitted, and answered when they are stored.

A push has neither a task nor a future of its own: its outcome comes back as a call.
"""

from __future__ import annotations

from functools import partial

from engine.cache.device_health import Device
from engine.commit.committer import Committer
from engine.commit.overload import overloaded
from engine.commit.validation import MessageValidator
from engine.plan.work import Outcome, Push, PushAnswer, Resolution, ResolveAnswer
from engine.runtime.loop_scheduler import Steps
from engine.runtime.loop_share import Rest
from engine.runtime.ports import Clock
from engine.wire.errors import SyncError
from engine.wire.messages import Sync
from handlers.http.loop.charges import LoopCharges
from handlers.sync.device_socket import DeviceSocket
from handlers.sync.push_backoff import PushBackoff
from handlers.sync.push_counts import PushCounts


class Pushes:
    """Submits the pushes and resolutions of one connection.

    Attributes:
        backoff: Whether pushes are refused for now.
        in_flight: Pushes and resolutions that are not answered yet.
    """

    __slots__ = (
        "_clock",
        "_committer",
        "_counts",
        "_device",
        "_loop",
        "_session",
        "_socket",
        "_validator",
        "backoff",
        "in_flight",
    )

    def __init__(
        self,
        socket: DeviceSocket,
        device: Device,
        *,
        validator: MessageValidator,
        committer: Committer,
        counts: PushCounts,
        loop: LoopCharges,
        clock: Clock,
    ) -> None:
        self._socket = socket
        self._session = socket.session
        self._device = device
        self._validator = validator
        self._committer = committer
        self._counts = counts
        self._loop = loop
        self._clock = clock
        self.backoff = PushBackoff()
        self.in_flight = 0

    def push(self, request: Sync) -> None:
        """Check a ``sync`` and submit it. Raises SyncError."""
        request_id = self._checked_id(request)
        now_us = self._clock.now_us()
        try:
            push = self._validator.push(request, self._session, now_us)
        except SyncError as error:
            self._counts.failed(self._device, error, now_us)
            raise
        self._submit(push, request_id, request.key, now_us)

    def push_in_steps(self, request: Sync) -> Steps:
        """Check a large ``sync`` in steps and submit it. Raises SyncError."""
        request_id = self._checked_id(request)
        now_us = self._clock.now_us()
        try:
            push = yield from self._validator.push_steps(request, self._session, now_us)
        except SyncError as error:
            self._counts.failed(self._device, error, now_us)
            raise
        if self._socket.ignoring:  # since it began: the device sends it again
            return
        if self.backoff.first_key is not None:  # a push before it was refused since
            self.backoff.check_turn(request.key, self._clock.monotonic_s())
        self._submit(push, request_id, request.key, now_us)

    def submit_resolution(self, job: Resolution, request_id: str) -> None:
        """Submit a checked ``resolve``. Raises SyncError ``overloaded``."""
        self._committer.submit(job, partial(self._on_resolved, request_id), self._charge)
        self.in_flight += 1

    def _checked_id(self, request: Sync) -> str:
        if request.id is None:
            raise SyncError("invalid_message", "id: required on a socket")
        if self.backoff.first_key is not None:
            self.backoff.check_turn(request.key, self._clock.monotonic_s())
        return request.id

    def _submit(self, push: Push, request_id: str, key: str, now_us: int) -> None:
        try:
            reply = partial(self._on_stored, request_id, key, len(push.items), now_us)
            self._committer.submit(push, reply, self._charge)
        except SyncError:
            wait_ms = self._committer.retry_after_ms()
            raise overloaded(self.backoff.begin(self._clock.monotonic_s(), wait_ms, "overloaded")) from None
        self.in_flight += 1

    def _charge(self, spent_s: float, message_s: float = 0.0) -> Rest | None:
        return self._loop.charge_planning(self._device, spent_s, message_s)

    def count_refused(self, code: str) -> None:
        """Count a ``sync`` that was not accepted, if the service refused it."""
        self._counts.refused(self._device.key[0], code)

    def _on_stored(self, request_id: str, key: str, items: int, started_us: int, outcome: Outcome) -> None:
        self.in_flight -= 1
        self._socket.frames.go_on()
        if isinstance(outcome, PushAnswer):
            self._socket.say(outcome.frame(request_id))
            if not outcome.replayed:
                self._session.retries_over = True
            self._counts.answered(self._device, outcome, items, started_us)
        elif isinstance(outcome, SyncError):
            self._counts.failed(self._device, outcome, started_us)
            self.count_refused(outcome.code)
            self._put_off(outcome, request_id, key)

    def _on_resolved(self, request_id: str, outcome: Outcome) -> None:
        self.in_flight -= 1
        self._socket.frames.go_on()
        if isinstance(outcome, ResolveAnswer):
            self._socket.say(outcome.frame(request_id))
        elif isinstance(outcome, SyncError):
            self._put_off(outcome, request_id, None)

    def _put_off(self, error: SyncError, request_id: str, key: str | None) -> None:
        """Refuse an accepted push; later pushes of the device must not overtake it."""
        self.backoff.put_off(error, key, self._clock.monotonic_s())
        self._socket.fail(error, request_id)
