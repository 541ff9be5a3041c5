"""A device under faults that has many syncs in flight, where the reference device has one."""

from __future__ import annotations

from typing import Any, Final

from bench.client.messages import Failed, Synced
from bench.client.protocol import DeviceProtocol, ProtocolError, Pushing
from bench.faults.device import FaultsDevice

#: A sync without an answer is sent again after so long, on the same connection, with all behind it. A server
#: that is silent for longer is left, which is less than a worker may be stopped for.
_PATIENCE_S: Final = 2.0
_SILENT_S: Final = 3.0
_MOST_IN_FLIGHT: Final = 20
_MOST_ITEMS: Final = 5
_NEVER: Final = float("inf")


class PipeliningProtocol(DeviceProtocol):
    """Sends messages without waiting, and again, in order, from the first one that has no answer.

    That is on a new connection, after a refusal, and where an answer does not come. ``_sent`` has what was
    sent on this connection by the id of its request, the same message perhaps several times.
    """

    def __init__(self, *more: Any) -> None:
        super().__init__(*more)
        self._sent: dict[str, tuple[Pushing, float]] = {}
        self._behind = 0
        self._began_s = self._heard_s = self._monotonic_s()

    @property
    def pause_s(self) -> float | None:
        """Seconds until ``wake`` is due."""
        paused_s = super().pause_s
        if paused_s is not None or not self._sent:
            return paused_s
        return max(0.0, self._late_s - self._monotonic_s())

    @property
    def _late_s(self) -> float:
        """When the oldest message without an answer is to be sent again."""
        oldest_s = min((sent_s for _, sent_s in self._sent.values()), default=_NEVER)
        return max(oldest_s, self._began_s) + _PATIENCE_S

    def hear(self, text: bytes | str) -> list[bytes]:
        """Process a message of the server, which is a sign of life. Raises ProtocolError, DecodeError."""
        self._heard_s = self._monotonic_s()
        return super().hear(text)

    def wake(self) -> list[bytes]:
        """Go on with what waits, and begin again where an answer is late. Raises ProtocolError."""
        now_s = self._monotonic_s()
        if self._sent and now_s - self._heard_s > _SILENT_S:
            raise ProtocolError("the server is silent")
        if now_s >= self._late_s:
            self._begin_again()
        return super().wake()

    @property
    def _in_flight(self) -> int:
        return len({one.key for one, _ in self._sent.values() if one.last <= self._behind})

    def _begin_again(self) -> None:
        self._behind, self._began_s = 0, self._monotonic_s()

    def _push(self) -> list[bytes]:
        frames: list[bytes] = []
        self._max_items = _MOST_ITEMS
        while self._in_flight < _MOST_IN_FLIGHT and (pushed := self._push_next(self._behind)):
            assert self._pushing is not None
            self._sent[self._pushing.request_id] = self._pushing, self._monotonic_s()
            self._behind, self._pushing = self._pushing.last, None
            frames += pushed
        return frames

    def _synced(self, answer: Synced) -> list[bytes]:
        if answer.id in self._sent:
            self._pushing, _ = self._sent[answer.id]
            key = self._pushing.key
            self._sent = {name: sent for name, sent in self._sent.items() if sent[0].key != key}
        return super()._synced(answer)

    def _failed(self, error: Failed) -> list[bytes]:
        if error.id in self._sent:
            self._pushing, _ = self._sent.pop(error.id)
            self._begin_again()
        return super()._failed(error)


class PipeliningDevice(FaultsDevice):
    """A device whose lost answers cost no connection: it sends the sync again on the same one."""

    protocol = PipeliningProtocol
    close_s = 0.1

    def _lose_answer(self) -> list[bytes]:
        return []
