"""The services of a host, as ``systemctl`` sees them: PostgreSQL, Redis and Tidemark."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from bench.harness.clusters import Cluster
from deploy.recovery.postgres import archive_command
from tests.harness.servers.redis_nodes import RedisNode
from tests.harness.supervised import Supervised


class PostgresUnit:
    """A cluster, with the places that Debian's PostgreSQL 15 has.

    ``backups`` is the directory for backups, and ``binaries`` has the programs of its version.
    """

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.cluster = cluster
        self.active = True
        self.binaries = cluster._binaries
        self.backups = cluster._account.directory(home / "backups")
        self._settings = home / "conf.d"
        self._settings.mkdir()

    @property
    def places(self) -> dict[str, str]:
        """Places that the page names, longer names first, and those of this cluster.

        Its programs are in the path here.
        """
        return {
            "/usr/lib/postgresql/15/bin/": "",
            "/var/lib/postgresql/15/main": str(self.cluster.data),
            "/var/lib/postgresql": str(self.log_folder),
            "/var/log/postgresql": str(self.log_folder),
            "/var/backups/tidemark": str(self.backups),
            "/etc/postgresql/15/main/conf.d": str(self._settings),
        }

    def archive(self) -> None:
        """Have it archive its WAL as docs/recovery.md has it, and take further settings from their folder."""
        archive = self.cluster._account.directory(self.backups / "archive")
        with (self.cluster.data / "postgresql.conf").open("a") as settings:
            settings.write(f"include_dir = '{self._settings}'\narchive_mode = on\n")
            settings.write(f"archive_command = '{archive_command(archive)}'\n")
        self.cluster.restart()

    def back_up(self, name: str) -> Path:
        """Make a base backup of this name, and give its directory."""
        place = self.backups / name
        into = ("-D", place, "--checkpoint=fast", "--manifest-checksums=SHA256", "--no-sync")
        self.cluster._run("pg_basebackup", "-d", self.cluster.dsn, *into)
        return place

    async def start(self) -> None:
        """Start it. Raises OSError where it ends instead."""
        try:
            await asyncio.to_thread(self.cluster.start)
        except AssertionError as error:
            raise OSError(f"{error}: see its log") from None
        self.active = True

    async def stop(self) -> None:
        """Stop it at once, which a service manager does as well."""
        self.active = False
        await asyncio.to_thread(self.cluster.stop, signal.SIGINT)

    async def kill(self) -> None:
        """Kill it as a power cut would."""
        self.active = False
        await asyncio.to_thread(self.cluster.kill)

    @property
    def log_folder(self) -> Path:
        """Where its log is."""
        return self.cluster.data.parent

    def log(self) -> list[str]:
        """What it said."""
        return (self.log_folder / f"{self.cluster.name}.log").read_text("utf-8").splitlines()


class RedisUnit:
    """A Redis of one node."""

    def __init__(self, node: RedisNode, home: Path) -> None:
        self.node = node
        self._home = home
        self.active = True

    async def start(self) -> None:
        """Start it."""
        await asyncio.to_thread(self.node.start)
        self.active = True

    async def stop(self) -> None:
        """Kill it: it keeps nothing."""
        self.active = False
        await asyncio.to_thread(self.node.kill)

    def log(self) -> list[str]:
        """What it said."""
        return (self._home / "redis.log").read_text("utf-8").splitlines()


class ServerUnit:
    """``run.py serve``. Its start ends when its process runs, as that of a unit of the type ``exec``."""

    def __init__(self, server: Supervised) -> None:
        self.server = server

    @property
    def active(self) -> bool:
        """Whether its supervisor runs."""
        return self.server.process.returncode is None

    async def start(self) -> None:
        """Start it."""
        await self.server.launch()

    async def stop(self) -> None:
        """Have it drain."""
        await self.server.terminate()

    def log(self) -> list[str]:
        """Its log as it wrote it, and what it said on stderr once it has ended."""
        return [*self.server.written, *self.server.said.splitlines()]

    @property
    def main_pid(self) -> int:
        """The process that a service manager sees: the supervisor."""
        return self.server.process.pid
