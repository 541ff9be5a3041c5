"""A server that listens on every address of a family is reached at one of that family."""

from __future__ import annotations

import asyncio

import pytest
from yarl import URL

from handlers.operate.own_address import own_host


@pytest.mark.parametrize(
    ("listens_on", "host"),
    [
        ("::1", "[::1]"),
        ("10.0.0.5", "10.0.0.5"),
        ("app1.example.org", "app1.example.org"),
        ("", "127.0.0.1"),
        ("*", "127.0.0.1"),
    ],
)
def test_own_host_is_that_of_urls(listens_on: str, host: str) -> None:
    assert own_host(listens_on) == host


@pytest.mark.parametrize("listens_on", ["0.0.0.0", "::", "127.0.0.1", "::1"])  # noqa: S104
async def test_own_host_reaches_what_listens_there(listens_on: str) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), listens_on, 0) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection(URL(f"http://{own_host(listens_on)}").host, port)
        writer.close()
