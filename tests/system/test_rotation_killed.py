"""Keys are rotated under load, a domain is sealed, and each step is killed: nothing is lost or repeated."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import psycopg2
import pytest
from aiohttp import ClientSession

from bench.harness.clusters import migrate_for_roles, role_variables
from engine.cache.key_ring import TenantKeyRing
from engine.seal.master_keys import MasterKeys, master_key_id
from storage.embedded.servers import Services, embedded
from storage.postgres.pool import Database
from storage.stores.keys.wrapped import PostgresTenantKeys
from storage.stores.sealed.sealing import RECORD_DATA, Sealing
from tests.harness.numbered_edits import TENANTS, Editor, audit, progressed
from tests.harness.scratch import scratch
from tests.harness.server_process import ServerProcess
from tests.harness.services import execute, rows

pytestmark = pytest.mark.slow

_ROOT: Final = Path(__file__).parents[2]
_ACKS: Final = 50
#: A run takes minutes, in which these devices send more than phones may.
_SETTINGS: Final = {
    "TIDEMARK__DOMAINS__TASK__PII": '["number"]',
    "TIDEMARK__LIMITS__MESSAGES_PER_MINUTE": "1000000",
}
_PLAIN: Final = "SELECT FROM records WHERE left(data::text, 1) <> '\"'"
#: In a database that has something, no start of a server seals a domain by itself.
_STORED: Final = (
    "INSERT INTO voice_verification_log (tenant_id, verification_id, device_id, occurred_at, result)"
    " SELECT min(tenant_id), 'v1', 'phone', 'epoch', '{\"verified\":true}' FROM tenants"
)
_WAITING: Final = "SELECT FROM pg_locks WHERE NOT granted"


class _Source:
    def __init__(self, masters: MasterKeys) -> None:
        self._masters = masters

    async def keys(self, _: str | None = None) -> MasterKeys:
        return self._masters


class _Unhurried(Editor):
    """Edits ten times a second: what is stored stays small enough for a pass of seconds."""

    async def _fill(self, device: Any, waiting: set[int]) -> None:
        await asyncio.sleep(0.1)
        await super()._fill(device, waiting)


class Site:
    """A server under load with a file of master keys, and commands in processes of their own."""

    def __init__(self, directory: Path, services: Services) -> None:
        self.dsn = services.owner
        self.master_keys = [bytes([1]) * 32]
        self.file = directory / "master.key"
        self._write()
        self._variables = {"TIDEMARK__SEALING__MASTER_KEY_FILE": str(self.file), **_SETTINGS}
        self.server = ServerProcess(services.owner, services.redis_url, directory, **self._variables)
        self._directory = directory

    def _write(self) -> None:
        new = self.file.with_name("new")
        new.write_bytes(b"\n".join(map(b64encode, self.master_keys)))
        new.chmod(0o600)
        new.rename(self.file)

    def add_master_key(self) -> None:
        """Put a new master key before the others."""
        self.master_keys.insert(0, bytes([len(self.master_keys) + 1]) * 32)
        self._write()

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a command."""
        environment = {
            **os.environ,
            **self._variables,
            **role_variables(self.dsn),
            "TIDEMARK__DATA__DIR": str(self._directory),
        }
        return await asyncio.create_subprocess_exec(
            *(sys.executable, str(_ROOT / "run.py"), *arguments),
            env=environment,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> None:
        """Run a command, which has to succeed."""
        process = await self.start(*arguments)
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()

    async def kill_where_it_waits(self, lock: str, *arguments: str) -> None:
        """Run a command, and kill it as it waits for a row within its transaction."""
        connection = psycopg2.connect(self.dsn)
        try:
            connection.cursor().execute(lock)
            process = await self.start(*arguments)
            await self.until(lambda: rows(self.dsn, _WAITING) != [], process)
            process.kill()
            await process.communicate()
        finally:
            connection.close()

    async def until(
        self, happened: Callable[[], bool], process: asyncio.subprocess.Process | None = None
    ) -> None:
        """Wait for something in the database, while the process goes on."""
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(happened):
                assert process is None or process.returncode is None
                await asyncio.sleep(0.01)

    async def reseal(self) -> None:
        """Run the job; a run that was killed is over."""
        execute(self.dsn, "UPDATE job_runs SET held_until = now() - interval '1 s' WHERE outcome IS NULL")
        await self.run("job", "reseal")

    async def audit(self, editors: list[Editor]) -> None:
        """Compare what devices were told with the rows, opened by the newest master key alone."""
        database = Database(self.dsn, 1)
        source = _Source(MasterKeys(self.master_keys[:1]))
        ring = TenantKeyRing(PostgresTenantKeys(database), source, os.urandom)
        sealing = Sealing(ring, ["task"])
        sealing.follow(["task"])
        await ring.load([int(str(number)) for (number,) in rows(self.dsn, "SELECT tenant_id FROM tenants")])

        def opened(tenant_id: int, record_id: str, version: int, text: str) -> str:
            plain = sealing.open(RECORD_DATA, tenant_id, "task", record_id, version, text)
            assert plain is not None
            return plain.decode()

        try:
            audit(self.dsn, editors, opened)
        finally:
            await database.close()
        assert rows(self.dsn, _PLAIN) == []
        masters = {name for (name,) in rows(self.dsn, "SELECT DISTINCT master_key_id FROM tenant_keys")}
        assert masters == {master_key_id(self.master_keys[0])}


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    with scratch("tidemark-rotation-") as directory, embedded(directory / "data") as services:
        migrate_for_roles(services.owner)
        names = ", ".join(f"('{name}')" for name in TENANTS)
        execute(
            services.owner,
            f"INSERT INTO tenants (name) VALUES {names}",
            "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
            _STORED,
        )
        yield Site(directory / "data", services)


More = Callable[[], Awaitable[None]]


@asynccontextmanager
async def _loaded(site: Site) -> AsyncIterator[tuple[list[Editor], More]]:
    """Have devices edit during the block; what they were told holds in the end."""
    progress = asyncio.Condition()
    editors: list[Editor] = [_Unhurried(f"device-{tenant}", tenant, progress) for tenant in TENANTS]
    await site.server.start()
    try:
        async with ClientSession() as session, asyncio.TaskGroup() as group:
            for editor in editors:
                group.create_task(editor.run(site.server, session))
            try:
                await progressed(editors, progress, _ACKS)
                yield editors, lambda: progressed(editors, progress, _ACKS)
                await progressed(editors, progress, _ACKS)
            finally:
                for editor in editors:
                    editor.stopping = True
        said = [line for line in site.server.lines if line["level"] != "info"]
        assert [(editor.wrong[:1], editor.refused) for editor in editors if editor.wrong] == [], said
        await site.reseal()
        await site.audit(editors)
        assert await site.server.terminate() == 0
    finally:
        await site.server.stop()


async def test_rotation_under_load_refuses_nothing_and_loses_nothing(site: Site) -> None:
    async with _loaded(site) as (editors, more):
        await site.run("keys", "seal-domain", "task")
        await site.reseal()
        for _ in range(2):
            await more()
            site.add_master_key()
            await site.run("keys", "rotate-master")
            for tenant in TENANTS:
                await site.run("keys", "rotate-tenant", "--tenant", tenant)
            await site.reseal()
    assert {code for editor in editors for code in editor.refused} == set()
    assert rows(site.dsn, "SELECT max(key_number) FROM tenant_keys") == [(3,)]
    assert site.server.events.count("message_failed") == 0


async def test_server_that_stands_still_while_a_domain_is_sealed_writes_nothing_plain(site: Site) -> None:
    async with _loaded(site) as (_, more):
        os.kill(site.server.pid, signal.SIGSTOP)
        with closing(psycopg2.connect(site.dsn)) as connection:
            try:
                await site.run("keys", "seal-domain", "task")
                await site.reseal()  # its pass is over before the server goes on with what devices send
                # Nobody can read the generation: the server does not follow.
                connection.cursor().execute("LOCK TABLE cluster_state IN ACCESS EXCLUSIVE MODE")
            finally:
                os.kill(site.server.pid, signal.SIGCONT)
            await more()
            assert rows(site.dsn, _PLAIN) == []


async def test_rotation_killed_five_times_loses_and_repeats_nothing(site: Site) -> None:
    async with _loaded(site) as (_, more):
        await site.run("keys", "seal-domain", "task")
        # 1. The job, in the middle of a pass.
        await site.kill_where_it_waits(
            "SELECT FROM reseal_passes FOR UPDATE; LOCK TABLE reseal_passes IN SHARE MODE", "job", "reseal"
        )
        await more()
        # 2. The server, while the job goes on.
        job = asyncio.create_task(site.reseal())
        await site.server.kill()
        await site.server.start()
        await job
        # 3. The rotation of the master key, within its transaction.
        site.add_master_key()
        await site.until(lambda: rows(site.dsn, _HAS.format(master_key_id(site.master_keys[0]))) != [])
        await site.kill_where_it_waits("SELECT FROM tenant_keys FOR UPDATE", "keys", "rotate-master")
        await more()
        await site.run("keys", "rotate-master")
        # 4. The rotation of a tenant's key.
        rotate = ("keys", "rotate-tenant", "--tenant", TENANTS[0])
        await site.kill_where_it_waits("SELECT FROM cluster_state FOR UPDATE", *rotate)
        await site.run(*rotate)
        # 5. The server, right after the new key.
        await site.server.kill()
        await site.server.start()
        await more()
    assert rows(site.dsn, "SELECT max(key_number) FROM tenant_keys") == [(2,)]


_HAS: Final = "SELECT FROM server_processes WHERE '{}' = ANY(master_keys)"
