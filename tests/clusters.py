"""PostgreSQL servers of a test's own: to kill, to copy and to promote."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from storage.embedded_account import Account, account_for
from storage.embedded_binaries import postgres_binaries
from storage.embedded_process import wait_until
from tests.services import execute

USER = "tidemark"
_PATIENCE_S = 60.0
#: The line of postmaster.pid that tells how far the server is.
_STATUS_LINE = 7


class Cluster:
    """One server, on the address that it keeps. ``dsn`` is of the database ``tidemark``."""

    def __init__(self, name: str, home: Path, account: Account, binaries: Path, host: str) -> None:
        self.name = name
        self._host = host
        self.data = home / name
        self.port = free_port()
        self._account = account
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port as a URI has them."""
        return f"{self._host}:{self.port}"

    @property
    def dsn(self) -> str:
        """The database on this server alone."""
        return self.database(USER)

    def database(self, name: str) -> str:
        """Give the DSN of a database on this server."""
        return f"postgresql://{USER}@{self.address}/{name}"

    def create(self) -> None:
        """Make an empty cluster; for speed it is on disk only once its server is."""
        self._run(
            "initdb", "-D", self.data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"
        )

    def admit(self, addresses: str) -> None:
        """Let whoever comes from there in, which has to be a network of the test's own."""
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {addresses} trust\n")

    def start(self) -> None:
        """Start it and wait until it lets clients in."""
        with (self.data.parent / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binaries / "postgres",
                    *("-D", self.data, "-p", str(self.port)),
                    *("-c", f"listen_addresses={self._host}", "-c", "unix_socket_directories="),
                ],
                stdout=log,
                stderr=log,
                **self._account.spawning,
            )
        assert wait_until(self._ready, _PATIENCE_S), f"{self.name} does not start"

    def _ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended at its start"
        ours = bool(lines) and lines[0] == str(self._process.pid)
        return ours and len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == "ready"

    def copy(self, name: str) -> Cluster:
        """Make a standby that follows this server under its ``name`` once it starts."""
        copy = Cluster(name, self.data.parent, self._account, self._binaries, self._host)
        source = f"host={self._host} port={self.port} user={USER} application_name={name}"
        self._run("pg_basebackup", "-d", source, "-D", copy.data, "-R", "--checkpoint=fast", "--no-sync")
        return copy

    def promote(self) -> None:
        """Make a standby the primary, and wait until it is."""
        execute(self.dsn, "SELECT pg_promote(true, 60)")

    def kill(self) -> None:
        """Kill it with all its children, as a power cut would."""
        if self._process is not None:
            postmaster = psutil.Process(self._process.pid)
            for process in (postmaster, *postmaster.children(recursive=True)):
                process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it in whatever way is fastest."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def _run(self, program: str, *arguments: str | Path) -> None:
        subprocess.run(
            [self._binaries / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            **self._account.spawning,
        )


@contextmanager
def cluster(name: str, host: str = "127.0.0.1", admitted: str | None = None) -> Iterator[Cluster]:
    """Run a cluster with an empty database, and remove it and its copies' files in the end.

    It listens on ``host`` and lets in whoever comes from this machine and from the addresses ``admitted``.
    """
    home = Path(tempfile.mkdtemp(prefix="tidemark-cluster-"))
    home.chmod(0o711)  # the server's account has to pass through it
    try:
        account = account_for(home / "clusters")
        made = Cluster(
            name, account.directory(home / "clusters"), account, postgres_binaries(home, account, None), host
        )
        made.create()
        if admitted is not None:
            made.admit(admitted)
        made.start()
        try:
            execute(made.database("postgres"), f"CREATE DATABASE {USER}")
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    """Find a port on the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
