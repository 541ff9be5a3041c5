"""Behind a PgBouncer that hands PostgreSQL's connections from one transaction to another's."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
from aiohttp import ClientSession
from psycopg2.extensions import parse_dsn

from bench.harness.clusters import USER, free_port
from storage.embedded.account import account_for
from storage.embedded.process import wait_until
from storage.embedded.servers import Services
from storage.postgres.cell.dsn import with_schema
from storage.postgres.checkup.deployment import pooler_finding
from storage.stores.plans.explained import plan_findings
from tests.harness.in_process_server import new_tenants
from tests.harness.numbered_edits import TENANTS, audit, editors_of, progressed
from tests.harness.server_process import ServerProcess
from tests.harness.services import CELLS, execute, in_cell, rows

_SHIPPED = Path(__file__).parents[2] / "deploy" / "pgbouncer" / "pgbouncer.ini"
_PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
_PATIENCE_S = 30.0
POOL = 3
DEVICES = 12
ACKS = 150

pytestmark = pytest.mark.skipif(
    _PROGRAM is None, reason="there is no pgbouncer here: install it (apt-get install pgbouncer)"
)


@pytest.fixture
def bouncer(dsn: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The shipped configuration before the test's database, with too few connections for each to keep one.

    A test may have another ``pool_mode``.
    """
    home = Path(tempfile.mkdtemp(prefix="tidemark-pgbouncer-"))
    home.chmod(0o711)
    account = account_for(home)
    own = account.directory(home / "own")
    port = free_port()
    to = parse_dsn(dsn)
    users = (f'"{USER}{role}" "{to["password"]}"\n' for role in ("", "_serving", "_jobs"))
    (own / "users").write_text("".join(users))
    chosen = ConfigParser(interpolation=None)
    chosen.read_string(_SHIPPED.read_text())
    chosen["databases"]["tidemark"] = f"host={to['host']} port={to['port']} dbname={to['dbname']}"
    replaced = {
        "listen_port": str(port),
        "auth_file": str(own / "users"),
        "logfile": str(own / "log"),
        "pidfile": str(own / "pid"),
        "default_pool_size": str(POOL),
        "server_round_robin": "1",
        "pool_mode": getattr(request, "param", "transaction"),
    }
    chosen.read_dict({"pgbouncer": replaced})
    with (own / "pgbouncer.ini").open("w") as file:
        chosen.write(file)
    assert _PROGRAM is not None
    process = subprocess.Popen(
        [_PROGRAM, "--quiet", own / "pgbouncer.ini"], stderr=subprocess.DEVNULL, **account.spawning
    )
    try:

        def listens() -> bool:
            assert process.poll() is None, (own / "log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        assert wait_until(listens, _PATIENCE_S)
        yield f"postgresql://tidemark:{to['password']}@127.0.0.1:{port}/tidemark"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home)


@pytest.fixture
async def processes(bouncer: str, services: Services, tmp_path: Path) -> AsyncIterator[list[ServerProcess]]:
    """Two server processes behind the pooler."""
    both = [ServerProcess(bouncer, services.redis_url, tmp_path) for _ in range(2)]
    try:
        await asyncio.gather(*(process.start() for process in both))
        yield both
    finally:
        for process in both:
            await process.stop()


@pytest.mark.parametrize(
    ("bouncer", "level", "said"),
    [
        ("transaction", "ok", "pool_mode = transaction"),
        ("session", "ok", "pool_mode = session"),
        ("statement", "fault", "pool_mode = statement"),
    ],
    indirect=["bouncer"],
)
def test_doctor_pooler_is_found_with_its_mode(bouncer: str, dsn: str, level: str, said: str) -> None:
    (found,) = pooler_finding([dsn, bouncer])
    assert (found.level, said in found.found) == (level, True), found
    (direct,) = pooler_finding([dsn])
    assert direct.found == "no pooler is between"


def test_verify_through_a_pooler_leaves_nothing_prepared(bouncer: str) -> None:
    for _ in range(2):
        assert [one.level for one in plan_findings(bouncer, 24)] == ["ok"]
    assert rows(bouncer, "SELECT name FROM pg_prepared_statements") == []


#: A pooler has a pool for each role.
_BACKENDS = (
    "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend' AND usename = 'tidemark_serving'"
)


async def test_pgbouncer_shared_connections_killed_under_load_lose_nothing(
    processes: list[ServerProcess], dsn: str
) -> None:
    execute(dsn, new_tenants(*TENANTS))
    progress = asyncio.Condition()
    editors = editors_of(DEVICES, progress)
    seen: set[int] = set()
    async with ClientSession() as session, asyncio.TaskGroup() as group:
        for number, editor in enumerate(editors):
            group.create_task(editor.run(processes[number % 2], session))
        for _ in range(3):
            await progressed(editors, progress, ACKS)
            killed = await asyncio.to_thread(rows, dsn, f"SELECT pid, pg_terminate_backend(pid) {_BACKENDS}")
            assert 0 < len(killed) <= POOL
            seen |= {int(str(pid)) for pid, _ in killed}
        await progressed(editors, progress, ACKS)
        for editor in editors:
            editor.stopping = True
    assert len(seen) > POOL
    assert [editor.wrong for editor in editors if editor.wrong] == []
    audit(dsn, editors)
    for process in processes:
        assert await process.terminate() == 0
        assert "message_failed" not in process.events
    # A process that meets only connections on which its statements happen to be prepared need not notice.
    found = [process.events.count("pooler_found") for process in processes]
    assert max(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("dsn", ["cells_template"], indirect=True)
async def test_pgbouncer_cells_on_the_same_connections_lose_nothing_and_stay_apart(
    bouncer: str, dsn: str, services: Services, tmp_path: Path
) -> None:
    """Devices and tenants of both cells have the same names; a server of each is killed meanwhile."""
    databases = [in_cell(dsn, schema) for schema in CELLS]
    servers = [ServerProcess(with_schema(bouncer, schema), services.redis_url, tmp_path) for schema in CELLS]
    progress = asyncio.Condition()
    editors = [editors_of(DEVICES // 2, progress) for _ in CELLS]
    try:
        for database in databases:
            execute(database, new_tenants(*TENANTS))
        await asyncio.gather(*(server.start() for server in servers))
        async with ClientSession() as session, asyncio.TaskGroup() as group:
            for server, own in zip(servers, editors, strict=True):
                for editor in own:
                    group.create_task(editor.run(server, session))
            for server in servers:
                await asyncio.gather(*(progressed(own, progress, ACKS) for own in editors))
                await server.kill()
                await server.start()
            await asyncio.gather(*(progressed(own, progress, ACKS) for own in editors))
            for editor in (*editors[0], *editors[1]):
                editor.stopping = True
        for database, own in zip(databases, editors, strict=True):
            assert [editor.wrong for editor in own if editor.wrong] == []
            audit(database, own)
    finally:
        for server in servers:
            await server.stop()
