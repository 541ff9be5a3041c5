"""The servers of others, each started on an empty database, and the count of what they stored."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import ClientSession, TCPConnector
from psycopg2.extensions import parse_dsn

from bench.harness.audit import Audit
from bench.harness.environment import BenchError, Environment
from bench.harness.load_run import Run, Target
from bench.harness.server import Server, free_ports
from bench.harness.stage import Options
from bench.peers.installation import program, python_of
from storage.postgres.blocking import connected

#: Of one process: Parse Server's connections to PostgreSQL, and Daphne's threads where it has several.
PARSE_CONNECTIONS: Final = 10
THREADS: Final = 6
#: The variable with the plan of a server: passwords in a command line are for all users of a machine to read.
PLAN: Final = "TIDEMARK_BENCH_PLAN"


class Peer(msgspec.Struct, frozen=True):
    """A server of others that runs. ``count`` reads its records, the sum of their versions, and its keys."""

    target: Target
    dsn: str
    count: str


Stage = Callable[[Environment, Options, Path], AbstractAsyncContextManager[Peer]]


class ParseTarget(Target, frozen=True, kw_only=True):
    """Parse Server, where a tenant is a user; ``sessions`` has the ``USER:SESSION`` of each tenant."""

    sessions: dict[str, str]

    def token(self, tenant: str, device: str, **_: str) -> str:  # noqa: ARG002  # as it is called
        """Return the session that devices of a tenant share."""
        return self.sessions[tenant]


@asynccontextmanager
async def channels(
    environment: Environment, options: Options, place: Path, *, threads: int
) -> AsyncIterator[Peer]:
    """Run Django Channels on Daphne: each process has one thread for the database by default."""
    dsn = environment.database(f"channels_{threads}", migrated=False)
    known, processes = parse_dsn(dsn), options.workers or 1
    secret = secrets.token_urlsafe(48)
    plan = {
        "database": {"NAME": known.pop("dbname"), **{name.upper(): value for name, value in known.items()}},
        "redis_url": environment.redis_url,
        "secret": secret,
        "audience": options.settings.audience,
        "port": free_ports(processes + 1),
        "processes": processes,
        "threads": threads,
    }
    variables = {"ASGI_THREADS": str(threads), PLAN: msgspec.json.encode(plan).decode()}
    command, python = ["-m", "bench.peers.channels_server"], str(python_of(place))
    async with Server(command, variables, processes, program=python) as server:
        target = Target(
            port=server.port,
            secret=secret,
            audience=options.settings.audience,
            tenants=options.tenant_names,
            watched={"server": server.pid, "postgres": environment.postgres_pid},
            ports=server.own_ports if processes > 1 else (),
        )
        count = (
            "SELECT count(*), coalesce(sum(version), 0),"
            " (SELECT count(*) FROM peer_key WHERE key LIKE %(prefix)s)"
            " FROM peer_item WHERE record LIKE %(prefix)s"
        )
        yield Peer(target, dsn, count)


@asynccontextmanager
async def parse(environment: Environment, options: Options, place: Path) -> AsyncIterator[Peer]:
    """Run Parse Server. Raises BenchError."""
    dsn = environment.database("parse", migrated=False)
    known, processes, port = parse_dsn(dsn), options.workers or 1, free_ports(1)
    address = f"{known['user']}:{known['password']}@{known['host']}:{known['port']}"
    plan = {
        "database": f"postgres://{address}/{known['dbname']}?max={PARSE_CONNECTIONS}",
        "secret": secrets.token_urlsafe(48),
        "port": port,
        "processes": processes,
    }
    variables = {
        "NODE_ENV": "production",
        "PARSE_SERVER_LOGS_FOLDER": "null",
        PLAN: msgspec.json.encode(plan).decode(),
    }
    command = [str(place / "server.mjs")]
    async with Server(command, variables, processes, program=program("node")) as server:
        target = ParseTarget(
            port=port,
            secret="",
            tenants=options.tenant_names,
            watched={"server": server.pid, "postgres": environment.postgres_pid},
            generator="bench.peers.parse_generator",
            sessions=await _sessions(port, options.tenant_names, processes),
        )
        count = (
            'SELECT count(*), coalesce(sum(version), 0)::bigint, (SELECT count(*) FROM "SyncKey"'
            ' WHERE "objectId" LIKE %(prefix)s) FROM "Task" WHERE "objectId" LIKE %(prefix)s'
        )
        yield Peer(target, dsn, count)


async def _sessions(port: int, tenants: list[str], processes: int) -> dict[str, str]:
    """Sign a user up for each tenant, and have each process know the user's roles. Raises BenchError.

    Parse Server reads roles that it does not know on a second connection while a transaction holds its first:
    as many transactions at once as it has connections would wait for each other for ever.
    """
    headers = {"X-Parse-Application-Id": "bench", "X-Parse-Revocable-Session": "1"}
    sessions = {}
    # A connection for each request: the processes take connections in turn.
    connector = TCPConnector(force_close=True)
    async with ClientSession(f"http://127.0.0.1:{port}", headers=headers, connector=connector) as session:
        for tenant in tenants:
            user = {"username": tenant, "password": secrets.token_hex(8)}
            async with session.post("/parse/users", json=user) as response:
                made: dict[str, Any] = await response.json()
            if response.status != 201:
                raise BenchError(f"Parse Server did not sign a user up: {made}")
            sessions[tenant] = f"{made['objectId']}:{made['sessionToken']}"
            signed = {"X-Parse-Session-Token": made["sessionToken"]}
            for _ in range(processes):
                async with session.get("/parse/classes/Task", headers=signed) as response:
                    await response.read()
    return sessions


#: By name: how each is started, and the folder of ``bench/peers`` that it is installed from.
PEERS: Final[dict[str, tuple[Stage, str]]] = {
    "channels": (partial(channels, threads=1), "channels"),
    "channels-threads": (partial(channels, threads=THREADS), "channels"),
    "parse": (parse, "parse"),
}


def counted(peer: Peer, run: Run) -> Audit:
    """Compare what a run was acknowledged with the numbers in the tables. Raises StoreError."""
    with connected(peer.dsn) as connection, connection.cursor() as cursor:
        cursor.execute(peer.count, {"prefix": f"{run.plan.prefix}%"})
        ((records, versions, keys),) = cursor.fetchall()
    return judge_counts(run, records, int(versions), keys)


def judge_counts(run: Run, records: int, versions: int, keys: int) -> Audit:
    """Each new record is there, each write is a version and a key; only one without a good answer may be."""
    codes = run.codes
    stored = codes.count("synced")
    doubtful = sum(sent_us >= 0 for sent_us in run.outcome.sent_us) - stored
    created = sum(code == "synced" and not base for code, base in zip(codes, run.outcome.base, strict=True))
    faults = [
        f"{least} {what} were acknowledged, {found} are there"
        for what, least, found in (
            ("records", created, records),
            ("writes", stored, versions),
            ("keys", stored, keys),
        )
        if not least <= found <= least + doubtful
    ]
    return Audit(stored, records, len(run.tenants), len(faults), faults)


def tus_server(place: Path, files: str) -> Server:
    """Return ``@tus/server``, which does not wait for the disk, as installed. Raises BenchError."""
    return Server([str(place / "server.mjs"), files], {"NODE_ENV": "production"}, program=program("node"))
