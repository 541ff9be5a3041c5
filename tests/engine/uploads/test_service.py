"""Requests on one upload in two processes: what was acknowledged stays, and the file is what was sent."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compose.deployment import open_deployment
from compose.server import SystemClock
from engine.cluster.bus import BusListener, BusState
from engine.commit.ports import WorkQueue
from engine.commit.queue import OnOutcome
from engine.commit.validation import Session
from engine.filetypes.types import FileTypes
from engine.model.rows import Record
from engine.model.tenants import Tenant
from engine.model.uploads import Append, Upload, UploadRef
from engine.plan.work import AttachAnswer, Work
from engine.uploads.body_writer import BodyCutError
from engine.uploads.finish import UploadFinisher
from engine.uploads.locks import UploadLocks
from engine.uploads.metadata import Described
from engine.uploads.ports import Quota
from engine.uploads.service import Checksum, Creation, UploadLimits, UploadService
from engine.uploads.write_limiter import WriteLimiter
from engine.wire.errors import SyncError
from storage.blobs.directory import DirectoryBlobs
from storage.stores.sealed.sealing import Sealing
from storage.stores.uploads import PostgresUploads
from tests.engine.cache.test_minutes import counted_minutes
from tests.harness.admin import add_tenants
from tests.harness.services import Serving, execute, rows

TYPES = FileTypes(open_deployment(None, {}).settings.uploads)
SESSION = Session(tenant=Tenant(1, "acme"), device_id="d1", session_id="")
STRANGER = Session(tenant=Tenant(1, "acme"), device_id="d2", session_id="")
EXPIRE_S = 3600.0


class NoRecords(WorkQueue):
    """Takes jobs in for a tenant without records: files wait."""

    def submit(self, work: Work, reply: OnOutcome, *_: object) -> None:
        """Say so."""
        del work
        reply(AttachAnswer("waiting", None))


class FakeBus:
    """A bus between processes that may be down."""

    def __init__(self, processes: list[Process]) -> None:
        self.state = BusState()
        self.up = True
        self._processes = processes

    def committed(self, changes: list[tuple[Record, str]]) -> None:
        """Nobody here follows feeds."""

    def device_connected(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Nobody here has connections."""

    def upload_requested(self, tenant_id: int, upload_id: str, lock_owner: str) -> None:
        """Tell all, the one who asks as well: it has nothing to give back."""
        for process in self._processes if self.up else ():
            process.locks.release_requested(UploadRef(tenant_id, upload_id), lock_owner)

    async def run(self, listener: BusListener) -> None:
        """Nothing has to run."""

    async def drain(self) -> None:
        """Nothing waits."""


class Process:
    """One process's part in uploads."""

    def __init__(self, dsn: str, directory: Path, wire: FakeBus) -> None:
        clock = SystemClock()
        self.database = Serving(dsn, 2)
        self.blobs = DirectoryBlobs(directory, 2)
        store = PostgresUploads(self.database, Sealing())
        self.locks = UploadLocks(store, self.blobs, wire, clock, EXPIRE_S)
        finisher = UploadFinisher(store, self.blobs, TYPES, NoRecords(), clock)
        self.full: str | None = None
        limits = UploadLimits(Quota(10_000_000, 1000, 1000, 1000), {}, EXPIRE_S, lambda: self.full)
        limiter = WriteLimiter(lambda: 0, clock)
        self.minutes = counted_minutes()
        self.service = UploadService(
            store, self.blobs, self.locks, finisher, TYPES, clock, limiter, limits, self.minutes
        )
        self._running = asyncio.create_task(self.service.run())

    async def end(self) -> None:
        """Let go of everything."""
        self._running.cancel()
        await asyncio.wait([self._running])
        await self.database.close()
        self.blobs.close()


class FakeBody:
    """A body whose blocks come when the test says so, by default all at once; ``ends`` says how it ends."""

    def __init__(self, content: bytes, ends: str = "whole", block_bytes: int = 7) -> None:
        self.was_cut = False
        self.stalled = asyncio.Event()
        self._blocks = [content[at : at + block_bytes] for at in range(0, len(content), block_bytes)]
        self._ends = ends
        self._cut = asyncio.Event()

    async def next(self, patience_s: float) -> bytes | None:
        """Give the next block, or do as ``ends`` says."""
        del patience_s
        if self.was_cut:
            raise BodyCutError
        if self._blocks:
            await asyncio.sleep(0)
            return self._blocks.pop(0)
        if self._ends == "whole":
            return b""
        if self._ends == "stalls":
            self.stalled.set()
            await self._cut.wait()
        raise BodyCutError

    def cut(self) -> None:
        """End it."""
        self.was_cut = True
        self._cut.set()


Site = tuple[list[Process], FakeBus]


@pytest.fixture
async def site(dsn: str, tmp_path: Path) -> AsyncIterator[Site]:
    add_tenants(dsn, "acme")
    processes: list[Process] = []
    wire = FakeBus(processes)
    processes += [Process(dsn, tmp_path, wire) for _ in range(2)]
    yield processes, wire
    for process in processes:
        await process.end()


def text(seed: int, size_bytes: int) -> bytes:
    return base64.b64encode(random.Random(seed).randbytes(size_bytes))[:size_bytes]


async def begun(process: Process, content: bytes, **described: str) -> Upload:
    fields = {"file_name": "a.txt", "content_type": "text/plain", "domain": "task", "record_id": "r1"}
    sha256 = described.pop("sha256", hashlib.sha256(content).hexdigest())
    about = Described(**(fields | described), sha256=sha256)
    return await process.service.create(SESSION, Creation("single", len(content), about, ""))


@contextmanager
def suppress_refusals() -> Iterator[None]:
    """Let pass what a client meets on a bad line: it asks for the offset, sooner or later."""
    try:
        yield
    except SyncError as error:
        if error.code not in {"locked", "unavailable", "checksum_mismatch", "offset_mismatch"}:
            raise


async def read(process: Process, upload: Upload) -> bytes:
    return b"".join([block async for block in process.blobs.read(upload.ref, 0, upload.offset_bytes)])


@pytest.mark.parametrize("seed", range(8))
async def test_append_random_failures_keep_every_acknowledged_byte(site: Site, dsn: str, seed: int) -> None:
    (first, second), wire = site
    chance = random.Random(seed)
    for number in range(6):
        content = text(seed * 100 + number, chance.randrange(50, 1500))
        upload = await begun(first, content)
        named, acknowledged, told = upload.ref.upload_id, 0, 0
        hanging: list[tuple[asyncio.Task[Upload], FakeBody]] = []
        state = "open"
        while state == "open":
            process = chance.choice((first, second))
            wire.up = chance.random() < 0.8
            move = chance.choice(("ask", "whole", "breaks", "stalls", "bad", "dies"))
            piece = content[told : told + chance.randrange(1, 400)]
            body = FakeBody(piece, {"breaks": "breaks", "stalls": "stalls"}.get(move, "whole"))
            checksum = Checksum("sha1", hashlib.sha1(piece, usedforsecurity=False).digest())
            if move == "ask":
                found = await process.service.find(SESSION, named)
                assert acknowledged <= found.offset_bytes <= len(content)
                acknowledged = told = found.offset_bytes
                state = found.state
            elif move == "dies" and not hanging:  # as a process that was killed when it had the upload
                execute(
                    dsn,
                    "UPDATE upload_session SET holder = 'dead', held_until = now() - interval '1 s'"
                    f" WHERE upload_id = '{named}' AND held_until IS NULL AND state = 'open'",
                )
            elif move == "stalls":
                task = asyncio.create_task(
                    process.service.append(SESSION, named, Append(told, len(piece) + 1), body)
                )
                await asyncio.wait(
                    [task, asyncio.create_task(body.stalled.wait())], return_when="FIRST_COMPLETED"
                )
                hanging.append((task, body))
            else:
                given = Checksum("sha1", b"x" * 20) if move == "bad" else chance.choice((None, checksum))
                with suppress_refusals():
                    found = await process.service.append(
                        SESSION, named, Append(told, len(piece)), body, given
                    )
                    assert found.offset_bytes == told + len(piece)
                    acknowledged = told = found.offset_bytes
                    state = found.state
        for task, body in hanging:
            body.cut()  # where it was taken over without being told
            with pytest.raises(SyncError):
                await task
        assert state == "stored"
        found = await second.service.find(SESSION, named)
        assert await read(second, found) == content


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("told", [True, False])
async def test_find_ends_the_running_request_and_keeps_its_bytes(
    site: Site, *, elsewhere: bool, told: bool
) -> None:
    (first, second), wire = site
    wire.up = told
    content = text(1, 500)
    upload = await begun(first, content)
    named = upload.ref.upload_id
    body = FakeBody(content[:123], "stalls")
    task = asyncio.create_task(first.service.append(SESSION, named, Append(0, 500), body))
    await body.stalled.wait()
    for process in (first, second):
        with pytest.raises(SyncError) as refused:
            await process.service.append(SESSION, named, Append(0, 500), FakeBody(content))
        assert refused.value.code == "locked"
    with pytest.raises(SyncError) as refused:
        await second.service.find(STRANGER, named)
    assert refused.value.code == "not_found"
    assert not task.done(), "a stranger's question ends nothing"
    asked = second if elsewhere else first
    found = await asked.service.find(SESSION, named)
    assert found.offset_bytes == (123 if told or not elsewhere else 0)
    body.cut()  # by now, where nobody told it
    with pytest.raises(SyncError) as refused:
        await task
    assert refused.value.code == "locked"
    rest = Append(found.offset_bytes, 500 - found.offset_bytes)
    done = await asked.service.append(SESSION, named, rest, FakeBody(content[found.offset_bytes :]))
    assert done.state == "stored"
    assert await read(first, done) == content


async def test_lock_stolen_old_owner_writes_what_nobody_reads(site: Site) -> None:
    (first, second), wire = site
    wire.up = False
    content = text(2, 900)
    upload = await begun(first, content)
    named = upload.ref.upload_id
    await first.service.append(SESSION, named, Append(0, 300), FakeBody(content[:300]))
    late = FakeBody(b"#" * 300, "stalls")
    task = asyncio.create_task(first.service.append(SESSION, named, Append(300, 600), late))
    await late.stalled.wait()
    found = await second.service.find(SESSION, named)
    assert found.offset_bytes == 300
    await second.service.append(SESSION, named, Append(300, 100), FakeBody(content[300:400]))
    late.cut()
    with pytest.raises(SyncError) as refused:
        await task
    assert refused.value.code == "locked"
    done = await second.service.append(SESSION, named, Append(400, 500), FakeBody(content[400:]))
    assert done.state == "stored"
    assert await read(first, done) == content


async def test_finish_wrong_content_refused(site: Site) -> None:
    (first, second), _ = site
    content = text(3, 100)
    for described, code in (
        ({"sha256": "0" * 64}, "checksum_mismatch"),
        ({"content_type": "image/png"}, "unsupported_type"),
    ):
        upload = await begun(first, content, **described)
        with pytest.raises(SyncError) as refused:
            await first.service.append(SESSION, upload.ref.upload_id, Append(0, 100), FakeBody(content))
        assert refused.value.code == code
        with pytest.raises(SyncError) as refused:
            await second.service.find(SESSION, upload.ref.upload_id)
        assert refused.value.code == "upload_gone"


async def test_create_on_a_full_database_refused_while_uploads_go_on(site: Site, dsn: str) -> None:
    (first, _), _ = site
    content = text(7, 100)
    upload = await begun(first, content)
    first.full = "the disk has no room"
    with pytest.raises(SyncError, match="the disk has no room") as refused:
        await begun(first, content)
    assert refused.value.code == "insufficient_storage"
    assert "retry_after_ms" in refused.value.details
    assert rows(dsn, "SELECT count(*) FROM upload_session") == [(1,)]
    done = await first.service.append(SESSION, upload.ref.upload_id, Append(0, 100), FakeBody(content))
    assert done.state == "stored"
    first.full = None
    assert (await begun(first, content)).offset_bytes == 0


async def test_find_finishes_an_upload_whose_last_request_died(site: Site, dsn: str) -> None:
    (first, second), _ = site
    content = text(4, 100)
    upload = await begun(first, content)
    appending = first.blobs.open_draft(upload.draft)
    await appending.flush([content])
    execute(
        dsn,
        "UPDATE upload_session SET offset_bytes = 100, holder = 'dead', held_until = now() - interval '1 s'",
    )
    found = await second.service.find(SESSION, upload.ref.upload_id)
    assert (found.state, found.offset_bytes) == ("stored", 100)
    assert await read(first, found) == content
    assert [one.minutes.of(found.ref.tenant_id).uploads_finished for one in (first, second)] == [0, 1]


async def test_find_expired_upload_is_gone(site: Site, dsn: str) -> None:
    (first, second), _ = site
    upload = await begun(first, text(5, 100))
    execute(dsn, "UPDATE upload_session SET expires_at = 'epoch'")
    for ask in (
        second.service.append(SESSION, upload.ref.upload_id, Append(0, 100), FakeBody(text(5, 100))),
        second.service.find(SESSION, upload.ref.upload_id),
    ):
        with pytest.raises(SyncError) as refused:
            await ask
        assert refused.value.code == "upload_gone"


async def test_drain_ends_requests_and_keeps_their_bytes(site: Site) -> None:
    (first, second), _ = site
    content = text(6, 400)
    upload = await begun(first, content)
    body = FakeBody(content[:99], "stalls")
    task = asyncio.create_task(first.service.append(SESSION, upload.ref.upload_id, Append(0, 400), body))
    await body.stalled.wait()
    await first.locks.drain()
    with pytest.raises(SyncError):
        await task
    assert (await second.service.find(SESSION, upload.ref.upload_id)).offset_bytes == 99
    assert first.minutes.of(upload.ref.tenant_id).bytes_in == 99


async def test_append_long_request_acknowledges_on_its_way(site: Site) -> None:
    (first, second), _ = site
    content = text(7, 3_000_000)
    upload = await begun(first, content)
    body = FakeBody(content[:2_500_000], "stalls", block_bytes=100_000)
    task = asyncio.create_task(
        first.service.append(SESSION, upload.ref.upload_id, Append(0, len(content)), body)
    )
    await body.stalled.wait()
    found = await PostgresUploads(second.database, Sealing()).find(upload.ref)
    assert found is not None
    assert found.locked, "the request goes on"
    assert 2_000_000 <= found.offset_bytes <= 2_500_000
    body.cut()
    with pytest.raises(SyncError):
        await task


async def test_lock_requests_of_a_device_bounded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, _), _ = site
    monkeypatch.setattr("engine.uploads.locks.MOST_OF_A_DEVICE", 1)
    content = text(8, 100)
    busy, other = [await begun(first, content) for _ in range(2)]
    body = FakeBody(content[:50], "stalls")
    task = asyncio.create_task(first.service.append(SESSION, busy.ref.upload_id, Append(0, 100), body))
    await body.stalled.wait()
    asked = (SESSION, other.ref.upload_id, Append(0, 100))
    with pytest.raises(SyncError) as refused:
        await first.service.append(*asked, FakeBody(content))
    assert refused.value.code == "rate_limited"
    with pytest.raises(SyncError) as refused:
        await first.service.append(STRANGER, *asked[1:], FakeBody(content))
    assert refused.value.code == "not_found", "another device is not counted with it"
    body.cut()
    with pytest.raises(SyncError):
        await task
    assert (await first.service.append(*asked, FakeBody(content))).state == "stored"


async def test_append_with_checksum_writes_before_the_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, second), _ = site
    monkeypatch.setattr("engine.uploads.body_writer.PROGRESS_S", 0.0)
    content = text(9, 100)
    upload = await begun(first, content)
    body = FakeBody(content[:60], "stalls")
    checksum = Checksum("sha1", hashlib.sha1(content, usedforsecurity=False).digest())
    task = asyncio.create_task(
        first.service.append(SESSION, upload.ref.upload_id, Append(0, 100), body, checksum)
    )
    await body.stalled.wait()
    (draft,) = [one async for some in first.blobs.list_stored(1 << 62) for one in some]
    assert draft.size_bytes > 0
    found = await PostgresUploads(second.database, Sealing()).find(upload.ref)
    assert found is not None
    assert found.offset_bytes == 0, "what is not known to be right is not acknowledged"
    body.cut()
    with pytest.raises(SyncError):
        await task
