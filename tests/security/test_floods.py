"""Floods: each is refused with a typed answer, and leaves no descriptor, thread, task, row or file behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import pytest_asyncio

from storage.embedded.servers import Services
from tests.contract.test_frames_masked import HANDSHAKE, closed, shaken
from tests.harness.in_process_server import ON_SHARED, SHARED, Running, start_server
from tests.harness.postgres_stalls import until
from tests.harness.raw_http import Wire, frame, wired
from tests.harness.services import deployed
from tests.harness.ws_device import Json, day, item, put
from tests.security.arena import Arena
from tests.security.catalogue import against

pytestmark = [ON_SHARED, against("API4:2023", "V2.4")]

TEXT, PING, PONG, CONTINUATION = 1, 9, 10, 0
#: Bounds that a flood of a few messages meets.
NARROW: Final[Json] = {
    "server": {
        **SHARED["server"],
        "address_connections": 8,
        "head_s": 0.2,
        "body_s": 0.2,
        "write_patience_s": 0.3,
    },
    "limits": {"messages_per_minute": 300, "open_requests": 8, "waiting_bytes": 16 << 20},
    "uploads": {"open_per_device": 5, "files_per_record": 3},
    "tenant_limits": {
        "record_rows": 150,
        "conflict_rows": 20,
        "quarantine_rows": 20,
        "event_rows": 20,
        "future_event_rows": 10,
    },
}


#: Connections to the database, and threads, that come and go beside a flood. A flood of connections has more
#: than these, and one of a single socket is seen in ``connections``.
_SLACK: Final = 6


class Held(NamedTuple):
    """What this process holds, server and clients together."""

    descriptors: int
    threads: int
    tasks: int
    files: int
    connections: float
    subscriptions: float
    partial_bytes: float

    def exceed(self, before: Held) -> list[str]:
        """Return what grew."""
        slack = {"descriptors": _SLACK, "threads": _SLACK, "tasks": _SLACK}
        figures = zip(self._fields, self, before, strict=True)
        return [name for name, now, then in figures if now > then + slack.get(name, 0)]


class Pond:
    """A server with narrow bounds on the arena's database, and where its files are."""

    def __init__(self, arena: Arena, running: Running, files: Path) -> None:
        self.arena = arena
        self.running = running
        self.url = running.url
        self._files = files
        self._numbers = iter(range(1_000_000))

    def name(self) -> str:
        """A device that no flood used before."""
        return f"flood-{next(self._numbers)}"

    async def held(self) -> Held:
        """Count what is held."""
        gc.collect()
        async with wired(self.url) as wire:
            page = (await wire.ask("GET", "/metrics", {"Connection": "close"})).body.decode()
        await asyncio.sleep(0)
        figures = dict(line.rsplit(" ", 1) for line in page.splitlines() if line[0] != "#")
        return Held(
            len(list(Path("/proc/self/fd").iterdir())),
            threading.active_count(),
            len(asyncio.all_tasks()),
            sum(len(files) for _, _, files in os.walk(self._files)),
            *(
                float(figures[f"tidemark_{name}"])
                for name in ("connections", "subscriptions", "partial_bytes")
            ),
        )

    @asynccontextmanager
    async def calm(self, *changing: str, tenant: str = "acme") -> AsyncIterator[None]:
        """Check that after a flood all is as before, and that another device syncs on."""
        before = await self.held()
        async with self.arena.holds(*changing, tenants=(tenant,)):
            yield

        async def is_calm() -> bool:
            after = await self.held()
            return after.exceed(before) == []

        try:
            async with asyncio.timeout(10):
                await until(is_calm)
        except TimeoutError:
            assert (await self.held()).exceed(before) == []

    @asynccontextmanager
    async def socket(self, device: str) -> AsyncIterator[Wire]:
        """Open a socket by hand."""
        async with wired(self.url) as wire:
            assert (await shaken(wire, HANDSHAKE | self.running.headers(device))).status == 101
            yield wire


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pond(
    arena: Arena, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pond]:
    """A second server beside the arena's, for the arena's tenants."""
    home = tmp_path_factory.mktemp("floods")
    async with AsyncExitStack() as stack:
        sections = SHARED | NARROW | {"data": {"dir": str(home)}}
        at = deployed(arena.running.dsn, services.redis_url)
        one = await start_server(at, stack, sections)
        yield Pond(arena, Running(one.dsn, one.url, one.task, stack, arena.running.suffix), home)


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
    async with pond.calm(), AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(pond.url)) for _ in range(8)]
        for wire in wires:
            await wire.send(sent)
        answers = await asyncio.gather(*(wire.answer() for wire in wires))
        assert [answer.verdict for answer in answers] == [verdict] * 8


#: Headers of a body that does not come whole.
BODIES: Final[dict[str, dict[str, str]]] = {
    "of a known length": {"Content-Length": "100"},
    "in chunks": {"Transfer-Encoding": "chunked"},
    "compressed": {"Content-Length": "100", "Content-Encoding": "gzip"},
}


@pytest.mark.parametrize("case", BODIES)
async def test_flood_of_slow_bodies_is_bounded_and_ended(case: str, pond: Pond) -> None:
    device = pond.name()
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
    async with pond.calm("devices"):
        async with pond.socket(pond.name()) as wire:
            sending = asyncio.create_task(wire.send(sent * 600))
            messages, told = await closed(wire)
            await asyncio.gather(sending, return_exceptions=True)
        assert told == code
        codes = {one.get("code") for one in messages if one["type"] == "error"}
        assert codes <= {"rate_limited", "malformed", "unknown_type", "invalid_message"}


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
