"""A device that uploads: a tus client that, after a failure, goes on where the server says."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from time import perf_counter
from typing import Final

import msgspec

from bench.uploads.http_client import Answer, HttpConnection, Part, Sink, dial
from bench.uploads.plan import Transferred, UploadPlan
from bench.uploads.workload import DOMAIN, Picture

#: How long an answer may take.
_ANSWER_S: Final = 60.0
#: How often something may fail in a row before an upload is given up, and the pause after the first time.
_TRIES: Final = 8
_PAUSE_S: Final = 0.1
#: Answers of 400 to 499 after which the same may go well: the offset is asked for, or a lock is free.
_PASSING: Final = (408, 409, 423, 429)


class FailedError(Exception):
    """An upload that came to nothing, in one sentence."""


class Stored(msgspec.Struct, frozen=True):
    """An upload whose last byte was acknowledged."""

    file_id: str
    uploader: int
    picture: Picture


class Uploader:
    """One device: a connection, its token, and one upload at a time."""

    def __init__(self, plan: UploadPlan, number: int, transferred: Transferred, chunk_us: array[int]) -> None:
        self._plan = plan
        self._head = (
            f"HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\n"
            f"Authorization: Bearer {plan.tokens[number]}\r\nTus-Resumable: 1.0.0\r\n"
        )
        self._line: HttpConnection | None = None
        self._transferred = transferred
        self._retries: Counter[str] = Counter()
        self._chunk_us = chunk_us
        self.number = number

    @property
    def retries(self) -> Counter[str]:
        """Why something was sent again, and how often."""
        return self._retries

    async def connect(self) -> None:
        """Open the connection. Raises OSError."""
        self._line = await dial(self._plan.host, self._plan.port)

    def close(self) -> None:
        """End the connection."""
        if self._line is not None:
            self._line.close()

    async def ask(
        self, method: str, path: str, more: str = "", *body: Part, sink: Sink | None = None
    ) -> Answer:
        """Send one request, on a new connection where the last one was closed. Raises OSError."""
        size = sum(map(len, body))
        length = f"Content-Length: {size}\r\n" if size or method == "POST" else ""
        head = f"{method} {path} {self._head}{more}{length}\r\n".encode()
        if self._line is None or self._line.over is not None:
            await self.connect()
        assert self._line is not None
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._line.request(head, body, sink)
        except OSError:
            self._line.close()
            self._line = None
            raise

    async def make_record(self, name: str) -> None:
        """Push the record that files are to belong to. Raises OSError where it is not stored."""
        data = {"title": "Inspect pump 3", "status": "ASSIGNED"}
        item = {"domain": DOMAIN, "id": name, "op": "put", "base": None, "data": data}
        sync = {"type": "sync", "key": f"task-{name}", "items": [item]}
        json = "Content-Type: application/json\r\n"
        answer = await self.ask("POST", "/v1/sync", json, msgspec.json.encode(sync))
        if answer.status != 200:
            raise ConnectionError(f"the record was not stored: {refused(answer)}")

    async def upload(self, picture: Picture) -> Stored:
        """Upload one file. Raises FailedError."""
        location = await self._created(picture)
        offset, failed = 0, 0
        while offset < picture.size_bytes:
            try:
                offset = await self._sent(location, picture, offset)
                failed = 0
            except OSError as error:
                failed += 1
                await self._again(_reason(error), failed)
                offset = await self._told(location, offset)
        return Stored(location.rpartition("/")[2], self.number, picture)

    async def _created(self, picture: Picture) -> str:
        more = f"Upload-Length: {picture.size_bytes}\r\nUpload-Metadata: {picture.metadata}\r\n"
        for failed in range(1, _TRIES + 1):
            try:
                answer = await self.ask("POST", "/v1/uploads", more)
                if answer.status == 201:
                    return answer.headers[b"location"].decode()
                raise _failure(answer)
            except OSError as error:
                reason = _reason(error)
            await self._again(f"creation: {reason}", failed)
        raise AssertionError

    async def _sent(self, location: str, picture: Picture, offset: int) -> int:
        """Send the next chunk and give the offset that was acknowledged. Raises OSError where none was."""
        chunk = picture.chunk(offset, self._plan.chunk_bytes)
        wanted = offset + sum(map(len, chunk))
        more = f"Content-Type: application/offset+octet-stream\r\nUpload-Offset: {offset}\r\n"
        began_s = perf_counter()
        answer = await self.ask("PATCH", location, more, *chunk)
        if answer.status != 204:
            raise _failure(answer)
        self._chunk_us.append(int((perf_counter() - began_s) * 1e6))
        told = int(answer.headers.get(b"upload-offset", b"-1"))
        if told != wanted:
            raise FailedError(f"a chunk was acknowledged with offset {told} instead of {wanted}")
        self._transferred.chunks += 1
        self._transferred.sent_bytes += wanted - offset
        return wanted

    async def _told(self, location: str, acknowledged: int) -> int:
        """Ask how much has come."""
        for failed in range(1, _TRIES + 1):
            try:
                answer = await self.ask("HEAD", location)
                if answer.status in (200, 204):
                    told = int(answer.headers[b"upload-offset"])
                    if told < acknowledged:
                        raise FailedError(f"{acknowledged} bytes were acknowledged and {told} are there")
                    return told
                raise _failure(answer)
            except OSError as error:
                reason = _reason(error)
            await self._again(f"HEAD: {reason}", failed)
        raise AssertionError

    async def _again(self, reason: str, failed: int) -> None:
        """Wait before what failed is tried again. Raises FailedError when it failed too often."""
        if failed == _TRIES:
            raise FailedError(f"{reason}, {failed} times")
        self._retries[reason] += 1
        await asyncio.sleep(_PAUSE_S * 2 ** (failed - 1))


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def refused(answer: Answer) -> str:
    """Write the status and body of an answer."""
    return f"status {answer.status} {answer.body[:200].decode(errors='replace').strip()}".strip()


def _failure(answer: Answer) -> Exception:
    """Make an error of an answer: one that time may mend, or the end of the upload."""
    final = 400 <= answer.status < 500 and answer.status not in _PASSING
    return FailedError(refused(answer)) if final else ConnectionError(refused(answer))
