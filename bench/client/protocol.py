"""The protocol of one connection without the connection: a message of the server in, messages for it out.

Everything that lasts is in the store; a protocol is thrown away with its connection.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from bench.client import messages
from bench.client.edits import Settled
from bench.client.messages import Changes, Failed, Heard, Synced
from bench.client.store import Store
from engine.runtime.rate_limit import TokenBucket
from engine.wire.messages import Goodbye, HeartbeatAck, PoliciesChanged, Welcome
from engine.wire.timestamps import to_text

#: Of one message, beside the server's limits: on a slow line a large one never gets through whole.
BATCH_ITEMS: Final = 100
BATCH_BYTES: Final = 64 * 1024
_RETRY_MS: Final = 1000
#: How often to look for an hour of telemetry that is over.
_LOOK_S: Final = 60.0
#: The clock was set if it went by so much more or less than time did.
_CLOCK_SET_US: Final = 1_000_000

#: Codes that say the connection's token does not serve.
_TOKEN_CODES: Final = frozenset({"unauthenticated", "forbidden"})
OnAnswer = Callable[[Heard], None]
OnSettled = Callable[[Settled], None]


class ProtocolError(Exception):
    """The server said what no version 1 of the contract says."""


class Pushing(NamedTuple):
    """A message that was sent, up to the edit ``last``."""

    request_id: str
    key: str
    items: int
    last: int
    sent_s: float


class DeviceProtocol:
    """What a device says on one connection, and what it makes of the answers.

    ``hear`` and ``wake`` give the frames to send, in order. ``pause_s`` is how long to wait before ``wake``
    is called next, None if only an edit calls for it. ``clock_us`` is the device's own clock, right or wrong.
    """

    def __init__(
        self,
        store: Store,
        clock_us: Callable[[], int],
        monotonic_s: Callable[[], float],
        on_settled: OnSettled = lambda _: None,
    ) -> None:
        self._store = store
        self._clock_us = clock_us
        self._monotonic_s = monotonic_s
        self._on_settled = on_settled
        self._numbers = itertools.count(1)
        self._asked: dict[str, OnAnswer] = {}
        self._pushing: Pushing | None = None
        self._feed: str | None = None
        self._max_items = BATCH_ITEMS
        self._paused_until_s = 0.0
        self._bucket: TokenBucket | None = None
        self._server_time = ""
        self._clock_ahead_us = 0
        #: The hour of telemetry under way, and from when on another one may be looked for.
        self._telling: str | None = None
        self._tell_from_s = 0.0
        self.welcome: Welcome | None = None
        self.policies: dict[str, str] = {}
        self.goodbye: Goodbye | None = None
        self.refused: Failed | None = None
        self.live = False
        self.answered = False

    @property
    def pause_s(self) -> float | None:
        """Seconds until ``wake`` is due."""
        left_s = self._paused_until_s - self._monotonic_s()
        return left_s if left_s > 0 else None

    @property
    def idle(self) -> bool:
        """Whether all is caught up and nothing waits for an answer."""
        return self.live and self._pushing is None and not self._asked and not self._store.waiting

    def hear(self, text: bytes | str) -> list[bytes]:
        """Process a message of the server. Returns the frames to send. Raises ProtocolError, DecodeError."""
        heard = messages.read(text)
        match heard:
            case Welcome():
                return self._greeted(heard)
            case Synced():
                return self._synced(heard)
            case Changes():
                return self._page(heard)
            case Failed():
                return self._failed(heard)
            case PoliciesChanged():
                self.policies = heard.policies
            case Goodbye():
                self.goodbye = heard
            case None:
                pass
            case _:
                on_answer = self._asked.pop(heard.id, None) if isinstance(heard.id, str) else None
                if on_answer is not None:
                    on_answer(heard)
        return []

    def wake(self) -> list[bytes]:
        """Go on with what waits, unless the server asked for a pause or said that it takes in no more."""
        if self.welcome is None or self.goodbye is not None or self._paused_until_s > self._monotonic_s():
            return []
        return [
            *self._clock_set(),
            *([self._catch_up()] if self._feed is None else []),
            *self._push(),
            *self._tell(),
        ]

    def _push(self) -> list[bytes]:
        return self._push_next()

    def _push_next(self, behind: int = 0) -> list[bytes]:
        if self._pushing is not None or self.welcome is None:
            return []
        limits = self.welcome.limits
        most = min(self._max_items, limits.items)
        message = self._store.message(most, BATCH_BYTES, limits.frame_bytes, behind)
        if message is None:
            return []
        if wait_ms := self._spent():
            self._pause(wait_ms)
            return []
        request_id = self._next_id()
        self._pushing = Pushing(
            request_id, message.key, len(message.items), message.last, self._monotonic_s()
        )
        return [messages.sync(request_id, message.key, message.items)]

    def ask(self, kind: str, on_answer: OnAnswer, **fields: Any) -> bytes:
        """Ask anything else; ``on_answer`` gets the answer or the error."""
        request_id = self._next_id()
        self._asked[request_id] = on_answer
        self._spent()
        return messages.asked(kind, request_id, **fields)

    def heartbeat(self) -> bytes:
        """Write a heartbeat."""
        return self.ask("heartbeat", self._alive, queue_depth=self._store.waiting)

    def _alive(self, heard: Heard) -> None:
        if isinstance(heard, HeartbeatAck):
            self._server_time = heard.server_time

    def _tell(self) -> list[bytes]:
        """Send an hour of telemetry: one at a time, and after all else."""
        now_s = self._monotonic_s()
        if self._telling is not None or now_s < self._tell_from_s or not self.live or self._store.waiting:
            return []
        told = self._store.telemetry(self._clock_us())
        if told is None:
            self._tell_from_s = now_s + _LOOK_S
            return []
        self._telling = told.key
        return [self.ask("telemetry", self._told, **told._asdict())]

    def _told(self, heard: Heard) -> None:
        key, self._telling = self._telling, None
        if isinstance(heard, Failed) and heard.retryable:
            self._tell_from_s = self._monotonic_s() + (heard.retry_after_ms or _RETRY_MS) / 1000
        elif key is not None:
            self._store.forget_telemetry(key)

    def _next_id(self) -> str:
        return str(next(self._numbers))

    def _spent(self) -> int:
        """Count a message against the rate. Returns the milliseconds to wait before it may be sent."""
        assert self.welcome is not None
        now_s, per_minute = self._monotonic_s(), self.welcome.limits.messages_per_minute
        if self._bucket is None:
            self._bucket = TokenBucket(float(per_minute), now_s)
        return self._bucket.take(per_minute, now_s)

    def _pause(self, wait_ms: int) -> None:
        until_s = self._monotonic_s() + (wait_ms or _RETRY_MS) / 1000
        self._paused_until_s = max(self._paused_until_s, until_s)

    def _greeted(self, welcome: Welcome) -> list[bytes]:
        self.welcome = welcome
        self.policies = welcome.policies
        self._server_time = welcome.server_time
        return [self._hello(), *self.wake()]

    def _hello(self) -> bytes:
        clock_us = self._clock_us()
        self._clock_ahead_us = clock_us - round(self._monotonic_s() * 1_000_000)
        return messages.hello(to_text(clock_us), self._server_time)

    def _clock_set(self) -> list[bytes]:
        """Tell the server, before anything else, that the clock was set: it corrects every ``at`` by it."""
        ahead_us = self._clock_us() - round(self._monotonic_s() * 1_000_000)
        return [self._hello()] if abs(ahead_us - self._clock_ahead_us) > _CLOCK_SET_US else []

    # -- push --------------------------------------------------------------------------------

    def _synced(self, answer: Synced) -> list[bytes]:
        if self._pushing is None or self._pushing.request_id != answer.id:
            return []
        took_us = round((self._monotonic_s() - self._pushing.sent_s) * 1_000_000)
        settled, set_back = self._store.settle(self._pushing.key, answer.results, self._clock_us(), took_us)
        self._pushing = None
        self._max_items = min(BATCH_ITEMS, self._max_items * 2)
        self.answered = True
        for one in settled:
            self._on_settled(one)
        return [*(self._set_back() if set_back else []), *self.wake()]

    def take_back(self, code: str, sentence: str) -> None:
        """Take back the message under way, if there is one: the server never accepts it as it is."""
        pushed, self._pushing = self._pushing, None
        if pushed is not None:
            self._max_items = max(1, pushed.items // 2)
            self._store.refuse(pushed.key, code, sentence)

    # -- receive -----------------------------------------------------------------------------

    def _catch_up(self) -> bytes:
        """Ask for the next page behind the cursor; pages of an earlier question count no more."""
        self.live = False
        self._feed = self._next_id()
        return messages.asked("pull", self._feed, cursor=self._store.cursor, domains=self._store.domains)

    def _set_back(self) -> list[bytes]:
        """Read on from the cursor that was set back: the pages of the open subscription are behind it."""
        ended = [messages.asked("unsubscribe", self._feed)] if self.live and self._feed is not None else []
        return [*ended, self._catch_up()]

    def _page(self, page: Changes) -> list[bytes]:
        if page.id != self._feed:
            return []
        self.answered = True
        subscribed = self.live
        self._store.page(page.changes, page.cursor, last=not page.more)
        if subscribed:
            return []
        if page.more:
            return [self._catch_up()]
        self._feed = self._next_id()
        self.live = True
        return [messages.asked("subscribe", self._feed, cursor=page.cursor, domains=self._store.domains)]

    # -- what goes wrong ---------------------------------------------------------------------

    def _failed(self, error: Failed) -> list[bytes]:
        """Do what the error asks for: wait, start over, take the message back."""
        if error.code in _TOKEN_CODES or self.welcome is None:
            self.refused = error
            return []
        if error.id is not None and error.id == self._feed:
            return self._feed_failed(error)
        if error.id in self._asked:
            self._asked.pop(error.id)(error)
            return []
        if self._pushing is None or not _is_of_push(error, self._pushing):
            return []
        if error.retryable:
            self._pushing = None
            self._pause(error.retry_after_ms)
            return []
        self.take_back(error.code, error.message)
        return self.wake()

    def _feed_failed(self, error: Failed) -> list[bytes]:
        if error.code == "cursor_expired":
            self._store.start_over()
            return [self._catch_up()]
        if not error.retryable:
            raise ProtocolError(f"the feed was refused: {error.message}")
        self.live = False
        self._feed = None
        self._pause(error.retry_after_ms)
        return []


def _is_of_push(error: Failed, pushed: Pushing) -> bool:
    """Return whether an error refuses the push, or may refuse it and lets it be sent again.

    An error without an id that is not retryable is of a ``hello``, unless the server could not read the
    message.
    """
    if error.id is None:
        return error.retryable or error.code == "malformed"
    return error.id == pushed.request_id
