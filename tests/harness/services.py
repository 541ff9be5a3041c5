"""The real services that tests run on: one PostgreSQL and one Redis a session, a fresh database a test.

PostgreSQL listens on TCP and asks for a password, as in real installations: the embedded one, on a Unix
socket, has tests of its own (``tests/storage/embedded/test_servers.py``).
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import psycopg2
import pytest
from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
from psycopg2.extensions import make_dsn, parse_dsn

from bench.harness.clusters import Cluster, as_role, cluster_in, migrate_for_roles
from storage.embedded.servers import Services, embedded
from storage.postgres.cell.dsn import schema_of, with_schema
from storage.postgres.migrate import migrate
from storage.postgres.pool import Database
from tests.harness.scratch import scratch

_TEMPLATE = "migrated"
CELLS_TEMPLATE = "migrated_cells"
#: The cells of one database. Tests of cells are in the first one.
CELLS = ("cell_a", "cell_b")
#: A coordinator of Citus, as a role that owns cells: tests of stores run there, too, each in its own cell.
_CITUS: Final = os.environ.get("TIDEMARK_TEST_CITUS", "")
#: Where modules that say ``ALSO_IN_A_CELL`` run.
PLACES: Final = ("template", "cells_template", *(("citus",) if _CITUS else ()))
#: Has the whole suite run in a cell.
_ALL_IN_A_CELL = "TIDEMARK_TEST_IN_CELL" in os.environ


def without_cells(why: str) -> pytest.MarkDecorator:
    """Pass a test over that cannot run in a cell."""
    return pytest.mark.skipif(_ALL_IN_A_CELL, reason=f"not in a cell: {why}")


@contextmanager
def cluster(name: str, host: str = "127.0.0.1", admitted: str | None = None) -> Iterator[Cluster]:
    """Do as ``cluster_in``, and remove the files of the cluster and of its copies in the end."""
    with scratch("tidemark-cluster-") as home, cluster_in(home / "clusters", name, host, admitted) as made:
        yield made


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """PostgreSQL and Redis in a directory of their own."""
    with (
        scratch("tidemark-tests-") as home,
        cluster_in(home / "postgres", "tests") as made,
        embedded(home / "data", postgres=False) as redis,
    ):
        yield Services(made.dsn, redis.redis_url)


@pytest.fixture(scope="session")
def embedded_services() -> Iterator[Services]:
    """The embedded default, on Unix sockets, as it is for whoever has configured none."""
    with scratch("tidemark-tests-") as home, embedded(home / "data") as running:
        yield running


def data_dir(services: Services) -> Path:
    """The directory of the tests' embedded servers, where their account may pass."""
    return Path(services.redis_url.removeprefix("unix://")).parent.parent


def named(dsn: str, database: str) -> str:
    """Return the DSN of another database on the same server."""
    return dsn.replace("dbname=tidemark", f"dbname={database}")


def execute(dsn: str, *statements: str) -> None:
    """Run statements outside of a transaction."""
    with closing(psycopg2.connect(dsn)) as connection:
        run(connection, *statements)


def run(connection: Connection, *statements: str) -> None:
    """Do as ``execute`` on an open connection: to connect takes a tenth of a test."""
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def rows(dsn: str, statement: str) -> list[tuple[object, ...]]:
    """Read rows past the server under test."""
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()
    finally:
        connection.close()


class Serving(Database):
    """A database as servers have it: the role of serving, and that of jobs for work over all tenants.

    ``dsn`` is the owner's.
    """

    def __init__(self, dsn: str, connections: int) -> None:
        self._jobs = Database(as_role(dsn, "jobs"), 1)
        super().__init__(as_role(dsn, "serving"), connections, everyone=self._jobs)

    async def close(self) -> None:
        """Close the connections of both."""
        await super().close()
        await self._jobs.close()


def place_of(dsn: str) -> str:
    """Return how commands name a test's database."""
    parts = parse_dsn(dsn)
    cell = f", schema {schema_of(dsn)}" if schema_of(dsn) else ""
    return f"{parts['host']}:{parts['port']}/{parts['dbname']}{cell}"


def deployed(dsn: str, redis_url: str) -> Services:
    """Return services as a server has them: ``dsn`` is the owner's."""
    return Services(as_role(dsn, "serving"), redis_url, dsn, as_role(dsn, "jobs"))


@pytest.fixture(scope="session")
def template(request: pytest.FixtureRequest) -> str:
    """A migrated database that others are copied from."""
    if _ALL_IN_A_CELL:
        return str(request.getfixturevalue("cells_template"))
    dsn = request.getfixturevalue("services").dsn
    execute(dsn, f"CREATE DATABASE {_TEMPLATE}")
    migrate_for_roles(named(dsn, _TEMPLATE))
    return _TEMPLATE


@pytest.fixture(scope="session")
def cells_template(services: Services) -> str:
    """The same with two cells."""
    execute(services.dsn, f"CREATE DATABASE {CELLS_TEMPLATE}")
    for schema in CELLS:
        migrate_for_roles(with_schema(named(services.dsn, CELLS_TEMPLATE), schema))
    return CELLS_TEMPLATE


def in_cell(dsn: str, schema: str = CELLS[0]) -> str:
    """Return the DSN of a cell. A test's own connections find its tables by a search_path."""
    return with_schema(str(make_dsn(dsn, options=f"-c search_path={schema}")), schema)


@contextmanager
def citus_cell() -> Iterator[str]:
    """Give the DSN of a cell on Citus without a tenant, which is dropped in the end."""
    schema = f"test_{uuid.uuid4().hex}"
    made = in_cell(_CITUS, schema)
    migrate(made)
    try:
        yield made
    finally:
        execute(_CITUS, "SET client_min_messages = error", f"DROP SCHEMA {schema} CASCADE")


class Databases:
    """Makes databases on the tests' PostgreSQL, all over one connection."""

    def __init__(self, services: Services, connection: Connection) -> None:
        self._dsn = services.dsn
        self._connection = connection

    @contextmanager
    def copy(self, source: str) -> Iterator[str]:
        """Give the DSN of a copy of the database ``source``, which is dropped in the end.

        It is the first cell's if the database has cells.
        """
        name = f"test_{uuid.uuid4().hex}"
        own = f"CREATE DATABASE {name} TEMPLATE {source}", f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC"
        run(self._connection, *own)
        try:
            yield in_cell(named(self._dsn, name)) if source == CELLS_TEMPLATE else named(self._dsn, name)
        finally:
            run(self._connection, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def databases(services: Services) -> Iterator[Databases]:
    """Copies of databases."""
    with closing(psycopg2.connect(services.dsn)) as connection:
        yield Databases(services, connection)


@pytest.fixture
def empty_dsn(databases: Databases) -> Iterator[str]:
    """A database without a schema."""
    with databases.copy("template0") as name:
        yield name


@pytest.fixture
def dsn(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """A migrated database without a tenant."""
    place = getattr(request, "param", "template")
    with citus_cell() if place == "citus" else databases.copy(request.getfixturevalue(place)) as name:
        yield name


@pytest.fixture
def cell_dsn(databases: Databases, cells_template: str) -> Iterator[str]:
    """A cell without a tenant, beside another one."""
    with databases.copy(cells_template) as name:
        yield name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have tests of modules that say ``ALSO_IN_A_CELL`` run on a database of their own, and in a cell."""
    if "dsn" in metafunc.fixturenames and getattr(metafunc.module, "ALSO_IN_A_CELL", False):
        metafunc.parametrize("dsn", PLACES, ids=("alone", "cell", "citus")[: len(PLACES)], indirect=True)


@contextmanager
def outage(services: Services, dsn: str) -> Iterator[None]:
    """Cut a database off from everybody, and let them in again."""
    name = dsn.partition("dbname=")[2].split()[0]
    execute(
        services.dsn,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'",
    )
    try:
        yield
    finally:
        execute(services.dsn, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
