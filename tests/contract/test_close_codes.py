"""Every close code: what it is for, and what is said and kept before."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
import pytest
from aiohttp import WSMsgType

from tests.harness.in_process_server import ON_SHARED, Running, Serve
from tests.harness.services import execute, rows
from tests.harness.ws_device import Json, put
from tests.security.catalogue import against

pytestmark = ON_SHARED

#: By which the server's clock and that of what signs tokens may differ, as delivered.
LEEWAY_S = 30

SMALL = {"limits": {"frame_bytes": 4096, "record_bytes": 3072}}


def sized(size_bytes: int) -> bytes:
    """Make a sync of ``size_bytes``."""
    head, tail = b'{"type":"sync","id":"1","key":"k","items":[],"pad":"', b'"}'
    return head + b"x" * (size_bytes - len(head) - len(tail)) + tail


def goodbye(messages: list[Json]) -> str | None:
    """Give the reason of the goodbye that came last, None if nobody said one."""
    if not messages or messages[-1]["type"] != "goodbye":
        return None
    assert messages[-1]["retry_after_ms"] > 0
    reason: str = messages[-1]["reason"]
    return reason


# -- 1007, 1009, 4400: frames that are wrong ----------------------------------------------------


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("compress", [0, 15])
async def test_close_frame_one_byte_over_the_limit_is_1009(serve: Serve, compress: int) -> None:
    server = await serve(**SMALL)
    # A device that answers the close frame finds that the server is gone, and forgets the code.
    phone = await server.device(compress=compress, autoclose=False)
    assert phone.welcome["limits"]["frame_bytes"] == 4096
    await phone.send_frame(sized(4096))
    assert (await phone.receive())["type"] == "synced"
    await phone.send_frame(sized(4096 + 2))
    assert await phone.closed() == 1009


@pytest.mark.asyncio(loop_scope="function")
async def test_close_frame_that_inflates_past_the_limit_is_1009(serve: Serve) -> None:
    server = await serve(**SMALL)
    phone = await server.device(compress=15, autoclose=False)
    await phone.send_frame(sized(1_000_000))
    assert await phone.closed() == 1009


async def test_close_frame_over_the_default_limit_of_1_mebibyte_is_1009(shared: Running) -> None:
    phone = await shared.device()
    await phone.send_frame(sized(1 << 20))
    assert (await phone.receive())["type"] == "synced"
    await phone.send_frame(sized((1 << 20) + 1))
    assert await phone.closed() == 1009


@pytest.mark.parametrize(
    "frame",
    [
        b'{"type":"heartbeat","id":"\xff"}',
        b'{"type":"sync","id":"1","key":"k","items":[{"data":"\xc3"}]}',
        b'{"type":"sync","id":"1","key":"k","items":[{"data":"\xed\xa0\x80"}]}',
        b"\x80",
    ],
)
async def test_close_text_frame_without_utf8_is_1007(shared: Running, frame: bytes) -> None:
    phone = await shared.device()
    await phone.send_frame(frame)
    assert await phone.closed() == 1007


@pytest.mark.parametrize(("encoding", "kind"), [("json", WSMsgType.BINARY), ("msgpack", WSMsgType.TEXT)])
async def test_close_frame_of_the_wrong_type_is_4400(shared: Running, encoding: str, kind: WSMsgType) -> None:
    phone = await shared.device(encoding=encoding)
    await phone.send_frame(b'{"type":"heartbeat","id":"1"}', kind)
    assert await phone.closed() == 4400


@pytest.mark.parametrize(
    ("encoding", "kind", "frame"),
    [("json", WSMsgType.TEXT, b"{"), ("msgpack", WSMsgType.BINARY, b"\xc1")],
)
async def test_close_ten_malformed_messages_in_a_row_is_4400(
    shared: Running, encoding: str, kind: WSMsgType, frame: bytes
) -> None:
    phone = await shared.device(encoding=encoding)
    for _ in range(9):
        await phone.send_frame(frame, kind)
    await phone.ask("heartbeat")
    for _ in range(9):
        await phone.send_frame(frame, kind)
    await phone.refused("pull", limit=0)  # wrong, but not malformed
    assert len(phone.unasked) == 18
    for _ in range(10):
        await phone.send_frame(frame, kind)
    await phone.send({"type": "sync", "id": "late", "key": "k", "items": [put("a1", None, n=1)]})
    assert await phone.closed() == 4400
    assert [one["code"] for one in phone.unasked] == ["malformed"] * 28
    assert (await (await shared.device()).pull())["changes"] == []


# -- 4401, 4403, 4408, 4409, 4429: who may not stay ---------------------------------------------


@against("API2:2023", "V7.4")
async def test_close_token_that_expires_during_the_connection_is_4401(shared: Running) -> None:
    phone = await shared.device(exp=int(time.time()) + 3 - LEEWAY_S)
    assert (await phone.pull())["changes"] == []
    assert await phone.closed() == 4401
    assert goodbye(phone.unasked) == "expired"


@pytest.mark.asyncio(loop_scope="function")
async def test_close_silent_device_is_4408(serve: Serve) -> None:
    server = await serve(server={"heartbeat_s": 1, "idle_s": 1.5})
    silent, talking = await server.device("silent"), await server.device("talking")
    assert silent.welcome["heartbeat_s"] == 1
    gone = asyncio.create_task(silent.closed())
    while not (await asyncio.wait({gone}, timeout=0.3))[0]:
        await talking.told("heartbeat_ack", "heartbeat")
    assert await gone == 4408
    assert goodbye(silent.unasked) == "idle"
    await talking.told("heartbeat_ack", "heartbeat")


async def test_close_older_connection_of_a_device_is_4409(shared: Running) -> None:
    older = await shared.device("phone")
    await older.told("heartbeat_ack", "heartbeat")
    others = [await shared.device("tablet"), await shared.device("phone", "globex")]
    newer = await shared.device("phone")
    await newer.told("heartbeat_ack", "heartbeat")
    assert await older.closed() == 4409
    assert goodbye(older.unasked) == "replaced"
    for device in (newer, *others):
        await device.told("heartbeat_ack", "heartbeat")
        assert device.unasked == []


async def test_close_connection_on_which_the_device_is_silent_replaces_none(shared: Running) -> None:
    """As of an attempt that the device gave up, and that comes late; another one ends it, with 4408."""
    phone = await shared.device("phone")
    await phone.told("heartbeat_ack", "heartbeat")
    late = await shared.device("phone")
    await phone.told("heartbeat_ack", "heartbeat")
    latest = await shared.device("phone")
    assert await late.closed() == 4408
    assert goodbye(late.unasked) == "idle"
    await phone.told("heartbeat_ack", "heartbeat")
    assert phone.unasked == []
    await latest.socket.ping()
    assert await phone.closed() == 4409


async def test_close_replaced_connection_still_commits_its_messages(shared: Running) -> None:
    """It sends more than the server reads ahead, so that much is unread when the newer one comes."""
    sent = 1000
    tablet = await shared.device("tablet")
    await tablet.ask("subscribe")
    older = await shared.device("phone")
    for number in range(sent):
        await older.send(sync(f"k{number}", put(f"a{number}", None, n=number)))
    newer = await shared.device("phone")
    await newer.socket.ping()
    assert await older.closed() == 4409
    assert len(older.unasked) < sent
    found = 0
    while found < sent:
        found += len((await tablet.changes())["changes"])
    for number in range(0, sent, 50):
        items = [put(f"a{number}", None, n=number)]
        assert (await newer.told("synced", "sync", key=f"k{number}", items=items))["replayed"] is True


async def test_close_replaced_connection_answers_a_prefix_before_its_goodbye(shared: Running) -> None:
    """What the older one is still told is true; what it is not told, it sends again under the same key."""
    older = await shared.device("phone")
    for number in range(50):
        await older.send(sync(f"k{number}", put(f"a{number}", None, n=number)))
    newer = await shared.device("phone")
    await newer.socket.ping()
    await older.closed()
    answered = [one["id"] for one in older.unasked[:-1]]
    assert answered == [f"k{number}" for number in range(len(answered))]
    for number in range(50):
        (result,) = await newer.sync(f"k{number}", put(f"a{number}", None, n=number))
        assert (result["status"], result["version"]) == ("applied", 1)


@pytest.mark.asyncio(loop_scope="function")
@against("API2:2023", "V7.4")
async def test_close_devices_of_a_removed_tenant_is_4403(server: Running) -> None:
    phone, other = await server.device("phone", "globex"), await server.device("phone", "acme")
    execute(
        server.dsn,
        *(
            f"DELETE FROM {table} WHERE tenant_id = (SELECT tenant_id FROM tenants WHERE name = 'globex')"
            for table in ("tenant_counters", "devices", "tenant_storage")
        ),
        "DELETE FROM tenants WHERE name = 'globex'",
        "UPDATE cluster_state SET generation = generation + 1",
    )
    assert await phone.closed() == 4403
    assert goodbye(phone.unasked) == "revoked"
    reply = await server.get("/v1/changes", tenant="globex")
    assert reply.verdict == (403, "forbidden")
    await other.told("heartbeat_ack", "heartbeat")


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("message", [{"type": "heartbeat", "id": "1"}, {"type": "nope", "id": "1"}])
async def test_close_device_that_ignores_rate_limited_is_4429(serve: Serve, message: Json) -> None:
    server = await serve(limits={"messages_per_minute": 5})
    phone = await server.device()
    for _ in range(200):
        await phone.send(message)
    assert await phone.closed() == 4429
    codes = [one.get("code") for one in phone.unasked]
    assert codes == [None if message["type"] == "heartbeat" else "unknown_type"] * 5 + ["rate_limited"] * 100


@pytest.mark.asyncio(loop_scope="function")
async def test_close_pings_past_the_rate_is_4429(serve: Serve) -> None:
    server = await serve(limits={"messages_per_minute": 5})
    phone = await server.device()
    for _ in range(200):
        await phone.socket.ping()
    assert await phone.closed() == 4429


# -- 1000, 1012: an end in peace ----------------------------------------------------------------


async def test_close_by_the_device_is_confirmed_with_its_code(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(put("a1", None, n=1))
    assert await phone.socket.close(code=1000)
    assert phone.socket.close_code == 1000


@pytest.mark.parametrize("code", [1004, 1006, 1015, 5000, 65535])
async def test_close_with_a_code_that_no_frame_may_carry_is_1002(shared: Running, code: int) -> None:
    phone = await shared.device()
    assert await phone.socket.close(code=code)
    assert phone.socket.close_code == 1002


@pytest.mark.asyncio(loop_scope="function")
async def test_close_drain_answers_accepted_messages_and_is_1012(server: Running) -> None:
    phone, tablet = await server.device("phone"), await server.device("tablet")
    with locked(server.dsn):
        for number in range(3):
            await phone.send(sync(f"k{number}", put(f"a{number}", None, n=number)))
        await phone.told("heartbeat_ack", "heartbeat")  # so that they were taken in
        draining = asyncio.create_task(server.drained())
        for device in (phone, tablet):
            assert (await device.receive())["reason"] == "drain"
        await phone.send(sync("late", put("late", None, n=1)))
    codes = [await phone.closed(), await tablet.closed()]
    await draining
    assert codes == [1012, 1012]
    assert [(one["id"], one["results"][0]["status"]) for one in phone.unasked] == [
        ("k0", "applied"),
        ("k1", "applied"),
        ("k2", "applied"),
    ]
    assert rows(server.dsn, "SELECT id FROM records ORDER BY id") == [("a0",), ("a1",), ("a2",)]


@contextmanager
def locked(dsn: str) -> Iterator[None]:
    """Hold every tenant's counter, so that no batch goes on."""
    connection = psycopg2.connect(dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM tenant_counters FOR UPDATE")
        yield
    finally:
        connection.close()


def sync(key: str, *items: Json) -> Json:
    return {"type": "sync", "id": key, "key": key, "items": list(items)}
