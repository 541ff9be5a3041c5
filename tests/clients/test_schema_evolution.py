"""Old versions of an app beside new fields: what the guide tells devices to do loses no value of a field."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from bench.client.device import Device
from bench.client.store import Store
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.js_device import JsDevice
from tests.harness.ws_device import Json, item

pytestmark = ON_SHARED

#: An old version knows only the title.
OLD = {"title": "Inspect pump 3"}
NEW = {
    "title": "Inspect pump 3",
    "priority": {"level": 2, "by": "ann"},
    "steps": [{"name": "valve", "unit": "bar"}],
}
Edit = Callable[..., Awaitable[Any]]


class OldApp:
    """A device of an old version: ``edit`` and ``data`` are of its language."""

    def __init__(self, edit: Edit, data: Callable[[], Awaitable[Any]], online: Edit) -> None:
        self.edit = edit
        self.data = data
        self.online = online


@asynccontextmanager
async def python_app(server: Running, home: Path) -> AsyncIterator[OldApp]:
    store = Store(home / "old.sqlite", "old", durability="NORMAL")
    running: list[asyncio.Task[None]] = []
    async with ClientSession() as session:
        device = Device(store, server.url, lambda: server.token("old"), session, unit=lambda: 0.0)

        async def edit(*given: Any) -> None:
            device.edit("task", "a", *given)

        async def data() -> Any:
            return store.record("task", "a").data

        async def online() -> None:
            running.append(asyncio.create_task(device.run()))
            async with asyncio.timeout(20):
                await device.settled()
            running[-1].cancel()
            await asyncio.wait(running)

        try:
            yield OldApp(edit, data, online)
        finally:
            store.close()


@asynccontextmanager
async def javascript_app(server: Running, home: Path, node_packages: Path) -> AsyncIterator[OldApp]:
    device = JsDevice(node_packages, server.url, home / "old.json", [server.token("old")])
    await device.boot()

    async def edit(*given: Any) -> None:
        await device.call("edit", "task", "a", *given)

    async def data() -> Any:
        return (await device.call("record", "task", "a"))["data"]

    async def online() -> None:
        await device.call("start")
        await device.call("settled")
        await device.call("stop")

    try:
        yield OldApp(edit, data, online)
    finally:
        await device.kill()


@pytest.fixture(params=["python", "javascript"])
def old_app(request: pytest.FixtureRequest, shared: Running, tmp_path: Path) -> Any:
    if request.param == "python":
        return python_app(shared, tmp_path)
    return javascript_app(shared, tmp_path, request.getfixturevalue("node_packages"))


async def stored(server: Running) -> Json:
    """The data of the record as a device of the new version gets them."""
    [change] = (await (await server.device("reader")).pull())["changes"]
    data: Json = change["data"]
    return data


async def test_schema_evolution_patch_of_an_old_device_keeps_new_fields(
    shared: Running, old_app: Any
) -> None:
    office = await shared.device("office")
    await office.push(item("put", "task", "a", data=NEW))
    async with old_app as old:
        await old.online()
        assert await old.data() == NEW, "kept, though this version knows nothing of it"
        await old.edit("patch", {"title": "Inspect pump 3 twice"})
        await old.online()
        assert await stored(shared) == NEW | {"title": "Inspect pump 3 twice"} == await old.data()


async def test_schema_evolution_put_with_changed_keeps_new_fields_set_meanwhile(
    shared: Running, old_app: Any
) -> None:
    office = await shared.device("office")
    await office.push(item("put", "task", "a", data=OLD))
    async with old_app as old:
        await old.online()
        await office.push(item("put", "task", "a", base=1, data=NEW, changed=["priority", "steps"]))
        shown = await old.data()
        await old.edit("put", shown | {"title": "Inspect pump 3 twice"}, ["title"])
        await old.online()
        assert await stored(shared) == NEW | {"title": "Inspect pump 3 twice"} == await old.data()


async def test_schema_evolution_put_of_known_fields_alone_removes_the_others(
    shared: Running, old_app: Any
) -> None:
    """The reason for the rule: on the present version a put is no conflict, whatever ``changed`` says."""
    await (await shared.device("office")).push(item("put", "task", "a", data=NEW))
    async with old_app as old:
        await old.online()
        await old.edit("put", OLD, ["title"])
        await old.online()
        assert await stored(shared) == OLD


async def test_schema_evolution_unknown_fields_of_messages_ignored(shared: Running) -> None:
    device = await shared.device()
    later = item("put", "task", "a", data=OLD, added_later={"by": "a later version"})
    [result] = await device.push(later, added_later=1)
    assert result["status"] == "applied"
    [change] = (await device.pull(added_later=2))["changes"]
    assert change["data"] == OLD
    assert "added_later" not in change


async def test_schema_evolution_required_field_hits_new_records_of_old_devices_alone(shared: Running) -> None:
    office, old = await shared.device("office"), await shared.device("old")
    await office.push(item("put", "visit", "new", data={"place": "gate", "text": "open"}))
    results = await old.push(
        item("patch", "visit", "new", base=1, data={"text": "closed"}),
        item("put", "visit", "old", data={"text": "open"}),
    )
    assert [result["status"] for result in results] == ["applied", "rejected"]
    [change] = (await office.pull(domains=["visit"]))["changes"]
    assert change["data"] == {"place": "gate", "text": "closed"}
