"""A release takes over from the one before behind a real nginx, at 10, 50 and 100 %, and gives all back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import ClientError, ClientSession, TCPConnector

from bench.harness.nginx import Nginx, certify, nginx_program, trusting
from bench.harness.product import HERE, Version
from bench.harness.server import Server, free_ports
from storage.embedded.servers import Services
from tests.harness.admin import ensure_tenant
from tests.harness.fronted import sides, site_at
from tests.harness.numbered_edits import TENANTS, Editor, audit, progressed
from tests.harness.previous_release import previous, site
from tests.harness.uploads.tus_uploader import Uploader, photo
from tests.harness.ws_device import token

__all__ = ["previous"]

#: Devices that green gets at 10 %, at 50 % besides, and at 100 % besides.
SHARES = (2, 8, 10)
_CHUNK_BYTES = 100_000
_SHUTDOWN_S = 1
_ALL = 0xFFFFFFFF


def murmur(text: bytes) -> int:
    """The hash by which nginx splits clients (MurmurHash2)."""
    hashed = len(text)
    whole = len(text) - len(text) % 4
    for at in range(0, whole, 4):
        part = int.from_bytes(text[at : at + 4], "little") * 0x5BD1E995 & _ALL
        part = (part ^ part >> 24) * 0x5BD1E995 & _ALL
        hashed = hashed * 0x5BD1E995 & _ALL ^ part
    if whole < len(text):
        hashed = (hashed ^ int.from_bytes(text[whole:], "little")) * 0x5BD1E995 & _ALL
    hashed = (hashed ^ hashed >> 13) * 0x5BD1E995 & _ALL
    return hashed ^ hashed >> 15


def drawn(tenant: str, name: str, low: int, high: int) -> str:
    """Sign a token that nginx puts between two percentages."""
    number = 0
    while True:
        number += 1
        signed = token(tenant, name, jti=str(number))
        if low <= murmur(signed.encode()) * 100 / _ALL < high:
            return signed


def editors_of(progress: asyncio.Condition) -> list[Editor]:
    """Make devices of each share, with tokens that fall into it."""
    bounds = [(0, 10)] * SHARES[0] + [(10, 50)] * SHARES[1] + [(50, 100)] * SHARES[2]
    made = []
    for number, (low, high) in enumerate(bounds):
        name, tenant = f"device-{number}", TENANTS[number % len(TENANTS)]
        made.append(Editor(name, tenant, progress, drawn(tenant, name, low, high)))
    return made


class Rollout(NamedTuple):
    """nginx before a server of each version."""

    nginx: Nginx
    home: Path
    blue: Server
    green: Server
    session: ClientSession

    @property
    def url(self) -> str:
        """Where devices go."""
        return self.nginx.url

    def site(self, weight: int) -> str:
        """The site of a weight, from the command of this version."""
        blue, green = (f"127.0.0.1:{server.port}" for server in (self.blue, self.green))
        return site_at(self.home, self.nginx.port, *sides(blue, green, weight))

    async def connected(self) -> tuple[int, int]:
        """The WebSockets that are open on each side."""
        found = []
        for server in (self.blue, self.green):
            async with self.session.get(f"http://127.0.0.1:{server.port}/metrics") as response:
                [line] = re.findall(
                    r"^tidemark_connections(?:{.*})? (\d+)", await response.text(), re.MULTILINE
                )
                found.append(int(line))
        return found[0], found[1]

    async def until_connected(self, *wanted: int) -> None:
        """Wait until so many WebSockets are open on each side."""
        async with asyncio.timeout(30):
            while await self.connected() != wanted:  # noqa: ASYNC110  # a scrape tells nobody
                await asyncio.sleep(0.05)


@pytest.fixture
async def rollout(previous: Version, dsn: str, services: Services, tmp_path: Path) -> AsyncIterator[Rollout]:
    """Blue of the release before, green of this one, and nginx with a weight of 0."""
    program = nginx_program()
    if program is None:
        pytest.skip("nginx is not installed")
    for tenant in TENANTS:
        ensure_tenant(dsn, tenant)
    certificate, port = certify(tmp_path), free_ports(1)
    variables = site(dsn, services.redis_url, tmp_path)
    async with AsyncExitStack() as stack:
        blue, green = previous.server(variables), HERE.server(variables)
        for server in (blue, green):
            await stack.enter_async_context(server)
        session = await stack.enter_async_context(
            ClientSession(connector=TCPConnector(ssl=trusting(certificate), limit=0))
        )
        nginx = Nginx(program, tmp_path, "", port, shutdown_s=_SHUTDOWN_S)
        made = Rollout(nginx, tmp_path, blue, green, session)
        (tmp_path / "site.conf").write_text(made.site(0))
        stack.push_async_callback(nginx.stop)
        await nginx.start()
        yield made


class Sender:
    """A device that uploads a file, a chunk at a time."""

    def __init__(self, uploader: Uploader, content: bytes) -> None:
        self.uploader = uploader
        self.content = content
        self.path = ""

    async def begin(self) -> None:
        """Create the upload."""
        self.path = await self.uploader.begun(len(self.content))

    async def send(self) -> None:
        """Send the next chunk, again if its connection is cut."""
        while True:
            try:
                offset = await self.uploader.offset(self.path)
                chunk = self.content[offset : offset + _CHUNK_BYTES]
                assert (await self.uploader.append(self.path, offset, chunk)).status == 204
            except ClientError:
                continue
            return


async def _step(
    rollout: Rollout, weight: int, editors: Sequence[Editor], progress: asyncio.Condition
) -> None:
    await rollout.nginx.reload(rollout.site(weight))
    on_green = {0: 0, 10: SHARES[0], 50: sum(SHARES[:2]), 100: sum(SHARES)}[weight]
    await rollout.until_connected(len(editors) - on_green, on_green)
    await progressed(list(editors), progress, 10 * len(editors))


@pytest.mark.slow
async def test_blue_green_rollout_and_rollback_lose_nothing(rollout: Rollout, dsn: str) -> None:
    progress = asyncio.Condition()
    editors = editors_of(progress)
    senders = [
        Sender(
            Uploader(rollout.session, rollout.url, drawn("acme", f"camera-{low}", low, low + 40)),
            photo(600_000, low),
        )
        for low in (0, 50)
    ]
    for sender in senders:
        await sender.begin()
    running = [asyncio.create_task(editor.run(rollout, rollout.session)) for editor in editors]
    for weight in (0, 10, 50, 100, 50, 0):
        await _step(rollout, weight, editors, progress)
        for sender in senders:
            await sender.send()
    await rollout.green.stop()
    await progressed(editors, progress, 10 * len(editors))
    for editor in editors:
        editor.stopping = True
    await asyncio.gather(*running)
    assert [editor.wrong for editor in editors if editor.wrong] == []
    assert {code for editor in editors for code in editor.refused} <= {"unavailable"}
    for sender in senders:
        assert await sender.uploader.file(sender.path) == sender.content
    audit(dsn, editors)
