"""The socket's messages over HTTP: the same answers, errors with the fitting status, gzip both ways."""

from __future__ import annotations

import gzip
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tests.harness.in_process_server import ON_SHARED, Reply, Running, Serve
from tests.harness.ws_device import Json, day, item, put

pytestmark = ON_SHARED

ITEM = put("a1", None, n=1)


def sync(key: str = "k", items: list[Json] | None = None, **fields: object) -> Json:
    return {"type": "sync", "key": key, "items": [ITEM] if items is None else items, **fields}


async def opened(shared: Running, record_id: str = "n1") -> str:
    await shared.post(
        "/v1/sync", sync(f"{record_id}-1", [item("put", "note", record_id, data={"a": 1})]), "other"
    )
    reply = await shared.post(
        "/v1/sync", sync(f"{record_id}-2", [item("put", "note", record_id, data={"a": 2})])
    )
    conflict_id: str = reply.message["results"][0]["conflict_id"]
    return conflict_id


# -- the same answers -------------------------------------------------------------------------


async def test_http_sync_is_answered(shared: Running) -> None:
    items = [ITEM, item("put", "nowhere", "a2", data={}), item("delete", "task", "a3")]
    reply = await shared.post("/v1/sync", sync(items=items))
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    message = reply.message
    assert "nowhere" in message["results"][1]["error"].pop("message")
    assert message == {
        "type": "synced",
        "replayed": False,
        "results": [
            {"domain": "task", "id": "a1", "status": "applied", "version": 1, "seq": 1},
            {"domain": "nowhere", "id": "a2", "status": "rejected", "error": {"code": "unknown_domain"}},
            {"domain": "task", "id": "a3", "status": "unchanged", "version": None, "seq": None},
        ],
    }
    again = (await shared.post("/v1/sync", sync(items=items, id="9"))).message
    assert (again["id"], again["replayed"], len(again["results"])) == ("9", True, 3)


async def test_http_sync_atomic_aborts_all(shared: Running) -> None:
    reply = await shared.post("/v1/sync", sync(items=[ITEM, put("a2", 0, n=1)], atomic=True))
    assert [one["error"]["code"] for one in reply.message["results"]] == ["batch_aborted", "invalid_item"]
    assert (await shared.get("/v1/changes")).message["changes"] == []


async def test_http_clock_in_a_sync_corrects_its_items_and_nothing_after_it(shared: Running) -> None:
    clock = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    await shared.post("/v1/sync", sync("k1", [put("a1", None) | {"at": day(10)}], clock=clock))
    await shared.post("/v1/sync", sync("k2", [put("a2", None) | {"at": day(10)}]))
    one, other = (await shared.get("/v1/changes")).message["changes"]
    corrected = datetime.fromisoformat(one["at"]) - datetime.fromisoformat(day(12))
    assert abs(corrected) < timedelta(minutes=1)
    assert other["at"] == day(10)


async def test_http_changes_give_what_a_pull_gives(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(*(put(f"a{n}", None, n=n) for n in range(5)), item("put", "ticket", "t1", data={}))
    for query, fields in (
        ({}, {}),
        ({"limit": "2"}, {"limit": 2}),
        ({"domains": "ticket"}, {"domains": ["ticket"]}),
        ({"domains": "task,ticket", "limit": "3"}, {"domains": ["ticket", "task"], "limit": 3}),
        ({"cursor": "", "limit": "", "domains": ""}, {}),
    ):
        reply = await shared.get("/v1/changes", params=query)
        pulled: Json = await phone.pull(**fields)
        assert reply.status == 200
        assert reply.message == {name: value for name, value in pulled.items() if name != "id"}


async def test_http_cursor_continues_on_a_socket_and_back(shared: Running) -> None:
    phone = await shared.device()
    await phone.push(ITEM)
    over_socket = (await phone.pull())["cursor"]
    await phone.push(put("a2", None, n=1))
    page = (await shared.get("/v1/changes", params={"cursor": over_socket})).message
    assert [one["id"] for one in page["changes"]] == ["a2"]
    await phone.push(put("a3", None, n=1))
    assert [one["id"] for one in (await phone.pull(cursor=page["cursor"]))["changes"]] == ["a3"]


async def test_http_conflicts_give_what_the_socket_gives(shared: Running) -> None:
    for number in range(3):
        await opened(shared, f"n{number}")
    listed = await (await shared.device()).ask("conflicts")
    page = (await shared.get("/v1/conflicts", params={"limit": "2"})).message
    assert page["conflicts"] == listed["conflicts"][:2]
    rest = (await shared.get("/v1/conflicts", params={"limit": "2", "after": page["after"]})).message
    assert (rest["conflicts"], rest["after"]) == (listed["conflicts"][2:], None)
    assert (await shared.get("/v1/conflicts", "other")).message["conflicts"] == []
    supervised = await shared.get("/v1/conflicts", "boss", role="supervisor")
    assert supervised.message["conflicts"] == listed["conflicts"]


@pytest.mark.parametrize("also", [{}, {"type": "resolve", "conflict_id": "another", "id": "7"}])
async def test_http_resolution_names_its_conflict_in_the_path(shared: Running, also: Json) -> None:
    conflict_id = await opened(shared)
    decision = {"choice": "merged", "data": {"a": 3}, "version": 1} | also
    reply = await shared.post(f"/v1/conflicts/{conflict_id}/resolution", decision)
    wanted = {"type": "resolved", "conflict_id": conflict_id, "version": 2, "seq": 2}
    assert (reply.status, reply.message) == (200, wanted | ({"id": "7"} if also else {}))
    assert (await shared.get("/v1/changes")).message["changes"][0]["data"] == {"a": 3}


async def test_http_heartbeat_is_acknowledged(shared: Running) -> None:
    earliest = datetime.now(UTC)
    reply = await shared.post("/v1/heartbeat", {"battery": 0.5, "network": "4g"})
    assert (reply.status, reply.message["type"], reply.message["health_score"]) == (200, "heartbeat_ack", 100)
    assert earliest <= datetime.fromisoformat(reply.message["server_time"]) <= datetime.now(UTC)
    reply = await shared.post("/v1/heartbeat", {"type": "heartbeat", "id": "4"})
    assert reply.message["id"] == "4"


async def test_http_request_replaces_no_socket(shared: Running) -> None:
    phone = await shared.device("phone")
    await phone.ask("subscribe")
    await shared.post("/v1/sync", sync())
    await shared.get("/v1/changes")
    await shared.get("/v1/conflicts")
    await shared.post("/v1/heartbeat", {})
    assert (await phone.changes())["changes"][0]["id"] == "a1"
    await phone.told("heartbeat_ack", "heartbeat")
    assert phone.unasked == []


async def test_http_sync_reaches_subscribers(shared: Running) -> None:
    tablet = await shared.device("tablet")
    await tablet.ask("subscribe")
    await shared.post("/v1/sync", sync())
    assert (await tablet.changes())["changes"][0]["device_id"] == "phone"


# -- errors -----------------------------------------------------------------------------------

NO_CONFLICT = "/v1/conflicts/none/resolution"
DECISION: Json = {"choice": "server", "version": 1}

#: The request (a path alone is a GET), the status and the code.
REFUSED: dict[str, tuple[str, bytes | Json | None, int, str]] = {
    "no JSON": ("/v1/sync", b"hello", 400, "malformed"),
    "no body": ("/v1/sync", b"", 400, "malformed"),
    "NaN": ("/v1/heartbeat", b'{"battery":NaN}', 400, "malformed"),
    "no UTF-8": ("/v1/sync", b'{"type":"sync","key":"\xff","items":[]}', 400, "malformed"),
    "nested to 33": (
        "/v1/sync",
        b'{"type":"sync","key":"k","items":' + b"[" * 32 + b"]" * 32 + b"}",
        400,
        "malformed",
    ),
    "a resolution nested to 33": (NO_CONFLICT, b'{"data":' + b"[" * 32 + b"]" * 32 + b"}", 400, "malformed"),
    "a heartbeat nested to 100,000": ("/v1/heartbeat", b"[" * 100_000, 400, "malformed"),
    "no key": ("/v1/sync", {"type": "sync", "items": []}, 422, "invalid_message"),
    "a list": ("/v1/sync", b"[]", 422, "invalid_message"),
    "another message": ("/v1/sync", {"type": "pull", "id": "1"}, 422, "invalid_message"),
    "another message to the heartbeat": ("/v1/heartbeat", {"type": "pull"}, 422, "invalid_message"),
    "an unknown message": ("/v1/sync", {"type": "nope"}, 422, "unknown_type"),
    "a clock that is none": ("/v1/sync", sync(clock="now"), 422, "invalid_message"),
    "501 items": ("/v1/sync", sync(items=[ITEM] * 501), 413, "too_large"),
    "a body over the limit": ("/v1/sync", b"x" * ((1 << 20) + 1), 413, "too_large"),
    "a limit of 0": ("/v1/changes?limit=0", None, 422, "invalid_message"),
    "a limit of 1001": ("/v1/changes?limit=1001", None, 422, "invalid_message"),
    "a limit of many digits": ("/v1/changes?limit=" + "9" * 5000, None, 422, "invalid_message"),
    "a limit that is no number": ("/v1/changes?limit=ten", None, 422, "invalid_message"),
    "a limit below nothing": ("/v1/conflicts?limit=-1", None, 422, "invalid_message"),
    "no cursor": ("/v1/changes?cursor=x", None, 422, "invalid_message"),
    "no such conflict": (NO_CONFLICT, DECISION, 404, "not_found"),
    "a resolution without a choice": (NO_CONFLICT, {"version": 1}, 422, "invalid_message"),
    "a battery of 2": ("/v1/heartbeat", {"battery": 2}, 422, "invalid_message"),
    "no such path": ("/v1/nothing", None, 404, "not_found"),
}


async def test_http_method_that_a_path_does_not_have_is_refused_as_such(shared: Running) -> None:
    assert (await shared.get("/v1/heartbeat")).verdict == (405, "method_not_allowed")


@pytest.mark.parametrize(("path", "body", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_http_refusal_has_its_status(
    shared: Running, path: str, body: bytes | Json | None, status: int, code: str
) -> None:
    reply = await (shared.get(path) if body is None else shared.post(path, body))
    assert reply.verdict == (status, code)
    assert (reply.message["type"], reply.message["retryable"]) == ("error", False)
    assert reply.headers["Content-Type"].startswith("application/json")


async def test_http_error_repeats_the_id_where_there_is_one(shared: Running) -> None:
    for body, own_id in ((sync(key="", id="7"), "7"), (sync(key=""), None), (sync(key="", id=7), None)):
        assert (await shared.post("/v1/sync", body)).message.get("id") == own_id
    assert (await shared.post(NO_CONFLICT, DECISION | {"id": "8"})).message["id"] == "8"
    assert "id" not in (await shared.post(NO_CONFLICT, DECISION)).message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/sync", sync()),
        ("/v1/changes", None),
        ("/v1/conflicts", None),
        (NO_CONFLICT, DECISION),
        ("/v1/heartbeat", {}),
    ],
)
async def test_http_every_path_needs_a_token(shared: Running, path: str, body: Json | None) -> None:
    async def verdict(**options: Any) -> tuple[int, str]:
        reply = await (shared.get(path, **options) if body is None else shared.post(path, body, **options))
        return reply.verdict

    assert await verdict(headers={"Authorization": ""}) == (401, "unauthenticated")
    assert await verdict(role="viewer") == (403, "forbidden")
    assert await verdict(headers={"Origin": "https://elsewhere.example"}) == (403, "forbidden")
    assert await verdict(tenant="nobody") == (403, "forbidden")
    in_url = {"params": {"token": shared.token(), "access_token": shared.token()}}
    assert await verdict(headers={"Authorization": ""}, **in_url) == (401, "unauthenticated")


async def test_http_key_reused_is_409(shared: Running) -> None:
    await shared.post("/v1/sync", sync())
    reply = await shared.post("/v1/sync", sync(items=[]))
    assert reply.verdict == (409, "idempotency_key_reused")


async def test_http_cursor_of_another_feed_is_410(shared: Running) -> None:
    cursor = (await shared.get("/v1/changes", params={"domains": "task"})).message["cursor"]
    reply = await shared.get("/v1/changes", params={"cursor": cursor})
    assert reply.verdict == (410, "cursor_expired")


async def test_http_conflict_that_moved_on_and_one_that_is_closed(shared: Running) -> None:
    conflict_id = await opened(shared)
    await shared.post("/v1/sync", sync("k9", [item("put", "note", "n1", base=1, data={"a": 9})]), "other")
    path = f"/v1/conflicts/{conflict_id}/resolution"
    reply = await shared.post(path, DECISION)
    assert reply.verdict == (409, "conflict_stale")
    assert (reply.message["version"], reply.message["data"]) == (2, {"a": 9})
    assert (await shared.post(path, DECISION, "other")).verdict == (404, "not_found")
    assert (await shared.post(path, DECISION | {"version": 2})).status == 200
    assert (await shared.post(path, DECISION | {"choice": "client", "version": 2})).verdict == (
        409,
        "conflict_closed",
    )


async def test_http_body_of_the_limit_is_accepted(shared: Running) -> None:
    body = b'{"type":"sync","key":"k","items":[]}'
    assert (await shared.post("/v1/sync", body + b" " * ((1 << 20) - len(body)))).status == 200


# -- gzip and MessagePack ---------------------------------------------------------------------


async def test_http_request_may_be_compressed(shared: Running) -> None:
    body = gzip.compress(msgspec.json.encode(sync(items=[put(f"a{n}", None, n=n) for n in range(200)])))
    reply = await shared.post("/v1/sync", body, headers={"Content-Encoding": "gzip"})
    assert len(reply.message["results"]) == 200


BOMB = gzip.compress(b" " * 20_000_000, mtime=0)


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (BOMB, (413, "too_large")),
        (b"not gzip at all", (400, "malformed")),
        (gzip.compress(b"hello", mtime=0), (400, "malformed")),
    ],
)
async def test_http_compressed_request_that_is_wrong(
    shared: Running, body: bytes, verdict: tuple[int, str]
) -> None:
    reply = await shared.post("/v1/sync", body, headers={"Content-Encoding": "gzip"})
    assert reply.verdict == verdict


@pytest.mark.asyncio(loop_scope="function")
async def test_http_compressed_request_past_a_small_limit_is_too_large(serve: Serve) -> None:
    server = await serve(limits={"frame_bytes": 4096, "record_bytes": 3072})
    reply = await server.post("/v1/sync", gzip.compress(b" " * 50_000), headers={"Content-Encoding": "gzip"})
    assert reply.verdict == (413, "too_large")


@pytest.mark.parametrize(
    ("accepts", "large", "compressed"),
    [("gzip", True, True), ("br, gzip", True, True), ("gzip", False, False), ("identity", True, False)],
)
async def test_http_large_answer_is_compressed_for_clients_that_accept_it(
    shared: Running, accepts: str, large: bool, compressed: bool
) -> None:
    await shared.post("/v1/sync", sync(items=[put("a1", None, text="x" * (10_000 if large else 10))]))
    headers = shared.headers() | {"Accept-Encoding": accepts}
    async with shared.http.get(
        f"{shared.url}/v1/changes", headers=headers, auto_decompress=False
    ) as response:
        raw = await response.read()
    assert (response.headers.get("Content-Encoding") == "gzip") is compressed
    body = zlib.decompress(raw, 31) if compressed else raw
    assert msgspec.json.decode(body)["changes"][0]["id"] == "a1"


MSGPACK = {"Content-Type": "application/msgpack"}


async def test_http_messagepack_is_accepted_and_answered(shared: Running) -> None:
    async def posted(path: str, message: Json) -> Json:
        reply = await shared.post(path, msgspec.msgpack.encode(message), headers=MSGPACK)
        return unpacked(reply)

    conflict_id = await opened(shared)
    assert (await posted("/v1/sync", sync()))["results"][0]["status"] == "applied"
    assert (await posted("/v1/sync", sync()))["replayed"] is True
    assert (await posted("/v1/heartbeat", {}))["type"] == "heartbeat_ack"
    assert (await posted(f"/v1/conflicts/{conflict_id}/resolution", DECISION))["version"] == 2
    for path, name in (("/v1/changes", "changes"), ("/v1/conflicts", "conflicts")):
        packed = unpacked(await shared.get(path, headers={"Accept": "application/msgpack"}))
        assert packed == (await shared.get(path)).message
        assert name in packed


def unpacked(reply: Reply) -> Json:
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/msgpack")
    return msgspec.msgpack.decode(reply.body, type=Json)


async def test_http_another_kind_of_body_is_refused(shared: Running) -> None:
    reply = await shared.post("/v1/sync", sync(), headers={"Content-Type": "text/xml"})
    assert reply.verdict == (422, "invalid_message")
    assert "Content-Type" in reply.message["message"]


async def test_http_json_with_a_charset_is_json(shared: Running) -> None:
    reply = await shared.post("/v1/sync", sync(), headers={"Content-Type": "application/json; charset=utf-8"})
    assert reply.status == 200


@pytest.mark.parametrize("digits", ["1e400", "-1e400", "9" * 400 + ".0"], ids=["above", "below", "digits"])
async def test_http_resolution_with_an_infinite_number_is_refused(shared: Running, digits: str) -> None:
    """The body is decoded and encoded again, and would hold null in the number's place."""
    body = b'{"choice":"merged","version":1,"data":{"n":%b}}' % digits.encode()
    reply = await shared.post("/v1/conflicts/c/resolution", body)
    assert reply.verdict == (422, "invalid_message")
    assert "Number out of range" in reply.message["message"]
