"""A device that uploads by tus, request by request, and the files that it has."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from aiohttp import ClientSession

from tests.harness.in_process_server import Reply, Running
from tests.harness.ws_device import token

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\x06\0\0\0\x1f\x15\xc4\x89"
_JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00\xff\xdb\x00\x43\x00"

TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = "application/offset+octet-stream"


def photo(size_bytes: int, seed: int = 0) -> bytes:
    """Make a file that begins as a JPEG does, and goes on at random."""
    return _JPEG[:size_bytes] + random.Random(seed).randbytes(max(0, size_bytes - len(_JPEG)))


def described(**values: str) -> dict[str, str]:
    """What an upload says of itself; ``values`` add to or replace the usual ones."""
    usual = {"filename": "site.jpg", "filetype": "image/jpeg", "domain": "task", "record_id": "pump-3"}
    return usual | values


def encoded(values: Mapping[str, str]) -> str:
    """Write an ``Upload-Metadata``."""
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())


def file_path(upload_path: str) -> str:
    """Where the file is that an upload becomes."""
    return f"/v1/files/{upload_path.rpartition('/')[2]}"


class Uploader:
    """One device. ``url`` is of the server that it asks, and may be set to another's of the same site."""

    def __init__(self, http: ClientSession, url: str, signed: str) -> None:
        self.url = url
        self.authorization = {"Authorization": f"Bearer {signed}"}
        self._http = http

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Send a request with no more headers than the token and what is given."""
        sent: Any = io.BytesIO(body) if body else None
        all_headers = self.authorization | dict(headers)
        url = urljoin(self.url, path)
        async with self._http.request(
            method, url, headers=all_headers, data=sent, skip_auto_headers=["Content-Type"]
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def create(self, size_bytes: int | None, body: bytes = b"", /, **headers: str | None) -> Reply:
        """Begin an upload. Headers are named as Python names things; None leaves a usual one out."""
        length = {"Upload-Defer-Length": "1"} if size_bytes is None else {"Upload-Length": str(size_bytes)}
        usual = TUS | length | {"Upload-Metadata": encoded(described())}
        if body:
            usual["Content-Type"] = CHUNK
        return await self.ask("POST", "/v1/uploads", _headers(usual, headers), body)

    async def begun(self, size_bytes: int | None, body: bytes = b"", /, **headers: str | None) -> str:
        """Begin an upload that has to be taken; gives its path."""
        reply = await self.create(size_bytes, body, **headers)
        assert reply.status == 201, reply
        return urlsplit(urljoin(f"{self.url}/v1/uploads", reply.headers["Location"])).path

    async def append(self, path: str, offset: int, body: bytes, /, **headers: str | None) -> Reply:
        """Send a chunk."""
        usual = TUS | {"Upload-Offset": str(offset), "Content-Type": CHUNK}
        return await self.ask("PATCH", path, _headers(usual, headers), body)

    async def head(self, path: str) -> Reply:
        """Ask how an upload stands."""
        return await self.ask("HEAD", path, TUS)

    async def offset(self, path: str) -> int:
        """Ask how far an upload has come."""
        reply = await self.head(path)
        assert reply.status == 200, reply
        return int(reply.headers["Upload-Offset"])

    async def cancel(self, path: str) -> Reply:
        """Terminate an upload."""
        return await self.ask("DELETE", path, TUS)

    async def uploaded(self, content: bytes, **values: str) -> str:
        """Upload a file in two requests; gives the upload's path."""
        path = await self.begun(len(content), upload_metadata=encoded(described(**values)))
        reply = await self.append(path, 0, content)
        assert reply.status == 204, reply
        return path

    async def file(self, upload_path: str) -> bytes:
        """Read the file that an upload became."""
        reply = await self.ask("GET", file_path(upload_path), {})
        assert reply.status == 200, reply
        return reply.body


def _headers(usual: Mapping[str, str], given: Mapping[str, str | None]) -> dict[str, str]:
    named = {name.replace("_", "-").title(): value for name, value in given.items()}
    return {name: value for name, value in {**usual, **named}.items() if value is not None}


def uploader(server: Running, device: str = "phone", tenant: str = "acme") -> Uploader:
    """A device of a server in the test's own process."""
    return Uploader(server.http, server.url, server.token(device, tenant))


def signed(device: str = "phone", tenant: str = "acme") -> str:
    """A token for a server in a process of its own."""
    return token(tenant, device)
