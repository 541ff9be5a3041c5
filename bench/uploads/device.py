"""A device that uploads: a tus client that, after a failure, goes on where the server says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from time import perf_counter
from typing import Final

import msgspec

from bench.load.http_client import Answer, HttpConnection, Part
from bench.load.websocket_client import reason_of
from bench.uploads.workload import DOMAIN, Picture

#: How long an answer may take.
_ANSWER_S: Final = 60.0
#: How often something may fail in a row before an upload is given up, and the pause after the first time.
_TRIES: Final = 8
_PAUSE_S: Final = 0.1
#: Answers of 400 to 499 after which the same may go well: the offset is asked for, or a lock is free.
_PASSING: Final = (408, 409, 423, 429)
_GOOD: Final = (200, 201, 204)


class FailedError(Exception):
    """An upload that came to nothing, in one sentence."""


class Stored(msgspec.Struct, frozen=True):
    """An upload whose last byte was acknowledged."""

    file_id: str
    uploader: int
    picture: Picture


class Uploader:
    """One device with its token and one upload at a time.

    ``chunk_us`` is how long each chunk took that was acknowledged with the offset that it had to be;
    ``retries`` counts by reason what was sent again after a lost connection or an answer that is no success.
    """

    def __init__(self, address: tuple[str, int], token: str, chunk_bytes: int, number: int = 0) -> None:
        self._address = address
        self._headers = {
            "Host": "{}:{}".format(*address),
            "Authorization": f"Bearer {token}",
            "Tus-Resumable": "1.0.0",
        }
        self._chunk_bytes = chunk_bytes
        self._connection: HttpConnection | None = None
        self.number = number
        self.chunk_us: list[int] = []
        self.sent_bytes = 0
        self.retries: Counter[str] = Counter()

    async def connect(self) -> HttpConnection:
        """Return the connection, a new one where the last one was closed. Raises OSError."""
        if self._connection is None or self._connection.over is not None:
            loop = asyncio.get_running_loop()
            _, self._connection = await loop.create_connection(HttpConnection, *self._address)
        return self._connection

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()

    async def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: Sequence[Part] = ()
    ) -> Answer:
        """Send one request and read the answer. Raises OSError."""
        connection = await self.connect()
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await connection.ask(method, path, {**self._headers, **(headers or {})}, body)
        except OSError:
            connection.close()
            raise

    async def make_record(self, name: str) -> None:
        """Push the record that files are to belong to. Raises OSError where it is not stored."""
        data = {"title": "Inspect pump 3", "status": "ASSIGNED"}
        item = {"domain": DOMAIN, "id": name, "op": "put", "base": None, "data": data}
        sync = {"type": "sync", "key": f"task-{name}", "items": [item]}
        json = {"Content-Type": "application/json"}
        answer = await self.ask("POST", "/v1/sync", json, [msgspec.json.encode(sync)])
        if answer.status != 200:
            raise ConnectionError(f"the record was not stored: {_refusal(answer)}")

    async def upload(self, picture: Picture) -> Stored:
        """Upload one file. Raises FailedError."""
        location = await self.begin(picture)
        offset = failed = 0
        while offset < picture.size_bytes:
            try:
                offset = await self._sent(location, picture, offset)
                failed = 0
            except OSError as error:
                failed += 1
                await self._again(reason_of(error), failed)
                told = int((await self._asked("HEAD", location))["upload-offset"])
                if told < offset:
                    raise FailedError(f"{offset} bytes were acknowledged and {told} are there") from None
                offset = told
        return Stored(location.rpartition("/")[2], self.number, picture)

    async def begin(self, picture: Picture) -> str:
        """Create an upload, and return where its bytes go. Raises FailedError."""
        length = {"Upload-Length": str(picture.size_bytes), "Upload-Metadata": picture.metadata}
        return (await self._asked("POST", "/v1/uploads", length))["location"]

    async def patch(self, location: str, offset: int, chunk: Sequence[Part], checksum: str) -> Answer:
        """Send a chunk. Raises OSError."""
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": str(offset),
            "Upload-Checksum": checksum,
        }
        return await self.ask("PATCH", location, headers, chunk)

    async def _sent(self, location: str, picture: Picture, offset: int) -> int:
        """Send the next chunk and give the offset that was acknowledged. Raises OSError where none was."""
        chunk = picture.chunk(offset, self._chunk_bytes)
        checksum = picture.checksum(offset, chunk)
        began_s = perf_counter()
        answer = await self.patch(location, offset, chunk, checksum)
        if answer.status != 204:
            raise _failure(answer)
        took_us = int((perf_counter() - began_s) * 1e6)
        told, wanted = int(answer.headers.get("upload-offset", "-1")), offset + sum(map(len, chunk))
        if told != wanted:
            raise FailedError(f"a chunk was acknowledged with offset {told} instead of {wanted}")
        self.chunk_us.append(took_us)
        self.sent_bytes += wanted - offset
        return wanted

    async def _asked(self, method: str, path: str, headers: dict[str, str] | None = None) -> dict[str, str]:
        """Ask until it goes well, and return the headers of the answer. Raises FailedError."""
        failed = 0
        while True:
            try:
                answer = await self.ask(method, path, headers)
                if answer.status in _GOOD:
                    return answer.headers
                raise _failure(answer)
            except OSError as error:
                failed += 1
                await self._again(f"{method}: {reason_of(error)}", failed)

    async def _again(self, reason: str, failed: int) -> None:
        """Wait before what failed is tried again. Raises FailedError when it failed too often."""
        if failed == _TRIES:
            raise FailedError(f"{reason}, {failed} times")
        self.retries[reason] += 1
        await asyncio.sleep(_PAUSE_S * 2 ** (failed - 1))


def _refusal(answer: Answer) -> str:
    return f"status {answer.status} {answer.body[:200].decode(errors='replace').strip()}".strip()


def _failure(answer: Answer) -> Exception:
    """Make an error of an answer: one that time may mend, or the end of the upload."""
    final = 400 <= answer.status < 500 and answer.status not in _PASSING
    return (FailedError if final else ConnectionError)(_refusal(answer))
