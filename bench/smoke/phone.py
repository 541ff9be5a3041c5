"""One device of a smoke session: a WebSocket and HTTP, one message out, its answer back."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from aiohttp import ClientSession, ClientWebSocketResponse, ClientWSTimeout, WSMsgType, WSServerHandshakeError
from yarl import URL

from bench.client import messages
from bench.client.messages import Change, Changes, Failed
from engine.wire.messages import JSON_SUBPROTOCOL, DomainInfo, DomainList, Welcome
from engine.wire.timestamps import to_text

_LARGEST_FRAME_BYTES: Final = 1 << 24
_CLOSE_S: Final = 2.0
_PAGE: Final = 1000
#: A tenant with more records than in these pages is not one that is kept for this.
_PAGES: Final = 20

Answer = TypeVar("Answer")


class SmokeError(Exception):
    """A step failed; one sentence says what was answered instead."""


class NotAdmittedError(SmokeError):
    """The handshake was refused with ``status``."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Reply(NamedTuple):
    """The answer to an HTTP request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def required(self, *statuses: int) -> Reply:
        """Return itself. Raises SmokeError for any other status."""
        if self.status not in statuses:
            text = self.body[:300].decode(errors="replace").strip()
            raise SmokeError(f"status {self.status} instead of {statuses[0]}: {text or 'without a body'}")
        return self


def now() -> str:
    """Return the time of this device's clock, as messages have it."""
    return to_text(time.time_ns() // 1000)


class Phone:
    """One device.

    Args:
        session: What it connects by.
        url: The server, without a slash at the end.
        token: Its token.
    """

    def __init__(self, session: ClientSession, url: str, token: str) -> None:
        self._session = session
        self._url = url
        self._authorization = {"Authorization": f"Bearer {token}"}
        self._numbers = itertools.count(1)
        self._pages: deque[Changes] = deque()
        self._socket: ClientWebSocketResponse | None = None

    async def connect(self) -> Welcome:
        """Open the WebSocket, be greeted and say hello. Raises SmokeError, ClientError."""
        try:
            self._socket = await self._session.ws_connect(
                f"{self._url}/v1/sync",
                headers=self._authorization,
                protocols=(JSON_SUBPROTOCOL,),
                timeout=ClientWSTimeout(ws_close=_CLOSE_S),
                max_msg_size=_LARGEST_FRAME_BYTES,
            )
        except WSServerHandshakeError as error:
            raise NotAdmittedError(
                f"the WebSocket was answered with {error.status} instead of 101", error.status
            ) from None
        welcome = await self._heard()
        if not isinstance(welcome, Welcome):
            raise SmokeError(f"the first message was {welcome!r} and no welcome")
        await self._socket.send_frame(messages.hello(now(), welcome.server_time), WSMsgType.TEXT)
        return welcome

    async def close(self) -> None:
        """Close the WebSocket if it is open."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def ask(self, kind: str, wanted: type[Answer], **fields: Any) -> Answer:
        """Send a request and wait for its answer. Raises SmokeError for any other answer."""
        request_id = str(next(self._numbers))
        return await self._answer(messages.asked(kind, request_id, **fields), request_id, wanted)

    async def push(self, key: str, items: list[bytes]) -> messages.Synced:
        """Push items over the WebSocket. Raises SmokeError."""
        request_id = str(next(self._numbers))
        return await self._answer(messages.sync(request_id, key, items), request_id, messages.Synced)

    async def push_http(self, key: str, items: list[bytes], *, atomic: bool = False) -> messages.Synced:
        """Push items over HTTP. Raises SmokeError."""
        head = msgspec.json.encode({"type": "sync", "id": "http", "key": key, "atomic": atomic})
        body = b'%b,"items":[%b]}' % (head[:-1], b",".join(items))
        reply = await self.request("POST", "/v1/sync", {"Content-Type": "application/json"}, body)
        answer = messages.read(reply.required(200).body)
        if not isinstance(answer, messages.Synced):
            raise SmokeError(f"the push was answered with {answer!r}")
        return answer

    async def pull(self, cursor: str | None, domain: str) -> tuple[list[Change], str]:
        """Pull all changes of a domain behind a cursor, and return the next one. Raises SmokeError."""
        found: list[Change] = []
        for _ in range(_PAGES):
            page = await self.ask("pull", Changes, cursor=cursor, domains=[domain], limit=_PAGE)
            found += page.changes
            cursor = page.cursor
            if not page.more:
                return found, cursor
        raise SmokeError(f"the tenant has over {_PAGES * _PAGE:,} records: give one that is kept for this")

    async def subscribe(self, cursor: str, domain: str) -> None:
        """Follow a domain from a cursor on. Raises SmokeError."""
        await self.ask("subscribe", Changes, cursor=cursor, domains=[domain])

    async def told(self, record_id: str, version: int, *, with_file: bool = False) -> Change:
        """Wait for the live page with a version of a record, or with its file. Raises SmokeError."""
        while True:
            page = self._pages.popleft() if self._pages else await self._heard()
            if not isinstance(page, Changes):
                raise SmokeError(f"the server said {page!r} instead of a live page")
            for change in page.changes:
                if change.id == record_id and change.version >= version:
                    if with_file and not bytes(change.attachments):
                        continue
                    return change

    async def domains(self) -> dict[str, DomainInfo]:
        """Ask for the rules of all domains. Raises SmokeError."""
        reply = await self.request("GET", "/v1/domains", {})
        return msgspec.json.decode(reply.required(200).body, type=DomainList).domains

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Send an HTTP request with the token. Raises ClientError."""
        async with self._session.request(
            method,
            self._url + path,
            headers={**self._authorization, **headers},
            data=body or None,
            allow_redirects=False,
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def _answer(self, frame: bytes, request_id: str, wanted: type[Answer]) -> Answer:
        if self._socket is None:
            raise SmokeError("there is no connection")
        await self._socket.send_frame(frame, WSMsgType.TEXT)
        while True:
            heard = await self._heard()
            if getattr(heard, "id", None) == request_id:
                if isinstance(heard, wanted):
                    return heard
                raise SmokeError(_refusal(heard))
            if isinstance(heard, Changes):
                self._pages.append(heard)
            elif isinstance(heard, Failed):
                raise SmokeError(_refusal(heard))

    async def _heard(self) -> messages.Heard | None:
        """Wait for the next message of the server. Raises SmokeError."""
        if self._socket is None:
            raise SmokeError("there is no connection")
        frame = await self._socket.receive()
        if frame.type is not WSMsgType.TEXT:
            raise SmokeError(f"the server closed the WebSocket with {self._socket.close_code}")
        return messages.read(frame.data)


def _refusal(heard: object) -> str:
    if isinstance(heard, Failed):
        return f"refused with {heard.code}: {heard.message}"
    return f"answered with {heard!r}"


async def reach(session: ClientSession, url: str, trusted: ssl.SSLContext) -> str:
    """Ask whether the process is alive. Returns how it was reached.

    Raises:
        SmokeError: It says that it is not.
        ClientError, OSError: Nothing was reached, or its certificate is not trusted.
    """
    said = "answers"
    at = URL(url)
    if at.scheme == "https":
        _, writer = await asyncio.open_connection(at.host, at.port, ssl=trusted)
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        until = (tls.getpeercert() or {}).get("notAfter", "an unknown time")
        said += f" over {tls.version()}, certificate until {until}"
        writer.close()
    async with session.get(f"{url}/healthz", allow_redirects=False) as response:
        if response.status != 200:
            raise SmokeError(f"/healthz was answered with {response.status} instead of 200")
    return said
