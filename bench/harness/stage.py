"""The servers of one scenario, ready to be driven."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, MutableMapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from bench.harness.environment import BenchError, Environment, deployed, fresh, secret_of
from bench.harness.load_run import Target
from bench.harness.product import HERE, Version, product
from bench.harness.progress import progress
from bench.harness.server import Server
from bench.load.workload import DOMAIN, data_of
from engine.runtime.settings import Settings
from storage.postgres.blocking import connected
from storage.postgres.display_names import database_name

_CHUNK_RECORDS: Final = 250_000
#: Ids begin with eight hexadecimal digits that cover their whole range, as those of later runs do.
_RANGE: Final = 1 << 32
_FILL: Final = """
INSERT INTO records (tenant_id, domain, id, version, seq, at_us, device_id, chain_from, data)
SELECT %(tenant)s, %(domain)s, lpad(to_hex(n * %(step)s), 8, '0') || '-0-' || n, 1, n,
       1767225600000000 + n * 1000, 'fill', 1, replace(%(data)s, 'round 0', 'round ' || n)::json
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n"""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks for. ``settings`` and ``config`` are those of ``run.py serve``.

    ``workers`` is None where a scenario is to choose. ``suite`` says that the scenario is one of many, which
    leave out what takes minutes. ``flame_graph`` is where ``concurrent`` draws one. ``seed``, ``cells`` and
    ``history``, where to write what devices saw, are for ``faults``, ``attacks``, ``before`` and
    ``through_nginx`` for ``abuse``, ``peers`` for the scenario of that name.
    """

    settings: Settings
    config: Path | None
    connections: int
    rate_per_s: float
    duration_s: float | None
    tenants: int
    rounds: int | None
    saturate: bool
    fill_records: int
    url: str | None
    seed: int = 1
    cells: int = 1
    history: Path | None = None
    workers: int | None = None
    attacks: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    before: str | None = None
    through_nginx: bool = False
    compare: str | None = None
    margin: float = 0.03
    suite: Literal["", "all", "quick"] = ""
    flame_graph: Path | None = None

    @property
    def changed_load(self) -> list[str]:
        """The options by which the load is another than that of the targets."""
        own = {"connections": 1000, "rate_per_s": 1200.0, "tenants": 20, "workers": None, "saturate": False}
        own |= {"cells": 1}
        return [
            f"--{name.removesuffix('_per_s')}" for name, usual in own.items() if getattr(self, name) != usual
        ]

    @property
    def tenant_names(self) -> list[str]:
        """The tenants that devices are spread over."""
        return [f"bench-{index:02}" for index in range(self.tenants)]


Logged = MutableMapping[str, int]


@asynccontextmanager
async def staged(options: Options, logged: Logged, workers: int = 1) -> AsyncIterator[Target]:
    """Run the product alone on services of its own, or take the server at ``--url``.

    Its warnings are counted in ``logged``. Raises BenchError, EmbeddedError, StoreError.
    """
    if options.url is not None:
        with remote(options, options.url) as target:
            yield target
        return
    with fresh(options.settings) as environment:
        async with product_stage(environment, options, "product", logged, workers) as target:
            yield target


@asynccontextmanager
async def product_stage(
    environment: Environment,
    options: Options,
    database: str,
    logged: Logged,
    workers: int = 1,
    version: Version = HERE,
    records: int = 0,
) -> AsyncIterator[Target]:
    """Run the product on a fresh database with its tenants and ``records``. Raises BenchError, StoreError."""
    dsn = await version.database(environment, database)
    add_tenants(dsn, options.tenant_names)
    if records:
        fill(dsn, options.tenant_names, records)
    secret = secrets.token_urlsafe(48)
    async with (
        product(environment, dsn, secret, options.config, workers, version) as server,
        tallied(server, logged),
    ):
        yield Target(
            port=server.port,
            secret=secret,
            tenants=options.tenant_names,
            audience=options.settings.audience,
            watched={"server": server.pid, "postgres": environment.postgres_pid},
            dsn=dsn,
            ports=server.own_ports if workers > 1 else (),
            workers=[server.workers[worker] for worker in sorted(server.workers)],
        )


@asynccontextmanager
async def tallied(server: Server, logged: Logged) -> AsyncIterator[None]:
    """Add a server's warnings to ``logged`` in the end, and ``server_ended`` if it ended by itself."""
    try:
        yield
    finally:
        server.logged["server_ended"] += not server.alive
        for event, count in (+server.logged).items():
            logged[event] = logged.get(event, 0) + count


@contextmanager
def remote(options: Options, url: str) -> Iterator[Target]:
    """Yield a server that runs with the same settings. Raises BenchError, EmbeddedError, StoreError."""
    parts, chosen = urlsplit(url), options.settings
    if parts.scheme != "http" or parts.hostname is None:
        raise BenchError(f"--url {url}: http://HOST:PORT is required; TLS is the proxy's part")
    with deployed(chosen) as dsn:
        progress(f"database: {database_name(dsn)}")
        add_tenants(dsn, options.tenant_names)
        yield Target(
            host=parts.hostname,
            port=parts.port or 80,
            secret=secret_of(chosen),
            audience=chosen.audience,
            tenants=options.tenant_names,
            dsn=dsn,
        )


@asynccontextmanager
async def bare_stage(
    environment: Environment, options: Options, module: str, *arguments: str
) -> AsyncIterator[Target]:
    """Run one of the bare servers. Raises BenchError."""
    async with Server(["-m", module, *arguments], {}) as server:
        watched = {"server": server.pid, "postgres": environment.postgres_pid}
        yield Target(
            port=server.port, secret=secrets.token_urlsafe(48), tenants=options.tenant_names, watched=watched
        )


def add_tenants(dsn: str, names: Sequence[str]) -> None:
    """Create the tenants that are not there, in the database of this version or of one before it.

    Raises:
        StoreError: They could not be created.
    """
    with connected(dsn) as connection, connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO tenants (name) SELECT unnest(%s) ON CONFLICT DO NOTHING", (list(names),))
        cursor.execute(
            "INSERT INTO tenant_counters (tenant_id) SELECT tenant_id FROM tenants ON CONFLICT DO NOTHING"
        )
        cursor.execute("UPDATE cluster_state SET generation = generation + 1")


def tenant_ids(dsn: str) -> list[int]:
    """Read the ids of all tenants. Raises StoreError."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tenant_id FROM tenants ORDER BY tenant_id")
        return [tenant_id for (tenant_id,) in cursor.fetchall()]


def fill(dsn: str, tenants: Sequence[str], records: int) -> None:
    """Write ``records`` past the server, as many to each tenant, one version each. Raises StoreError."""
    each = max(1, records // len(tenants))
    constant = {"domain": DOMAIN, "step": max(1, _RANGE // (each + 1)), "data": data_of(0, 0).decode()}
    with connected(dsn) as connection, connection.cursor() as cursor:
        for done, name in enumerate(tenants):
            progress(f"filling: {done * each:,} of {each * len(tenants):,} records")
            cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s", (name,))
            ((tenant_id,),) = cursor.fetchall()
            for first in range(1, each + 1, _CHUNK_RECORDS):
                part = {"tenant": tenant_id, "first": first, "last": min(each, first + _CHUNK_RECORDS - 1)}
                cursor.execute(_FILL, constant | part)
            cursor.execute("UPDATE tenant_counters SET seq = %s WHERE tenant_id = %s", (each, tenant_id))
        progress("filling: vacuum and checkpoint")
        cursor.execute("VACUUM (ANALYZE) records")
        cursor.execute("CHECKPOINT")
