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
from engine.ports import StoreError
from engine.settings import Settings
from handlers.auth import KeySet, UnusableKeyError
from handlers.commands.site import SiteError
from handlers.logging import configure
from handlers.server import ClosedDoorError, check_doors
from handlers.supervisor import Supervisor
from storage.bus_news import UnusableUrlError
from storage.embedded import Services

_COMMAND: Final = (sys.executable, str(Path(__file__).parent.parent / "run.py"), "worker")


class Told(msgspec.Struct, frozen=True):
    """One line of JSON on a worker's standard input. It may hold secrets, which no command line may.

    ``ready_pipe`` is the descriptor to write an empty line to once devices are let in, or a sentence on why
    they are not.
    """

    settings: Settings
    services: Services
    worker: int
    ready_pipe: int


def supervise(settings: Settings, services: Services, started: Callable[[], None]) -> None:
    """Run ``server.workers`` of them until told to stop. Raises WorkersFailedError, ClosedDoorError."""

    def told(worker: int, ready_pipe: int) -> bytes:
        return msgspec.json.encode(Told(settings, services, worker, ready_pipe))

    server = settings.server
    # Workers share their ports, with those of another supervisor as well: nothing else would notice that one.
    check_doors(server.host, range(server.port, server.port + server.workers + 1))
    asyncio.run(Supervisor(server.workers, _COMMAND, told, server.drain_s, started).run())


def work(standard_input: BinaryIO, keys_of: Callable[[Settings], KeySet]) -> None:
    """Be one worker until told to stop, or until the supervisor is gone; exit with 1 if it cannot."""
    told = msgspec.json.decode(standard_input.readline(), type=Told)
    configure(told.settings.log, worker=told.worker)
    descriptor = standard_input.fileno()

    def follow() -> None:
        # Past the file object: a thread that waits inside of it holds its lock, for which the end of the
        # interpreter waits a second and then aborts.
        while os.read(descriptor, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="supervisor", daemon=True).start()
    with os.fdopen(told.ready_pipe, "wb") as pipe:

        def say(sentence: str) -> None:
            if not pipe.closed:
                pipe.write(" ".join(sentence.split()).encode() + b"\n")
                pipe.close()

        try:
            run_server(told.settings, told.services, keys_of(told.settings), lambda _: say(""), told.worker)
        except (ClosedDoorError, SiteError, StoreError, UnusableKeyError, UnusableUrlError) as error:
            say(str(error) or type(error).__name__)
            sys.exit(1)
