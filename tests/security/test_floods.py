"""Floods: each is refused with a typed answer, and leaves no descriptor, thread, task, row or file behind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

import pytest

from tests.contract.test_frames_masked import HANDSHAKE, closed
from tests.harness.in_process_server import ON_SHARED
from tests.harness.raw_http import frame, wired
from tests.harness.ws_device import Json, day, item, put
from tests.security.catalogue import against
from tests.security.pond import NARROW, Pond

pytestmark = [ON_SHARED, against("API4:2023", "V2.4")]

TEXT, PING, PONG, CONTINUATION = 1, 9, 10, 0


# -- without a token --------------------------------------------------------------------------


async def test_flood_of_half_open_connections_is_refused_by_address(pond: Pond) -> None:
    async with pond.calm(), AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(pond.url, local="127.0.0.66")) for _ in range(8 + 12)]
        answers = [asyncio.create_task(wire.answer()) for wire in wires]
        done = await asyncio.gather(*answers, return_exceptions=True)
        refused = [one.verdict for one in done if not isinstance(one, BaseException)]
        assert refused == [(503, "overloaded")] * 12
        assert sum(isinstance(one, asyncio.IncompleteReadError | ConnectionError) for one in done) == 8


#: What never ends -> how it is answered.
SLOW: Final[dict[str, tuple[bytes, tuple[int, str]]]] = {
    "a request line": (b"GET /v1/ch", (408, "unavailable")),
    "headers": (b"POST /v1/sync HTTP/1.1\r\nHost: a\r\nX: ", (408, "unavailable")),
    "a handshake": (b"GET /v1/sync HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n", (408, "unavailable")),
    "headers without an end": (
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"a" * 30_000 + b"\r\nY: " + b"a" * 30_000 + b"\r\nZ: "
        b"" + b"a" * 6000,
        (413, "too_large"),
    ),
}


@pytest.mark.parametrize("case", SLOW)
async def test_flood_of_slow_headers_is_ended(case: str, pond: Pond) -> None:
    sent, verdict = SLOW[case]
    since = await pond.counted()
    async with pond.calm(), AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(pond.url)) for _ in range(8)]
        for wire in wires:
            await wire.send(sent)
        answers = await asyncio.gather(*(wire.answer() for wire in wires))
        assert [answer.verdict for answer in answers] == [verdict] * 8
    assert await since("heads_refused" if verdict[0] == 413 else "headers_late") == 8


#: Headers of a body that does not come whole.
BODIES: Final[dict[str, dict[str, str]]] = {
    "of a known length": {"Content-Length": "100"},
    "in chunks": {"Transfer-Encoding": "chunked"},
    "compressed": {"Content-Length": "100", "Content-Encoding": "gzip"},
}


@pytest.mark.parametrize("case", BODIES)
async def test_flood_of_slow_bodies_is_bounded_and_ended(case: str, pond: Pond) -> None:
    device = pond.name()
    since = await pond.counted()
    headers = {"Content-Type": "application/json"} | pond.running.headers(device) | BODIES[case]
    async with pond.calm(), AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(pond.url)) for _ in range(12)]
        for wire in wires:
            await wire.head("POST", "/v1/sync", headers)
            await wire.send(b"1\r\n{\r\n" if case == "in chunks" else b"{")
        answers = await asyncio.gather(*(wire.answer() for wire in wires))
        verdicts = [answer.verdict for answer in answers]
        assert verdicts.count((429, "rate_limited")) == 4
        assert verdicts.count((503, "unavailable")) == 8
    assert (await since("rate_limited"), await since("body_late")) == (4, 8)


# -- with a token -----------------------------------------------------------------------------


async def test_flood_of_handshakes_is_refused_by_device(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.commit.admission.HANDSHAKES_PER_MINUTE", 5)
    headers = HANDSHAKE | pond.running.headers(pond.name())
    async with pond.calm("devices"):
        for number in range(8):
            async with wired(pond.url) as wire:
                await wire.head("GET", "/v1/sync", headers)
                if number < 5:
                    assert (await wire.interim()).status == 101
                else:
                    answer = await wire.answer()
                    assert answer.verdict == (429, "rate_limited")
                    assert int(answer.headers["Retry-After"]) >= 1


#: Frames past the rate, or that count as nothing -> the close code.
FRAMES: Final[dict[str, tuple[bytes, int]]] = {
    "heartbeats": (frame(TEXT, b'{"type":"heartbeat","id":"1"}'), 4429),
    "unknown messages": (frame(TEXT, b'{"type":"nope","id":"1"}'), 4429),
    "pings": (frame(PING, b"x" * 125), 4429),
    "pongs": (frame(PONG, b""), 4429),
    "malformed messages": (frame(TEXT, b"{"), 4400),
    "messages of nothing": (frame(TEXT, b""), 4400),
    "messages that are no object": (frame(TEXT, b"[]"), 4429),
    "the other encoding": (frame(2, b"\x80"), 4400),
    "texts that are not UTF-8": (frame(TEXT, b"\xff"), 1007),
    "a new message within a message": (frame(TEXT, b"{", final=False), 1002),
    "the rest of no message": (frame(CONTINUATION, b"{"), 1002),
    "pings past their size": (frame(PING, b"x" * 126), 1002),
    "pings in pieces": (frame(PING, b"", final=False), 1002),
    "an opcode that is none": (frame(3, b""), 1002),
    "a reserved bit": (bytes([0xB1, 0x80, 0, 0, 0, 0]), 1002),
    "a length past 63 bits": (bytes([0x81, 0xFF]) + b"\xff" * 8 + bytes(4), 1009),
    "a length past the limit": (bytes([0x81, 0xFF]) + (1 << 40).to_bytes(8, "big") + bytes(4), 1009),
    "frames without a mask": (frame(TEXT, b"{}", masked=False), 1002),
}


@pytest.mark.parametrize("case", FRAMES)
async def test_flood_of_frames_closes_the_socket(case: str, pond: Pond) -> None:
    sent, code = FRAMES[case]
    since = await pond.counted()
    async with pond.calm("devices"):
        async with pond.socket(pond.name()) as wire:
            sending = asyncio.create_task(wire.send(sent * 600))
            messages, told = await closed(wire)
            await asyncio.gather(sending, return_exceptions=True)
        assert told == code
        codes = {one.get("code") for one in messages if one["type"] == "error"}
        assert codes <= {"rate_limited", "malformed", "unknown_type", "invalid_message"}
    assert await since("socket_closed") == 1
    assert await since("rate_limited") == (code == 4429)


async def test_flood_of_empty_fragments_counts_as_messages(pond: Pond) -> None:
    async with pond.calm("devices"), pond.socket(pond.name()) as wire:
        pieces = frame(TEXT, b"", final=False) + frame(CONTINUATION, b"", final=False) * 20_000
        sending = asyncio.create_task(wire.send(pieces))
        _, code = await closed(wire)
        await asyncio.gather(sending, return_exceptions=True)
        assert code == 4429


async def test_flood_of_subscriptions_is_refused_and_gone_with_its_socket(pond: Pond) -> None:
    async with pond.calm("devices"):
        phone = await pond.running.device(pond.name())
        for number in range(40):
            await phone.send({"type": "subscribe", "id": f"s{number}"})
        answers = [await phone.receive() for _ in range(40)]
        codes = [one["code"] for one in answers if one["type"] == "error"]
        assert codes == ["too_large"] * 8
        await phone.socket.close()


async def test_flood_of_pulls_from_the_beginning_is_bounded_by_device(pond: Pond) -> None:
    headers = pond.running.headers(pond.name())
    async with pond.calm(), AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(pond.url)) for _ in range(20)]
        for wire in wires:
            await wire.head("GET", "/v1/changes?limit=1000", headers)
        answers = await asyncio.gather(*(wire.answer() for wire in wires))
        told = {answer.status for answer in answers}
        assert told <= {200, 429}
        for answer in answers:
            assert answer.status == 200 or answer.verdict == (429, "rate_limited")


async def test_flood_of_devices_stops_at_the_bound_of_its_tenant(pond: Pond) -> None:
    """Only a backend that signs tokens of the tenant can try it."""
    tenant, bound = pond.arena.seeded["globex"].tenant_id, NARROW["tenant_limits"]["device_rows"]
    pond.arena.rows(
        "INSERT INTO devices (tenant_id, device_id) SELECT s.tenant_id, 'filler-' || n"
        " FROM tenant_storage AS s, generate_series(1, %s - 3 - s.device_rows) AS n"
        " WHERE s.tenant_id = %s RETURNING 1",
        bound,
        tenant,
    )
    known = "SELECT count(*)::int FROM devices WHERE tenant_id = %s"
    try:
        async with pond.calm("devices", tenant="globex"):
            verdicts = []
            for _ in range(6):
                async with wired(pond.url) as wire:
                    await wire.head("GET", "/v1/changes", pond.running.headers(pond.name(), "globex"))
                    answer = await wire.answer()
                    verdicts.append(answer.verdict if answer.status != 200 else 200)
            assert verdicts == [200] * 3 + [(507, "insufficient_storage")] * 3
            async with wired(pond.url) as wire:
                await wire.head("GET", "/v1/sync", HANDSHAKE | pond.running.headers(pond.name(), "globex"))
                assert (await wire.answer()).verdict == (507, "insufficient_storage")
            async with wired(pond.url) as wire:
                await wire.head("GET", "/v1/changes", pond.running.headers("owner", "globex"))
                assert (await wire.answer()).status == 200
        assert pond.arena.rows(known, tenant) == [(bound,)]
    finally:
        pond.arena.rows(
            "DELETE FROM devices WHERE tenant_id = %s AND device_id LIKE 'filler-%%' RETURNING 1", tenant
        )


# -- rows -------------------------------------------------------------------------------------


def _rows(kind: str, number: int) -> Json:
    made: Mapping[str, Json] = {
        "record": put(f"flood-{number}", None),
        "quarantine": put("", None),
        "event": item(
            "append",
            "metrics",
            f"e{number}",
            at=day(1),
            data={"metric_name": "m", "value": 1, "timestamp": day(1)},
        ),
        "future_event": item(
            "append",
            "metrics",
            f"f{number}",
            at="2090-01-01T00:00:00Z",
            data={"metric_name": "m", "value": 1, "timestamp": day(1)},
        ),
        "conflict": item("put", "note", "n1", base=None, data={"n": number}),
    }
    return made[kind]


#: Kind of row -> the tables that a flood adds to, up to its bound.
KINDS: Final = {
    "record": ("records",),
    "quarantine": ("quarantine",),
    "event": ("events",),
    "future_event": ("events",),
    "conflict": ("conflict_resolution_log",),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_flood_of_rows_stops_at_the_bound_of_its_tenant(kind: str, pond: Pond) -> None:
    bound = NARROW["tenant_limits"][f"{kind}_rows"]
    tenant = "globex" if kind == "future_event" else "acme"  # the other events have a bound, too
    tables = (*KINDS[kind], "sync_idempotency_record", "tenant_counters", "devices")
    async with pond.calm(*tables, tenant=tenant):
        codes: list[str] = []
        for batch in range(bound // 5 + 5):
            phone = await pond.running.device(pond.name(), tenant)
            items = [_rows(kind, 10 * batch + number) for number in range(10)]
            answer = await phone.ask("sync", key=f"{kind}-{batch}", items=items)
            codes.append(answer.get("code", "stored"))
            await phone.socket.close()
        assert "insufficient_storage" in codes
        assert set(codes) == {"stored", "insufficient_storage"}
        refusal = codes.index("insufficient_storage")
        assert set(codes[refusal:]) == {"insufficient_storage"}, "a full tenant takes no more"
    [(held,)] = pond.arena.rows(
        f"SELECT {kind}_rows FROM tenant_counters WHERE tenant_id = %s",
        pond.arena.seeded[tenant].tenant_id,
    )
    assert held <= bound
