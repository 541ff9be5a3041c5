"""The HTTP client of the benchmark's uploads: answers, however they come."""

from __future__ import annotations

import asyncio
import hashlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.uploads.http_client import Answer, HttpConnection


class Plain:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def writelines(self, parts: list[bytes]) -> None:
        """Take a request."""
        self.written += b"".join(parts)

    def abort(self) -> None:
        """End nothing."""


ANSWERS = {
    b"GET": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b:c\r\n\r\nhello",
    b"POST": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
    b"PATCH": b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\nUpload-Offset: 7\r\n\r\n",
    b"HEAD": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nUpload-Offset: 7\r\n\r\n",
}


async def answered(method: bytes, pieces: list[bytes], sink: Any = None) -> Answer:
    line = HttpConnection()
    line.connection_made(Plain())  # type: ignore[arg-type]
    asking = asyncio.create_task(line.request(method + b" / HTTP/1.1\r\n\r\n", sink=sink))
    await asyncio.sleep(0)
    for piece in pieces:
        assert not asking.done()
        line.data_received(piece)
    return await asking


@given(st.sampled_from(sorted(ANSWERS)), st.sets(st.integers(1, 80)))
def test_http_client_reads_an_answer_however_it_is_cut(method: bytes, cuts: set[int]) -> None:
    text = ANSWERS[method]
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[first:last] for first, last in pairwise(bounds)]
    answer = asyncio.run(answered(method, pieces))
    assert answer.body == (b"hello" if method in (b"GET", b"POST") else b"")
    if method == b"GET":
        assert answer.headers[b"x-a"] == b"b:c"
    if method in (b"PATCH", b"HEAD"):
        assert answer.headers[b"upload-offset"] == b"7"


async def test_http_client_body_goes_to_a_sink() -> None:
    digest = hashlib.sha256()
    answer = await answered(b"GET", [ANSWERS[b"GET"][:-2], b"lo"], digest.update)
    assert (answer.status, answer.body) == (200, b"")
    assert digest.digest() == hashlib.sha256(b"hello").digest()


async def test_http_client_lost_connection_is_an_error_from_then_on() -> None:
    line = HttpConnection()
    line.connection_made(Plain())  # type: ignore[arg-type]
    asking = asyncio.create_task(line.request(b"GET / HTTP/1.1\r\n\r\n"))
    await asyncio.sleep(0)
    line.connection_lost(None)
    with pytest.raises(ConnectionError, match="the server closed the connection"):
        await asking
    with pytest.raises(ConnectionError, match="the server closed the connection"):
        await line.request(b"GET / HTTP/1.1\r\n\r\n")
