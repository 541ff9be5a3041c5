"""A receiver of alerts: an HTTP server that keeps what it gets, and answers as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web

_PATIENCE_S = 30.0
Answer = Callable[[], Awaitable[web.StreamResponse]]


class Receiver:
    """``requests`` are all so far with their bodies; ``answer`` makes the next answer."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[web.Request, bytes]] = []
        self.answer: Answer = self.takes
        self._news = asyncio.Condition()

    @staticmethod
    async def takes() -> web.StreamResponse:
        """Answer as Slack does."""
        return web.Response(text="ok")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Keep a request, and answer it."""
        body = await request.read()
        async with self._news:
            self.requests.append((request, body))
            self._news.notify_all()
        return await self.answer()

    def alerts(self) -> list[dict[str, Any]]:
        """Return the bodies so far."""
        return [msgspec.json.decode(body) for _, body in self.requests]

    async def until(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many requests have come; return their bodies."""
        async with asyncio.timeout(_PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.requests) >= count)
        return self.alerts()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on loopback; the query of its URL is a secret."""
    found = Receiver()
    app = web.Application()
    app.router.add_post("/{any:.*}", found.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook?key=hidden"
    yield found
    await runner.cleanup()
