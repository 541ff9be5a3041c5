#!/usr/bin/env python3
"""A device on an open socket: ``watch.py TOKEN CURSOR [COUNT]`` prints changes as they are made.

It begins behind the cursor, at the beginning for "", and ends after COUNT changes, else never. The server
is at ``$TIDEMARK`` or http://127.0.0.1:8080.
"""

import asyncio
import os
import sys
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

URL = os.environ.get("TIDEMARK", "http://127.0.0.1:8080")


async def watch(token: str, cursor: str | None, count: float) -> None:
    """Subscribe: first comes what is behind the cursor, then what happens."""
    async with (
        ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.ws_connect(f"{URL}/v1/sync", protocols=("tidemark.v1.json",)) as socket,
    ):
        await receive(socket, "welcome")
        await socket.send_json({"type": "subscribe", "id": "1", "cursor": cursor})
        while count > 0:
            page = await receive(socket, "changes")
            for change in page["changes"]:
                files = [file["filename"] for file in change.get("attachments", ())]
                and_files = ["with", ", ".join(files)] if files else []
                shown = (change["domain"], change["id"], "version", change["version"], change["data"])
                print(*shown, *and_files)  # noqa: T201
            count -= len(page["changes"])


async def receive(socket: ClientWebSocketResponse, wanted: str) -> Any:
    """Wait for the next message, which is to be of one type; a real device takes every type."""
    message = await socket.receive_json()
    if message["type"] != wanted:
        sys.exit(f"{wanted} was expected, this came: {message}")
    return message


if __name__ == "__main__":
    own_token, behind, *most = sys.argv[1:]
    asyncio.run(watch(own_token, behind or None, int(most[0]) if most else float("inf")))
