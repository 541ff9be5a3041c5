#!/usr/bin/env python3
"""A device on an open socket: prints every change of its tenant until a record has a status.

``watch.py TOKEN RECORD STATUS``, with the server at ``$TIDEMARK`` or http://127.0.0.1:8080.
"""

import asyncio
import os
import sys
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

URL = os.environ.get("TIDEMARK", "http://127.0.0.1:8080")


async def watch(token: str, record: str, status: str) -> None:
    """Subscribe from the beginning: first comes what was, then what happens."""
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        ClientSession(headers=headers) as session,
        session.ws_connect(f"{URL}/v1/sync", protocols=("tidemark.v1.json",)) as socket,
    ):
        welcome = await receive(socket, "welcome")
        print("policies:", welcome["policies"])  # noqa: T201  # the example is read on a terminal
        await socket.send_json({"type": "subscribe", "id": "1", "cursor": None})
        while True:
            page = await receive(socket, "changes")
            for change in page["changes"]:
                data = change["data"]
                print(change["domain"], change["id"], "version", change["version"], data)  # noqa: T201
                if change["id"] == record and data is not None and data.get("status") == status:
                    return


async def receive(socket: ClientWebSocketResponse, wanted: str) -> Any:
    """Wait for the next message, which is to be of one type; a real device takes every type."""
    message = await socket.receive_json()
    if message["type"] != wanted:
        sys.exit(f"{wanted} was expected, this came: {message}")
    return message


if __name__ == "__main__":
    asyncio.run(watch(*sys.argv[1:]))
