"""Files meet their records on whole servers: whichever comes first, for who listens and who pulls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.model.uploads import Upload
from engine.uploads import pending_attachments as room
from tests.harness.in_process_server import Running, Serve
from tests.harness.postgres_stalls import until
from tests.harness.services import execute, rows
from tests.harness.uploads.stored_files import keep, upload
from tests.harness.uploads.tus_uploader import Uploader, file_path, photo, uploader
from tests.harness.ws_device import Device, put

Json = dict[str, Any]


async def _change(device: Device, seq: int) -> Json:
    """Wait for the change of a seq in live pages."""
    while True:
        for change in (await device.changes())["changes"]:
            if change["seq"] == seq:
                found: Json = change
                return found


async def _attached(dsn: str, *uploads: Upload) -> None:
    """Wait until files are part of their records' entries."""
    named = ", ".join(f"'{one.ref.upload_id}'" for one in uploads)
    question = f"SELECT count(*) FROM upload_session WHERE state = 'attached' AND upload_id IN ({named})"

    async def look() -> bool:
        return await asyncio.to_thread(rows, dsn, question) == [(len(uploads),)]

    await until(look)


async def test_attachment_file_before_its_record_is_announced_with_it(server: Running) -> None:
    phone, office = await server.device(), await server.device("office")
    stranger = await server.device("phone", "globex")
    for device in (phone, office, stranger):
        assert (await device.told("changes", "subscribe"))["changes"] == []
    file = upload(1)
    keep(server.dsn, file)
    await phone.push(put("a", n=1))
    for device in (phone, office):
        change = await _change(device, 2)
        assert (change["id"], change["version"], change["data"]) == ("a", 1, {"n": 1})
        (shown,) = change["attachments"]
        assert shown["at"].startswith("20")
        del shown["at"]
        assert shown == {
            "file_id": file.ref.upload_id,
            "filename": "gate 1.jpg",
            "filetype": "image/jpeg",
            "size_bytes": 1001,
            "sha256": file.sha256,
            "device_id": "phone",
        }
    page = await (await server.device("late")).pull()
    assert [(change["seq"], len(change["attachments"])) for change in page["changes"]] == [(2, 1)]
    await stranger.push(put("a", n=1))
    assert (await stranger.pull())["changes"][0].keys() == page["changes"][0].keys() - {"attachments"}
    assert stranger.unasked == []


async def test_attachment_files_survive_updates_and_deletion(server: Running) -> None:
    phone = await server.device()
    await phone.push(put("a", n=1))
    file, other = upload(1), upload(2, file_name="gate 1.jpg")
    keep(server.dsn, file, other)
    await _attached(server.dsn, file, other)
    for item in (
        {"op": "patch", "base": 1, "data": {"n": 2}},
        {"op": "put", "base": 2, "data": {"n": 3}},
        {"op": "delete", "base": 3},
    ):
        (result,) = await phone.push({"domain": "task", "id": "a", **item})
        assert result["status"] == "applied", "a file conflicts with nobody"
        (change,) = (await phone.pull())["changes"]
        files = {shown["file_id"] for shown in change.get("attachments", ())}
        gone = item["op"] == "delete"
        assert files == (set() if gone else {file.ref.upload_id, other.ref.upload_id})
    await phone.push(put("a", 4, n=4))
    (change,) = (await phone.pull())["changes"]
    assert [shown["filename"] for shown in change["attachments"]] == ["gate 1.jpg"] * 2


async def test_attachment_file_stored_before_a_restart_attached_after_it(serve: Serve) -> None:
    first = await serve()
    await (await first.device()).push(put("a", n=1))
    await first.drained()
    files = [upload(number) for number in range(3)]
    keep(first.dsn, *files, upload(9, record_id="never"))
    both = [await serve(), await serve()]
    await _attached(first.dsn, *files)
    page = await (await both[0].device()).pull()
    (change,) = page["changes"]
    assert change["seq"] == 4, "each was attached once, though two servers look"
    assert {shown["file_id"] for shown in change["attachments"]} == {file.ref.upload_id for file in files}
    assert rows(first.dsn, "SELECT count(*) FROM upload_session WHERE state = 'stored'") == [(1,)]


async def test_attachment_record_written_by_another_server_gets_files(serve: Serve) -> None:
    here, there = await serve(), await serve()
    office = await here.device("office")
    await office.told("changes", "subscribe")
    file = upload(1)
    keep(here.dsn, file)
    await (await there.device()).push(put("a", n=1))
    assert (await _change(office, 2))["attachments"][0]["file_id"] == file.ref.upload_id


async def test_attachment_record_written_here_gets_files_at_once(
    serve: Serve, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_LOOK_S", 3600.0)
    due, early = upload(1, record_id="there"), upload(2)
    keep(dsn, due, early)
    execute(
        dsn,
        "INSERT INTO records (tenant_id, domain, id, version, seq, at_us, chain_from, data)"
        " VALUES (1, 'task', 'there', 1, 1, 0, 1, '{}')",
        "UPDATE tenant_counters SET seq = 1 WHERE tenant_id = 1",
    )
    server = await serve()
    await _attached(dsn, due)  # by the one look there is, which has seen the other one, too
    await (await server.device()).push(put("a", n=1))
    await _attached(dsn, early)


async def test_attachment_never_crosses_tenants(server: Running) -> None:
    await (await server.device("phone", "globex")).push(put("a", n=1))
    await (await server.device()).push(put("b", n=1))
    mine, due = upload(1), upload(2, record_id="b")
    keep(server.dsn, mine, due)
    await _attached(server.dsn, due)
    (change,) = (await (await server.device("tablet", "globex")).pull())["changes"]
    assert "attachments" not in change
    assert rows(server.dsn, "SELECT state FROM upload_session WHERE record_id = 'a'") == [("stored",)]


async def _shown(server: Running) -> list[str]:
    (change,) = (await (await server.device("late")).pull())["changes"]
    return [shown["file_id"] for shown in change.get("attachments", ())]


@pytest.mark.parametrize("other", ["tablet", "phone"])
async def test_attachment_duplicate_stays_until_both_deleted(server: Running, other: str) -> None:
    """By two devices, or by one that lost the first answer, sent it again and tidies up."""
    phone, again = uploader(server), uploader(server, other)
    await (await server.device()).push(put("pump-3", n=1))
    content = photo(5000)
    first, second = await phone.uploaded(content), await again.uploaded(content)
    states = "SELECT state FROM upload_session ORDER BY created_at"
    assert rows(server.dsn, states) == [("attached",), ("duplicate",)]
    assert (await phone.cancel(first)).status == 204
    assert (await phone.head(first)).status == 410
    assert (await phone.cancel(first)).status == 410
    assert await again.offset(second) == 5000
    for path in (first, second):
        assert await again.file(path) == content
    assert await _shown(server) == [first.rpartition("/")[2]]
    third = await uploader(server, "office").uploaded(content)
    assert (await again.cancel(second)).status == 204
    assert await again.file(third) == content
    assert (await uploader(server, "office").cancel(third)).status == 204
    for path in (first, second, third):
        assert (await again.ask("GET", file_path(path), {})).status == 404
    assert await _shown(server) == []
    assert rows(server.dsn, "SELECT reserved_bytes FROM tenant_storage") == [(0,)]


async def test_attachment_deleted_at_once_by_devices_each_its_own(serve: Serve) -> None:
    """On two servers: while one sends it again and again, others take it back; its own is never lost."""
    here, there = await serve(), await serve()
    await (await here.device()).push(put("pump-3", n=1))
    content = photo(3000)

    async def fickle(one: Uploader) -> None:
        for _ in range(6):
            path = await one.uploaded(content)
            assert await one.file(path) == content, "acknowledged, and not taken back by its own device"
            assert (await one.cancel(path)).status == 204

    devices = [uploader((here, there)[n % 2], f"d{n}") for n in range(6)]
    await asyncio.gather(*map(fickle, devices))
    assert await _shown(here) == []
    assert rows(here.dsn, "SELECT state, count(*) FROM upload_session GROUP BY state") == [("freed", 36)]
    assert rows(here.dsn, "SELECT reserved_bytes FROM tenant_storage") == [(0,)]
