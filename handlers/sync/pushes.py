"""The pushes of one connection: checked, submitted, and answered when they are stored.

A push has neither a task nor a future of its own: its outcome comes back as a call.
"""

from __future__ import annotations

from functools import partial

from engine.cache.device_health import Device
from engine.commit.overload import overloaded
from engine.plan.work import Outcome, Push, PushAnswer, Resolution, ResolveAnswer
from engine.runtime.loop_turns import Steps
from engine.wire.errors import SyncError
from engine.wire.messages import Sync
from handlers.http.context import Core
from handlers.sync.device_socket import DeviceSocket
from handlers.sync.operations import charge_planning, count_answer, count_error
from handlers.sync.push_hold import PushHold


class Pushes:
    """Submits the pushes and resolutions of one connection.

    Attributes:
        in_flight: Pushes and resolutions that are not answered yet.
    """

    __slots__ = ("_core", "_device", "_hold", "_session", "_socket", "in_flight")

    def __init__(self, core: Core, socket: DeviceSocket, device: Device, hold: PushHold) -> None:
        self._core = core
        self._socket = socket
        self._session = socket.session
        self._device = device
        self._hold = hold
        self.in_flight = 0

    def push(self, request: Sync) -> None:
        """Check a ``sync`` and submit it. Raises SyncError."""
        core = self._core
        request_id = self._checked_id(request)
        now_us = core.clock.now_us()
        try:
            push = core.intake.push(request, self._session, now_us)
        except SyncError as error:
            count_error(core, self._device, error, now_us)
            raise
        self._submit(push, request_id, request.key, now_us)

    def push_in_steps(self, request: Sync) -> Steps:
        """Check a large ``sync`` in steps and submit it. Raises SyncError."""
        core = self._core
        request_id = self._checked_id(request)
        now_us = core.clock.now_us()
        try:
            push = yield from core.intake.push_steps(request, self._session, now_us)
        except SyncError as error:
            count_error(core, self._device, error, now_us)
            raise
        if self._socket.ignoring:  # since it began: the device sends it again
            return
        if self._hold.first_key is not None:  # a push before it was refused since
            self._hold.check_turn(request.key, core.clock.monotonic_s())
        self._submit(push, request_id, request.key, now_us)

    def submit_resolution(self, job: Resolution, request_id: str) -> None:
        """Submit a checked ``resolve``. Raises SyncError ``overloaded``."""
        self._core.committer.submit(job, partial(self._on_resolved, request_id), self._charge)
        self.in_flight += 1

    def _checked_id(self, request: Sync) -> str:
        if request.id is None:
            raise SyncError("invalid_message", "id: required on a socket")
        if self._hold.first_key is not None:
            self._hold.check_turn(request.key, self._core.clock.monotonic_s())
        return request.id

    def _submit(self, push: Push, request_id: str, key: str, now_us: int) -> None:
        core = self._core
        try:
            core.committer.submit(push, partial(self._on_stored, request_id, key, now_us), self._charge)
        except SyncError:
            wait_ms = core.committer.retry_after_ms()
            raise overloaded(self._hold.begin(core.clock.monotonic_s(), wait_ms, "overloaded")) from None
        self.in_flight += 1

    def _charge(self, spent_s: float) -> None:
        charge_planning(self._core, self._device, spent_s)

    def _on_stored(self, request_id: str, key: str, started_us: int, outcome: Outcome) -> None:
        self.in_flight -= 1
        self._socket.frames.go_on()
        if isinstance(outcome, PushAnswer):
            self._socket.say(outcome.frame(request_id))
            if not outcome.replayed:
                self._session.retries_over = True
            count_answer(self._core, self._device, outcome, started_us)
        elif isinstance(outcome, SyncError):
            count_error(self._core, self._device, outcome, started_us)
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
        self._hold.put_off(error, key, self._core.clock.monotonic_s())
        self._socket.fail(error, request_id)
