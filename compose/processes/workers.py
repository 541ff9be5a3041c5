"""Several processes on one port: the orders of a supervisor, and the start of a worker."""

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

from compose.processes.supervisor import Orders, Supervisor
from compose.server import run_server
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from handlers.commands.deployment import DeploymentError
from handlers.http.tokens import KeySet, UnusableKeyError
from handlers.operate.logging import configure
from handlers.server import ListenError, reserve_ports
from storage.bus.bus_messages import UnusableUrlError
from storage.bus.checkup import LOGIN_REFUSED, bus_findings
from storage.bus.nodes import Nodes
from storage.embedded.servers import Services
from storage.postgres.hosts import reordered

_COMMAND: Final = (sys.executable, str(Path(__file__).parents[2] / "run.py"), "worker")


class WorkerOrders(msgspec.Struct, frozen=True):
    """One line of JSON on a worker's standard input, since it may hold secrets and a command line must not.

    ``ready_pipe`` is the descriptor for an empty line when the worker accepts devices, or for a sentence on
    why it does not. Workers of one supervisor recognise each other by ``secret``.
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
    """Run ``server.workers`` workers until told to stop.

    Args:
        settings: Their settings.
        services: Their PostgreSQL and Redis.
        started: Called with the shared port when all accept devices.
        reread: Returns the settings and services of a renewal, or None for no renewal.

    Raises:
        WorkersFailedError: A worker does not start.
        ListenError: The port is taken.
        KeyboardInterrupt: A second Ctrl-C cut the drain short.
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
            # Spares workers the seconds in which they would find out that a host does not answer.
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
    """Run one worker until told to stop, or until the supervisor ended; exit with 1 if it cannot start."""
    told = msgspec.json.decode(standard_input.readline(), type=WorkerOrders)
    configure(told.settings.log, worker=told.worker)
    descriptor = standard_input.fileno()

    def follow() -> None:
        # Not through the file object: a thread that waits in it holds its lock, for which the end of the
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


def check_bus(url: str, *, several: bool) -> None:
    """See that workers can meet in Redis. Raises DeploymentError."""
    try:
        Nodes(url)
    except ValueError as error:
        raise DeploymentError(f"redis.url: {error}") from None
    for finding in bus_findings(url, alone=False) if several else ():
        if finding.level == "fault" and finding.found.startswith(LOGIN_REFUSED):
            raise DeploymentError(f"{finding.found}: {finding.remedy}")
        if finding.level == "fault":
            raise DeploymentError(
                f"several workers meet in Redis, which is away ({finding.found}):"
                " start it, or serve with one worker"
            )
