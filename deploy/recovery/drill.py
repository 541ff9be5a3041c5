"""The drill: a tenant is erased by mistake, the database's disk is lost, and all is restored and timed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from bench.harness.clusters import free_port, migrate_for_roles
from bench.harness.server import Server
from deploy.recovery.load import DOMAIN, ERASED, TENANTS, Load, devices
from deploy.recovery.postgres import ArchivedCluster, Backups, Tell
from deploy.recovery.report import Drill, Loss, Step
from deploy.recovery.site import Site
from storage.embedded.account import account_for
from storage.embedded.servers import embedded
from storage.postgres.blocking import connected

_FILE_BYTES: Final = 200_000
#: Edits between the steps: seconds of work of the devices.
_EDITS: Final = 150
_EDITED: Final = f"SELECT id FROM records WHERE domain = '{DOMAIN}'"


class Options(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    archive_timeout_s: float = 10.0
    wait_for_receiver: bool = False


class _Disaster(msgspec.Struct, frozen=True):
    """What is known when everything is gone. ``queued`` are the edits that devices hold."""

    erased_at: str
    erased_s: float
    lost_s: float
    acknowledged: dict[str, float]
    queued: set[str]

    def of(self, tenant: str) -> set[str]:
        """Return the acknowledged edits of a tenant."""
        return {one for one in self.acknowledged if one.startswith(f"{tenant}-")}


class _Files(msgspec.Struct):
    """What was uploaded: a file that is in the copy, one after the copy, and an unfinished one."""

    copied: str
    content: bytes
    after_copy: str = ""
    unfinished: str = ""


class Recovery:
    """One run of the drill in a directory that is its own.

    Args:
        home: The directory.
        options: The options.
        tell: Is told each command.
    """

    def __init__(self, home: Path, options: Options, tell: Tell) -> None:
        self._home = home
        self._options = options
        self._tell = tell
        account = account_for(home)
        self._clusters = account.directory(home / "postgres")
        self._backups = Backups(home / "backups", account)
        self._made: list[ArchivedCluster] = []
        self._port = free_port()
        self._redis_url = ""
        receiver = "waited-for" if options.wait_for_receiver else "asynchronous"
        self.drill = Drill(archive_timeout_s=options.archive_timeout_s, receiver=receiver)

    async def run(self) -> Drill:
        """Run all of it."""
        with embedded(self._home / "redis", postgres=False) as services:
            self._redis_url = services.redis_url
            return await self._run()

    async def _run(self) -> Drill:
        try:
            primary = self._cluster("primary")
            await asyncio.to_thread(primary.create_archived, self._options.archive_timeout_s)
            site = self._site("site", primary)
            site.make_keys()
            sites = [site]
            async with devices(self._home, self._port, lambda: sites[-1].secret) as load:
                disaster, files = await self._disaster(primary, site, load)
                await self._measure_losses(disaster)
                await self._recover(disaster, files, load, sites)
        finally:
            for one in self._made:
                one.stop()
        return self.drill

    def _cluster(self, name: str) -> ArchivedCluster:
        """Make a cluster, which is stopped in the end."""
        self._made.append(ArchivedCluster(name, self._clusters, self._backups, self._tell))
        return self._made[-1]

    def _site(self, name: str, cluster: ArchivedCluster) -> Site:
        return Site(self._home / name, cluster.dsn, self._redis_url, self._port, self._tell)

    # -- until the disaster ------------------------------------------------------------------

    async def _disaster(self, primary: ArchivedCluster, site: Site, load: Load) -> tuple[_Disaster, _Files]:
        await asyncio.to_thread(migrate_for_roles, primary.dsn)
        for tenant in TENANTS:
            await self._command(site, "tenant", "add", tenant)
        await asyncio.to_thread(primary.receive, wait=self._options.wait_for_receiver)
        async with site.server() as server:
            await server.ready()
            files = await self._work_and_back_up(primary, site, load)
            erased_at, erased_s = await self._erase(primary, site)
            await load.acknowledge_more(_EDITS)  # until somebody notices
            await asyncio.to_thread(primary.lose)
            lost_s, acknowledged = time.time(), dict(load.acknowledged)
            await asyncio.sleep(1)  # the devices go on
            await load.stop_editing()
            queued = {one for made in load.made.values() for one in made} - set(acknowledged)
            await server.kill()
        return _Disaster(erased_at, erased_s, lost_s, acknowledged, queued), files

    async def _work_and_back_up(self, primary: ArchivedCluster, site: Site, load: Load) -> _Files:
        await load.begin()
        await load.speak()
        await load.acknowledge_more(_EDITS)
        began_s = time.monotonic()
        await asyncio.to_thread(primary.back_up)
        self.drill.base_backup_s = time.monotonic() - began_s
        self.drill.base_backup_bytes = _size_bytes(self._backups.base)
        await asyncio.to_thread(site.copy_keys, self._backups.keys)
        content = random.randbytes(_FILE_BYTES // 2).hex().encode()
        record = load.made["north"][0]
        files = _Files(await load.upload("north", record, content), content)
        await load.acknowledge_more(_EDITS)
        await asyncio.to_thread(site.copy_files, self._backups.files)
        files.after_copy = await load.upload("north", record, content[::-1])
        files.unfinished = await load.upload("north", record, content[1:], whole=False)
        await load.acknowledge_more(_EDITS)
        return files

    async def _erase(self, primary: ArchivedCluster, site: Site) -> tuple[str, float]:
        """Erase a tenant. Returns the time before, as PostgreSQL has it and as this machine has it."""
        with connected(primary.dsn) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT now()::text")
            ((erased_at,),) = cursor.fetchall()
        erased_s = time.time()
        await self._command(site, "tenant", "remove", ERASED, "--erase", "--yes")
        return str(erased_at), erased_s

    async def _command(self, site: Site, *words: str) -> None:
        status, _ = await asyncio.to_thread(site.run, *words)
        if status:
            self.drill.faults.append(f"run.py {' '.join(words)} ended with {status}")

    # -- what each way of keeping the WAL loses ---------------------------------------------------

    async def _measure_losses(self, disaster: _Disaster) -> None:
        self.drill.archive_bytes = _size_bytes(self._backups.archive)
        for kept, received in (("the archive", False), ("the archive and what was received", True)):
            cluster = self._cluster(f"end-{received}")
            began_s = time.monotonic()
            await asyncio.to_thread(cluster.restore_base, received=received, until=None)
            await asyncio.to_thread(cluster.start)
            took_s = time.monotonic() - began_s
            self.drill.disk_lost.append(_loss(kept, cluster, disaster, took_s))
            await asyncio.to_thread(cluster.stop)

    # -- the recovery --------------------------------------------------------------------------

    async def _recover(self, disaster: _Disaster, files: _Files, load: Load, sites: list[Site]) -> None:
        drill, cluster = self.drill, self._cluster("restored")
        began_s = time.monotonic()
        with self._step("base backup copied back"):
            await asyncio.to_thread(cluster.restore_base, received=True, until=disaster.erased_at)
        with self._step("PostgreSQL replays the WAL, and stops before the mistake"):
            await asyncio.to_thread(cluster.start)
        database_s = time.monotonic() - began_s
        drill.point_in_time = _loss("the archive and what was received", cluster, disaster, database_s)
        site = self._site("restored-site", cluster)
        with self._step("keys and files copied back"):
            site.restore_keys(self._backups.keys)
            await asyncio.to_thread(site.restore_files, self._backups.files)
        sites.append(site)
        with self._step("run.py epoch renew"):
            await self._command(site, "epoch", "renew")
        with self._step("run.py doctor"):
            _, checks = await asyncio.to_thread(site.asked, "doctor")
            drill.faults += [f"doctor: {one['found']}" for one in checks if one["level"] == "fault"]
        with self._step("run.py verify"):
            await self._command(site, "verify")
        with self._step("run.py keys verify"):
            await self._command(site, "keys", "verify")
        with self._step("run.py tenant files"):
            await self._check_files(site, files)
        server = site.server()
        try:
            with self._step("run.py serve, until /readyz is 200"):
                await server.start()
                await server.ready()
            drill.ready_s = time.monotonic() - began_s
            with self._step("devices send what they hold, edit on, and pull afresh"):
                if not await load.come_back(drill.point_in_time.lost + _EDITS):
                    drill.faults.append("the devices do not agree with the server")
            drill.agree_s = time.monotonic() - began_s
            await self._judge(disaster, files, load, cluster, server)
        finally:
            await server.stop()

    async def _check_files(self, site: Site, files: _Files) -> None:
        _, found = await asyncio.to_thread(site.asked, "tenant", "files")
        self.drill.files_missing = found["damaged_files"]
        self.drill.files_found = found["files"] - found["damaged_files"]
        if [one["file_id"] for one in found["damaged"]] != [files.after_copy]:
            self.drill.faults.append(
                f"tenant files named {found['damaged']}, and not the file after the copy"
            )

    async def _judge(
        self, disaster: _Disaster, files: _Files, load: Load, cluster: ArchivedCluster, server: Server
    ) -> None:
        drill, there = self.drill, _edited(cluster)
        before = {one for one, at_s in disaster.acknowledged.items() if at_s < disaster.erased_s}
        erased = before & disaster.of(ERASED)
        drill.erased_acknowledged, drill.erased_back = len(erased), len(erased & there)
        drill.queued, drill.queued_applied = len(disaster.queued), len(disaster.queued & there)
        if left := disaster.queued - there:
            drill.faults.append(f"{len(left)} edits that devices held were not applied")
        if early := (before & disaster.of("north")) - there:
            drill.faults.append(f"{len(early)} edits from before the target time are lost")
        if await load.download("north", files.copied) != (200, files.content):
            drill.faults.append("the file of the copy is not what was uploaded")
        status, _ = await load.download("north", files.after_copy)
        if status != 404:
            drill.faults.append(f"a file that is missing was answered with {status}")
        status = await load.resume("north", files.unfinished, files.content[1:][_FILE_BYTES // 2 :])
        if status != 503:
            drill.faults.append(f"an upload whose first half is missing was answered with {status}")
        if unexpected := set(server.logged) - {"file_missing", "bytes_not_kept", "row_security_bypassed"}:
            drill.faults.append(f"the server warned of {sorted(unexpected)}")

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began_s = time.monotonic()
        yield
        self.drill.steps.append(Step(name, time.monotonic() - began_s))


def _edited(cluster: ArchivedCluster) -> set[str]:
    with connected(cluster.dsn) as connection, connection.cursor() as cursor:
        cursor.execute(_EDITED)
        return {str(name) for (name,) in cursor.fetchall()}


def _loss(kept: str, cluster: ArchivedCluster, disaster: _Disaster, restore_s: float) -> Loss:
    """Compare the tenant that was not erased."""
    acknowledged = disaster.of("north")
    lost = acknowledged - _edited(cluster)
    first_s = min((disaster.acknowledged[one] for one in lost), default=disaster.lost_s)
    return Loss(kept, len(acknowledged), len(lost), disaster.lost_s - first_s, restore_s)


def _size_bytes(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
