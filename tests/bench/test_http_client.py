"""How the client of the benchmark's uploads reads answers, however they come."""

from __future__ import annotations

import pytest

from bench.load.http_client import parse

ANSWERS = {
    "GET": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b:c\r\n\r\nhello",
    "POST": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
    "PATCH": b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\nUpload-Offset: 7\r\n\r\n",
    "HEAD": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nUpload-Offset: 7\r\n\r\n",
}


@pytest.mark.parametrize("method", sorted(ANSWERS))
def test_http_client_answer_is_read_once_it_is_whole(method: str) -> None:
    text = ANSWERS[method]
    found = [parse(bytearray(text[:size]), headless=method == "HEAD") for size in range(len(text) + 1)]
    *before, answer = found
    assert answer is not None
    assert before == [None] * len(text)
    assert answer.status == (204 if method == "PATCH" else 200)
    assert answer.body == (b"hello" if method in ("GET", "POST") else b"")
    if method == "GET":
        assert answer.headers["x-a"] == "b:c"
    if method in ("PATCH", "HEAD"):
        assert answer.headers["upload-offset"] == "7"
