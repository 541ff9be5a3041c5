"""The upload components of one process on a real database and directory; a test runs the clean-up itself."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from compose.command_commit import command_committer
from compose.deployment import open_deployment
from compose.server import SystemClock
from engine.cluster.jobs import Begun, Counts, JobRun
from engine.commit.committer import Committer
from engine.commit.validation import MessageValidator, Session
from engine.filetypes.types import FileTypes
from engine.model.domains import Domains
from engine.model.tenants import Tenant
from engine.model.uploads import Append, Upload
from engine.operate.retention import KeptFor, Retention
from engine.plan.work import PushAnswer
from engine.uploads.cleanup import OrphansRemoved, RowsCleaned, UploadCleanup
from engine.uploads.cleanup_job import CleanupJob
from engine.uploads.finish import UploadFinisher
from engine.uploads.locks import UploadLocks
from engine.uploads.metadata import Described
from engine.uploads.ports import Quota
from engine.uploads.service import Creation, UploadLimits, UploadService
from engine.uploads.write_limiter import WriteLimiter
from engine.wire.codec import JSON
from engine.wire.messages import Sync
from storage.blobs.directory import DirectoryBlobs
from storage.stores.commit.store import PostgresStore
from storage.stores.jobs.retention import PostgresRetention
from storage.stores.jobs.upload_cleanup import PostgresCleanup
from storage.stores.sealed.sealing import Sealing
from storage.stores.upload_states import STATES_BY_TEXT
from storage.stores.uploads import PostgresUploads
from tests.engine.cache.test_minutes import counted_minutes
from tests.engine.uploads.test_service import FakeBody, FakeBus
from tests.harness.admin import add_tenants
from tests.harness.services import Serving, rows

SETTINGS = open_deployment(None, {}).settings
DOMAINS = Domains(dict(SETTINGS.domains))
EXPIRE_S = 3600.0
GRACE_S = 100 * 3600.0
LAST_DATA_S = 50 * 3600.0
HOUR_US = 3_600_000_000


def session(tenant: int = 1) -> Session:
    """A device of a tenant."""
    return Session(tenant=Tenant(tenant, f"tenant{tenant}"), device_id="phone", session_id="")


def now_us(hours: float = 0) -> int:
    """Return the time so many hours from now."""
    return time.time_ns() // 1000 + int(hours * HOUR_US)


def text(size_bytes: int = 300) -> bytes:
    """Return random bytes that are sniffed as plain text."""
    return base64.b64encode(random.randbytes(size_bytes))[:size_bytes]


async def after_page(_: object) -> None:
    """Go on at once."""


def job_run(at_us: int) -> JobRun:
    """Return a run of a job that began at an instant."""
    return JobRun(Begun("job", at_us, 1, at_us), SystemClock())


class UploadStack:
    """The upload components of one process."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        self.directory = directory
        clock = SystemClock()
        self.database = Serving(dsn, 2)
        self._writes = Serving(dsn, 1)
        self.blobs = DirectoryBlobs(directory / "uploads", 2)
        self.store = PostgresUploads(self.database, Sealing())
        self.committer: Committer = command_committer(
            PostgresStore(self._writes, 24, Sealing()), SETTINGS, Sealing(), {}, set()
        )
        types = FileTypes(SETTINGS.uploads)
        self.locks = UploadLocks(self.store, self.blobs, FakeBus([]), clock, EXPIRE_S)
        finisher = UploadFinisher(self.store, self.blobs, types, self.committer, clock)
        limiter = WriteLimiter(lambda: 0, clock)
        self.minutes = counted_minutes()
        limits = UploadLimits(Quota(1 << 30, 100, 1000, 1000), {}, EXPIRE_S, lambda: None)
        self.service = UploadService(
            self.store, self.blobs, self.locks, finisher, types, clock, limiter, limits, self.minutes
        )
        self.cleanup = UploadCleanup(
            PostgresCleanup(self.database), self.blobs, self.committer, GRACE_S, self.minutes
        )
        self.cleanup_job = CleanupJob(self.cleanup)
        self._running = [asyncio.create_task(one.run()) for one in (self.service, self.committer)]

    async def end(self) -> None:
        """Stop the services and close everything."""
        for task in self._running:
            task.cancel()
        await asyncio.wait(self._running)
        await self.database.close()
        await self._writes.close()
        self.blobs.close()

    async def begun(self, size_bytes: int = 300, record: str = "a", tenant: int = 1) -> Upload:
        """Create an upload."""
        about = Described("a.txt", "text/plain", "task", record, None)
        return await self.service.create(session(tenant), Creation("single", size_bytes, about, ""))

    async def sent(self, upload: Upload, content: bytes, tenant: int = 1) -> Upload:
        """Send bytes from its offset on."""
        found = await self.service.find(session(tenant), upload.ref.upload_id)
        return await self.service.append(
            session(tenant), upload.ref.upload_id, Append(found.offset_bytes, len(content)), FakeBody(content)
        )

    async def stored(self, record: str = "a", tenant: int = 1) -> Upload:
        """Create an upload and send all its bytes."""
        return await self.sent(await self.begun(300, record, tenant), text(), tenant)

    async def push(self, op: str, base: int | None, tenant: int = 1, record: str = "a") -> None:
        """Change a record."""
        item: dict[str, object] = {"domain": "task", "id": record, "op": op, "base": base}
        if op != "delete":
            item["data"] = {"n": 1}
        frame = json.dumps({"type": "sync", "id": "1", "key": uuid.uuid4().hex, "items": [item]})
        sync = JSON.decode(frame.encode())
        assert isinstance(sync, Sync)
        work = MessageValidator(DOMAINS, 10).push(sync, session(tenant), now_us())
        outcome = await self.committer.commit(work)
        assert isinstance(outcome, PushAnswer)
        assert json.loads(outcome.results)[0]["status"] == "applied", outcome

    async def clean_rows(self, hours: float = 0) -> RowsCleaned:
        """Clean the rows, as if so many hours from now."""
        return await self.cleanup.expire_and_free(now_us(hours), after_page)

    async def retained(self, hours: float = 0) -> Counts:
        """Delete what is past its retention, as if so many hours from now."""
        run = job_run(now_us(hours))
        await Retention(PostgresRetention(self.database), KeptFor(LAST_DATA_S, 0, 0))(run)
        return run.counts

    async def remove_orphans(self, hours: float = 0) -> OrphansRemoved:
        """Remove orphans, as if so many hours from now."""
        return await self.cleanup.remove_orphans(now_us(hours), after_page)

    def state(self, upload: Upload) -> object:
        """Return the state of an upload's row, None if there is no row."""
        found = rows(
            self.dsn,
            f"SELECT state FROM upload_session WHERE tenant_id = {upload.ref.tenant_id}"
            f" AND upload_id = '{upload.ref.upload_id}'",
        )
        return STATES_BY_TEXT[str(found[0][0])] if found else None

    def reserved(self, tenant: int = 1) -> object:
        """Return the bytes that count against a tenant's quota."""
        return rows(self.dsn, f"SELECT reserved_bytes FROM tenant_storage WHERE tenant_id = {tenant}")[0][0]

    def stored_blobs(self) -> set[tuple[str, str]]:
        """List the directory: ``drafts`` or ``files``, and the upload's id."""
        base = self.directory / "uploads"
        return {
            (path.relative_to(base).parts[0], path.name.split(".")[0])
            for path in base.rglob("*")
            if path.is_file()
        }

    def aged(self, hours: float) -> None:
        """Make all files of the directory older."""
        for path in (self.directory / "uploads").rglob("*"):
            if path.is_file():
                then = time.time() - hours * 3600
                os.utime(path, (then, then))


@pytest.fixture
async def stack(dsn: str, tmp_path: Path) -> AsyncIterator[UploadStack]:
    """One process, with the tenants 1 and 2."""
    for name in ("tenant1", "tenant2"):
        add_tenants(dsn, name)
    stack = UploadStack(dsn, tmp_path)
    yield stack
    await stack.end()
