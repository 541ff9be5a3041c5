"""A whole server in the test's own process, on a fresh database."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from compose import Server
from engine.settings import Layer, Settings, settings
from handlers.auth import KeySet, secret_key
from tests.device import SECRET, Device, connected, token
from tests.services import execute

_DEFAULTS = Path(__file__).parent.parent / "config.toml"


def settings_with(**sections: Mapping[str, Any]) -> Settings:
    """The defaults on a free port, with some sections' keys replaced."""
    defaults = Layer("config.toml", tomllib.loads(_DEFAULTS.read_text()))
    return settings([defaults, Layer("test", {"server": {"port": 0}}), Layer("test", sections)])


class Running:
    """A server that is up, and clients of it that are closed with it."""

    def __init__(self, dsn: str, url: str, stack: AsyncExitStack) -> None:
        self.dsn = dsn
        self.url = url
        self._stack = stack
        self.http = ClientSession()
        stack.push_async_callback(self.http.close)

    async def device(self, name: str = "phone", tenant: str = "acme", **options: Any) -> Device:
        """Connect a device."""
        claims = {key: options.pop(key) for key in ("role", "exp") if key in options}
        signed = token(tenant, name, **claims)
        return await self._stack.enter_async_context(
            connected(self.url, self.http, signed=signed, **options)
        )

    def headers(self, name: str = "phone", tenant: str = "acme", **claims: Any) -> dict[str, str]:
        """The headers of an HTTP request."""
        return {"Authorization": f"Bearer {token(tenant, name, **claims)}"}


class _Started:
    def __init__(self) -> None:
        self.port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def started(self, value: int | None = None) -> None:
        assert value is not None
        self.port.set_result(value)


Serve = Callable[..., Awaitable[Running]]


@pytest.fixture
async def serve(dsn: str) -> AsyncIterator[Serve]:
    """Start servers with some settings replaced; all on one database with the tenants acme and globex."""
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
        "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
    )
    async with AsyncExitStack() as stack:

        async def start(**sections: Mapping[str, Any]) -> Running:
            chosen = settings_with(**sections)
            started = _Started()
            server = Server(chosen, dsn, KeySet(secret_key(SECRET), {}))
            task = asyncio.create_task(server.run(task_status=started))
            stack.push_async_callback(_stopped, task)
            await asyncio.wait({task, started.port}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            return Running(dsn, f"http://127.0.0.1:{started.port.result()}", stack)

        yield start


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


@pytest.fixture
async def server(serve: Serve) -> Running:
    """A server with the default settings."""
    return await serve()
