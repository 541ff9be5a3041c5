"""Servers behind a real nginx, with the site that ``run.py nginx`` prints."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession, TCPConnector
from click.testing import CliRunner

from bench.harness.nginx import Nginx, certify, nginx_program, trusting
from bench.harness.server import free_ports
from compose.deployment import open_deployment
from run import cli
from storage.embedded.servers import Services
from tests.harness.admin import ensure_tenant
from tests.harness.server_process import ServerProcess
from tests.harness.uploads.tus_uploader import Uploader
from tests.harness.ws_device import Device, Json, connected, token


def printed(*arguments: str, **environment: str) -> str:
    """What ``run.py nginx`` prints."""
    ended = CliRunner().invoke(cli, ["nginx", *arguments], obj=open_deployment, env=environment)
    assert ended.exit_code == 0
    assert (ended.stderr == "") == ("--server-name" in arguments)  # else it says which is missing
    return ended.stdout


def nginx_for(home: Path, port: int, *arguments: str, **environment: str) -> Nginx:
    """Nginx with the site for workers from ``port`` + 1 on; it listens on ``port`` of 127.0.0.1."""
    program = nginx_program()
    if program is None:
        pytest.skip("nginx is not installed")
    certify(home)
    return Nginx(program, home, site_at(home, port, "--port", str(port), *arguments, **environment), port)


def site_at(home: Path, port: int, *arguments: str, **environment: str) -> str:
    """Print a site that listens on ``port`` of 127.0.0.1 with the certificate in ``home``."""
    certificate = home / "certificate.pem"
    listening = ("--address", "127.0.0.1", "--https-port", str(port))
    files = ("--certificate", str(certificate), "--key", str(certificate.with_name("key.pem")))
    return printed(*listening, *files, *arguments, **environment)


def sides(blue: str, green: str, weight: int) -> tuple[str, ...]:
    """The options of a site before two versions."""
    return "--blue", blue, "--green", green, "--weight", str(weight), "--server-name", "localhost"


class Cluster:
    """Two servers behind nginx, and clients from chosen addresses of this machine."""

    def __init__(
        self, nginx: Nginx, certificate: Path, servers: list[ServerProcess], stack: AsyncExitStack
    ) -> None:
        self.nginx = nginx
        self.servers = servers
        self._stack = stack
        self.trusting = trusting(certificate)
        self._sessions: dict[str, ClientSession] = {}

    async def session(self, address: str = "127.0.0.1") -> ClientSession:
        """A client that connects from an address."""
        if address not in self._sessions:
            connector = TCPConnector(ssl=self.trusting, local_addr=(address, 0), family=socket.AF_INET)
            session = ClientSession(connector=connector)
            self._sessions[address] = await self._stack.enter_async_context(session)
        return self._sessions[address]

    async def device(self, name: str, stack: AsyncExitStack | None = None) -> Device:
        """Connect a device through nginx."""
        device = connected(self.nginx.url, await self.session(), signed=token("acme", name))
        return await (stack or self._stack).enter_async_context(device)

    async def uploader(self, name: str) -> Uploader:
        """A device that uploads."""
        return Uploader(await self.session(), self.nginx.url, token("acme", name))

    async def post(self, name: str, message: Json) -> tuple[int, Json]:
        """Sync over HTTPS; gives the status and the answer."""
        headers = {"Authorization": f"Bearer {token('acme', name)}", "Content-Type": "application/json"}
        body = io.BytesIO(msgspec.json.encode(message))
        session = await self.session()
        async with session.post(f"{self.nginx.url}/v1/sync", data=body, headers=headers) as response:
            return response.status, await response.json()


@pytest.fixture
async def cluster(dsn: str, services: Services, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two servers that nginx has just been started in front of."""
    ensure_tenant(dsn, "acme")
    port = free_ports(3)
    nginx = nginx_for(tmp_path, port, "--workers", "2")
    async with AsyncExitStack() as stack:
        servers = [ServerProcess(dsn, services.redis_url, tmp_path) for _ in range(2)]
        for number, server in enumerate(servers, 1):
            server.port = port + number
            stack.push_async_callback(server.stop)
        await asyncio.gather(*(server.start() for server in servers))
        stack.push_async_callback(nginx.stop)
        await nginx.start()
        yield Cluster(nginx, tmp_path / "certificate.pem", servers, stack)


def sync(key: str, *items: Json) -> Json:
    """A ``sync`` message."""
    return {"type": "sync", "id": key, "key": key, "items": list(items)}
