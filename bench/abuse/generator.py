"""The attackers, a process of its own: ``python -m bench.abuse.generator`` with an AttackPlan on stdin.

Without a plan, null, it is a server that only reads, and writes its port.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Final, Optional

import msgspec

from bench.abuse.attacks import ATTACKS, Attack
from bench.abuse.frames import Attacker, Bus
from bench.harness.nginx import trusting
from bench.load.child_process import Lines, main, say
from bench.load.simple_device import SimpleDevice, statuses
from bench.load.websocket_client import HandshakeError

#: How often a message that prepares an attack is sent again where it is to come back later.
_TRIES: Final = 20
#: After a connection that could not be opened, so that a server that is gone costs no CPU.
_AGAIN_S: Final = 0.01
_READ_BYTES: Final = 65_536


class AttackPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One run of an attack.

    ``devices`` are pairs of a name and its token; ``neighbour_token`` is of one more device, which prepares.
    With ``bytes_per_s`` the server is a sink, which answers nothing and is sent so much. ``source`` is the
    address that attackers come from, ``certificate`` that of nginx in front of the server.
    """

    attack: str
    host: str
    port: int
    devices: list[tuple[str, str]]
    neighbour_token: str
    mark: str
    duration_s: float
    bytes_per_s: float | None = None
    source: str | None = None
    certificate: str | None = None
    bus: Bus | None = None


class Prepared(msgspec.Struct, frozen=True):
    """Written before the attack begins; ``refused`` are codes of messages that did not get through."""

    refused: dict[str, int]


class Attacked(msgspec.Struct, frozen=True):
    """Written at the end."""

    sent_bytes: int
    connections: int
    ended: dict[str, int]
    cpu_s: float


class Storm:
    """All connections of one run."""

    def __init__(self, plan: AttackPlan) -> None:
        self._plan = plan
        self._attack: Attack = ATTACKS[plan.attack]
        self._attackers = [
            Attacker(name, token, f"{plan.host}:{plan.port}", f"{plan.mark}-{place}", plan.bus)
            for place, (name, token) in enumerate(plan.devices)
        ]
        self._tls = None if plan.certificate is None else trusting(Path(plan.certificate))
        self._began_s = 0.0
        self._sent_bytes = 0
        self._connections = 0
        self._ended: Counter[str] = Counter()

    async def prepare(self) -> Prepared:
        """Send what has to be there before, each message when the one before it is answered."""
        refused: Counter[str] = Counter()
        if self._attack.prepared is not None and self._plan.bytes_per_s is None:
            for attacker in self._attackers:
                try:
                    await self._prepare(attacker, refused)
                except (HandshakeError, OSError) as error:  # TimeoutError is one
                    refused[str(error) or type(error).__name__] += 1
        return Prepared(dict(refused))

    async def _prepare(self, attacker: Attacker, refused: Counter[str]) -> None:
        assert self._attack.prepared is not None
        plan, device = self._plan, SimpleDevice()
        await device.open(plan.host, plan.port, plan.neighbour_token, source=plan.source, tls=self._tls)
        for message in self._attack.prepared(attacker):
            for _ in range(_TRIES):
                answer = await device.ask(**message)
                if answer.get("retry_after_ms") is None:
                    break
                await asyncio.sleep(answer["retry_after_ms"] / 1000)
            if answer.get("code"):
                refused[answer["code"]] += 1
            if device.ended.done():
                return
            refused.update(f"item_{name}" for name in statuses(answer).elements() if name == "rejected")
        device.close()

    async def rage(self) -> Attacked:
        """Attack for as long as the plan says."""
        self._began_s, cpu_s = perf_counter(), time.process_time()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._plan.duration_s), asyncio.TaskGroup() as tasks:
                for attacker in self._attackers:
                    for _ in range(self._attack.connections):
                        tasks.create_task(self._again_and_again(attacker))
        return Attacked(self._sent_bytes, self._connections, dict(self._ended), time.process_time() - cpu_s)

    async def _again_and_again(self, attacker: Attacker) -> None:
        while True:
            try:
                reader, writer = await self._dialled()
            except OSError as error:
                self._ended[error.strerror or type(error).__name__] += 1
                await asyncio.sleep(_AGAIN_S)
                continue
            self._connections += 1
            try:
                await self._attack_on(attacker, reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                self._ended["closed"] += 1
            finally:
                writer.transport.abort()

    async def _dialled(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        plan = self._plan
        if self._attack.opening == "bus" and plan.bus is not None and plan.bytes_per_s is None:
            return await asyncio.open_unix_connection(plan.bus.url.removeprefix("unix://"))
        source = None if plan.source is None else (plan.source, 0)
        return await asyncio.open_connection(plan.host, plan.port, local_addr=source, ssl=self._tls)

    async def _attack_on(
        self, attacker: Attacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        upgrades = self._attack.opening in ("socket", "deflated")
        if upgrades and not await self._opened(attacker, reader, writer):
            return
        pouring = asyncio.create_task(self._pour(attacker, writer))
        tasks = {pouring}
        if self._attack.reads:
            tasks.add(asyncio.create_task(_discard(reader)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._ended["over" if pouring.done() else "closed"] += 1
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _opened(
        self, attacker: Attacker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Ask for the upgrade; tells whether it was granted, which a sink grants at once."""
        headers = [
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: tidemark.v1.json",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        ]
        if self._attack.opening == "deflated":
            headers.append("Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover")
        await self._send(writer, attacker.request("GET /v1/sync", *headers) + b"\r\n")
        if self._plan.bytes_per_s is not None:
            return True
        answer = await reader.readuntil(b"\r\n\r\n")
        status = answer.split(b" ", 2)[1].decode("latin-1")
        if status != "101":
            self._ended[f"refused_{status}"] += 1
            await asyncio.sleep(_AGAIN_S)
        return status == "101"

    async def _pour(self, attacker: Attacker, writer: asyncio.StreamWriter) -> None:
        async for chunk in self._attack.frames(attacker):
            await self._send(writer, chunk)

    async def _send(self, writer: asyncio.StreamWriter, chunk: bytes) -> None:
        writer.write(chunk)
        await writer.drain()
        self._sent_bytes += len(chunk)
        ahead_s = 0.0
        if self._plan.bytes_per_s is not None:
            due_s = self._sent_bytes / max(self._plan.bytes_per_s, 1.0)
            ahead_s = max(0.0, due_s - (perf_counter() - self._began_s))
        await asyncio.sleep(ahead_s)


async def _discard(reader: asyncio.StreamReader) -> None:
    while await reader.read(_READ_BYTES):
        pass


class _Sink(asyncio.Protocol):
    """Reads, and keeps nothing."""


async def _be_sink() -> None:
    server = await asyncio.get_running_loop().create_server(_Sink, "127.0.0.1", 0)
    say(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _run(plan: AttackPlan | None, lines: Lines) -> None:
    if plan is None:
        await _be_sink()
        return
    storm = Storm(plan)
    say(await storm.prepare())
    if await lines.next():
        say(await storm.rage())


if __name__ == "__main__":
    main(Optional[AttackPlan], _run)  # type: ignore[arg-type]  # noqa: UP045  # a type, not an annotation
