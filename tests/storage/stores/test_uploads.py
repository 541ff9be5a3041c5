"""Sessions of uploads in a real PostgreSQL: who may write, how far, and what it counts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from engine.model.rows import ReadSet, WriteSet
from engine.model.uploads import State, Upload, UploadRef
from engine.uploads.ports import Claim, Created, NewUpload, OffsetUpdate, Quota, StoredFile
from storage.stores.commit.store import PostgresStore
from storage.stores.sealed.sealing import Sealing
from storage.stores.uploads import PostgresUploads
from tests.harness.admin import add_tenants
from tests.harness.services import Serving, execute, rows

ROOM = Quota(tenant_bytes=1000, files_per_record=3, open_per_device=1000, begun_per_device=1000)
EXPIRE_S = 60.0


ALSO_IN_A_CELL = True


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[PostgresUploads]:
    for name in ("acme", "umbra"):
        add_tenants(dsn, name)
    database = Serving(dsn, 4)
    yield PostgresUploads(database, Sealing())
    await database.close()


def new(tenant_id: int = 1, size_bytes: int | None = 100, **changed: Any) -> Upload:
    upload = Upload(
        ref=UploadRef(tenant_id, uuid.uuid4().hex),
        device_id="d1",
        user=None,
        kind="single",
        file_name='a,"b\\.jpg',
        content_type="image/jpeg",
        domain="task",
        record_id="r1",
        metadata="filename YQ==",
        size_bytes=size_bytes,
        reserved_bytes=size_bytes or 0,
        expected_sha256=None,
    )
    return msgspec.structs.replace(upload, **changed)


def part(size_bytes: int = 100, **changed: Any) -> Upload:
    nothing: dict[str, Any] = {"file_name": None, "content_type": None, "domain": None, "record_id": None}
    return new(size_bytes=size_bytes, kind="partial", metadata="", **nothing, **changed)


def joining(upload: Upload) -> NewUpload:
    return NewUpload(upload, ROOM)


async def create(store: PostgresUploads, *uploads: Upload) -> list[Created]:
    return await store.create([NewUpload(upload, ROOM) for upload in uploads], EXPIRE_S)


async def created(store: PostgresUploads, upload: Upload) -> Upload:
    assert await create(store, upload) == ["created"]
    return upload


async def held(store: PostgresUploads, upload: Upload, holder: str = "h1") -> None:
    (claimed,) = await store.claim([Claim(upload.ref, "d1", holder)])
    assert claimed is not None
    assert claimed.acquired


async def stored(store: PostgresUploads, ref: UploadRef, content_type: str = "image/jpeg") -> bool:
    (done,) = await store.mark_stored([StoredFile(ref, "task", "ab" * 32, content_type)])
    return done


def advance(upload: Upload, offset_bytes: int, holder: str = "h1", *, release: bool = True) -> OffsetUpdate:
    return OffsetUpdate(upload.ref, holder, offset_bytes, None, (), release)


def reserve_ports(dsn: str, tenant_id: int = 1) -> int:
    ((amount,),) = rows(
        dsn, f"SELECT coalesce(sum(reserved_bytes), 0) FROM tenant_storage WHERE tenant_id = {tenant_id}"
    )
    ((summed,),) = rows(
        dsn,
        "SELECT coalesce(sum(reserved_bytes), 0) FROM upload_session"
        f" WHERE tenant_id = {tenant_id} AND state IN ('open', 'stored', 'attached', 'lent')",
    )
    assert amount == summed, "the row that quotas are held against is not the sum of what there is"
    return int(str(amount))


async def test_find_upload_as_created_own_tenant_alone(store: PostgresUploads) -> None:
    upload = await created(store, new())
    found = await store.find(upload.ref)
    assert found is not None
    assert found.created_at_us < found.expires_at_us
    assert msgspec.structs.replace(found, created_at_us=0, expires_at_us=0) == upload
    assert await store.find(UploadRef(2, upload.ref.upload_id)) is None


async def test_create_many_at_once_quota_holds(store: PostgresUploads, dsn: str) -> None:
    asked = [
        create(store, new(2, record_id=f"a{n}"), new(record_id=f"r{n}"), new(record_id=f"s{n}"))
        for n in range(10)
    ]
    gathered = await asyncio.gather(*asked)
    assert [first for first, *_ in gathered] == ["created"] * 10
    outcomes = [outcome for _, *others in gathered for outcome in others]
    assert outcomes.count("created") == 10
    assert outcomes.count("tenant_full") == 10
    assert reserve_ports(dsn) == 1000


async def test_create_files_per_record_bounded(store: PostgresUploads, dsn: str) -> None:
    for _ in range(3):
        await created(store, new())
    assert await create(store, new()) == ["record_full"]
    assert await create(store, new(record_id="r2")) == ["created"]
    assert reserve_ports(dsn) == 400


async def test_claim_one_owner_until_released(store: PostgresUploads) -> None:
    upload = await created(store, new())
    first, second = Claim(upload.ref, "d1", "h1"), Claim(upload.ref, "d1", "h2")
    (claimed,) = await store.claim([first])
    assert claimed is not None
    assert (claimed.acquired, claimed.upload.locked, claimed.upload.generation) == (True, True, 0)
    (again,) = await store.claim([first])  # as when the first answer was lost
    assert again is not None
    assert again.acquired
    (refused,) = await store.claim([second])
    assert refused is not None
    assert (refused.acquired, refused.upload.lock_expired, refused.upload.locked) == (False, False, True)
    assert await store.save_offsets([advance(upload, 40, "h2")], EXPIRE_S) == [False]
    assert await store.save_offsets([advance(upload, 40)], EXPIRE_S) == [True]
    assert await store.save_offsets([advance(upload, 40)], EXPIRE_S) == [True], (
        "running it again tells the same"
    )
    (claimed,) = await store.claim([second])
    assert claimed is not None
    assert (claimed.acquired, claimed.upload.offset_bytes) == (True, 40)
    assert await store.save_offsets([advance(upload, 50)], EXPIRE_S) == [False]


async def test_claim_other_device_or_tenant_not_acquired(store: PostgresUploads) -> None:
    upload = await created(store, new())
    stranger, elsewhere = Claim(upload.ref, "d2", "h1"), Claim(UploadRef(2, upload.ref.upload_id), "d1", "h2")
    mine = await created(store, new())
    found = await store.claim([stranger, elsewhere, Claim(mine.ref, "d1", "h3")])
    assert found[0] is not None
    assert not found[0].acquired
    assert found[1] is None
    assert found[2] is not None
    assert found[2].acquired


async def test_steal_expired_lock_old_owner_saves_nothing(store: PostgresUploads, dsn: str) -> None:
    upload = await created(store, new())
    await held(store, upload)
    execute(dsn, "UPDATE upload_session SET held_until = now() - interval '1 second'")
    (claimed,) = await store.claim([Claim(upload.ref, "d1", "h2")])
    assert claimed is not None
    assert (claimed.acquired, claimed.upload.lock_expired) == (False, True)
    for _ in range(2):  # the second as when the first answer was lost
        seized = await store.steal(Claim(upload.ref, "d1", "h2"))
        assert seized is not None
        assert seized.generation == 1
    assert await store.save_offsets([advance(upload, 10)], EXPIRE_S) == [False]
    assert not await store.discard(upload.ref, "h1", "refused")
    assert await store.steal(Claim(upload.ref, "d2", "h3")) is None


async def test_mark_stored_returns_surplus_reservation(store: PostgresUploads, dsn: str) -> None:
    upload = await created(store, new(size_bytes=None, reserved_bytes=500))
    await held(store, upload)
    last = OffsetUpdate(upload.ref, "h1", 120, 120, ("p1", "p2"), release=False)
    assert await store.save_offsets([last], EXPIRE_S) == [True]
    assert reserve_ports(dsn) == 500
    for _ in range(2):
        assert await stored(store, upload.ref, "image/png")
    found = await store.find(upload.ref)
    assert found is not None
    assert (found.state, found.sha256, found.content_type) == ("stored", "ab" * 32, "image/png")
    assert (found.locked, found.pieces, found.reserved_bytes) == (False, (), 120)
    assert reserve_ports(dsn) == 120


async def test_concatenate_parts_used_once_with_their_reservation(store: PostgresUploads, dsn: str) -> None:
    parts = [await created(store, part(n)) for n in (100, 200)]
    for one in parts:
        await held(store, one)
        assert await store.save_offsets([advance(one, one.reserved_bytes)], EXPIRE_S) == [True]
    ids = tuple(one.ref.upload_id for one in parts)
    whole = new(size_bytes=300, kind="final", offset_bytes=300, parts=ids)
    for _ in range(2):  # the second as when the outcome of the first was not known
        assert await store.concatenate(joining(whole), EXPIRE_S) == "created"
    assert reserve_ports(dsn) == 300
    for spent in (ids, (ids[0], ids[0]), (uuid.uuid4().hex,)):
        other = new(size_bytes=300, kind="final", offset_bytes=300, parts=spent)
        assert await store.concatenate(joining(other), EXPIRE_S) == "part_used"
        assert await store.find(other.ref) is None
    await held(store, whole)
    assert await stored(store, whole.ref)
    for one in parts:
        found = await store.find(one.ref)
        assert found is not None
        assert (found.state, found.final_id) == ("concatenated", whole.ref.upload_id)
    assert reserve_ports(dsn) == 300


async def test_concatenate_parts_of_a_device_that_began_too_many_counts(store: PostgresUploads) -> None:
    quota = msgspec.structs.replace(ROOM, begun_per_device=1)
    one = part()
    assert await store.create([NewUpload(one, quota)], EXPIRE_S) == ["created"]
    await held(store, one)
    assert await store.save_offsets([advance(one, 100)], EXPIRE_S) == [True]
    whole = new(kind="final", offset_bytes=100, parts=(one.ref.upload_id,))
    assert await store.concatenate(NewUpload(whole, quota), EXPIRE_S) == "created"
    assert await store.create([NewUpload(one, quota)], EXPIRE_S) == ["created"]  # its outcome was not known
    two = msgspec.structs.replace(quota, begun_per_device=2)
    assert await store.create([NewUpload(new(), two)], EXPIRE_S) == ["too_many_begun"]


async def test_discard_ends_once_with_parts_and_reservation(store: PostgresUploads, dsn: str) -> None:
    kept = await created(store, new(record_id="r9"))
    one = await created(store, part())
    await held(store, one)
    assert await store.save_offsets([advance(one, 100)], EXPIRE_S) == [True]
    whole = new(kind="final", offset_bytes=100, parts=(one.ref.upload_id,))
    assert await store.concatenate(joining(whole), EXPIRE_S) == "created"
    (claimed,) = await store.claim([Claim(one.ref, "d1", "h2")])
    assert claimed is not None
    assert not claimed.acquired, "its bytes are another upload's"
    assert await store.steal(Claim(one.ref, "d1", "h2")) is None
    assert not await store.discard(one.ref, None, "cancelled")
    assert not await store.discard(UploadRef(2, whole.ref.upload_id), None, "cancelled")
    for _ in range(2):  # the second as when the outcome of the first was not known
        assert await store.discard(whole.ref, None, "cancelled")
    assert not await store.discard(whole.ref, None, "refused")
    states = [found.state for ref in (whole.ref, one.ref) if (found := await store.find(ref))]
    assert states == ["cancelled", "cancelled"]
    assert reserve_ports(dsn) == kept.reserved_bytes


async def test_freed_file_returns_its_reservation_once(store: PostgresUploads, dsn: str) -> None:
    uploads = [await created(store, new(size_bytes=size)) for size in (100, 200, 300)]
    for one in uploads:
        await held(store, one)
        assert await store.save_offsets([advance(one, one.reserved_bytes, release=False)], EXPIRE_S) == [True]
        assert await stored(store, one.ref)
    database = Serving(dsn, 1)
    commits = PostgresStore(database, 24, Sealing())
    first, second, third = (one.ref for one in uploads)
    moves: list[list[tuple[UploadRef, State]]] = [
        [(first, "attached"), (second, "duplicate")],
        [(first, "retained")],
        [(first, "freed"), (second, "freed")],
        [(third, "attached")],
    ]
    for moved, left_bytes in zip(moves, (400, 400, 300, 300), strict=True):
        transaction = await commits.begin(ReadSet([1], [], [], [], [], []))
        await transaction.commit(WriteSet({}, [], [], [], [], [], uploads=moved))
        assert reserve_ports(dsn) == left_bytes
    await database.close()


async def test_create_repeated_inserts_once(store: PostgresUploads, dsn: str) -> None:
    upload = new()
    assert await create(store, upload, upload) == ["created", "created"]
    assert await create(store, upload) == ["created"]
    assert reserve_ports(dsn) == 100


async def test_create_many_at_once_files_per_record_bounded(store: PostgresUploads, dsn: str) -> None:
    outcomes = await asyncio.gather(*[create(store, new(size_bytes=10)) for _ in range(8)])
    assert sorted(outcomes) == [["created"]] * 3 + [["record_full"]] * 5
    one = await created(store, part(10))
    await held(store, one)
    assert await store.save_offsets([advance(one, 10)], EXPIRE_S) == [True]
    whole = new(size_bytes=10, kind="final", offset_bytes=10, parts=(one.ref.upload_id,))
    assert await store.concatenate(joining(whole), EXPIRE_S) == "record_full"
    assert reserve_ports(dsn) == 40


async def test_save_offsets_late_statement_changes_nothing(store: PostgresUploads) -> None:
    upload = await created(store, new())
    await held(store, upload)
    late = advance(upload, 10, release=False)
    assert await store.save_offsets([advance(upload, 90)], EXPIRE_S) == [True]
    for one in (late, advance(upload, 90, release=False), advance(upload, 10)):
        assert await store.save_offsets([one], EXPIRE_S) == [False]
    found = await store.find(upload.ref)
    assert found is not None
    assert (found.offset_bytes, found.locked) == (90, False)


async def test_claim_two_requests_one_wins(store: PostgresUploads) -> None:
    upload = await created(store, new())
    claims = await store.claim([Claim(upload.ref, "d1", "h1"), Claim(upload.ref, "d1", "h2")])
    assert sorted(claimed.acquired for claimed in claims if claimed) == [False, True]
