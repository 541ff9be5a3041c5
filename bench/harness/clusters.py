"""PostgreSQL servers of one's own on TCP, as installations have them: to stop, kill, copy and promote."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import psutil
import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from storage.embedded.account import Account, account_for
from storage.embedded.binaries import postgres_binaries
from storage.embedded.process import wait_until
from storage.postgres.blocking import connected
from storage.postgres.cell.dsn import schema_of
from storage.postgres.migrate import migrate
from storage.postgres.roles.grants import grant_roles

USER: Final = "tidemark"
#: A password, since every user of this machine can connect to a port.
PASSWORD: Final = secrets.token_hex(16)
_PATIENCE_S: Final = 60.0
#: The line of postmaster.pid that tells how far the server is.
_STATUS_LINE: Final = 7
_SETTINGS: Final = (
    *("-c", "jit=off", "-c", "timezone=UTC", "-c", "log_timezone=UTC"),
    *("-c", "max_wal_size=4GB", "-c", "checkpoint_timeout=15min", "-c", "unix_socket_directories="),
)


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
        """Return the DSN of a database on this server."""
        return f"host={self._host} port={self.port} user={USER} password={PASSWORD} dbname={name}"

    def create(self) -> None:
        """Make an empty cluster; for speed it is on disk only once its server is."""
        password = self.data.with_name(f"{self.name}.password")
        descriptor = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            self._account.own(descriptor)
            os.write(descriptor, PASSWORD.encode())
            self._run(
                *("initdb", "-D", self.data, "-U", USER, "-A", "scram-sha-256", "--pwfile", password),
                # Thousands of rounds would take up a tenth of the tests' time: this password is random.
                *("--set", "scram_iterations=1", "--no-sync"),
                *("-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            )
        finally:
            os.close(descriptor)
            password.unlink()

    def admit(self, addresses: str) -> None:
        """Let clients of these addresses in, which have to be a network of the test's own."""
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {addresses} scram-sha-256\n")

    def start(self) -> None:
        """Start it and wait until it lets clients in."""
        program, own = self._binaries / "postgres", ("-c", f"listen_addresses={self._host}")
        with (self.data.parent / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-D", self.data, "-p", str(self.port), *own, *_SETTINGS],
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt from the keyboard is not for it
                **self._account.spawning,
            )
        if not wait_until(self._ready, _PATIENCE_S):
            raise TimeoutError(f"{self.name} does not start, see {log.name}")

    @property
    def pid(self) -> int:
        """The process of the server that runs."""
        assert self._process is not None
        return self._process.pid

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
        source = f"host={self._host} port={self.port} user={USER} password={PASSWORD} application_name={name}"
        self._run("pg_basebackup", "-d", source, "-D", copy.data, "-R", "--checkpoint=fast", "--no-sync")
        return copy

    def promote(self) -> None:
        """Make a standby the primary, and wait until it is."""
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_promote(true, 60)")

    def kill(self) -> None:
        """Kill it with all its children, as a power cut would."""
        if self._process is not None:
            postmaster = psutil.Process(self._process.pid)
            for process in (postmaster, *postmaster.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # children end by themselves without their postmaster
                    process.kill()
            self._process.wait()
            self._process = None

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it in whatever way is fastest; SIGINT is a fast shutdown, as a service manager asks for."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Do as ``pg_ctl restart``: a fast shutdown, and a start at once."""
        self.stop(signal.SIGINT)
        self.start()

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [self._binaries / program, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._account.spawning)


@contextmanager
def cluster_in(
    place: Path, name: str, host: str = "127.0.0.1", admitted: str | None = None
) -> Iterator[Cluster]:
    """Run a cluster with an empty database in a directory that may be missing, and that is left there.

    It listens on ``host`` and lets in clients from this machine and from the addresses ``admitted``.
    """
    account = account_for(place)
    binaries = postgres_binaries(place.parent, account, None)
    made = Cluster(name, account.directory(place), account, binaries, host)
    made.create()
    if admitted is not None:
        made.admit(admitted)
    try:
        made.start()
        with connected(made.database("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {USER}")
        yield made
    finally:
        made.stop()


def as_role(dsn: str, role: Literal["serving", "jobs"]) -> str:
    """Return an owner's DSN as that of another role; the embedded roles have the same names.

    Another owner, as of cells on Citus, has no other roles: the DSN stays as it is.
    """
    return str(make_dsn(dsn, user=f"{USER}_{role}")) if parse_dsn(dsn).get("user") == USER else dsn


def migrate_for_roles(dsn: str) -> None:
    """Make the schema, and the roles of serving and of jobs. Raises StoreError."""
    migrate(dsn)
    grant_roles(dsn, as_role(dsn, "serving"), as_role(dsn, "jobs"), make=True)


def role_variables(dsn: str) -> dict[str, str]:
    """Return the environment of a server or command on an owner's database, as it is deployed."""
    return {
        "TIDEMARK__POSTGRES__DSN": as_role(dsn, "serving"),
        "TIDEMARK__POSTGRES__OWNER_DSN": dsn,
        "TIDEMARK__POSTGRES__JOBS_DSN": as_role(dsn, "jobs"),
        "TIDEMARK__POSTGRES__SCHEMA": schema_of(dsn),
    }


def free_port() -> int:
    """Find a port on the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
