"""The attackers, a process of its own: ``python -m bench.abuse.generator`` with an AttackPlan on stdin.

Without a plan, null, it is a server that only reads, and writes its port.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import time
from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Final, Optional

import msgspec

from bench.abuse.attacks import ATTACKS, Attacker
from bench.harness.nginx import trusting
from bench.load.child_process import Lines, main, say
from bench.load.simple_device import SimpleDevice, statuses

#: How long an attack may be prepared, since the server may ask to come back later.
_PREPARE_S: Final = 60.0
#: After a connection that could not be opened, so that a server that is gone costs no CPU.
_AGAIN_S: Final = 0.01
_READ_BYTES: Final = 65_536
_UPGRADE: Final = (
    *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
    "Sec-WebSocket-Protocol: tidemark.v1.json",
)
_DEFLATE: Final = "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover"


class AttackPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an attack.

    ``neighbour_token`` is of one more device, which prepares. With ``bytes_per_s`` the server is a sink,
    which answers nothing and is sent so much. ``source`` is the address that attackers come from,
    ``certificate`` that of nginx in front of the server.
    """

    attack: str
    host: str
    port: int
    attackers: list[Attacker]
    neighbour_token: str
    duration_s: float
    bytes_per_s: float | None = None
    source: str | None = None
    certificate: str | None = None


class Attacked(msgspec.Struct, frozen=True):
    """What was done in all. ``generator`` is the part of a core that it took."""

    sent_bytes: int = 0
    connections: int = 0
    ended: dict[str, int] = {}
    generator: float = 0.0


class Storm:
    """All connections of one run."""

    def __init__(self, plan: AttackPlan) -> None:
        self._plan = plan
        self._attack = ATTACKS[plan.attack]
        self._tls = None if plan.certificate is None else trusting(Path(plan.certificate))
        self._sink = plan.bytes_per_s is not None
        self._began_s = 0.0
        self._sent_bytes = self._connections = 0
        self._ended: Counter[str] = Counter()

    async def prepare(self) -> dict[str, int]:
        """Have a neighbour store what has to be there before. Returns how often what code refused it."""
        refused: Counter[str] = Counter()
        plan, stored, device = self._plan, self._attack.stored, SimpleDevice()
        if stored is None or self._sink:
            return refused
        try:
            await device.open(plan.host, plan.port, plan.neighbour_token, source=plan.source, tls=self._tls)
            async with asyncio.timeout(_PREPARE_S):
                for items in (each for attacker in self._plan.attackers for each in stored.syncs(attacker)):
                    answer = await device.sync(secrets.token_hex(8), *items)
                    found = statuses(answer)
                    refused += found if answer["type"] != "synced" else Counter(rejected=found["rejected"])
        except OSError as error:  # TimeoutError is one
            refused[str(error) or type(error).__name__] += 1
        device.close()
        return refused

    async def rage(self) -> Attacked:
        """Attack for as long as the plan says."""
        self._began_s, cpu_s = perf_counter(), time.process_time()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._plan.duration_s), asyncio.TaskGroup() as tasks:
                for attacker in self._plan.attackers * self._attack.connections:
                    tasks.create_task(self._again_and_again(attacker))
        generator = (time.process_time() - cpu_s) / self._plan.duration_s
        return Attacked(self._sent_bytes, self._connections, self._ended, generator)

    async def _again_and_again(self, attacker: Attacker) -> None:
        while True:
            self._ended[await self._connection(attacker)] += 1

    async def _connection(self, attacker: Attacker) -> str:
        """Attack on one connection until all is said or the server ends it. Returns how it ended."""
        try:
            reader, writer = await self._dialled(attacker)
        except OSError as error:
            await asyncio.sleep(_AGAIN_S)
            return error.strerror or type(error).__name__
        self._connections += 1
        tasks: list[asyncio.Task[None]] = []
        try:
            if self._attack.opening in ("socket", "deflated"):
                key = f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}"
                deflate = (_DEFLATE,) * (self._attack.opening == "deflated")
                await self._send(writer, attacker.request("GET /v1/sync", *_UPGRADE, key, *deflate))
                # A sink says nothing.
                answer = b"HTTP/1.1 101" if self._sink else await reader.readuntil(b"\r\n\r\n")
                if answer[9:12] != b"101":
                    await asyncio.sleep(_AGAIN_S)
                    return f"refused_{answer[9:12].decode('latin-1')}"
            tasks.append(asyncio.create_task(self._pour(attacker, writer)))
            if self._attack.reads:
                tasks.append(asyncio.create_task(_discard(reader)))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return "over" if tasks[0].done() else "closed"
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return "closed"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.transport.abort()

    async def _dialled(self, attacker: Attacker) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        plan = self._plan
        if attacker.redis_url and not self._sink:
            return await asyncio.open_unix_connection(attacker.redis_url.removeprefix("unix://"))
        source = None if plan.source is None else (plan.source, 0)
        return await asyncio.open_connection(plan.host, plan.port, local_addr=source, ssl=self._tls)

    async def _pour(self, attacker: Attacker, writer: asyncio.StreamWriter) -> None:
        attack = self._attack
        for chunk in attack.first(attacker) if attack.first is not None else ():
            await self._send(writer, chunk)
        if attack.chunk is not None:
            for number in count():
                await self._send(writer, attack.chunk(attacker, number), attack.every_s)
        elif attack.first is not None:
            await asyncio.Future()

    async def _send(self, writer: asyncio.StreamWriter, chunk: bytes, pause_s: float = 0.0) -> None:
        writer.write(chunk)
        await writer.drain()
        self._sent_bytes += len(chunk)
        if self._plan.bytes_per_s is not None:
            due_s = self._sent_bytes / max(self._plan.bytes_per_s, 1.0)
            pause_s = max(pause_s, due_s - (perf_counter() - self._began_s))
        await asyncio.sleep(pause_s)


async def _discard(reader: asyncio.StreamReader) -> None:
    while await reader.read(_READ_BYTES):
        pass


async def _run(plan: AttackPlan | None, lines: Lines) -> None:
    if plan is None:  # a sink: a bare protocol reads, and keeps nothing
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        say(server.sockets[0].getsockname()[1])
        await server.serve_forever()
        return
    storm = Storm(plan)
    say(await storm.prepare())
    if await lines.next():
        say(await storm.rage())


if __name__ == "__main__":
    main(Optional[AttackPlan], _run)  # type: ignore[arg-type]  # noqa: UP045  # a type, not an annotation
