"""The embedded PostgreSQL: the binaries of a wheel, driven directly."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path
from typing import Final

from storage.embedded.account import Account, made_atomically, remove_unfinished
from storage.embedded.binaries import postgres_binaries
from storage.embedded.process import ProcessTraces, ServerProcess, failed

_DATABASE: Final = "tidemark"
#: Roles beside the owner, which has the name of the database.
_SERVING: Final = "tidemark_serving"
_JOBS: Final = "tidemark_jobs"
#: Only a part of the socket's name: nothing listens on a port.
_PORT: Final = 5432
#: Recovery after a crash replays up to ``max_wal_size``.
_START_S: Final = 300.0
_CONNECT_S: Final = 1.0
#: A fast shutdown writes a checkpoint.
_STOP_S: Final = 60.0
_KILL_S: Final = 10.0
#: The line of postmaster.pid that tells how far the server is.
_STATUS_LINE: Final = 7

_SETTINGS: Final = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # A day of logs: each hour's file is written over a day later. Neither statements nor details are
    # logged, for they hold what devices sent.
    "logging_collector": "on",
    "log_filename": "postgresql-%H.log",
    "log_rotation_age": "1h",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


class EmbeddedPostgres:
    """The cluster in ``data_dir``/postgres. It must be started and stopped under the lock of ``embedded``.

    ``dsn`` names it in libpq's keywords, as the role that owns all. ``serving_dsn`` and ``jobs_dsn`` are for
    roles that are made with the schema (storage/postgres/roles/grants.py).
    """

    def __init__(self, data_dir: Path, account: Account, sockets: Path) -> None:
        self._data_dir = data_dir
        self._account = account
        self._cluster = data_dir / "postgres"
        self._logs = data_dir / "logs"
        self._pid_file = self._cluster / "postmaster.pid"
        self._sockets = sockets
        self._socket = sockets / f".s.PGSQL.{_PORT}"
        self._process = ServerProcess(
            "PostgreSQL",
            account,
            ProcessTraces(
                lock=data_dir / "postgres.lock",
                mark=str(self._cluster),
                pid=self._pid_file,
                logs=self._logs,
                log_prefix="postgresql-",
            ),
            self._answers,
        )
        place = f"host={sockets} port={_PORT} dbname={_DATABASE}"
        self.dsn = f"{place} user={_DATABASE}"
        self.serving_dsn = f"{place} user={_SERVING}"
        self.jobs_dsn = f"{place} user={_JOBS}"

    def start(self) -> None:
        """Start it unless it runs, and return when it accepts clients. Raises EmbeddedError, OSError."""
        remove_unfinished(self._data_dir)
        self._account.directory(self._logs)
        try:
            major = (self._cluster / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            major = None
        binaries = postgres_binaries(self._data_dir, self._account, major)
        if major is None:
            self._create(binaries)
        if self._process.alive() and not self._socket.exists():
            self.stop()  # its socket in /tmp was removed: no client can reach it
        settings = _SETTINGS | {
            "unix_socket_directories": str(self._sockets),
            "log_directory": str(self._logs),
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._process.start(
            [binaries / "postgres", "-D", self._cluster, *flags],
            leftovers=[self._pid_file, self._socket, self._socket.with_name(f"{self._socket.name}.lock")],
            patience_s=_START_S,
        )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it if it runs. Raises EmbeddedError, OSError.

        SIGINT rolls back what is open; SIGQUIT leaves at once and SIGKILL without a word, and the next
        start recovers as after a crash.
        """
        self._process.stop([(how, _STOP_S), (signal.SIGQUIT, _KILL_S), (signal.SIGKILL, _KILL_S)])

    def _answers(self) -> bool:
        try:
            lines = self._pid_file.read_text().splitlines()
        except OSError:
            return False
        if len(lines) <= _STATUS_LINE or lines[_STATUS_LINE].strip() != "ready":
            return False
        # The file may have outlived its server, whose children may still be ending.
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_CONNECT_S)
            return client.connect_ex(str(self._socket)) == 0

    def _create(self, binaries: Path) -> None:
        initdb, server = binaries / "initdb", binaries / "postgres"
        with made_atomically(self._cluster) as new:
            self._account.directory(new)
            self._run(
                initdb,
                "-D",
                new,
                "--no-sync",  # once, at the end
                f"--username={_DATABASE}",
                "--auth-local=trust",  # only the account and root come to the socket
                "--auth-host=reject",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
            )
            create = f"CREATE DATABASE {_DATABASE}\n"
            self._run(server, "--single", "-D", new, "postgres", given=create)
            self._run(initdb, "-D", new, "--sync-only")

    def _run(self, *command: str | Path, given: str = "") -> None:
        ended = subprocess.run(
            command,
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            **self._account.spawning,
        )
        if ended.returncode:
            raise failed(f"PostgreSQL could not be set up in {self._data_dir}", ended.stdout)
