"""Connections that break at any byte, in each way that one can: each task that asks is told.

On uvloop, as servers run.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from engine.runtime.ports import StoreError, StoreRetryError
from storage.postgres.pool import Database

_CONNECTIONS = 4
_QUERIES = 40
_PATIENCE_S = 30.0
_CUTS = ("reset", "hang up", "last words", "half a message", "silence", "refuse")
#: What the server says of a connection that is established is some 400 bytes.
_BYTES = (0, 1, 300, 420, 450, 500, 700, 2000, 5000)
_TEXT = "0123456789abcdef" * 20_000


class _Breaking(threading.Thread):
    """Passes connections on, and breaks each after so many bytes of the server, until it is told to mend."""

    def __init__(self, dsn: str, seed: int) -> None:
        super().__init__()
        own = parse_dsn(dsn)
        self._address = (own["host"], int(own["port"]))
        self._random = Random(seed)
        self._front = socket.create_server(("127.0.0.1", 0))
        port = self._front.getsockname()[1]
        self._passing: list[threading.Thread] = []
        self.dsn = str(make_dsn(dsn, host="127.0.0.1", port=port, sslmode="disable"))
        self._silent: list[socket.socket] = []
        self.broke = 0
        self.mends = False

    def run(self) -> None:
        while True:
            try:
                client = self._front.accept()[0]
            except OSError:
                break
            how, after = self._random.choice(_CUTS), self._random.choice(_BYTES)
            if not self.mends and how == "refuse":
                client.close()
                self.broke += 1
                continue
            self._passing.append(threading.Thread(target=self._pass, args=(client, how, after)))
            self._passing[-1].start()
        for thread in self._passing:
            thread.join()

    def mend(self) -> None:
        """Break none any more, and end those that are silent."""
        self.mends = True
        for client in self._silent:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self._front.shutdown(socket.SHUT_RDWR)
        self.join()
        self._front.close()

    def _pass(self, client: socket.socket, how: str, after: int) -> None:
        passed = 0
        with client, suppress(OSError), socket.create_connection(self._address) as server:
            while self.mends or passed < after:
                ready = select.select([client, server], [], [])[0]
                for end, other in ((client, server), (server, client)):
                    if end in ready:
                        if not (data := end.recv(1 << 16)):
                            return
                        other.sendall(data)
                        passed += len(data) if end is server else 0
            self.broke += 1
            self._break(client, how)

    def _break(self, client: socket.socket, how: str) -> None:
        if how == "silence":
            self._silent.append(client)
            while not self.mends and client.recv(1 << 16):
                pass
        elif how == "last words":
            fields = b"SFATAL\0VFATAL\0C57P01\0Mgoing down\0\0"
            client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        elif how == "half a message":
            client.sendall(b"T\0\0")
        if how != "hang up":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _ask(database: Database, random: Random) -> None:
    for _ in range(_QUERIES):
        text = _TEXT[: random.choice((1, 100, len(_TEXT)))]
        asked = asyncio.create_task(database.query("SELECT %(text)s", {"text": text}))
        if random.random() < 0.1:  # somebody has no time, and leaves in whatever turn of the loop
            for _ in range(random.randrange(8)):
                await asyncio.sleep(0)
            asked.cancel()
        told, _ = await asyncio.wait({asked}, timeout=_PATIENCE_S)
        assert told, "a query waits for ever"
        if not asked.cancelled() and not isinstance(asked.exception(), StoreError):
            assert asked.result() == [(text,)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_query_connections_break_at_any_byte_each_is_answered(
    dsn: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.connection.STATEMENT_S", 0.1)
    monkeypatch.setattr("storage.postgres.hosts.CONNECT_S", 0.1)
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    breaking = _Breaking(dsn, seed)
    breaking.start()
    held = _open()
    try:
        database = Database(breaking.dsn, _CONNECTIONS)
        await asyncio.gather(*(_ask(database, Random(seed + n)) for n in range(2 * _CONNECTIONS)))
        monkeypatch.undo()
        breaking.mend()
        for _ in range(_CONNECTIONS):  # each may have broken unnoticed
            with suppress(StoreRetryError):
                await database.query("SELECT 1")
        assert await database.query("SELECT 1") == [(1,)]
        await database.close()
    finally:
        breaking.mend()
        await asyncio.to_thread(breaking.end)
    assert breaking.broke > _QUERIES
    assert _open() <= held
    assert heard == []
