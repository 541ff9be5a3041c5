"""Where a benchmark runs: PostgreSQL and Redis of its own, or those of a server that runs already."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.harness.clusters import Cluster, cluster_in, migrate_for_roles
from bench.harness.connections import counting_connections
from bench.harness.sealed import seal
from compose.configuration import database_services, in_cell, layers
from engine.runtime.setting_layers import settings
from engine.runtime.settings import Settings
from storage.embedded.servers import embedded
from storage.postgres.blocking import connected
from storage.postgres.cell.dsn import with_schema


class BenchError(Exception):
    """The benchmark cannot go on; one sentence says why and names the remedy."""


class Environment(msgspec.Struct, frozen=True):
    """Fresh services: nobody else uses them. ``dsn`` is the owner's. ``home`` is removed with them."""

    home: Path
    dsn: str
    redis_url: str
    postgres_pid: int

    def database(self, name: str, *, migrated: bool = True) -> str:
        """Create a database, with the product's schema or empty, and return its DSN."""
        with connected(self.dsn) as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        dsn = f"{self.dsn} dbname={name}"  # in libpq's keywords the last one counts
        if migrated:
            _make(dsn)
        return dsn

    def cells(self, name: str, schemas: Sequence[str]) -> list[str]:
        """Create a database with several cells, and return their DSNs."""
        database = self.database(name, migrated=False)
        dsns = [with_schema(database, schema) for schema in schemas]
        for dsn in dsns:
            _make(dsn)
        return dsns


def _make(dsn: str) -> None:
    migrate_for_roles(dsn)
    seal(dsn)


@contextmanager
def fresh(chosen: Settings) -> Iterator[Environment]:
    """Start services in a new directory under ``data.dir``. Raises EmbeddedError, StoreError."""
    with _home(chosen) as home, embedded(home) as services:
        pid = int((home / "postgres" / "postmaster.pid").read_text().split("\n", 1)[0])
        dsn = with_schema(services.owner, chosen.postgres.schema)
        with counting_connections(dsn):
            yield Environment(home, dsn, services.redis_url, pid)


@contextmanager
def fresh_on_tcp(chosen: Settings) -> Iterator[tuple[Environment, Cluster]]:
    """Start the same with a PostgreSQL on TCP, as real installations have it, that can be stopped."""
    with (
        _home(chosen) as home,
        embedded(home, postgres=False) as services,
        cluster_in(home / "clusters", "bench") as made,
        counting_connections(made.dsn),
    ):
        dsn = with_schema(made.dsn, chosen.postgres.schema)
        yield Environment(home, dsn, services.redis_url, made.pid), made


@contextmanager
def _home(chosen: Settings) -> Iterator[Path]:
    home = Path(chosen.data.dir).resolve() / f"bench-{secrets.token_hex(4)}"
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def read_settings(config: Path | None, data_dir: str | None, *, of_system: bool = False) -> Settings:
    """Read the settings as ``run.py serve`` with ``--config`` and ``--data-dir``. Raises SettingsError.

    ``of_system`` has the file of this machine count, which is of a server that runs already.
    """
    flags = {} if data_dir is None else {"data": {"dir": data_dir}}
    return settings(layers(config, flags, of_system=of_system))


def secret_of(chosen: Settings) -> str:
    """Find the secret that signs tokens for a server with these settings. Raises BenchError."""
    if chosen.auth.secret:
        return chosen.auth.secret
    path = Path(chosen.auth.secret_file or Path(chosen.data.dir) / "auth.secret")
    try:
        return path.read_text().strip()
    except OSError:
        raise BenchError(
            f"no secret to sign tokens with in {path}: set auth.secret_file or TIDEMARK__AUTH__SECRET"
            " to that of the server"
        ) from None


@contextmanager
def deployed(chosen: Settings) -> Iterator[str]:
    """Yield the owner's DSN of the database of a server with these settings.

    Raises EmbeddedError, SettingsError.
    """
    given = database_services(chosen)
    if given.dsn:
        yield given.owner
        return
    with embedded(Path(chosen.data.dir), redis=False, make=False) as services:
        yield in_cell(services, chosen).owner
