"""The reference device and the files of its records: of the highest seq, whatever version it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from bench.client.device import Device
from bench.client.messages import Change, Result
from bench.client.store import Store
from engine.wire.messages import Attachment
from tests.harness.in_process_server import Running
from tests.harness.uploads.stored_files import keep, upload
from tests.harness.ws_device import put


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "phone.sqlite", "phone", durability="NORMAL")
    yield opened
    opened.close()


def change(version: int, seq: int, *names: str, record_id: str = "a", deleted: bool = False) -> Change:
    files = [Attachment(name, name, "image/jpeg", 1, "00", "phone", "") for name in names]
    return Change(
        domain="task",
        id=record_id,
        version=version,
        seq=seq,
        deleted=deleted,
        data=Raw(b"null" if deleted else b"{}"),
        attachments=Raw(msgspec.json.encode(files)) if names else Raw(),
    )


def page(store: Store, *changes: Change) -> list[str]:
    """Apply a page, and name the files that the record then has."""
    store.page(changes, "c", last=True)
    return names(store)


def names(store: Store, record_id: str = "a") -> list[str]:
    return [file.filename for file in store.attachments("task", record_id)]


def test_replica_files_with_a_known_version_taken(store: Store) -> None:
    assert page(store, change(1, 1)) == []
    assert page(store, change(1, 2, "one")) == ["one"]
    assert page(store, change(1, 3, "one", "two")) == ["one", "two"]
    assert page(store, change(1, 4, "two")) == ["two"]
    assert page(store, change(1, 5)) == []


def test_replica_files_with_an_older_version_taken(store: Store) -> None:
    """The own edit took seq 3; what the line brings behind its answer is of seq 2."""
    page(store, change(1, 1))
    store.edit("task", "a", "patch", {"n": 1}, 0)
    message = store.message(10, 1 << 16, 1 << 20)
    assert message is not None
    store.settle(message.key, [Result(status="applied", domain="task", id="a", version=2, seq=3)])
    assert page(store, change(1, 2, "one")) == ["one"]
    assert store.record("task", "a").version == 2


def test_replica_older_files_ignored(store: Store) -> None:
    page(store, change(2, 5, "one", "two"))
    assert page(store, change(1, 3, "one")) == ["one", "two"]
    assert page(store, change(1, 4)) == ["one", "two"]
    page(store, change(2, 6))
    assert page(store, change(1, 5, "one", "two")) == []


def test_replica_deleted_record_shows_no_files(store: Store) -> None:
    page(store, change(1, 2, "one"))
    assert page(store, change(2, 3, deleted=True)) == []
    assert page(store, change(3, 4, "one")) == ["one"]


def test_replica_new_history_files_taken(store: Store) -> None:
    store.page([change(1, 9, "one"), change(1, 8, "x", record_id="b")], "c", last=True)
    store.start_over()
    assert names(store) == ["one"], "shown until the new history is known"
    assert page(store, change(1, 1, "other")) == ["other"]
    assert names(store, "b") == []


def test_replica_files_survive_a_restart(store: Store, tmp_path: Path) -> None:
    page(store, change(1, 1, "one"))
    again = Store(tmp_path / "phone.sqlite", "phone")
    assert names(again) == ["one"]
    again.close()


@pytest.mark.parametrize("subscribed", [True, False])
async def test_device_gets_files_of_its_own_edits(server: Running, store: Store, subscribed: bool) -> None:
    device = Device(store, server.url, lambda: server.token("phone"), server.http, unit=lambda: 0.0)
    if not subscribed:  # it was offline while the file found its record
        await (await server.device("office")).push(put("a", n=1))
    file = upload(1)
    keep(server.dsn, file)
    running = asyncio.create_task(device.run())
    try:
        if subscribed:
            device.edit("task", "a", "put", {"n": 1})
        async with asyncio.timeout(20):
            while not device.store.attachments("task", "a"):
                device._heard.clear()
                await device._heard.wait()
    finally:
        running.cancel()
        await asyncio.wait([running])
    (shown,) = device.store.attachments("task", "a")
    assert (shown.file_id, shown.size_bytes) == (file.ref.upload_id, 1001)
    assert device.store.record("task", "a") == (1, {"n": 1}, 0)
