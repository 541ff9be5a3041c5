"""The example device in JavaScript, in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.harness.ws_device import Json

_PATIENCE_S = 60


class JsDevice:
    """Runs ``tests/clients/node/device.mjs``; its head says what can be told.

    ``home`` is where its packages are installed. ``events`` is what the device reported. ``kill`` leaves
    nothing but the file of its state.
    """

    def __init__(self, home: Path, url: str, state: Path, tokens: Sequence[str], **options: Any) -> None:
        self._home = home
        self._told = {"server": url, "state": str(state), "tokens": list(tokens), **options}
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._heard = asyncio.Condition()
        self.events: list[Json] = []

    async def boot(self) -> None:
        """Start a process on the file of the state, and wait until it has read it."""
        self.events.clear()
        self._process = await asyncio.create_subprocess_exec(
            *("node", str(self._home / "device.mjs")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read(self._process))
        self._say(self._told)
        await self.reported("opened")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            if "event" in said:
                async with self._heard:
                    self.events.append(said["event"])
                    self._heard.notify_all()
                continue
            answer = self._waiting.pop(said["call"])
            if "error" in said:
                answer.set_exception(RuntimeError(said["error"]))
            else:
                answer.set_result(said.get("value"))
        for answer in self._waiting.values():
            answer.cancel()

    def _say(self, line: Json) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def call(self, name: str, *given: Any) -> Any:
        """Call a method of the device. Raises RuntimeError with what it threw."""
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        self._say({"call": number, "name": name, "given": given})
        async with asyncio.timeout(_PATIENCE_S):
            return await answer

    async def refused(self, name: str, *given: Any) -> str:
        """Call a method that is to throw. Returns what it threw."""
        try:
            value = await self.call(name, *given)
        except RuntimeError as error:
            return str(error)
        raise AssertionError(value)

    async def reported(self, kind: str) -> Json:
        """Wait for the first event of a type, one that came before included."""
        async with asyncio.timeout(_PATIENCE_S), self._heard:
            await self._heard.wait_for(lambda: any(event["type"] == kind for event in self.events))
        return next(event for event in self.events if event["type"] == kind)

    async def records(self) -> dict[str, tuple[int, Any]]:
        """Return the server's records that the device holds: version and data by domain and id."""
        held: Json = (await self.call("state"))["records"]
        return {name: (one["version"], one["data"]) for name, one in held.items()}

    async def kill(self) -> None:
        """Kill the process, whatever it does."""
        if self._process is None or self._reader is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader
        self._process = None
