"""Several processes on one port: what a supervisor tells its workers, and what a worker makes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from compose.server import run_server
from engine.settings import Settings
from handlers.auth import KeySet
from handlers.logging import configure
from handlers.supervisor import Supervisor
from storage.embedded import Services

_COMMAND: Final = (sys.executable, str(Path(__file__).parent.parent / "run.py"), "worker")


class Told(msgspec.Struct, frozen=True):
    """One line of JSON on a worker's standard input. It may hold secrets, which no command line may.

    ``ready_pipe`` is the descriptor to write to once devices are let in.
    """

    settings: Settings
    services: Services
    worker: int
    ready_pipe: int


def supervise(settings: Settings, services: Services, started: Callable[[], None]) -> None:
    """Run ``server.workers`` of them until told to stop. Raises WorkersFailedError."""

    def told(worker: int, ready_pipe: int) -> bytes:
        return msgspec.json.encode(Told(settings, services, worker, ready_pipe))

    server = settings.server
    asyncio.run(Supervisor(server.workers, _COMMAND, told, server.drain_s, started).run())


def work(standard_input: BinaryIO, keys_of: Callable[[Settings], KeySet]) -> None:
    """Be one worker until told to stop, or until the supervisor is gone."""
    told = msgspec.json.decode(standard_input.readline(), type=Told)
    configure(told.settings.log, worker=told.worker)

    def follow() -> None:
        standard_input.read()
        os.kill(os.getpid(), signal.SIGTERM)

    def ready(_: int) -> None:
        os.write(told.ready_pipe, b"\n")
        os.close(told.ready_pipe)
        threading.Thread(target=follow, name="supervisor", daemon=True).start()

    run_server(told.settings, told.services, keys_of(told.settings), ready, told.worker)
