"""Keys that are another's, guessed, alike, odd, or sent again over a revocation: each message counts once."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from tests.harness.admin import restore_device, revoke_device
from tests.harness.in_process_server import ON_SHARED, Reply
from tests.harness.ws_device import Json, put
from tests.security.arena import Arena
from tests.security.catalogue import against

pytestmark = [ON_SHARED, against("API6:2023", "V2.3")]

STORED: Final = ("records", "sync_idempotency_record", "tenant_counters")
HEADERS: Final = {"Content-Type": "application/json"}


class Attacker(NamedTuple):
    """Who sends the key of the device owner of acme."""

    device: str
    tenant: str
    role: str | None = None


OWNER: Final = Attacker("owner", "acme")
ATTACKERS: Final = {
    "another device": Attacker("phone", "acme"),
    "a supervisor": Attacker("boss", "acme", "supervisor"),
    "the device of the same name in another tenant": Attacker("owner", "globex"),
    "a device of another tenant": Attacker("phone", "globex"),
    "a supervisor of another tenant": Attacker("boss", "globex", "supervisor"),
}


async def _send(arena: Arena, key: Any, *items: Json, by: Attacker = ATTACKERS["another device"]) -> Reply:
    token = arena.running.token(by.device, by.tenant, role=by.role)
    body = msgspec.json.encode({"type": "sync", "key": key, "items": items})
    return await arena.ask("POST", "/v1/sync", token, headers=HEADERS, body=body)


# -- of another ---------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ATTACKERS.values(), ids=ATTACKERS)
@pytest.mark.parametrize("same", [True, False], ids=["the same items", "other items"])
async def test_key_of_another_device_is_as_one_of_nobody(same: bool, by: Attacker, arena: Arena) -> None:
    """Neither the answer to the other's message nor a refusal tells that there is such a key."""
    key, mine = f"{same} {by}", put(f"of the owner {same} {by}", None, n=1)
    sent = mine if same else {"domain": "nowhere", "id": "a", "op": "put"}
    owners = await _send(arena, key, mine, by=OWNER)
    async with arena.holds(*STORED, "quarantine", tenants=[by.tenant]):
        await _send(arena, f"first {key}", sent, by=by)  # from here on the same items change nothing
        theirs = await _send(arena, key, sent, by=by)
        (fresh, at_fresh), (again, at_again) = await arena.round_trips(
            lambda: _send(arena, f"fresh {time.perf_counter_ns()}", sent, by=by),
            lambda: _send(arena, key, sent, by=by),
        )
    assert theirs.status == fresh.status == 200
    assert theirs.message == fresh.message
    assert theirs.message["replayed"] is False
    assert again.message == fresh.message | {"replayed": True}
    assert at_again == at_fresh
    again = await _send(arena, key, mine, by=OWNER)
    assert again.message == owners.message | {"replayed": True}


# -- alike --------------------------------------------------------------------------------------

ALIKE: Final = {
    "case": ("a1", "A1"),
    "a space behind": ("a2", "a2 "),
    "a space before": ("a3", " a3"),
    "a line behind": ("a4", "a4\n"),
    "a NUL behind": ("a5", "a5\0"),
    "a NUL and more": ("a6", "a6\0phone"),
    "a device before": ("owner\0a7", "phone\0a7"),
    "composed and decomposed": ("\u00e9", "e\u0301"),
    "letters of two scripts": ("a9", "\u04309"),
    "nothing seen": ("a10", "a\u200b10"),
    "a wide form": ("a11", "\uff4111"),
    "a number and a text of it": ("12", "12.0"),
    "zeros before": ("13", "013"),
    "an escape and its character": ("\\u0041", "A"),
    "the end of a longer one": ("x" * 128, "x" * 127),
    "a pattern": ("%", "_"),
}


@pytest.mark.parametrize("keys", ALIKE.values(), ids=ALIKE)
async def test_keys_that_look_alike_are_two(keys: tuple[str, str], arena: Arena) -> None:
    async with arena.holds(*STORED):
        replies = [
            await _send(arena, key, put(f"alike {ascii(key)[:60]} {len(key)}", None, n=1)) for key in keys
        ]
    assert [reply.message["replayed"] for reply in replies] == [False, False]
    assert [reply.message["results"][0]["status"] for reply in replies] == ["applied", "applied"]


# -- odd ----------------------------------------------------------------------------------------

ODD: Final[dict[str, Any]] = {
    "empty": "",
    "129 characters": "k" * 129,
    "129 characters of four bytes": "\U0001f511" * 129,
    "a long one": "k" * 100_000,
    "null": None,
    "a number": 7,
    "a number with a fraction": 7.5,
    "true": True,
    "a list": ["k"],
    "an object": {"$gt": ""},
    "a list of lists": [[["k"]]],
}


@pytest.mark.parametrize("key", ODD.values(), ids=ODD)
@pytest.mark.parametrize("over", ["a socket", "HTTP"])
@against("API6:2023", "V2.2")
async def test_key_that_is_none_is_refused(over: str, key: Any, arena: Arena) -> None:
    async with arena.holds():
        if over == "HTTP":
            reply = await _send(arena, key, put("odd", None, n=1))
            assert reply.verdict == (422, "invalid_message")
            answer = reply.message
        else:
            phone = await arena.running.device("phone")
            answer = await phone.refused("sync", key=key, items=[put("odd", None, n=1)])
    assert (answer["code"], answer["retryable"]) == ("invalid_message", False)
    assert answer["message"].startswith("key: ")


BYTES: Final = {
    "no key": b'{"type":"sync","id":"1","items":[]}',
    "a lone surrogate": rb'{"type":"sync","id":"1","key":"\ud800","items":[]}',
    "half of a pair": rb'{"type":"sync","id":"1","key":"a\udc00","items":[]}',
}


@pytest.mark.parametrize("frame", BYTES.values(), ids=BYTES)
@against("API6:2023", "V2.2")
async def test_key_that_no_text_is_is_refused(frame: bytes, arena: Arena) -> None:
    phone = await arena.running.device("phone")
    async with arena.holds():
        await phone.send_frame(frame)
        answer = await phone.receive()
    assert (answer["type"], answer["id"], answer["code"]) == ("error", "1", "invalid_message")


async def test_key_in_both_members_is_the_last(arena: Arena) -> None:
    """A proxy that reads the first of two members would judge another message than the server."""
    phone = await arena.running.device("phone")
    frame = b'{"type":"sync","id":"1","key":"one","key":"two","items":[]}'
    async with arena.holds("sync_idempotency_record", "tenant_counters"):
        await phone.send_frame(frame)
        assert (await phone.receive())["replayed"] is False
        assert (await phone.ask("sync", key="two", items=[]))["replayed"] is True
        assert (await phone.ask("sync", key="one", items=[]))["replayed"] is False


# -- again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 30])
async def test_key_replayed_many_times_changes_nothing(count: int, arena: Arena) -> None:
    sent = put(f"replayed {count}", None, n=1)
    async with arena.holds(*STORED):
        first = await _send(arena, f"replayed {count}", sent)
    async with arena.holds():
        replies = await asyncio.gather(*(_send(arena, f"replayed {count}", sent) for _ in range(count)))
    for reply in replies:
        assert reply.message == first.message | {"replayed": True}


async def test_key_sent_at_once_over_sockets_and_http_counts_once(arena: Arena) -> None:
    sent = put("at once", None, n=1)
    phone = await arena.running.device("phone")
    async with arena.holds(*STORED):
        over_socket = asyncio.ensure_future(phone.ask("sync", key="at once", items=[sent]))
        replies = await asyncio.gather(*(_send(arena, "at once", sent) for _ in range(8)))
        told = [*(reply.message for reply in replies), await over_socket]
    assert sorted(one["replayed"] for one in told) == [False] + [True] * 8
    [(version,)] = arena.rows(
        "SELECT version FROM records WHERE tenant_id = %s AND id = 'at once'", arena.seeded["acme"].tenant_id
    )
    assert version == 1


@against("API2:2023", "V7.4")
async def test_key_replayed_over_a_revocation_is_refused_and_then_counts_once(arena: Arena) -> None:
    tenant, dsn = arena.running.tenant("acme"), arena.running.dsn
    by = Attacker("lost", "acme")
    sent = put("of the lost", None, n=1)
    first = await _send(arena, "lost", sent, by=by)
    assert first.message["replayed"] is False
    now_s = int(time.time())
    revoke_device(dsn, tenant, "lost")
    async with asyncio.timeout(20):
        while (await _send(arena, "lost", sent, by=by)).status == 200:  # noqa: ASYNC110  # a poll tells nobody
            await asyncio.sleep(0.05)
    async with arena.holds():
        for key in ("lost", "another"):
            assert (await _send(arena, key, sent, by=by)).verdict == (401, "unauthenticated")
    restore_device(dsn, tenant, "lost")
    newer = arena.running.token("lost", iat=now_s + 60)
    body = msgspec.json.encode({"type": "sync", "key": "lost", "items": [sent]})

    async def again() -> Reply:
        return await arena.ask("POST", "/v1/sync", newer, headers=HEADERS, body=body)

    async with asyncio.timeout(20):
        while (await again()).status == 401:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.05)
    async with arena.holds():
        assert (await again()).message == first.message | {"replayed": True}
        assert (await _send(arena, "lost", sent, by=by)).verdict == (401, "unauthenticated")
