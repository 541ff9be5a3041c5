"""How much a tenant may store, and how many files a record may have."""

from __future__ import annotations

import asyncio

import pytest

from tests.harness.in_process_server import Serve
from tests.harness.services import execute, rows
from tests.harness.uploads.tus_uploader import described, encoded, photo, uploader
from tests.harness.ws_device import item

FULL = (413, "quota_exceeded")


async def test_quota_counts_reserved_bytes_and_returns_them(serve: Serve) -> None:
    server = await serve(uploads={"tenant_bytes": 10_000, "tenant_quotas": {"globex": 20_000}})
    phone, tablet = uploader(server), uploader(server, "tablet")
    first = await phone.begun(6_000)
    assert (await tablet.create(4_001)).verdict == FULL
    second = await tablet.begun(4_000)
    assert (await phone.create(1)).verdict == FULL
    assert (await phone.create(None)).verdict == FULL
    assert (await uploader(server, tenant="globex").create(20_000)).status == 201
    assert (await phone.cancel(first)).status == 204
    wrong = await tablet.append(second, 0, b"\x7fELF".ljust(4_000, b"\0"))
    assert wrong.verdict == (415, "unsupported_type")
    assert (await phone.create(10_000)).status == 201


async def test_quota_files_per_record_bounded(serve: Serve) -> None:
    phone = uploader(await serve(uploads={"files_per_record": 2}))
    paths = [await phone.begun(1000) for _ in range(2)]
    assert (await phone.create(1000)).verdict == FULL
    assert (await phone.create(1000, upload_metadata=encoded(described(record_id="pump-4")))).status == 201
    await phone.cancel(paths[0])
    assert (await phone.create(1000)).status == 201


async def test_quota_retained_file_counts(serve: Serve) -> None:
    server = await serve(uploads={"files_per_record": 2, "tenant_bytes": 10_000})
    await (await server.device()).push(item("put", "task", "pump-3", data={}))
    phone, tablet = uploader(server), uploader(server, "tablet")
    content = photo(4000)
    first, second = await phone.uploaded(content), await tablet.uploaded(content)
    other = await phone.begun(1000)
    await phone.cancel(first)
    assert (await phone.create(1000)).verdict == FULL
    await phone.cancel(other)
    assert (await phone.create(6001)).verdict == FULL
    await tablet.cancel(second)
    assert (await phone.create(10_000)).status == 201


async def test_quota_open_uploads_bounded_by_device(serve: Serve) -> None:
    server = await serve(uploads={"open_per_device": 2})
    await (await server.device()).push(item("put", "task", "pump-3", data={}))
    phone = uploader(server)
    first, _ = await phone.begun(None), await phone.begun(1000)
    refused = await phone.create(1)
    assert refused.verdict == (507, "insufficient_storage")
    assert refused.message["retry_after_ms"] >= 45_000
    assert rows(server.dsn, "SELECT count(*)::int FROM upload_session") == [(2,)]
    assert (await uploader(server, "tablet").create(1)).status == 201
    assert (await phone.cancel(first)).status == 204
    await phone.uploaded(photo(4000))
    assert (await phone.create(1)).status == 201


async def test_quota_begun_uploads_of_a_device_bounded_for_24_hours(serve: Serve) -> None:
    server = await serve(uploads={"begun_per_device": 3})
    phone = uploader(server)
    for _ in range(2):
        assert (await phone.cancel(await phone.begun(1000))).status == 204
    kept = await phone.begun(1000)
    refused = await phone.create(1)
    assert refused.verdict == (429, "rate_limited")
    assert "began 3 uploads in 24 hours" in refused.message["message"]
    assert refused.message["retry_after_ms"] >= 45_000
    assert (await phone.append(kept, 0, photo(1000))).status == 204
    assert (await uploader(server, "tablet").create(1)).status == 201
    execute(
        server.dsn,
        "UPDATE upload_session SET created_at = created_at - interval '24 hours' WHERE state = 'cancelled'",
    )
    assert [(await phone.create(1)).status for _ in range(3)] == [201, 201, 429]
    reserved = rows(server.dsn, "SELECT reserved_bytes FROM tenant_storage")
    assert reserved == rows(
        server.dsn,
        "SELECT sum(reserved_bytes)::bigint FROM upload_session WHERE state IN ('open', 'stored')",
    )


@pytest.mark.parametrize(("bound", "status"), [("open_per_device", 507), ("begun_per_device", 429)])
async def test_quota_uploads_of_a_device_bounded_over_two_workers(
    serve: Serve, bound: str, status: int
) -> None:
    one, two = [await serve(uploads={bound: 5}) for _ in range(2)]
    await (await one.device()).push(item("put", "task", "pump-3", data={}))
    phones = [uploader(one), uploader(two)]
    answers = await asyncio.gather(*(phone.create(None) for phone in phones for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [201] * 5 + [status] * 15
    assert rows(one.dsn, "SELECT count(*)::int FROM upload_session WHERE state = 'open'") == [(5,)]
