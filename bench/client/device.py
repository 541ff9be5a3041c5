"""The reference device: edits at any time, a connection when there is one.

``run`` connects, pushes, receives and comes back after every failure until it is cancelled: to be offline is
to have no ``run``. Nothing but the store outlives it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import msgspec
from aiohttp import (
    ClientError,
    ClientSession,
    ClientWebSocketResponse,
    ClientWSTimeout,
    WSMsgType,
    WSServerHandshakeError,
)

from bench.client.edits import Held
from bench.client.messages import ConflictList, Failed, Heard
from bench.client.protocol import DeviceProtocol, OnSettled, ProtocolError
from bench.client.store import Store
from engine.model.merge import Fields
from engine.wire.messages import JSON_SUBPROTOCOL, Choice, Op, Resolved

_CONNECT_S: Final = 15.0
#: Pings of the WebSocket find a connection that broke without a word; they are no sign of life to the server.
_PING_S: Final = 20.0
_LARGEST_FRAME_BYTES: Final = 1 << 24
_CONFLICTS: Final = 50

#: Of a refused handshake, the close code that asks for the same, and what it says.
_REFUSALS: Final = {
    401: (4401, "the token does not count here"),
    403: (4403, "the tenant does not exist, or the device is not let in"),
    422: (4400, "the server does not speak this version"),
}

#: again: connect again, the later the more often it failed · token: ask for a fresh token first · wait: be
#: quiet for a minute first · once: connect again, but stop if it comes again within ``_ONCE_S`` · stop:
#: nothing that a device can do by itself helps.
Remedy = Literal["again", "token", "wait", "once", "stop"]

#: What a goodbye asks for where the close frame behind it was lost.
_BY_REASON: Final[dict[str, Remedy]] = {"replaced": "once", "revoked": "stop", "expired": "token"}
_BY_CODE: Final[dict[int, Remedy]] = {4401: "token", 4408: "again", 4409: "once", 4429: "wait"}

#: After it the whole of a minute's worth of messages may be sent again.
_QUIET_S: Final = 60.0
#: Two devices that share an id replace each other again within seconds.
_ONCE_S: Final = 600.0


class Decision(NamedTuple):
    """How a person settles a conflict; ``data`` is the record for ``merged``."""

    choice: Choice
    data: Fields | None = None


class StoppedError(Exception):
    """Connecting again cannot help; one sentence says what was refused."""


class OfflineError(Exception):
    """What was asked needs a connection, and there is none or it went away before the answer."""


def remedy(code: int | None, reason: str | None = None) -> Remedy:
    """Return what to do after a close with ``code``, None if it was cut, and the ``reason`` of a goodbye.

    4408 is put right by sending heartbeats, which this client does: that it came nevertheless says that the
    device slept. Two devices that share an id would replace each other (4409) for ever. A device that is
    alone is replaced where the clocks of two hosts differ, and comes back.
    """
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    if code is None or not 4400 <= code < 4500:
        return "again"
    return _BY_CODE.get(code, "stop")


class Backoff:
    """Exponential, with full jitter: devices that were cut off together do not come back together.

    ``due_s`` is until when a device waits, by ``time.monotonic``.
    """

    FIRST_S: Final = 0.5
    LONGEST_S: Final = 60.0

    def __init__(self, unit: Callable[[], float]) -> None:
        self._unit = unit
        self._bound_s = self.FIRST_S
        self.due_s = 0.0

    def failed(self, retry_after_ms: int = 0) -> float:
        """Count a failure and give the seconds to wait: at least what the server asked for."""
        wait_s = retry_after_ms / 1000 + self._unit() * self._bound_s
        self._bound_s = min(self.LONGEST_S, 2 * self._bound_s)
        self.due_s = time.monotonic() + wait_s
        return wait_s

    def worked(self) -> None:
        """Start anew."""
        self._bound_s = self.FIRST_S


class Device:
    """One device: its store and, while ``run`` is running, its connection.

    ``token`` gives a token that is fresh enough. ``clock_us`` is its own clock, which may be wrong; ``unit``
    draws from [0, 1).
    """

    #: The window of permessage-deflate in bits, 0 for none.
    compress = 15
    #: How long a connection that the device leaves is given to close.
    close_s = 10.0
    protocol: type[DeviceProtocol] = DeviceProtocol

    def __init__(
        self,
        store: Store,
        url: str,
        token: Callable[[], str],
        session: ClientSession,
        *,
        unit: Callable[[], float],
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        on_settled: OnSettled = lambda _: None,
    ) -> None:
        self.store = store
        self._url = url
        self._token = token
        self._session = session
        self._clock_us = clock_us
        self._backoff = Backoff(unit)
        self._on_settled = on_settled
        self._protocol: DeviceProtocol | None = None
        self._socket: ClientWebSocketResponse | None = None
        self._edited = asyncio.Event()
        self._heard = asyncio.Event()
        self._waiting: set[asyncio.Future[Heard]] = set()

    # -- what the app does -------------------------------------------------------------------

    def edit(
        self,
        domain: str,
        record_id: str,
        op: Op,
        data: Fields | None = None,
        changed: Sequence[str] | None = None,
        *,
        known: bool = True,
    ) -> int:
        """Make an edit, online or not, of a record that the device knew or did not look for.

        Returns its number. Raises ValueError for data no message carries.
        """
        number = self.store.edit(domain, record_id, op, data, self._clock_us(), changed, known=known)
        self._edited.set()
        return number

    @property
    def online(self) -> bool:
        """Whether the server has greeted."""
        return self._protocol is not None and self._protocol.welcome is not None

    @property
    def policies(self) -> dict[str, str]:
        """What the server told on this connection: the policy of each domain."""
        return {} if self._protocol is None else self._protocol.policies

    async def settled(self) -> None:
        """Wait until every edit is answered and everything that others did is taken in."""
        while self._protocol is None or not self._protocol.idle:
            self._heard.clear()
            await self._heard.wait()

    async def list_conflicts(self) -> list[Held]:
        """Ask which own edits wait for a person. Raises OfflineError."""
        before, found, after = self.store.conflicts, [], None
        while True:
            answer = await self._ask("conflicts", limit=_CONFLICTS, after=after)
            if not isinstance(answer, ConflictList):
                raise OfflineError("the list of conflicts cannot be had now")
            found += answer.conflicts
            after = answer.after
            if after is None:
                self.store.remember(found, before)
                return self.store.conflicts

    async def resolve(self, choose: Callable[[Held], Decision | None]) -> int:
        """Let a person settle the open conflicts: shown both sides, it decides, or leaves one for later.

        Returns how many were settled. Raises OfflineError.
        """
        return sum([await self._resolve(held, choose) for held in await self.list_conflicts()])

    async def _resolve(self, held: Held, choose: Callable[[Held], Decision | None]) -> bool:
        while (decision := choose(held)) is not None:
            seen = {"conflict_id": held.conflict_id, "version": held.version, "changes": held.changes}
            data = {} if decision.data is None else {"data": decision.data}
            answer = await self._ask("resolve", choice=decision.choice, **seen, **data)
            if isinstance(answer, Resolved):
                self.store.drop(held.conflict_id)
                return True
            assert isinstance(answer, Failed)
            if answer.code == "conflict_stale":
                listed = {one.conflict_id: one for one in await self.list_conflicts()}
                if held.conflict_id not in listed:
                    return False
                held = listed[held.conflict_id]
            elif answer.code in {"conflict_closed", "not_found"}:
                self.store.drop(held.conflict_id)
                return False
            elif answer.retryable:
                await asyncio.sleep(self._backoff.failed(answer.retry_after_ms))
            else:
                raise ValueError(answer.message)
        return False

    async def _ask(self, kind: str, **fields: Any) -> Heard:
        if self._protocol is None or self._socket is None or self._protocol.welcome is None:
            raise OfflineError("there is no connection")
        answer: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        self._waiting.add(answer)
        try:
            await self._send(self._socket, self._protocol.ask(kind, partial(_give, answer), **fields))
            return await answer
        except ClientError as error:
            raise OfflineError(str(error)) from None
        finally:
            self._waiting.discard(answer)

    # -- the connection ----------------------------------------------------------------------

    async def run(self) -> None:
        """Stay connected. Raises StoppedError once connecting again cannot help."""
        token, fresh = self._token(), False
        once_from_s = 0.0
        while True:
            said = await self._once(token)
            now_s = time.monotonic()
            if said.remedy == "once" and now_s < once_from_s:
                raise StoppedError(said.sentence)
            if said.remedy == "once":
                once_from_s = now_s + _ONCE_S
            if said.remedy == "stop" or (said.remedy == "token" and fresh and not said.greeted):
                raise StoppedError(said.sentence)
            fresh = said.remedy == "token"
            if fresh:
                token = self._token()
            wait_s = self._backoff.failed(said.retry_after_ms)
            await asyncio.sleep(_QUIET_S + wait_s if said.remedy == "wait" else wait_s)

    async def _once(self, token: str) -> _Ended:
        """Connect, talk until the connection ends, and say what to do then."""
        protocol = self.protocol(self.store, self._clock_us, time.monotonic, self._on_settled)
        code: int | None = None
        retry_after_ms = 0
        sentence = "the connection was cut"
        try:
            async with asyncio.timeout(_CONNECT_S):
                socket = await self._session.ws_connect(
                    f"{self._url}/v1/sync",
                    headers={"Authorization": f"Bearer {token}"},
                    protocols=(JSON_SUBPROTOCOL,),
                    timeout=ClientWSTimeout(ws_close=self.close_s),
                    heartbeat=_PING_S,
                    compress=self.compress,
                    max_msg_size=_LARGEST_FRAME_BYTES,
                )
            try:
                self._protocol, self._socket = protocol, socket
                code = await self._talked(protocol, socket)
                sentence = f"the server closed with {code}"
            finally:
                self._protocol = self._socket = None
                for answer in self._waiting:
                    if not answer.done():
                        answer.set_exception(OfflineError("the connection went away"))
                with suppress(ClientError, ConnectionError):
                    await socket.close()
        except WSServerHandshakeError as error:
            unknown = None, f"the handshake was answered with {error.status}"
            code, sentence = _REFUSALS.get(error.status, unknown)
            retry_after_ms = _retry_after_ms(error)
        except (ClientError, OSError, TimeoutError, ProtocolError, msgspec.DecodeError) as error:
            sentence = str(error) or type(error).__name__
        self._closed(code)
        if code == 1009:
            protocol.take_back("too_large", "the server takes no message of this size")
        if protocol.answered:
            self._backoff.worked()
        self._heard.set()
        waits = protocol.goodbye or protocol.refused
        if waits is not None:
            retry_after_ms = waits.retry_after_ms
        if protocol.refused is not None:
            sentence = protocol.refused.message
        reason = None if protocol.goodbye is None else protocol.goodbye.reason
        return _Ended(remedy(code, reason), sentence, retry_after_ms, protocol.welcome is not None)

    async def _talked(self, protocol: DeviceProtocol, socket: ClientWebSocketResponse) -> int | None:
        """Pass messages in both directions. Returns the close code."""
        next_beat_s = float("inf")
        hearing: asyncio.Task[Any] | None = None
        editing: asyncio.Task[Any] | None = None
        try:
            while True:
                hearing = hearing or asyncio.create_task(socket.receive())
                editing = editing or asyncio.create_task(self._edited.wait())
                pauses = [next_beat_s - time.monotonic(), protocol.pause_s]
                wait_s = min(pause for pause in pauses if pause is not None)
                await asyncio.wait(
                    [hearing, editing],
                    timeout=None if wait_s == float("inf") else max(0.0, wait_s),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                frames: list[bytes] = []
                if hearing.done():
                    message = hearing.result()
                    hearing = None
                    if message.type is not WSMsgType.TEXT:
                        return socket.close_code
                    frames = self._hear(protocol, message.data)
                    if protocol.welcome is not None and next_beat_s == float("inf"):
                        next_beat_s = time.monotonic() + protocol.welcome.heartbeat_s
                if editing.done():
                    editing = None
                    self._edited.clear()
                frames += protocol.wake()
                if time.monotonic() >= next_beat_s and protocol.welcome is not None:
                    next_beat_s = time.monotonic() + protocol.welcome.heartbeat_s
                    frames.append(protocol.heartbeat())
                for frame in frames:
                    await self._send(socket, frame)
                self._heard.set()
        finally:
            for task in (hearing, editing):
                if task is not None:
                    task.cancel()

    # -- where a test of servers listens in, or does harm -------------------------------------------

    async def _send(self, socket: ClientWebSocketResponse, text: bytes) -> None:
        """Send a message."""
        await socket.send_frame(text, WSMsgType.TEXT)

    def _hear(self, protocol: DeviceProtocol, text: bytes | str) -> list[bytes]:
        """Process a message of the server. Returns what to send."""
        return protocol.hear(text)

    def _closed(self, code: int | None) -> None:
        """Let a connection go that ended, None without a close code."""


def _retry_after_ms(refusal: WSServerHandshakeError) -> int:
    """Read when a proxy in between wants to be asked again, while it reaches no server."""
    text = "" if refusal.headers is None else refusal.headers.get("Retry-After", "")
    return int(text[:6]) * 1000 if text.isascii() and text.isdecimal() else 0


def _give(future: asyncio.Future[Heard], answer: Heard) -> None:
    if not future.done():
        future.set_result(answer)


class _Ended(NamedTuple):
    remedy: Remedy
    sentence: str
    retry_after_ms: int
    greeted: bool
