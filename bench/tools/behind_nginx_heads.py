"""The largest headers that the contract lets in, through nginx, beside other devices."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Mapping
from typing import Final
from urllib.parse import urljoin, urlsplit

import msgspec
from aiohttp import ClientResponse, ClientSession, TCPConnector

from bench.tools.fleet import Other, Sign, Way

_PARTS: Final = 100
_METADATA_CHARS: Final = 4096
#: Just below what a token may have.
_TOKEN_CHARS: Final = 8_000
_REPEATS: Final = 50
_OTHERS: Final = 4
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_PART: Final = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xdb\x00\x43\x00"


class Head(msgspec.Struct):
    """One kind of request, sent often: the bytes of both heads, and what others were refused with."""

    what: str
    wanted: tuple[int, ...]
    request_bytes: int
    answer_bytes: int
    status: int
    errors: dict[str, int]


async def largest_heads(way: Way, sign: Sign) -> list[Head]:
    """Send each kind of request so many times while others sync."""
    connector = TCPConnector(ssl=way.tls or True)
    async with ClientSession(connector=connector, max_field_size=65_536) as session:
        heads = _Heads(session, way, sign)
        metadata = _metadata()
        final = await heads.joined(metadata)
        domains = ",".join(f"{number:a>64}" for number in range(100)).replace(",", "%2C")
        long = {"Authorization": f"Bearer {sign('heads', more='x' * (_TOKEN_CHARS * 3 // 4 - 300))}"}
        cases: list[tuple[str, str, str, Mapping[str, str]]] = [
            ("HEAD of a final of 100 parts, metadata of 4,096", "HEAD", final, _TUS),
            ("GET of its file, a name of 255 characters", "GET", final.replace("uploads", "files"), {}),
            (f"token of {_TOKEN_CHARS:,} characters", "GET", "/v1/changes", long),
            ("URL with 100 domains of 64 characters", "GET", f"/v1/changes?domains={domains}", {}),
        ]
        found = [heads.creation]
        found += [await heads.repeated(*case) for case in cases]
        return found


class _Heads:
    def __init__(self, session: ClientSession, way: Way, sign: Sign) -> None:
        self._session = session
        self._way = way
        self._sign = sign
        self._usual = {"Authorization": f"Bearer {sign('heads')}"}
        self.creation: Head

    async def joined(self, metadata: str) -> str:
        """Upload a file in parts and concatenate them. Returns its path."""
        parts: list[str] = []
        for _ in range(_PARTS):
            length = {"Upload-Length": str(len(_PART)), "Content-Type": "application/offset+octet-stream"}
            answer = await self._ask(
                "POST", "/v1/uploads", {**_TUS, "Upload-Concat": "partial", **length}, _PART
            )
            answer.raise_for_status()
            parts.append(urljoin(self._way.url, answer.headers["Location"]))
        headers = {**_TUS, "Upload-Concat": "final;" + " ".join(parts), "Upload-Metadata": metadata}
        answer = await self._ask("POST", "/v1/uploads", headers)
        what = "POST that joins 100 parts, metadata of 4,096"
        self.creation = _head(what, answer, (201,), Counter())
        answer.raise_for_status()
        return urlsplit(urljoin(self._way.url, answer.headers["Location"])).path

    async def repeated(self, what: str, method: str, path: str, headers: Mapping[str, str]) -> Head:
        """Send a request many times while others sync, and count what those are refused with."""
        names = [f"{what}-{number}" for number in range(_OTHERS)]
        others = [Other(name, self._sign(f"beside-{n}"), self._way) for n, name in enumerate(names)]
        going = True
        running = [asyncio.create_task(other.run(lambda: going)) for other in others]
        for _ in range(_REPEATS):
            answer = await self._ask(method, path, headers)
            if answer.status != 200:
                break
            await asyncio.sleep(0.02)
        going = False
        await asyncio.gather(*running)
        errors = Counter(verdict for other in others for _, verdict in other.errors)
        return _head(what, answer, (200,), errors)

    async def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> ClientResponse:
        all_headers = {**self._usual, **headers}
        async with self._session.request(
            method, self._way.url + path, headers=all_headers, data=body or None
        ) as response:
            await response.read()
            return response


def _head(what: str, answer: ClientResponse, wanted: tuple[int, ...], errors: Counter[str]) -> Head:
    sent = answer.request_info
    line = len(f"{sent.method} {sent.url.raw_path_qs} HTTP/1.1\r\n")
    return Head(
        what=what,
        wanted=wanted,
        request_bytes=line + sum(len(name) + len(value) + 4 for name, value in sent.headers.items()) + 2,
        answer_bytes=sum(len(name) + len(value) + 4 for name, value in answer.raw_headers) + 19,
        status=answer.status,
        errors=dict(errors),
    )


def _metadata() -> str:
    """Make the longest that is taken, with the longest name."""
    values = {
        "filename": "\N{DESERT}" * 255,
        "filetype": "image/jpeg",
        "domain": "journal",
        "record_id": "largest",
    }
    text = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())
    return text + ",note " + "A" * (_METADATA_CHARS - len(text) - len(",note "))
