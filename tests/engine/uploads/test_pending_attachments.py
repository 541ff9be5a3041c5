"""Files that were stored before their records: attached once these are there, whoever writes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from engine.commit.overload import overloaded
from engine.commit.ports import WorkQueue
from engine.commit.queue import OnOutcome
from engine.model.rows import Record
from engine.model.uploads import Upload
from engine.plan.work import Attach, AttachAnswer, Work
from engine.runtime.ports import StoreUnavailableError
from engine.uploads import pending_attachments as room
from engine.uploads.blobs import PendingFile
from engine.uploads.pending_attachments import PendingAttachments
from storage.postgres.pool import Database
from storage.postgres.transactions import READ_PREPARED
from storage.stores.sealed.sealing import Sealing
from storage.stores.upload_reads import _PENDING, _TENANTS, PostgresFiles, PostgresPending
from tests.harness.services import Serving, execute, without_cells
from tests.harness.uploads.stored_files import keep, upload

NOW_US = 1_767_323_045_000_000


class Clock:
    """A clock that stands."""

    def now_us(self) -> int:
        """Say the time."""
        return NOW_US

    def monotonic_s(self) -> float:
        """Say the time."""
        return 0.0


class Queue(WorkQueue):
    """Takes jobs in, and answers when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[Attach] = []
        self.replies: list[OnOutcome] = []
        self.full = False

    def submit(self, work: Work, reply: OnOutcome, *_: object) -> None:
        """Take a job in."""
        if self.full:
            raise overloaded(100)
        assert isinstance(work, Attach)
        self.jobs.append(work)
        self.replies.append(reply)

    def settle(self) -> list[str]:
        """Answer all, and name the uploads that were to be attached."""
        for reply in self.replies:
            reply(AttachAnswer("waiting", None))
        named = [work.upload_id for work in self.jobs]
        self.jobs, self.replies = [], []
        return named


class FakeStore:
    """What waits (``engine.uploads.blobs.PendingStore``)."""

    def __init__(self) -> None:
        self.files: list[PendingFile] = []
        self.away = False

    def put(self, one: Upload, *, due: bool = False) -> str:
        """Have a file wait."""
        self.files.append(PendingFile(one, due))
        return one.ref.upload_id

    async def tenants(self, after: int, limit: int) -> list[int]:
        """List tenants."""
        if self.away:
            raise StoreUnavailableError("away")
        return sorted({tenant for one in self.files if (tenant := one.upload.ref.tenant_id) > after})[:limit]

    async def pending(self, after: Mapping[int, Upload | None], limit: int) -> list[PendingFile]:
        """List what waits."""
        found = []
        for tenant, last in after.items():
            files = [one for one in self.files if one.upload.ref.tenant_id == tenant]
            first = 0 if last is None else [one.upload for one in files].index(last) + 1
            found += files[first : first + limit]
        return found


class PendingFiles:
    """The files that wait, with all that they are told and asked."""

    def __init__(self) -> None:
        self.store, self.queue = FakeStore(), Queue()
        self.pending = PendingAttachments(self.store, Clock(), self.queue)


@pytest.fixture
def pending_files() -> PendingFiles:
    return PendingFiles()


def _written(
    record_id: str = "a", tenant_id: int = 1, data: bytes | None = b"{}"
) -> list[tuple[Record, str]]:
    return [(Record(tenant_id, "task", record_id, 1, 1, 0, "phone", 1, data), "s")]


async def test_pending_due_file_submitted_until_attached(pending_files: PendingFiles) -> None:
    pending_files.store.put(upload(1))
    due = pending_files.store.put(upload(2), due=True)
    await pending_files.pending.look()
    await pending_files.pending.look()
    (job,) = pending_files.queue.jobs
    assert job == Attach(1, "phone", "task", "a", due, job.entry, NOW_US)
    assert job.entry is not None
    assert msgspec.json.decode(job.entry)["file_id"] == due
    assert pending_files.queue.settle() == [due]
    await pending_files.pending.look()
    assert pending_files.queue.settle() == [due]


async def test_pending_record_committed_here_attaches_at_once(pending_files: PendingFiles) -> None:
    one, other = pending_files.store.put(upload(1)), pending_files.store.put(upload(2))
    pending_files.store.put(upload(3, record_id="b"))
    await pending_files.pending.look()
    for changes in (_written("c"), _written(tenant_id=2), _written(data=None)):
        pending_files.pending.committed(changes)
    assert pending_files.queue.jobs == []
    pending_files.pending.committed(_written() * 2)
    assert pending_files.queue.settle() == [one, other]


async def test_pending_full_queue_retried_at_the_next_look(pending_files: PendingFiles) -> None:
    due = pending_files.store.put(upload(1), due=True)
    pending_files.queue.full = True
    await pending_files.pending.look()
    pending_files.queue.full = False
    await pending_files.pending.look()
    assert pending_files.queue.settle() == [due]


async def test_pending_many_files_are_paged_and_all_known(
    pending_files: PendingFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "FILES_PER_READ", 2)
    named = [pending_files.store.put(upload(number, record_id=f"r{number}")) for number in range(5)]
    for _ in range(3):
        await pending_files.pending.look()
    for number in range(5):
        pending_files.pending.committed(_written(f"r{number}"))
    assert pending_files.queue.settle() == named


async def test_pending_many_files_of_one_tenant_do_not_delay_another(
    pending_files: PendingFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "FILES_PER_READ", 6)
    monkeypatch.setattr(room, "_KNOWN", 10)
    for number in range(100):
        pending_files.store.put(upload(number, record_id=f"r{number}"))
    due = pending_files.store.put(upload(1, tenant=2), due=True)
    other = pending_files.store.put(upload(2, tenant=2, record_id="b"))
    for _ in range(20):
        await pending_files.pending.look()
        assert pending_files.queue.settle() == [due]
    pending_files.pending.committed(_written("b", tenant_id=2))
    assert pending_files.queue.settle() == [other]


async def test_pending_all_tenants_are_read(
    pending_files: PendingFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "TENANTS_PER_READ", 2)
    due = [pending_files.store.put(upload(number, tenant=number), due=True) for number in range(1, 6)]
    seen = []
    for _ in range(3):
        await pending_files.pending.look()
        seen += pending_files.queue.settle()
    assert seen == due
    await pending_files.pending.look()
    assert pending_files.queue.settle() == due[:2]


async def test_pending_known_files_bounded_and_forgotten(
    pending_files: PendingFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_KNOWN", 1)
    one = pending_files.store.put(upload(1))
    pending_files.store.put(upload(2))
    await pending_files.pending.look()
    pending_files.pending.committed(_written())
    assert pending_files.queue.settle() == [one]
    await pending_files.pending.look()
    pending_files.store.files.clear()
    await pending_files.pending.look()
    pending_files.pending.committed(_written())
    assert pending_files.queue.settle() == []


# -- in PostgreSQL ----------------------------------------------------------------------------


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    execute(dsn, "INSERT INTO tenants (name) VALUES ('one'), ('two')")
    database = Serving(dsn, 2)
    yield database
    await database.close()


def _recorded(dsn: str, tenant_id: int, record_id: str, data: str) -> None:
    execute(
        dsn,
        "INSERT INTO records (tenant_id, domain, id, version, seq, at_us, chain_from, data)"
        f" VALUES ({tenant_id}, 'task', '{record_id}', 1, {len(record_id)}, 0, 1, {data})",
    )


async def test_pending_store_lists_files_with_due(database: Database, dsn: str) -> None:
    states = ["open", "attached", "duplicate", "freed", "cancelled"]
    keep(
        dsn,
        *(upload(9 + number, state=state) for number, state in enumerate(states)),
        upload(4, tenant=2, record_id="there"),
        upload(3, record_id="deleted"),
        upload(2, record_id="there"),
        upload(1, record_id="there"),
    )
    _recorded(dsn, 1, "there", "'{}'")
    _recorded(dsn, 1, "deleted", "NULL")
    store = PostgresPending(database, Sealing())
    assert await store.tenants(0, 10) == [1, 2]
    assert await store.tenants(0, 1) == [1]
    assert await store.tenants(1, 10) == [2]
    assert await store.tenants(2, 10) == []
    found = await store.pending({1: None, 2: None}, 10)
    assert found == [
        PendingFile(upload(3, record_id="deleted"), due=False),
        PendingFile(upload(1, record_id="there"), due=True),
        PendingFile(upload(2, record_id="there"), due=True),
        PendingFile(upload(4, tenant=2, record_id="there"), due=False),
    ]
    walked = []
    last: dict[int, Upload | None] = {1: None, 2: None}
    while page := await store.pending(last, 1):
        walked += page
        last |= {one.upload.ref.tenant_id: one.upload for one in page}
    assert sorted(walked, key=found.index) == found


async def test_file_store_finds_files_of_the_tenant_alone(database: Database, dsn: str) -> None:
    for number, state in enumerate(
        ("open", "stored", "attached", "retained", "refused", "cancelled", "expired", "concatenated", "freed")
    ):
        keep(dsn, upload(number, state=state))
        found = await PostgresFiles(database, Sealing()).file(1, upload(number).ref.upload_id)
        assert (found is not None) is (state in ("stored", "attached", "retained"))
    assert await PostgresFiles(database, Sealing()).file(2, upload(2).ref.upload_id) is None
    assert await PostgresFiles(database, Sealing()).file(1, "f" * 32) is None


async def test_file_store_duplicate_gives_the_file_that_stands_for_it(database: Database, dsn: str) -> None:
    same: dict[str, Any] = {"file_name": "gate.jpg", "sha256": f"{1:064x}"}
    keep(
        dsn,
        upload(1, state="attached", **same),
        upload(2, state="duplicate", **same),
        upload(3, state="attached", **same | {"record_id": "b"}),
        upload(4, state="attached", **same | {"file_name": "x"}),
        upload(5, state="attached", tenant=2, **same),
        upload(6, state="duplicate", **same | {"record_id": "c"}),
        upload(7, state="retained", **same | {"record_id": "d"}),
        upload(8, state="duplicate", **same | {"record_id": "d"}),
    )
    files = PostgresFiles(database, Sealing())
    assert await files.file(1, upload(2).ref.upload_id) == upload(1, state="attached", **same)
    assert await files.file(1, upload(6).ref.upload_id) is None
    lent = upload(7, state="retained", **same | {"record_id": "d"})
    assert await files.file(1, upload(8).ref.upload_id) == lent


_MANY = (
    "INSERT INTO upload_session (tenant_id, upload_id, device_id, kind, domain, record_id, metadata,"
    " reserved_bytes, state, expires_at) SELECT 1, gen_random_uuid(), 'd', 'whole', 'task', n::text, '', 1,"
    " CASE WHEN n % 100 = 0 THEN 'stored' ELSE 'attached' END, now() FROM generate_series(1, 20000) AS n"
)


@without_cells("names a prepared statement as a database alone has it")
@pytest.mark.parametrize("grown", [False, True])
async def test_pending_store_reads_by_its_index(database: Database, dsn: str, grown: bool) -> None:
    """However many files there are, only those that wait are met; on an empty table it is planned alike."""
    if grown:
        execute(dsn, _MANY, "ANALYZE upload_session")
    values = {
        "tenants": "{1}",
        "domains": "{task}",
        "records": "{5}",
        "ids": f"{{{'0' * 32}}}",
        "limit": "500",
        "after": "0",
    }
    for statement, condition in (
        (_PENDING, "Index Cond: ((tenant_id = w.t) AND (ROW(domain, record_id) >= ROW("),
        (_TENANTS, "tenant_id > "),
    ):
        async with database.connection() as session:
            opening = "BEGIN; " + READ_PREPARED
            await session.run_prepared(opening, (statement,), "", values)
            await session.run("ROLLBACK")
            plan = await session.run(f"{opening}EXPLAIN {statement.call}", values)
            await session.run("ROLLBACK")
        text = "\n".join(row[0] for row in plan)
        assert "upload_session_waiting" in text, text
        assert condition in text, text
        assert "Seq Scan" not in text, text
