"""Bytes that two readers of HTTP may read differently, and bytes that are no HTTP: one refusal for all."""

from __future__ import annotations

from typing import Final

import pytest

from tests.harness.in_process_server import ON_SHARED
from tests.harness.raw_http import wired
from tests.security.arena import Arena
from tests.security.catalogue import against

pytestmark = [ON_SHARED, against("API8:2023", "V4.2")]

#: What no answer may repeat, nor a request that hides behind another.
HIDDEN: Final = b"GET /healthz?hidden HTTP/1.1\r\nHost: a\r\n\r\n"


def _push(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    head = (b"POST /v1/sync HTTP/" + version, b"Host: a", b"X-Secret: hidden", *lines)
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def _probe(*lines: bytes, first: bytes = b"GET /healthz HTTP/1.1") -> bytes:
    return b"\r\n".join((first, b"Host: a", b"X-Secret: hidden", *lines)) + b"\r\n\r\n"


_CHUNKED: Final = b"Transfer-Encoding: chunked"
_HIDDEN_SIZE: Final = b"Content-Length: %d" % len(HIDDEN)

#: Two lengths, or a length that two readers read differently (RFC 9112, 6 and 11.2).
SMUGGLED: Final = {
    "a length and chunks": _push(_HIDDEN_SIZE, _CHUNKED, body=b"0\r\n\r\n" + HIDDEN),
    "chunks and a length": _push(_CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n" + HIDDEN),
    "two lengths": _push(b"Content-Length: 0", _HIDDEN_SIZE, body=HIDDEN),
    "two equal lengths": _push(_HIDDEN_SIZE, _HIDDEN_SIZE, body=HIDDEN),
    "a list of lengths": _push(b"Content-Length: 0, 44", body=HIDDEN),
    "a length with a sign": _push(b"Content-Length: +44", body=HIDDEN),
    "a length below zero": _push(b"Content-Length: -1", body=HIDDEN),
    "a length in hexadecimal": _push(b"Content-Length: 0x2c", body=HIDDEN),
    "a length with an underscore": _push(b"Content-Length: 4_4", body=HIDDEN),
    "a length with a blank inside": _push(b"Content-Length: 4 4", body=HIDDEN),
    "a length of other digits": _push("Content-Length: \u0664\u0664".encode(), body=HIDDEN),
    "an empty length": _push(b"Content-Length:", body=HIDDEN),
    "a length past 64 bits": _push(b"Content-Length: 99999999999999999999", body=HIDDEN),
    "two codings": _push(_CHUNKED, b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + HIDDEN),
    "a coding behind chunks": _push(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + HIDDEN),
    "a coding that begins as chunked": _push(b"Transfer-Encoding: chunkedx", body=b"0\r\n\r\n" + HIDDEN),
    "a coding that ends as chunked": _push(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n" + HIDDEN),
    "a control character in a coding": _push(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n" + HIDDEN),
    "chunked twice": _push(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n" + HIDDEN),
    "a name with a blank behind": _push(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + HIDDEN),
    "a line that goes on": _push(b"X: a", b" Transfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN),
    "a line feed alone": _push(b"X: a\nTransfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN),
    "a carriage return alone": _push(b"X: a\rTransfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN),
    "a size that is no number": _push(_CHUNKED, body=b"ZZ\r\n" + HIDDEN),
    "a size with a sign": _push(_CHUNKED, body=b"-1\r\n" + HIDDEN),
    "a size in hexadecimal with a mark": _push(_CHUNKED, body=b"0x1\r\na\r\n" + HIDDEN),
    "a size past 64 bits": _push(_CHUNKED, body=b"fffffffffffffffff\r\n" + HIDDEN),
    "a chunk that is longer than its size": _push(_CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n" + HIDDEN),
    "a line feed in an extension": _push(_CHUNKED, body=b"0;a=\nb\r\n\r\n" + HIDDEN),
    "line feeds in place of ends": _push(_CHUNKED, body=b"1\na\n0\n\n" + HIDDEN),
}
#: Heads that are no HTTP/1.1, and requests of other protocols.
GARBLED: Final = {
    "text": b"hidden words of nobody\r\n\r\n",
    "a hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03hidden\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /hidden\r\n\r\n",
    "another version": _probe(first=b"GET /hidden HTTP/9.9"),
    "no version": _probe(first=b"GET /hidden"),
    "a method of lower case": _probe(first=b"ge{t /hidden HTTP/1.1"),
    "a long method": _probe(first=b"A" * 5000 + b" / HTTP/1.1"),
    "a blank before the method": _probe(first=b" GET / HTTP/1.1"),
    "a control character in the path": _probe(first=b"GET /hidden\x01 HTTP/1.1"),
    "a zero byte in a header": _probe(b"X: hidden\x00b"),
    "a zero byte in a name": _probe(b"X\x00: hidden"),
    "no name": _probe(b": hidden"),
    "a name in brackets": _probe(b"[X]: hidden"),
    "no colon": _probe(b"hidden"),
    "two hosts": _probe(b"Host: b"),
    "no host": b"GET /healthz?hidden HTTP/1.1\r\n\r\n",
    "line feeds alone": b"GET /hidden HTTP/1.1\nHost: a\n\n",
    "5,000 headers": _probe(*(b"X%d: hidden" % number for number in range(5000))),
    "a header too long": _probe(b"X: " + b"hidden" * 6000),
    "a path too long": _probe(first=b"GET /" + b"hidden" * 6000 + b" HTTP/1.1"),
}


@pytest.mark.parametrize("sent", [*SMUGGLED.values(), *GARBLED.values()], ids=[*SMUGGLED, *GARBLED])
async def test_http_ambiguous_or_garbled_request_is_refused_and_ends_its_connection(
    sent: bytes, arena: Arena
) -> None:
    before = await arena.counted()
    async with arena.holds(), wired(arena.url) as wire:
        await wire.send(sent)
        answer = await wire.answer()
        assert answer.verdict == (400, "malformed")
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["Cache-Control"] == "no-store"
        assert b"hidden" not in answer.body, "an answer that repeats a line tells it to whoever else reads it"
        assert await wire.rest() == b"", "what stands behind is not read as a request"
    after = await arena.counted()
    event = 'tidemark_security_events_total{event="heads_refused"}'
    assert after[event] == before[event] + 1
