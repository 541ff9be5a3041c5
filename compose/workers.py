"""Processes on one port: what a supervisor tells its workers, and what a worker makes of it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec.structs import replace

from compose.server import run_server
from compose.supervisor import Orders, Supervisor
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from handlers.commands.deployment import DeploymentError
from handlers.http.tokens import KeySet, UnusableKeyError
from handlers.operate.logging import configure
from handlers.server import ListenError, reserve_ports
from storage.bus.bus_messages import UnusableUrlError
from storage.embedded.servers import Services
from storage.postgres.hosts import reordered

_COMMAND: Final = (sys.executable, str(Path(__file__).parent.parent / "run.py"), "worker")


class WorkerOrders(msgspec.Struct, frozen=True):
    """One line of JSON on a worker's standard input. It may hold secrets, which no command line may.

    ``ready_pipe`` is the descriptor to write an empty line to once devices are let in, or a sentence on why
    they are not. ``secret`` is what workers of one supervisor know each other by.
    """

    settings: Settings
    services: Services
    worker: int
    ready_pipe: int
    secret: str


def supervise(
    settings: Settings,
    services: Services,
    started: Callable[[int], None],
    reread: Callable[[], tuple[Settings, Services] | None],
) -> None:
    """Run ``server.workers`` of them until told to stop; ``started`` is told the port that they share.

    ``reread`` gives the settings and services of a renewal, or None if there is to be none. Raises
    WorkersFailedError, ListenError, and KeyboardInterrupt if a second Ctrl-C cut the drain short.
    """
    server = settings.server
    ports = [server.port]
    if server.workers > 1:
        ports += range(server.port + 1, server.port + server.workers + 1)
    if server.probe_port:
        ports.append(server.probe_port)
    secret = secrets.token_hex(16)
    with reserve_ports(server.host, ports) as (port, *_):

        def orders(settings: Settings, services: Services) -> Orders:
            server = replace(settings.server, port=port)
            told_settings = replace(settings, server=server)
            # A worker need not find out anew that a host is dead, which takes seconds if it is silent.
            told_services = replace(services, dsn=reordered(services.dsn))

            def told(worker: int, ready_pipe: int) -> bytes:
                return msgspec.json.encode(
                    WorkerOrders(told_settings, told_services, worker, ready_pipe, secret)
                )

            return Orders(told, server.drain_s)

        def orders_again() -> Orders | None:
            found = reread()
            return None if found is None else orders(*found)

        first = orders(settings, services)
        supervisor = Supervisor(server.workers, _COMMAND, first, lambda: started(port), orders_again)
        if asyncio.run(supervisor.run()):
            raise KeyboardInterrupt


def work(standard_input: BinaryIO, keys_of: Callable[[Settings], KeySet]) -> None:
    """Be one worker until told to stop, or until the supervisor is gone; exit with 1 if it cannot."""
    told = msgspec.json.decode(standard_input.readline(), type=WorkerOrders)
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
            keys = keys_of(told.settings)
            run_server(told.settings, told.services, keys, lambda _: say(""), told.worker, told.secret)
        except (ListenError, DeploymentError, StoreError, UnusableKeyError, UnusableUrlError) as error:
            say(str(error) or type(error).__name__)
            sys.exit(1)
