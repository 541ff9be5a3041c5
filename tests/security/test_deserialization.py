"""Bodies and frames that are deep, dense, slow to read, larger than they look, or of another format."""

from __future__ import annotations

import gzip
import pickle
import zlib
from typing import Final

import msgspec
import pytest
from aiohttp import WSMsgType

from tests.harness.in_process_server import ON_SHARED
from tests.harness.ws_device import Closed, Device, put
from tests.security.arena import Arena
from tests.security.catalogue import against

pytestmark = [ON_SHARED, against("A08:2025", "V1.5")]

MALFORMED: Final = (400, "malformed")
INVALID: Final = (422, "invalid_message")
TOO_LARGE: Final = (413, "too_large")

GOOD: Final = msgspec.json.encode({"type": "sync", "key": "k", "items": [put("bomb", None, n=1)]})
#: 32 MiB that travel as 32 KiB, in the middle of a text.
BOMB: Final = b'{"key":"k","items":[],"x":"' + bytes(32 << 20)
GZIPPED: Final = gzip.compress(GOOD)


def _deflated(data: bytes) -> bytes:
    return zlib.compress(data, 1)


def _raw(data: bytes) -> bytes:
    return zlib.compress(data, 1, -15)


#: Content coding, body -> the answer.
CODED: Final[dict[str, tuple[str, bytes, tuple[int, str]]]] = {
    "a bomb by gzip": ("gzip", gzip.compress(BOMB, 1), TOO_LARGE),
    "a bomb by deflate": ("deflate", _deflated(BOMB), TOO_LARGE),
    "a bomb in a bomb": ("gzip", gzip.compress(gzip.compress(BOMB, 1)), MALFORMED),
    "two codings": ("gzip, gzip", gzip.compress(GZIPPED), INVALID),
    "two codings of two kinds": ("deflate, gzip", gzip.compress(_deflated(GOOD)), INVALID),
    "100 codings": (", ".join(["gzip"] * 100), GZIPPED, INVALID),
    "an unknown coding": ("zstd", GZIPPED, INVALID),
    "a coding with parameters": ("gzip;q=1", GZIPPED, INVALID),
    "no gzip": ("gzip", GOOD, MALFORMED),
    "nothing": ("gzip", b"", MALFORMED),
    "cut short": ("gzip", GZIPPED[:-9], MALFORMED),
    "without its checksum": ("gzip", GZIPPED[:-4], MALFORMED),
    "a wrong checksum": ("gzip", GZIPPED[:-8] + bytes(4) + GZIPPED[-4:], MALFORMED),
    "a wrong length": ("gzip", GZIPPED[:-4] + bytes(4), MALFORMED),
    "a name without an end": ("gzip", b"\x1f\x8b\x08\x08" + bytes(6) + b"a" * 5000, MALFORMED),
    "a reserved flag": ("gzip", GZIPPED[:3] + b"\xff" + GZIPPED[4:], MALFORMED),
    "another method": ("gzip", GZIPPED[:2] + b"\x07" + GZIPPED[3:], MALFORMED),
    "deflate as gzip": ("gzip", _deflated(GOOD), MALFORMED),
    "gzip as deflate": ("deflate", GZIPPED, MALFORMED),
    "raw deflate": ("deflate", _raw(GOOD), MALFORMED),
    "a preset dictionary": ("deflate", b"\x78\xbb" + bytes(4) + _raw(GOOD), MALFORMED),
    "a distance too far": ("deflate", b"\x78\x01\x63\x00\x12\x00\x01", MALFORMED),
}


@pytest.mark.parametrize(("coding", "body", "verdict"), CODED.values(), ids=CODED)
async def test_body_that_is_not_what_its_coding_says_is_refused(
    coding: str, body: bytes, verdict: tuple[int, str], arena: Arena
) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    async with arena.holds():
        reply = await arena.ask("POST", "/v1/sync", arena.running.token(), headers=headers, body=body)
        assert reply.verdict == verdict


def _sync(data: bytes) -> bytes:
    return b'{"key":"k","items":[{"domain":"task","id":"bomb","op":"put","data":%s}]}' % data


_HEAD: Final = b"\x82\xa3key\xa1k\xa5items"


def _framed(body: bytes) -> bytes:
    """Give a body the members that say what message it is."""
    if body.startswith(_HEAD):
        return b"\x84\xa4type\xa4sync\xa2id\xa11" + body[1:]
    return body.replace(b'{"key"', b'{"type":"sync","id":"1","key"', 1)


JSON: Final[dict[str, tuple[bytes, tuple[int, str]]]] = {
    "nothing": (b"", MALFORMED),
    "blanks": (b" " * 100_000, MALFORMED),
    "zero bytes": (bytes(1000), MALFORMED),
    "100,000 arrays deep": (b"[" * 100_000, MALFORMED),
    "100,000 objects deep": (b'{"a":' * 100_000, MALFORMED),
    "deep in a field nobody knows": (
        b'{"key":"k","items":[],"x":' + b"[" * 40 + b"]" * 40 + b"}",
        MALFORMED,
    ),
    "deep behind escapes": (_sync(b'{"\\"":' + b"[" * 40 + b"]" * 40 + b"}"), MALFORMED),
    "30,000 empty objects": (_sync(b'{"a":[' + b"{}," * 30_000 + b"{}]}"), MALFORMED),
    "30,000 arrays in each other": (_sync(b'{"a":[' + b"[[]]," * 30_000 + b"[]]}"), MALFORMED),
    "a number of 500,000 digits in a field": (
        b'{"key":"k","atomic":' + b"9" * 500_000 + b',"items":[]}',
        INVALID,
    ),
    "a mark of byte order": (b"\xef\xbb\xbf" + GOOD, MALFORMED),
    "UTF-16": (GOOD.decode().encode("utf-16"), MALFORMED),
    "UTF-32": (GOOD.decode().encode("utf-32"), MALFORMED),
    "UTF-7": (b"+AHsAIg-key+ACI-:1", MALFORMED),
    "a byte that is no UTF-8 in a key": (b'{"key":"\xff","items":[]}', MALFORMED),
    "an overlong slash": (b'{"key":"\xc0\xaf","items":[]}', MALFORMED),
    "a surrogate as UTF-8": (b'{"key":"\xed\xa0\x80","items":[]}', MALFORMED),
    "half an escape": (b'{"key":"\\ud800","items":[]}', INVALID),
    "an escape that is none": (b'{"key":"\\x41","items":[]}', MALFORMED),
    "a comment": (b'{/**/"key":"k","items":[]}', MALFORMED),
    "single quotes": (b"{'key':'k','items':[]}", MALFORMED),
    "a comma too many": (b'{"key":"k","items":[],}', MALFORMED),
    "two documents": (b'{"key":"k","items":[]}{"key":"l","items":[]}', MALFORMED),
    "NaN": (b'{"key":"k","items":[],"x":NaN}', MALFORMED),
    "Infinity": (b'{"key":"k","items":[],"x":-Infinity}', MALFORMED),
    "leading zeros": (b'{"key":"k","items":[],"x":007}', MALFORMED),
    "hexadecimal": (b'{"key":"k","items":[],"x":0x7}', MALFORMED),
    "an array": (b"[]", INVALID),
    "a text": (b'"sync"', INVALID),
    "null": (b"null", INVALID),
    "XML": (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', MALFORMED),
    "YAML": (b"!!python/object/apply:os.system ['id']", MALFORMED),
    "a pickle": (pickle.dumps({"key": "k"}), MALFORMED),
    "a form": (b"key=k&items=", MALFORMED),
    "the second of two keys is no text": (b'{"key":"k","items":[],"key":7}', INVALID),
    "the second of two lists is no list": (b'{"key":"k","items":[],"items":{}}', INVALID),
    "no items but a prototype": (b'{"key":"k","__proto__":{"items":[]}}', INVALID),
    "a name in other letters": (b'{"Key":"k","items":[]}', INVALID),
    "a class to make": (b'{"@type":"java.lang.Runtime","key":"k"}', INVALID),
    "501 items": (
        b'{"key":"k","items":[' + b",".join([msgspec.json.encode(put("bomb", None))] * 501) + b"]}",
        TOO_LARGE,
    ),
}


@pytest.mark.parametrize(("body", "verdict"), JSON.values(), ids=JSON)
async def test_body_of_json_that_is_odd_is_refused(
    body: bytes, verdict: tuple[int, str], arena: Arena
) -> None:
    headers = {"Content-Type": "application/json"}
    async with arena.holds():
        reply = await arena.ask(
            "POST", "/v1/sync", arena.running.token(), headers=headers, body=_framed(body)
        )
        assert reply.verdict == verdict


#: After ``items`` of a map of ``key`` and ``items``, but for the last ones, which are the whole body.
MSGPACK: Final[dict[str, tuple[bytes, tuple[int, str]]]] = {
    "a list of four billion": (_HEAD + b"\xdd\xff\xff\xff\xff", MALFORMED),
    "a map of four billion": (_HEAD + b"\xdf\xff\xff\xff\xff", MALFORMED),
    "a text of four gigabytes": (_HEAD + b"\xdb\xff\xff\xff\xff", MALFORMED),
    "bytes of four gigabytes": (_HEAD + b"\xc6\xff\xff\xff\xff", MALFORMED),
    "an extension of four gigabytes": (_HEAD + b"\xc9\xff\xff\xff\xff\x05", MALFORMED),
    "an extension": (_HEAD + b"\xd4\x05a", INVALID),
    "a time": (_HEAD + b"\xd6\xff\x00\x00\x00\x00", INVALID),
    "a time that is none": (_HEAD + b"\xc7\x0c\xff" + b"\xff" * 12, INVALID),
    "bytes": (_HEAD + b"\xc4\x01a", INVALID),
    "the byte that means nothing": (_HEAD + b"\xc1", MALFORMED),
    "a map": (_HEAD + b"\x80", INVALID),
    "100,000 arrays deep": (_HEAD + b"\x91" * 100_000, MALFORMED),
    "100,000 maps deep": (_HEAD + b"\x81\xa1a" * 100_000, MALFORMED),
    "20,000 empty arrays": (_HEAD + b"\xdc\x4e\x20" + b"\x90" * 20_000, MALFORMED),
    "more behind it": (_HEAD + b"\x90\xc0", MALFORMED),
    "cut short": (_HEAD[:-3], MALFORMED),
    "nothing": (b"", MALFORMED),
    "a pickle": (pickle.dumps({"key": "k"}), MALFORMED),
    "JSON": (GOOD, MALFORMED),
}


@pytest.mark.parametrize(("body", "verdict"), MSGPACK.values(), ids=MSGPACK)
async def test_body_of_messagepack_that_is_odd_is_refused(
    body: bytes, verdict: tuple[int, str], arena: Arena
) -> None:
    headers = {"Content-Type": "application/msgpack"}
    async with arena.holds():
        reply = await arena.ask(
            "POST", "/v1/sync", arena.running.token(), headers=headers, body=_framed(body)
        )
        assert reply.verdict == verdict


#: Types that would make a server use another reader.
TYPES: Final = (
    "application/xml",
    "text/xml",
    "application/x-yaml",
    "application/x-python-serialize",
    "application/x-java-serialized-object",
    "application/cbor",
    "application/bson",
    "application/x-protobuf",
    "application/json-patch+json",
    "text/html",
    "multipart/form-data; boundary=a",
)


@pytest.mark.parametrize("kind", TYPES)
async def test_body_of_another_type_is_refused_unread(kind: str, arena: Arena) -> None:
    async with arena.holds():
        reply = await arena.ask(
            "POST", "/v1/sync", arena.running.token(), headers={"Content-Type": kind}, body=GOOD
        )
        assert reply.verdict == INVALID


async def _refusal(phone: Device) -> str:
    """Wait for an error, or for the close of a text that is not UTF-8; gives its code."""
    try:
        return str((await phone.receive())["code"])
    except Closed as closed:
        return str(closed.code)


#: The same on a socket: what comes with which name in which encoding, and the code of the error.
FRAMES: Final = {
    **{f"json: {name}": ("json", body, verdict[1]) for name, (body, verdict) in JSON.items()},
    **{f"msgpack: {name}": ("msgpack", body, verdict[1]) for name, (body, verdict) in MSGPACK.items()},
}


@pytest.mark.parametrize(("encoding", "body", "code"), FRAMES.values(), ids=FRAMES)
async def test_frame_that_is_odd_is_refused(encoding: str, body: bytes, code: str, arena: Arena) -> None:
    phone = await arena.running.device(f"odd-{encoding}", encoding=encoding)
    kind = WSMsgType.TEXT if encoding == "json" else WSMsgType.BINARY
    async with arena.holds():
        await phone.send_frame(_framed(body), kind)
        told = await _refusal(phone)
        assert told in ((code, "1007") if code == "malformed" else (code,))
    await phone.socket.close()
