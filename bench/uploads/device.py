"""A device that uploads: a tus client that, after a failure, goes on where the server says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from time import perf_counter
from typing import Final, NamedTuple

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from bench.uploads.workload import DOMAIN, Picture

#: How long an answer may take.
_ANSWER: Final = ClientTimeout(total=60.0)
#: How often something may fail in a row before an upload is given up, and the pause after the first time.
_TRIES: Final = 8
_PAUSE_S: Final = 0.1
#: Answers of 400 to 499 after which the same may go well: the offset is asked for, or a lock is free.
_PASSING: Final = (408, 409, 423, 429)
_GOOD: Final = (200, 201, 204)


class FailedError(Exception):
    """An upload that came to nothing, in one sentence."""


class Answer(NamedTuple):
    """An answer that was read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Stored(msgspec.Struct, frozen=True):
    """An upload whose last byte was acknowledged."""

    file_id: str
    uploader: int
    picture: Picture


def session_at(host: str, port: int) -> ClientSession:
    """Return a session for any number of uploaders at a server; connections stay open."""
    return ClientSession(f"http://{host}:{port}", connector=TCPConnector(limit=0), timeout=_ANSWER)


class Uploader:
    """One device with its token and one upload at a time.

    ``chunk_us`` is how long each chunk took that was acknowledged with the offset that it had to be;
    ``retries`` counts by reason what was sent again after a lost connection or an answer that is no success.
    """

    def __init__(self, session: ClientSession, token: str, chunk_bytes: int, number: int = 0) -> None:
        self._session = session
        self._headers = {"Authorization": f"Bearer {token}", "Tus-Resumable": "1.0.0"}
        self._chunk_bytes = chunk_bytes
        self.number = number
        self.chunk_us: list[int] = []
        self.sent_bytes = 0
        self.retries: Counter[str] = Counter()

    async def ask(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Send one request and read the answer. Raises OSError."""
        try:
            headers = self._headers | (headers or {})
            async with self._session.request(method, path, headers=headers, data=body) as answer:
                return Answer(answer.status, answer.headers, await answer.read())
        except ClientError as error:
            raise ConnectionError(str(error) or type(error).__name__) from None

    async def make_record(self, name: str) -> None:
        """Push the record that files are to belong to. Raises OSError where it is not stored."""
        data = {"title": "Inspect pump 3", "status": "ASSIGNED"}
        item = {"domain": DOMAIN, "id": name, "op": "put", "base": None, "data": data}
        sync = {"type": "sync", "key": f"task-{name}", "items": [item]}
        json = {"Content-Type": "application/json"}
        answer = await self.ask("POST", "/v1/sync", json, msgspec.json.encode(sync))
        if answer.status != 200:
            raise ConnectionError(f"the record was not stored: {_refusal(answer)}")

    async def upload(self, picture: Picture) -> Stored:
        """Upload one file. Raises FailedError."""
        length = {"Upload-Length": str(picture.size_bytes), "Upload-Metadata": picture.metadata}
        location = (await self._asked("creation", "POST", "/v1/uploads", length))["Location"]
        offset = failed = 0
        while offset < picture.size_bytes:
            try:
                offset = await self._sent(location, picture, offset)
                failed = 0
            except OSError as error:
                failed += 1
                await self._again(_reason(error), failed)
                told = int((await self._asked("HEAD", "HEAD", location))["Upload-Offset"])
                if told < offset:
                    raise FailedError(f"{offset} bytes were acknowledged and {told} are there") from None
                offset = told
        return Stored(location.rpartition("/")[2], self.number, picture)

    async def _sent(self, location: str, picture: Picture, offset: int) -> int:
        """Send the next chunk and give the offset that was acknowledged. Raises OSError where none was."""
        chunk = picture.chunk(offset, self._chunk_bytes)
        headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
        began_s = perf_counter()
        answer = await self.ask("PATCH", location, headers, chunk)
        if answer.status != 204:
            raise _failure(answer)
        took_us = int((perf_counter() - began_s) * 1e6)
        told, wanted = int(answer.headers.get("Upload-Offset", "-1")), offset + len(chunk)
        if told != wanted:
            raise FailedError(f"a chunk was acknowledged with offset {told} instead of {wanted}")
        self.chunk_us.append(took_us)
        self.sent_bytes += len(chunk)
        return wanted

    async def _asked(
        self, what: str, method: str, path: str, headers: dict[str, str] | None = None
    ) -> Mapping[str, str]:
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
                await self._again(f"{what}: {_reason(error)}", failed)

    async def _again(self, reason: str, failed: int) -> None:
        """Wait before what failed is tried again. Raises FailedError when it failed too often."""
        if failed == _TRIES:
            raise FailedError(f"{reason}, {failed} times")
        self.retries[reason] += 1
        await asyncio.sleep(_PAUSE_S * 2 ** (failed - 1))


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _refusal(answer: Answer) -> str:
    return f"status {answer.status} {answer.body[:200].decode(errors='replace').strip()}".strip()


def _failure(answer: Answer) -> Exception:
    """Make an error of an answer: one that time may mend, or the end of the upload."""
    final = 400 <= answer.status < 500 and answer.status not in _PASSING
    return (FailedError if final else ConnectionError)(_refusal(answer))
