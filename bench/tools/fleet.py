"""Devices that keep one socket each and come back as the guide says, and others that sync over HTTP."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Final

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout

from bench.client.retry import Backoff
from bench.load.simple_device import Message, SimpleDevice, statuses
from bench.load.websocket_client import CUT_OFF, HandshakeError

TENANT: Final = "fleet"
_PUSH_S: Final = (5.0, 15.0)
_PATIENCE_S: Final = 10.0
_HTTP_S: Final = 0.5


#: Signs a device's token, with further claims.
Sign = Callable[..., str]


class Way(msgspec.Struct, frozen=True):
    """How devices reach the server: past nginx, or through it, over TLS."""

    port: int
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """The address for requests over HTTP."""
        return f"http{'' if self.tls is None else 's'}://localhost:{self.port}"


class Member:
    """A device with a socket. It is live once a push was answered on the connection that is open.

    ``away_s`` are the times from the end of a connection that was live to the next one. ``pushed`` counts the
    pushes that were answered; each is a version of its one record.
    """

    def __init__(self, name: str, token: str, way: Way, seed: str) -> None:
        self.name = name
        self.pushed = 0
        self.live = False
        self.live_at_s = 0.0
        self.away_s: list[float] = []
        self.failures: Counter[str] = Counter()
        self.rejected = 0
        self._token = token
        self._way = way
        self._random = Random(seed)
        self._backoff = Backoff(self._random.random)
        self._ended_at_s = 0.0
        self._retry_after_ms = 0

    async def run(self) -> None:
        """Stay connected until cancelled, as sections 3, 4 and 9 of the guide ask for."""
        while True:
            self._retry_after_ms = 0
            await self._connected()
            self.live = False
            await asyncio.sleep(self._backoff.failed(self._retry_after_ms))

    async def _connected(self) -> None:
        device, way = SimpleDevice(self._told, answer_s=_PATIENCE_S), self._way
        try:
            await device.open("localhost", way.port, self._token, tls=way.tls)
        except HandshakeError as error:
            self._retry_after_ms = error.retry_after_s * 1000
            self.failures[str(error)] += 1
        except OSError as error:  # TimeoutError is one
            self.failures[type(error).__name__] += 1
        else:
            await self._push_on(device)
        finally:
            device.close()

    async def _push_on(self, device: SimpleDevice) -> None:
        """Push the one record again and again, under the key that a push had if it was sent before."""
        while not device.ended.done():
            number = self.pushed
            item = {"domain": "journal", "id": self.name, "op": "put", "data": {"number": number}}
            try:
                answer = await device.ask(
                    "sync", key=f"{self.name}-{number}", items=[{**item, "base": number or None}]
                )
            except TimeoutError:
                break
            if answer["type"] != "synced":
                self._told(answer)
                break
            self.rejected += len(answer["results"]) - statuses(answer)["applied"]
            self.pushed += 1
            self._backoff.worked()
            self._came_live()
            await asyncio.wait([device.ended], timeout=self._random.uniform(*_PUSH_S))
        if self.live:
            self._ended_at_s = time.monotonic()
        else:
            self.failures[str(device.ended.result() if device.ended.done() else CUT_OFF)] += 1

    def _came_live(self) -> None:
        if not self.live:
            self.live = True
            self.live_at_s = time.monotonic()
            if self._ended_at_s:
                self.away_s.append(self.live_at_s - self._ended_at_s)

    def _told(self, message: Message) -> None:
        self._retry_after_ms = max(self._retry_after_ms, message.get("retry_after_ms") or 0)


class Other:
    """A device that syncs over HTTP twice a second; ``errors`` are when and what it was refused with."""

    def __init__(self, name: str, token: str, way: Way) -> None:
        self.name = name
        self.answered = 0
        self.errors: list[tuple[float, str]] = []
        self._token = token
        self._way = way

    async def run(self, wanted: Callable[[], bool] = lambda: True) -> None:
        """Sync until cancelled, or until nothing more is wanted."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        timeout = ClientTimeout(total=_PATIENCE_S)
        async with ClientSession(timeout=timeout, headers=headers) as session:
            while wanted():
                verdict = await self._sync(session)
                if verdict is None:
                    self.answered += 1
                else:
                    self.errors.append((time.monotonic(), verdict))
                await asyncio.sleep(_HTTP_S)

    async def _sync(self, session: ClientSession) -> str | None:
        """Send one message, the same until it is answered. Returns what it was refused with."""
        item = {"domain": "journal", "id": self.name, "op": "put", "data": {"number": self.answered}}
        item["base"] = self.answered or None  # type: ignore[assignment]
        body = msgspec.json.encode({"type": "sync", "key": f"{self.name}-{self.answered}", "items": [item]})
        try:
            async with session.post(
                f"{self._way.url}/v1/sync", data=body, ssl=self._way.tls or True
            ) as response:
                answer = await response.read()
                if response.status == 200:
                    return None
                with suppress(msgspec.DecodeError):
                    return f"{response.status} {msgspec.json.decode(answer)['code']}"
                return str(response.status)
        except (ClientError, OSError, TimeoutError) as error:
            return type(error).__name__
