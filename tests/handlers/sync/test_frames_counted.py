"""Every frame and every inflated byte counts for its device's rate; a device that held the loop is named."""

from __future__ import annotations

import gzip
import zlib

import msgspec
import pytest
from structlog.testing import capture_logs

from engine.cache.device_health import Device, DeviceKey
from engine.runtime.loop_scheduler import LoopScheduler
from engine.runtime.loop_share import LoopShares
from engine.runtime.rate_limit import COUNTED_BYTES, TokenBucket
from handlers.http.loop import charges
from handlers.http.loop.charges import LoopCharges
from handlers.http.loop.watch import HELD_S, LoopWatch
from handlers.sync import frames
from handlers.sync.frames import FRAGMENTS
from tests.contract.test_frames_masked import HANDSHAKE, PONG, TEXT, closed, shaken
from tests.harness.in_process_server import Running, Serve
from tests.harness.raw_http import frame, wired

pytestmark = pytest.mark.asyncio(loop_scope="function")

RATE = 40
#: So few that the rate is used up with a handful of frames.
FEW = {"limits": {"messages_per_minute": RATE}}
#: What may come past the rate before the connection is closed.
IGNORED = 100
EMPTY = b"\x00\x80\0\0\0\0"
LARGE = msgspec.json.encode({"type": "heartbeat", "id": "1", "more": "a" * (12 * COUNTED_BYTES)})


def _deflated(message: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-15)
    body = deflate.compress(message) + deflate.flush(zlib.Z_SYNC_FLUSH)
    plain = frame(TEXT, body.removesuffix(b"\x00\x00\xff\xff"))
    return bytes([plain[0] | 0x40]) + plain[1:]


@pytest.mark.parametrize(
    "said",
    [
        frame(PONG, b"") * (RATE + IGNORED + 2),
        b"\x01" + EMPTY[1:] + EMPTY * FRAGMENTS * (RATE + IGNORED + 2),
    ],
    ids=["pongs", "empty continuations"],
)
async def test_rate_of_frames_without_messages_closes_4429(said: bytes, serve: Serve) -> None:
    server = await serve(**FEW)
    async with wired(server.url) as wire:
        assert (await shaken(wire, HANDSHAKE | server.headers())).status == 101
        await wire.send(said)
        messages, code = await closed(wire)
    assert (code, [one["type"] for one in messages]) == (4429, ["welcome"])


async def test_rate_of_deflated_frames_counts_their_inflated_bytes(serve: Serve) -> None:
    server = await serve(**FEW)
    sent = _deflated(LARGE)
    assert len(sent) < 2048
    async with wired(server.url) as wire:
        deflate = "Sec-WebSocket-Extensions: permessage-deflate"
        assert (await shaken(wire, HANDSHAKE | server.headers(), deflate)).status == 101
        await wire.send(sent * 6 + frame(8, b"\x03\xe8"))
        messages, _ = await closed(wire)
    types = [one["type"] for one in messages]
    assert types[:2] == ["welcome", "heartbeat_ack"]
    assert types.count("heartbeat_ack") <= 4, "a slow machine charges the time of some besides"
    assert {one["code"] for one in messages if one["type"] == "error"} == {"rate_limited"}


async def test_rate_of_deflated_bodies_counts_their_inflated_bytes(serve: Serve) -> None:
    server = await serve(**FEW)
    coding = {"Content-Encoding": "gzip"}
    body = gzip.compress(LARGE)
    statuses = [(await server.post("/v1/heartbeat", body, headers=coding)).status for _ in range(5)]
    assert (statuses[0], statuses[-1]) == (200, 429)


async def test_charge_message_that_held_the_loop_is_logged_with_its_device(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "_PORTION_S", 0.0)
    monkeypatch.setattr(charges, "HELD_S", 0.0)
    with capture_logs() as logs:
        phone = await server.device("phone")
        await phone.ask("heartbeat")
        await server.post("/v1/heartbeat", {"id": "1"}, device="tablet")
    held = [(one["device_id"], one["kind"]) for one in logs if one["event"] == "loop_held"]
    assert ("phone", "heartbeat") in held
    assert ("tablet", "POST /v1/heartbeat") in held
    assert all(one["tenant_id"] for one in logs if one["event"] == "loop_held")


async def test_charge_push_that_was_long_in_planning_is_logged_with_its_device() -> None:
    device = Device(key=DeviceKey(7, "phone"), bucket=TokenBucket(100.0, 0.0), changed=[])
    with capture_logs() as logs:
        for spent_s in (HELD_S, HELD_S + 0.1):
            _charges().charge_planning(device, spent_s)
    assert [(one["tenant_id"], one["device_id"], one["kind"], one["held_ms"]) for one in logs] == [
        (7, "phone", "planning", 200)
    ]


def _charges() -> LoopCharges:
    shares, clock = LoopShares(), _Clock()
    return LoopCharges(shares, LoopScheduler(shares, clock), LoopWatch(clock), clock)


async def test_loop_watch_delay_is_a_metric(server: Running) -> None:
    page = (await server.get("/metrics")).body.decode()
    assert 'tidemark_loop_delay_seconds_bucket{le="0.1"}' in page
    assert "tidemark_loop_delay_longest_seconds " in page
    assert "tidemark_loop_charged_seconds_total " in page


class _Clock:
    def now_us(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return 0.0


async def test_loop_watch_counts_delays_and_logs_those_without_a_known_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("handlers.http.loop.watch._UNKNOWN_S", 1.0)
    watch = LoopWatch(_Clock())
    with capture_logs() as logs:
        watch.ticked(0.001)
        watch.log_held(0.3, 1, "phone", "sync")
        watch.ticked(0.3)
        watch.ticked(HELD_S + 0.1)
        watch.ticked(1.2)
        watch.ticked(-0.01)
    assert [(one["device_id"], one["kind"], one["held_ms"]) for one in logs] == [
        ("phone", "sync", 300),
        (None, "unknown", 1200),
    ]
    assert sum(watch.delays) == 5
    assert watch.delay_sum_s == pytest.approx(1.701)
    assert (watch.take_longest_s(), watch.take_longest_s()) == (1.2, 0.0)
