"""Each refused attack leaves its event and its counter, and a flood of them fills neither log nor memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import pytest
from aiohttp import WSMsgType
from structlog.testing import capture_logs

from tests.contract.test_frames_masked import HANDSHAKE
from tests.harness.in_process_server import ON_SHARED
from tests.harness.postgres_stalls import until
from tests.harness.raw_http import frame, wired
from tests.harness.ws_device import token
from tests.security.arena import Arena
from tests.security.catalogue import against

pytestmark = [ON_SHARED, against("A09:2025", "V16.3")]

Attack = Callable[[Arena], Awaitable[None]]


def _asks(path: str, method: str = "GET", **headers: str) -> Attack:
    async def attack(arena: Arena) -> None:
        async with wired(arena.url) as wire:
            await wire.ask(method, path, headers)

    return attack


def _asks_signed(
    path: str, *, device: str | None = "watched", role: str | None = None, **headers: str
) -> Attack:
    async def attack(arena: Arena) -> None:
        signed = arena.running.token(device, role=role)
        async with wired(arena.url) as wire:
            await wire.ask("GET", path, {"Authorization": f"Bearer {signed}", **headers})

    return attack


def _says(*frames: tuple[bytes, WSMsgType]) -> Attack:
    async def attack(arena: Arena) -> None:
        phone = await arena.running.device("watched")
        for sent, kind in frames:
            await phone.send_frame(sent, kind)
        await phone.closed()

    return attack


def _sends(sent: bytes) -> Attack:
    async def attack(arena: Arena) -> None:
        async with wired(arena.url) as wire:
            await wire.send(sent)
            await wire.rest()

    return attack


async def _unmasked(arena: Arena) -> None:
    async with wired(arena.url) as wire:
        await wire.head("GET", "/v1/sync", HANDSHAKE | arena.running.headers("watched"))
        await wire.interim()
        await wire.send(frame(1, b"{}", masked=False))
        await wire.rest()


def _event(name: str) -> str:
    return f'tidemark_security_events_total{{event="{name}"}}'


def _error(code: str) -> str:
    return f'tidemark_errors_total{{code="{code}"}}'


def _close(code: int) -> str:
    return f'tidemark_closes_total{{code="{code}"}}'


_REFUSED, _FORBIDDEN, _CLOSED, _HEADS = map(
    _event, ("token_refused", "access_forbidden", "socket_closed", "heads_refused")
)
_MALFORMED: Final = (b"{", WSMsgType.TEXT)
#: Attack -> the counters that it raises by one or more.
ATTACKS: Final[dict[str, tuple[Attack, tuple[str, ...]]]] = {
    "no token": (_asks("/v1/changes"), (_REFUSED, _error("unauthenticated"))),
    "a wrong token": (_asks("/v1/changes", Authorization="Bearer a.b.c"), (_REFUSED,)),
    "a long token": (_asks("/v1/changes", Authorization="Bearer " + "a" * 9000), (_REFUSED,)),
    "an expired token": (_asks("/v1/changes", Authorization=f"Bearer {token(exp=1)}"), (_REFUSED,)),
    "another audience": (_asks("/v1/changes", Authorization=f"Bearer {token(aud='x')}"), (_REFUSED,)),
    "another scheme": (_asks("/v1/changes", Authorization="Basic YTpi"), (_REFUSED,)),
    "a file without a token": (_asks("/v1/files/" + "0" * 32), (_REFUSED,)),
    "an upload without a token": (
        _asks("/v1/uploads/" + "0" * 32, "HEAD", **{"Tus-Resumable": "1.0.0"}),
        (_REFUSED,),
    ),
    "a handshake without a token": (
        _asks("/v1/sync", **HANDSHAKE),
        (_REFUSED, 'tidemark_handshakes_refused_total{code="unauthenticated"}'),
    ),
    "metrics from elsewhere": (_asks("/metrics", **{"X-Forwarded-For": "192.0.2.1"}), (_REFUSED,)),
    "metrics by another name": (_asks("/metrics", Host="evil.example"), (_REFUSED,)),
    "health without a token": (_asks("/v1/admin/health"), (_REFUSED,)),
    "health as a device": (_asks_signed("/v1/admin/health"), (_FORBIDDEN, _error("forbidden"))),
    "metrics as a device": (_asks_signed("/metrics", Via="1.1 a"), (_FORBIDDEN,)),
    "changes as an operator": (_asks_signed("/v1/changes", device=None, role="operator"), (_FORBIDDEN,)),
    "a page of another origin": (
        _asks_signed("/v1/changes", Origin="https://evil.example"),
        (_FORBIDDEN, _error("forbidden")),
    ),
    "a socket of another origin": (
        _asks_signed("/v1/sync", Origin="https://evil.example", **HANDSHAKE),
        (_FORBIDDEN, 'tidemark_handshakes_refused_total{code="forbidden"}'),
    ),
    "a frame of the wrong kind": (_says((b"{}", WSMsgType.BINARY)), (_CLOSED, _close(4400))),
    "ten malformed messages": (_says(*[_MALFORMED] * 10), (_CLOSED, _close(4400), _error("malformed"))),
    "a text that is not UTF-8": (_says((b"\xff", WSMsgType.TEXT)), (_CLOSED, _close(1007))),
    "a message past the limit": (
        _says((b" " * ((1 << 20) + 1), WSMsgType.TEXT)),
        (_CLOSED, _close(1009)),
    ),
    "a frame without a mask": (_unmasked, (_CLOSED, _close(1002))),
    "bytes that are no HTTP": (_sends(b"\x16\x03\x01\r\n\r\n"), (_HEADS, "tidemark_heads_refused_total")),
    "two lengths": (
        _sends(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        (_HEADS,),
    ),
    "headers past the limit": (
        _sends(b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"a" * 30_000 + b"\r\n") * 3),
        (_HEADS, "tidemark_heads_refused_total"),
    ),
}


@pytest.mark.parametrize("case", ATTACKS)
async def test_monitoring_refused_attack_is_counted_with_its_event(case: str, arena: Arena) -> None:
    attack, counters = ATTACKS[case]
    before = await arena.counted()
    async with arena.holds("devices"):
        await attack(arena)

    async def are_counted() -> bool:
        after = await arena.counted()
        return all(after[name] > before[name] for name in counters)

    await until(are_counted)  # a socket is counted when it has ended


#: Attacks that cost their sender next to nothing.
FLOODS: Final = (
    "no token",
    "a wrong token",
    "a handshake without a token",
    "health as a device",
    "a page of another origin",
    "bytes that are no HTTP",
    "headers past the limit",
)


@against("A09:2025", "V16.4")
@pytest.mark.parametrize("case", FLOODS)
async def test_monitoring_flood_of_an_attack_writes_few_lines_and_counts_all(case: str, arena: Arena) -> None:
    attack, counters = ATTACKS[case]
    before = await arena.counted()
    async with arena.holds():
        with capture_logs() as lines:
            for _ in range(5):
                await asyncio.gather(*(attack(arena) for _ in range(20)))
    after = await arena.counted()
    assert after[counters[0]] >= before[counters[0]] + 100
    assert len(lines) <= 61, "a line a second at most, and those of a minute at once"
    assert "a.b.c" not in str(lines), "a token stands in no line"
