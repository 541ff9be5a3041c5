"""The example device in JavaScript on a real server: offline, cut off, killed, refused, in conflict."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.load.proxy import Chances, proxied
from engine.wire.messages import JSON_SUBPROTOCOL
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.js_device import JsDevice
from tests.harness.services import execute, rows
from tests.harness.tcp_proxy import Cut, breaking
from tests.harness.uploads.tus_uploader import photo
from tests.harness.ws_device import Json, day, item

pytestmark = ON_SHARED

MakeTablet = Callable[..., Any]
#: More than a life has; the loop ends earlier.
STEPS = 60


@pytest_asyncio.fixture(loop_scope="session")
async def make(shared: Running, node_packages: Path, tmp_path: Path) -> AsyncIterator[MakeTablet]:
    """Boot the device on its file; each call is another process."""
    tablets: list[JsDevice] = []

    async def made(url: str = shared.url, tokens: tuple[str, ...] = (), **options: Any) -> JsDevice:
        signed = tokens or (shared.token("tablet"),)
        tablets.append(JsDevice(node_packages, url, tmp_path / "tablet.json", signed, **options))
        await tablets[-1].boot()
        return tablets[-1]

    yield made
    for tablet in tablets:
        await tablet.kill()


def of_tenant(running: Running, columns: str) -> list[Any]:
    """Columns of the test's records, in the order of their ids."""
    where = f"tenant_id = (SELECT tenant_id FROM tenants WHERE name = '{running.tenant()}')"
    return rows(running.dsn, f"SELECT {columns} FROM records WHERE {where} ORDER BY id")


async def online(tablet: JsDevice) -> None:
    """Connect and wait until all is answered."""
    await tablet.call("start")
    await tablet.call("settled")


async def holding(tablet: JsDevice, name: str, version: int) -> Any:
    """Wait until the device holds a version of a record. Returns its data."""
    async with asyncio.timeout(20):
        while (held := (await tablet.records()).get(name, (0, None)))[0] < version:
            await tablet.call("changed")
    return held[1]


async def test_js_device_offline_edits_reach_others_and_live_changes_come(
    shared: Running, make: MakeTablet
) -> None:
    tablet = await make()
    await tablet.call("edit", "task", "a", "put", {"title": "pump", "status": "ASSIGNED"})
    await tablet.call("edit", "task", "a", "patch", {"status": "INPROGRESS"})
    metric = {"metric_name": "n", "value": 1, "timestamp": day(1)}
    await tablet.call("edit", "metrics", "m", "append", metric)
    both = {"title": "pump", "status": "INPROGRESS"}
    shown = await tablet.call("record", "task", "a")
    assert shown == {"version": None, "data": both, "pending": 2, "files": []}
    await online(tablet)
    assert await tablet.records() == {"task/a": (2, both)}
    office = await shared.device("office")
    [change] = (await office.pull())["changes"]
    assert (change["version"], change["data"]) == (2, both)
    await office.push(item("patch", "task", "a", base=2, data={"title": "pump 3"}))
    assert await holding(tablet, "task/a", 3) == {"title": "pump 3", "status": "INPROGRESS"}


async def test_js_device_killed_process_continues_from_its_file(shared: Running, make: MakeTablet) -> None:
    tablet = await make()
    await tablet.call("edit", "journal", "a", "put", {"n": 1})
    await tablet.kill()
    await online(await make())
    assert of_tenant(shared, "version") == [(1,)]


async def test_js_device_killed_at_any_step_loses_and_repeats_no_edit(
    shared: Running, make: MakeTablet
) -> None:
    """A life has no fixed number of steps: the page may come before the answer, or after it."""
    tablet, died = await make(), list[int]()
    for at in itertools.takewhile(lambda at: at <= max(died, default=-1) + 2, range(STEPS)):
        life = await tablet.call("life", f"r{at:02}", at)
        if life["died"]:
            died.append(at)
        assert (life["version"], life["data"], life["pending"]) == (2, {"n": 1, "m": 2}, 0), at
    assert 8 < len(died) < STEPS - 2
    assert of_tenant(shared, "version") == [(2,)] * (max(died) + 3)


async def test_js_device_lost_answer_requested_again_and_applied_once(
    shared: Running, make: MakeTablet
) -> None:
    port = int(shared.url.rpartition(":")[2])
    async with proxied("127.0.0.1", port, Random(1), Chances(lost=1.0)) as proxy:
        tablet = await make(proxy.url)
        await tablet.call("edit", "journal", "a", "put", {"n": 1})
        await tablet.call("start")
        async with asyncio.timeout(20):
            while not proxy.cuts:
                await tablet.call("changed")
        proxy.chances.lost = 0.0
        await tablet.call("settled")
        assert (await tablet.records(), of_tenant(shared, "version")) == (
            {"journal/a": (1, {"n": 1})},
            [(1,)],
        )
        await tablet.kill()


async def test_js_device_expired_token_replaced_and_second_refusal_ends(
    shared: Running, make: MakeTablet
) -> None:
    old = shared.token("tablet", exp=1)
    tablet = await make(tokens=(old, shared.token("tablet")))
    await online(tablet)
    await tablet.kill()
    tablet = await make(tokens=(old, old))
    await tablet.call("start")
    assert "token" in (await tablet.reported("stopped"))["message"]


async def test_js_device_replaced_connects_again_once(shared: Running, make: MakeTablet) -> None:
    tablet = await make()
    await online(tablet)
    copy = await shared.device("tablet")
    await copy.told("heartbeat_ack", "heartbeat")
    assert await copy.closed() == 4409, "the tablet came back"
    await (await shared.device("tablet")).told("heartbeat_ack", "heartbeat")
    await tablet.reported("stopped")


async def test_js_device_expired_cursor_drops_missing_records(
    shared: Running, make: MakeTablet, tmp_path: Path
) -> None:
    tablet = await make()
    for name in ("kept", "lost"):
        await tablet.call("edit", "journal", name, "put", {})
    await online(tablet)
    await tablet.kill()
    execute(
        shared.dsn,
        "DELETE FROM records WHERE id = 'lost' AND tenant_id ="
        f" (SELECT tenant_id FROM tenants WHERE name = '{shared.tenant()}')",
    )
    file = tmp_path / "tablet.json"
    of_others = (await (await shared.device("office")).pull(domains=["task"]))["cursor"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cursor": of_others}))
    tablet = await make()
    await online(tablet)
    assert list(await tablet.records()) == ["journal/kept"]


async def test_js_device_refused_edits_set_aside_and_others_go_on(shared: Running, make: MakeTablet) -> None:
    tablet = await make()
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    await tablet.call("edit", "journal", "a", "put", {"n": 1})
    await tablet.call("edit", "journal", "deep", "put", {"n": deep})
    await tablet.call("edit", "task", "status", "put", {"status": "NO SUCH"})
    await tablet.call("edit", "journal", "b", "put", {"n": 2})
    await online(tablet)
    state = await tablet.call("state")
    aside = {one["what"]["id"]: one["fault"]["code"] for one in state["aside"]}
    assert aside == {"deep": "malformed", "status": "invalid_item"}
    assert of_tenant(shared, "id") == [("a",), ("b",)]
    await tablet.call("dismiss", 2)
    assert (await tablet.call("state"))["aside"] == []


async def test_js_device_values_that_no_message_carries_refused(make: MakeTablet) -> None:
    tablet = await make()
    for value in (2**53, "a\0b", "\ud800"):
        assert "TypeError" in await tablet.refused("edit", "journal", "a", "put", {"n": value})
    assert (await tablet.call("state"))["outbox"] == []


async def test_js_device_held_change_listed_and_settled_by_a_choice(
    shared: Running, make: MakeTablet
) -> None:
    office = await shared.device("office")
    await office.push(*[item("put", "note", name, data={"by": "office"}) for name in "abc"])
    tablet = await make()
    for name in "abc":
        await tablet.call("edit", "note", name, "put", {"by": "tablet"})
    await online(tablet)
    assert len((await tablet.call("state"))["conflicts"]) == 3
    listed = {one["record_id"]: one for one in await tablet.call("conflicts")}
    assert await tablet.call("resolve", listed["a"], "client") is True
    assert await tablet.call("resolve", listed["b"], "merged", {"by": "both"}) is True
    await office.push(item("patch", "note", "c", base=1, data={"n": 2}))
    assert await tablet.call("resolve", listed["c"], "client") is False, "the record has changed"
    [again] = await tablet.call("conflicts")
    assert await tablet.call("resolve", again, "server") is True
    assert (await tablet.call("state"))["conflicts"] == {}
    assert await holding(tablet, "note/a", 2) == {"by": "tablet"}
    assert await holding(tablet, "note/b", 2) == {"by": "both"}
    assert await holding(tablet, "note/c", 3) == {"by": "office", "n": 2}


async def test_js_device_lost_edit_shown_to_the_user(shared: Running, make: MakeTablet) -> None:
    office = await shared.device("office")
    await office.push(item("put", "attendance", "a", data={"by": "office"}))
    tablet = await make()
    await tablet.call("edit", "attendance", "a", "put", {"by": "tablet"})
    await online(tablet)
    assert (await tablet.records())["attendance/a"] == (1, {"by": "office"})
    [aside] = (await tablet.call("state"))["aside"]
    assert (aside["fault"]["code"], aside["what"]["data"]) == ("lost", {"by": "tablet"})


async def test_js_device_upload_goes_on_after_a_cut_and_a_kill(
    shared: Running, make: MakeTablet, tmp_path: Path
) -> None:
    content = photo(900_000)
    (tmp_path / "gate.jpg").write_bytes(content)
    async with breaking(shared.url, [None, *[Cut(150_000, "dead")] * 3]) as line:
        tablet = await make(line.url)
        await tablet.call("edit", "journal", "a", "put", {})
        given = str(tmp_path / "gate.jpg"), "Tür.jpg", "image/jpeg"
        await tablet.call("attach", "journal", "a", *given)
        await tablet.call("start")
        async with asyncio.timeout(20):
            while not line.made:
                await tablet.call("changed")
        await tablet.kill()
    tablet = await make()
    [begun] = (await tablet.call("state"))["files"]
    await online(tablet)
    [file] = await holding_files(tablet, "journal", "a")
    assert (file["filename"], file["size_bytes"]) == ("Tür.jpg", len(content))
    assert begun["url"] == f"/v1/uploads/{file['file_id']}", "the upload that was cut went on"
    assert (await shared.get(f"/v1/files/{file['file_id']}", "office")).body == content


async def holding_files(tablet: JsDevice, domain: str, record_id: str) -> list[Json]:
    """Wait until a record of the device has files."""
    async with asyncio.timeout(20):
        while not (files := (await tablet.call("record", domain, record_id))["files"]):
            await tablet.call("changed")
    return list(files)


async def test_js_device_unfit_file_set_aside_and_the_next_sent(make: MakeTablet, tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_bytes(b"%PDF-1.7 is no photo")
    (tmp_path / "gate.jpg").write_bytes(photo(500))
    tablet = await make()
    await tablet.call("edit", "journal", "a", "put", {})
    for name in ("gone.jpg", "no.jpg", "gate.jpg"):
        await tablet.call("attach", "journal", "a", str(tmp_path / name), name, "image/jpeg")
    await online(tablet)
    codes = [one["fault"]["code"] for one in (await tablet.call("state"))["aside"]]
    assert codes == ["unreadable", "unsupported_type"]
    assert [file["filename"] for file in await holding_files(tablet, "journal", "a")] == ["gate.jpg"]


async def test_js_device_fields_and_messages_of_later_servers_ignored(
    shared: Running, make: MakeTablet
) -> None:
    tablet = await make(later=True)
    await tablet.call("edit", "journal", "a", "put", {"n": 1})
    await online(tablet)
    office = await shared.device("office")
    await office.push(item("patch", "journal", "a", base=1, data={"m": 2}))
    assert await holding(tablet, "journal/a", 2) == {"n": 1, "m": 2}
    assert (await tablet.call("state"))["aside"] == []


async def test_js_device_refused_push_repeated_byte_for_byte_after_the_hint(make: MakeTablet) -> None:
    pushed: list[Any] = []

    async def busy(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=(JSON_SUBPROTOCOL,))
        await socket.prepare(request)
        limits = {"frame_bytes": 1 << 20, "items": 500, "record_bytes": 1 << 18, "messages_per_minute": 6000}
        now = "2026-01-02T03:04:05Z"
        welcome = {"session": "s", "server_time": now, "epoch": "e", "heartbeat_s": 30, "policies": {}}
        await socket.send_json({"type": "welcome", **welcome, "limits": limits, "events": []})
        async for frame in socket:
            message = msgspec.json.decode(frame.data)
            if message["type"] != "sync":
                continue
            pushed.append((message["key"], frame.data[frame.data.index('"items"') :]))
            if len(pushed) == 1:
                error = {"code": "overloaded", "message": "later", "retryable": True, "retry_after_ms": 30}
                await socket.send_json({"type": "error", "id": message["id"], **error})
                continue
            result = {"domain": "journal", "id": "a", "status": "applied", "version": 1, "seq": 1}
            answer = {"type": "synced", "id": message["id"], "replayed": False, "results": [result]}
            await socket.send_json(answer)
        return socket

    app = web.Application()
    app.router.add_get("/v1/sync", busy)
    async with TestServer(app) as server:
        tablet = await make(str(server.make_url("")).rstrip("/"))
        await tablet.call("edit", "journal", "a", "put", {"n": 1})
        await tablet.call("start")
        await tablet.reported("settled")
        await tablet.kill()
    assert len(pushed) == 2
    assert pushed[0] == pushed[1]
