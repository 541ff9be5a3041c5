"""A PostgreSQL whose WAL is archived and received, its base backup, and restores to a point in time."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import psycopg2

from bench.harness.clusters import PASSWORD, USER, Cluster
from storage.embedded.account import Account, account_for
from storage.embedded.binaries import postgres_binaries
from storage.embedded.process import wait_until
from storage.postgres.blocking import connected

_HOST: Final = "127.0.0.1"
_SLOT: Final = "receiver"
_PATIENCE_S: Final = 60.0
Tell = Callable[[str], None]


def archive_command(archive: Path) -> str:
    """Return the command that archives a segment of the WAL: the setting of PostgreSQL.

    A segment never has its name before all of it is on the disk, and none is written over. After a crash
    PostgreSQL may bring one that it has archived: this is well if it is the same.
    """
    kept, copied = f"{archive}/%f", f"{archive}/%f.part"
    return f"test ! -e {kept} && cp %p {copied} && sync {copied} && mv {copied} {kept} || cmp -s %p {kept}"


class Backups:
    """Where copies are kept, on what has to be another machine than the server's.

    Args:
        home: A directory for all of them but the keys, which are beside it: they open the backups.
        account: The account of PostgreSQL.
    """

    def __init__(self, home: Path, account: Account) -> None:
        home = account.directory(home)
        self.base = home / "base"
        self.archive = account.directory(home / "archive")
        self.received = account.directory(home / "received")
        self.files = home / "files"
        self.keys = home.with_name("keys")


class ArchivedCluster(Cluster):
    """A server that archives its WAL.

    Args:
        name: Its directory in ``home``.
        home: A directory of the account of PostgreSQL.
        backups: Where its WAL goes, and comes from in a restore.
        tell: Is told each command.
    """

    def __init__(self, name: str, home: Path, backups: Backups, tell: Tell) -> None:
        account = account_for(home)
        super().__init__(name, home, account, postgres_binaries(home.parent, account, None), _HOST)
        self._backups = backups
        self._tell = tell
        self._receiver: subprocess.Popen[bytes] | None = None

    def create_archived(self, archive_timeout_s: float) -> None:
        """Make an empty cluster whose WAL is archived, and start it."""
        self.create()
        lines = [
            "archive_mode = on",
            f"archive_timeout = '{round(archive_timeout_s)}s'",
            f"archive_command = '{archive_command(self._backups.archive)}'",
        ]
        self._configure(lines)
        super().start()
        with connected(self.database("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {USER}")

    def _configure(self, lines: list[str]) -> None:
        # It comes after all else; a base backup has it, with what ALTER SYSTEM set.
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def _source(self, name: str) -> str:
        return f"{self.dsn} application_name={name}"

    def start(self) -> None:
        """Start it, and wait until it takes writes: until then it replays the WAL."""
        super().start()
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            connection.autocommit = True

            def replayed() -> bool:
                cursor.execute("SELECT NOT pg_is_in_recovery()")
                return cursor.fetchall() == [(True,)]

            if not wait_until(replayed, _PATIENCE_S):
                raise TimeoutError(f"{self.name} is still in recovery")

    def receive(self, *, wait: bool) -> None:
        """Start a receiver of the WAL as it is written; with ``wait`` each later commit waits for it."""
        into = ("-d", self._source(_SLOT), "-D", self._backups.received, "--slot", _SLOT)
        self._told("pg_receivewal", *into, "--create-slot", "--if-not-exists")
        self._tell(self._shown("pg_receivewal", *into, "--synchronous"))
        self._receiver = subprocess.Popen(
            [self._binaries / "pg_receivewal", *into, "--synchronous", "--no-loop"],
            stderr=subprocess.DEVNULL,
            **self._account.spawning,
        )
        if not wait_until(lambda: any(self._backups.received.iterdir()), _PATIENCE_S):
            raise TimeoutError("pg_receivewal receives nothing")
        if wait:
            with connected(self.dsn) as connection, connection.cursor() as cursor:
                cursor.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{_SLOT}'")
                cursor.execute("SELECT pg_reload_conf()")

    def back_up(self) -> None:
        """Make a base backup while the server works, and compare it with its list. Raises ValueError."""
        into = ("-D", self._backups.base, "--checkpoint=fast", "--manifest-checksums=SHA256")
        self._told("pg_basebackup", "-d", self._source("backup"), *into)
        # As pg_verifybackup does, which crashes in the wheel of the embedded PostgreSQL 18.
        manifest = json.loads((self._backups.base / "backup_manifest").read_text())
        for one in manifest["Files"]:
            content = (self._backups.base / one["Path"]).read_bytes()
            if hashlib.sha256(content).hexdigest() != one["Checksum"]:
                raise ValueError(f"{one['Path']} of the base backup is damaged")

    def lose(self) -> None:
        """Kill it with all its children, and take its disk away."""
        self.kill()
        shutil.rmtree(self.data)
        self._end_receiver()

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it, and its receiver."""
        super().stop(how)
        self._end_receiver()

    def _end_receiver(self) -> None:
        if self._receiver is not None:
            self._receiver.send_signal(signal.SIGINT)
            self._receiver.wait()
            self._receiver = None

    def restore_base(self, *, received: bool, until: str | None) -> None:
        """Copy the base backup, and have the next start replay the WAL.

        Args:
            received: Whether to use what was received, or the archive alone.
            until: The time to stop before; None replays all.
        """
        copy = ["cp", "-a", str(self._backups.base), str(self.data)]
        self._tell(" ".join(copy))
        subprocess.run(["/usr/bin/env", *copy], check=True)
        archive, at_last = self._backups.archive, self._backups.received
        command = f"cp {archive}/%f %p"
        if received:  # the segment that was being written has its name with .partial
            command += f" || cp {at_last}/%f %p || cp {at_last}/%f.partial %p"
        lines = ["archive_mode = off", "synchronous_standby_names = ''", f"restore_command = '{command}'"]
        if until is not None:
            lines += [
                f"recovery_target_time = '{until}'",
                "recovery_target_inclusive = off",
                "recovery_target_action = promote",
            ]
        self._configure(lines)
        (self.data / "recovery.signal").touch()
        for line in lines[2:]:
            self._tell(line)

    def _told(self, program: str, *arguments: str | Path) -> None:
        self._tell(self._shown(program, *arguments))
        self._run(program, *arguments)

    @staticmethod
    def _shown(program: str, *arguments: str | Path) -> str:
        return " ".join([program, *map(str, arguments)]).replace(PASSWORD, "…")
