"""A device as its developer would write it first: one message out, its answer back."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import jwt
import msgspec
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from tests.harness.schemas import answer_faults

SECRET = b"a secret that the tests' servers and devices share"
Json = dict[str, Any]
#: How long a device waits for a message.
PATIENCE_S = 10.0


#: What a server alone takes, and servers of the tests' cells (tests/harness/services.py).
AUDIENCES = ["tidemark", "tidemark/cell_a", "tidemark/cell_b"]


def token(tenant: str | None = "acme", device: str | None = "phone", **claims: object) -> str:
    """Sign a token; ``claims`` add to or replace the usual ones, None leaves one out."""
    expires_at_s = int(time.time()) + 3600
    usual: Json = {"aud": AUDIENCES, "exp": expires_at_s, "jti": "1", "tid": tenant, "did": device}
    payload = {name: value for name, value in (usual | claims).items() if value is not None}
    return jwt.encode(payload, SECRET, algorithm="HS256")


class Closed(Exception):
    """The server closed the connection with ``code``."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class Device:
    """One connection. ``unasked`` are the messages that answered no request of ``ask``."""

    def __init__(self, socket: ClientWebSocketResponse, encoding: Literal["json", "msgpack"]) -> None:
        self.socket = socket
        self.welcome: Json = {}
        self.unasked: list[Json] = []
        self._numbers = itertools.count(1)
        codec: Any = msgspec.json if encoding == "json" else msgspec.msgpack
        self.encoding: Literal["json", "msgpack"] = encoding
        self._binary = encoding == "msgpack"
        self._encode, self._decode = codec.encode, codec.decode

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message as it is."""
        frame = self._encode(message)
        await self.send_frame(frame, WSMsgType.BINARY if self._binary else WSMsgType.TEXT)

    async def send_frame(self, frame: bytes, kind: WSMsgType = WSMsgType.TEXT) -> None:
        """Send bytes that need be no message."""
        await self.socket.send_frame(frame, kind)

    async def receive(self) -> Json:
        """Wait for the next message. Raises Closed."""
        async with asyncio.timeout(PATIENCE_S):  # wait_for swallows a cancellation if the message is there
            message = await self.socket.receive()
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            raise Closed(self.socket.close_code)
        assert (message.type is WSMsgType.BINARY) == self._binary
        decoded: Json = self._decode(message.data)
        assert answer_faults(decoded) == [], decoded
        return decoded

    async def ask(self, kind: str, **fields: Any) -> Json:
        """Send a request and wait for its answer or error."""
        request = {"type": kind, "id": str(next(self._numbers)), **fields}
        await self.send(request)
        while True:
            answer = await self.receive()
            if answer.get("id") == request["id"]:
                return answer
            self.unasked.append(answer)

    async def told(self, wanted: str, kind: str, **fields: Any) -> Json:
        """Send a request whose answer is to be of the type ``wanted``."""
        answer = await self.ask(kind, **fields)
        assert answer["type"] == wanted, answer
        return answer

    async def sync(self, key: str, *items: Mapping[str, Any], **fields: Any) -> list[Json]:
        """Push items and give their results."""
        answer = await self.told("synced", "sync", key=key, items=list(items), **fields)
        results: list[Json] = answer["results"]
        return results

    async def push(self, *items: Mapping[str, Any], **fields: Any) -> list[Json]:
        """Push items under a key that nobody used before."""
        return await self.sync(uuid.uuid4().hex, *items, **fields)

    async def pull(self, **fields: Any) -> Json:
        """Pull one page."""
        return await self.told("changes", "pull", **fields)

    async def refused(self, kind: str, **fields: Any) -> Json:
        """Send a request that is to be refused, and give the error."""
        return await self.told("error", kind, **fields)

    async def waited(self, kind: str) -> Json:
        """Wait for the next message of a type that answers no request, one that came before included."""
        for index, message in enumerate(self.unasked):
            if message["type"] == kind:
                return self.unasked.pop(index)
        while (message := await self.receive())["type"] != kind:
            self.unasked.append(message)
        return message

    async def changes(self) -> Json:
        """Wait for the next page, one that came before included."""
        return await self.waited("changes")

    async def closed(self) -> int | None:
        """Take in what still comes until the server closes, and give the code."""
        try:
            while True:
                self.unasked.append(await self.receive())
        except Closed as closed:
            return closed.code


@asynccontextmanager
async def connected(
    url: str,
    session: ClientSession,
    *,
    signed: str | None = None,
    encoding: Literal["json", "msgpack"] = "json",
    **options: Any,
) -> AsyncIterator[Device]:
    """Connect and take in the welcome."""
    async with session.ws_connect(
        f"{url}/v1/sync",
        headers={"Authorization": f"Bearer {signed or token()}"},
        protocols=(f"tidemark.v1.{encoding}",),
        max_msg_size=1 << 24,
        **options,
    ) as socket:
        device = Device(socket, encoding)
        device.welcome = await device.receive()
        assert device.welcome["type"] == "welcome"
        yield device


def put(record_id: str, base: int | None = None, /, **data: Any) -> Json:
    """Make an item that puts a record of the task domain."""
    return {"domain": "task", "id": record_id, "op": "put", "base": base, "data": data}


def item(op: str, domain: str, record_id: str, **fields: Any) -> Json:
    """Make an item of any domain."""
    return {"domain": domain, "id": record_id, "op": op, **fields}


def day(number: int) -> str:
    """An instant that is long past, the later the higher the number."""
    return f"2024-01-{number:02}T00:00:00Z"


def change(op: str, when: int, **fields: Any) -> Json:
    """Make an item of a day that still lacks its domain, id and base."""
    return {"op": op, "at": day(when), **fields}
