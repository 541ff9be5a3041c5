"""A connection with a fake socket: what is refused undecoded, what closes it, when it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from engine.cache.device_health import Device, DeviceKey
from engine.cache.devices import DeviceCache
from engine.commit.admission import ACCEPT, Admission, Overloaded, RateLimited, Verdict
from engine.commit.committer import Committer
from engine.commit.overload import overloaded
from engine.commit.validation import MessageValidator, Session
from engine.model.domains import Domain, Domains
from engine.model.tenants import Tenant
from engine.plan.work import Outcome, Push, PushAnswer
from engine.runtime.loop_scheduler import LARGE_BYTES, LoopScheduler
from engine.runtime.loop_share import LoopShares
from engine.runtime.rate_limit import COUNTED_BYTES, TokenBucket
from engine.wire.close_codes import CloseCode
from engine.wire.errors import SyncError
from handlers.http.counters import Traffic
from handlers.http.loop.charges import LoopCharges
from handlers.http.loop.watch import LoopWatch
from handlers.sync.connection import MAX_IN_FLIGHT, MAX_MALFORMED, MAX_RATE_IGNORED, MAX_READS, Connection
from handlers.sync.connections import Connections
from handlers.sync.device_socket import DeviceSocket
from handlers.sync.operations import Operations
from handlers.sync.push_counts import PushCounts
from handlers.sync.pushes import Pushes
from handlers.sync.reads import Reads
from tests.engine.cache.test_minutes import counted_minutes

RETRY_MS = 700


class _Clock:
    now_s = 100.0

    def now_us(self) -> int:
        return round(self.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self.now_s


class _Socket:
    """A device's socket that notes what the connection does with it."""

    def __init__(self) -> None:
        self.session = Session(
            tenant=Tenant(1, "acme"), device_id="phone", session_id="s", retries_over=False
        )
        self.key = (1, "phone")
        self.closing = self.ignoring = self.ended = False
        self.sent: list[dict[str, Any]] = []
        self.pongs: list[bytes] = []
        self.closed: tuple[int, str] | None = None
        self.frames = self.outbox = self
        self.full = False
        self.began_s = 100.0
        self.reads_again = 0
        self.partial_bytes = 0

    def say(self, body: bytes) -> None:
        self.sent.append(msgspec.json.decode(body))

    def fail(self, error: SyncError, request_id: str | None) -> None:
        self.sent.append({"id": request_id, "code": error.code} | error.details)

    def pong(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def close(self, code: int, reason: str) -> None:
        self.closing = self.ignoring = True
        self.closed = (code, reason)

    def end(self) -> None:
        self.ended = True

    def go_on(self) -> None:
        self.reads_again += 1

    def on_partial(self, before_bytes: int, after_bytes: int) -> bool:
        self.partial_bytes += after_bytes - before_bytes
        return True


class _World:
    """A connection, and fakes of all that it is given."""

    def __init__(self) -> None:
        self.clock = _Clock()
        self.minutes = counted_minutes()
        self.socket = _Socket()
        self.device = Device(key=DeviceKey(1, "phone"), bucket=TokenBucket(1000.0, 0.0), changed=[])
        self.verdict: Verdict = ACCEPT
        self.kinds: list[str] = []
        self.refusals: list[str] = []
        self.limited = 0
        self.submitted: list[tuple[Push, Callable[[Outcome], None]]] = []
        self.is_full = False
        self.began: list[str] = []
        self.count = 0
        self.resumed = self.reads_ended = 0
        self.steps: list[Any] = []
        shares = LoopShares()
        turns = LoopScheduler(shares, self.clock)
        patched: Any = turns
        patched.handle = lambda _, steps, charge: self.steps.append((steps, charge))
        me = cast(Any, self)
        self.loop = LoopCharges(shares, turns, LoopWatch(self.clock), self.clock)
        pushes = Pushes(
            cast(DeviceSocket, self.socket),
            self.device,
            validator=MessageValidator(Domains({"task": Domain()}), 100),
            committer=cast(Committer, self),
            counts=PushCounts(cast(DeviceCache, self), self.minutes, Traffic(), self.clock),
            loop=self.loop,
            clock=self.clock,
        )
        self.pushes = pushes
        self.connection = Connection(
            cast(DeviceSocket, self.socket),
            self.device,
            pushes,
            cast(Reads, self),
            connections=cast(Connections, self),
            admission=cast(Admission, self),
            loop=self.loop,
            operations=cast(Operations, me),
            asked_at_s=99.0,
        )

    # -- as the admission, the connections, the committer, the devices, the operations --

    def admit(self, kind: str, tenant_id: int, device: Device, now_s: float) -> Verdict:
        assert (tenant_id, device, now_s) == (1, self.device, self.clock.now_s)
        self.kinds.append(kind)
        return self.verdict

    def note_limited(self, session: Session) -> None:
        assert session is self.socket.session
        self.limited += 1

    def count_refusal(self, cause: str) -> None:
        self.refusals.append(cause)

    def refuse_soon(self, socket: _Socket, error: SyncError, request_id: str | None) -> None:
        socket.fail(error, request_id)

    def submit(self, push: Push, reply: Callable[[Outcome], None], _: object) -> None:
        if self.is_full:
            raise overloaded(RETRY_MS)
        self.submitted.append((push, reply))

    def retry_after_ms(self) -> int:
        return RETRY_MS

    def count_lookup(self, _: Device) -> None: ...

    def heartbeat(self, _: Device, __: object, request_id: str) -> bytes:
        return msgspec.json.encode({"type": "heartbeat_ack", "id": request_id})

    # -- as the reads --

    def pull(self, request: Any) -> None:
        self.began.append(request.id)

    def resume(self) -> None:
        self.resumed += 1

    # -- as the device --

    def send(self, message: dict[str, Any] | bytes) -> None:
        frame = message if isinstance(message, bytes) else msgspec.json.encode(message)
        self.connection.on_message(frame, self.clock.now_s)

    def push(self, name: str, **more: Any) -> None:
        item: dict[str, Any] = {"domain": "task", "id": name, "op": "put", "base": None, "data": {}}
        self.send({"type": "sync", "id": name, "key": name, "items": [item], **more})

    @property
    def counted(self) -> tuple[int, int, int]:
        """The syncs of this minute: all, those that failed, those that the service refused."""
        minute = self.minutes.of(1)
        return minute.syncs, minute.failed, minute.refused

    @property
    def codes(self) -> list[tuple[Any, Any]]:
        return [(one.get("id"), one.get("code")) for one in self.socket.sent]


def _answer(*, replayed: bool = False) -> PushAnswer:
    return PushAnswer(b'[{"status":"applied"}]', replayed=replayed)


def test_connection_push_is_submitted_and_answered_when_it_is_stored() -> None:
    world = _World()
    world.push("a")
    assert (world.kinds, world.socket.sent, world.pushes.in_flight) == (["message"], [], 1)
    world.submitted[0][1](_answer())
    assert [(one["type"], one["id"]) for one in world.socket.sent] == [("synced", "a")]
    assert (world.pushes.in_flight, world.socket.reads_again) == (0, 1)
    assert world.device.counts.syncs == 1


@pytest.mark.parametrize("replayed", [True, False])
def test_connection_retries_are_over_with_the_first_answer_that_is_no_replay(*, replayed: bool) -> None:
    world = _World()
    world.push("a")
    world.submitted[0][1](_answer(replayed=replayed))
    assert world.socket.session.retries_over is not replayed


def test_connection_past_the_rate_refuses_undecoded_with_the_id() -> None:
    world = _World()
    world.verdict = RateLimited(400)
    world.push("a")
    world.send({"type": "heartbeat", "id": "h"})
    assert world.socket.sent == [
        {"id": "a", "code": "rate_limited", "retry_after_ms": 400},
        {"id": "h", "code": "rate_limited", "retry_after_ms": 400},
    ]
    assert world.submitted == []


def test_connection_push_behind_one_past_the_rate_is_refused_until_that_may_come_back() -> None:
    world = _World()
    world.verdict = RateLimited(400)
    world.push("a")
    world.verdict = ACCEPT
    world.push("b")
    world.clock.now_s += 0.39
    world.push("c")
    assert (world.codes, world.submitted) == ([(name, "rate_limited") for name in "abc"], [])
    world.clock.now_s += 0.02
    world.push("a")
    assert len(world.submitted) == 1


def test_connection_under_overload_refuses_pushes_and_answers_the_rest() -> None:
    world = _World()
    world.verdict = Overloaded(RETRY_MS)
    world.push("a")
    world.send({"type": "heartbeat", "id": "h"})
    assert world.codes == [("a", "overloaded"), ("h", None)]
    world.verdict = ACCEPT
    world.push("b")
    assert world.codes[-1] == ("b", "overloaded"), "it must not overtake"
    assert world.counted == (2, 0, 2), "a heartbeat is no sync"
    world.clock.now_s += RETRY_MS / 1000 + 0.01
    world.push("a")
    assert len(world.submitted) == 1


def test_connection_push_that_finds_the_queue_full_holds_back_those_behind_it() -> None:
    world = _World()
    world.is_full = True
    world.push("a")
    world.is_full = False
    world.push("b")
    assert world.codes == [("a", "overloaded"), ("b", "overloaded")]
    assert world.counted == (2, 0, 2)
    assert world.pushes.in_flight == 0


def test_connection_push_refused_in_an_outage_comes_again_before_all_others() -> None:
    world = _World()
    world.push("a")
    world.submitted[0][1](SyncError("unavailable", "away", retry_after_ms=1000))
    world.clock.now_s += 1.5
    world.push("b")
    assert world.codes[-1] == ("b", "unavailable")
    assert world.counted == (2, 0, 2)
    world.push("a")
    world.push("b")
    assert len(world.submitted) == 3
    assert world.device.counts.failed == 0, "an outage is no failure of the device"


def test_connection_that_ignores_the_rate_is_closed_4429_once() -> None:
    world = _World()
    world.verdict = RateLimited(400)
    for _ in range(MAX_RATE_IGNORED):
        world.send({"type": "heartbeat", "id": "h"})
    assert world.socket.closed is None
    world.send({"type": "heartbeat", "id": "h"})
    assert world.socket.closed is not None
    assert world.socket.closed[0] == CloseCode.RATE_IGNORED
    assert len(world.socket.sent) == MAX_RATE_IGNORED
    assert world.limited == 1


def test_connection_accepted_message_ends_the_count_of_ignored_refusals() -> None:
    world = _World()
    for _ in range(3):
        world.verdict = RateLimited(1)
        for _ in range(MAX_RATE_IGNORED):
            world.send({"type": "heartbeat", "id": "h"})
        world.verdict = ACCEPT
        world.send({"type": "heartbeat", "id": "h"})
    assert world.socket.closed is None


def test_connection_malformed_messages_in_a_row_close_4400_and_others_between_do_not() -> None:
    world = _World()
    for _ in range(MAX_MALFORMED - 1):
        world.send(b"{")
    world.send({"type": "heartbeat", "id": "h"})
    for _ in range(MAX_MALFORMED - 1):
        world.send(b"{")
    assert world.socket.closed is None
    world.send(b"{")
    assert world.socket.closed is not None
    assert world.socket.closed[0] == CloseCode.BAD_FRAMES


def test_connection_sync_without_an_id_is_refused_and_stores_nothing() -> None:
    world = _World()
    world.push("a", id=None)
    assert world.codes == [(None, "invalid_message")]
    assert world.submitted == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("in flight", MAX_IN_FLIGHT), ("reads", MAX_READS), ("outbox", True)],
)
def test_connection_has_no_room_while_too_much_is_unanswered(name: str, value: Any) -> None:
    world = _World()
    assert world.connection.has_room
    if name == "in flight":
        world.pushes.in_flight = value
    elif name == "reads":
        world.count = value
    else:
        world.socket.full = value
    assert not world.connection.has_room
    world.socket.closing = True
    assert world.connection.has_room


def test_connection_ping_within_the_rate_is_answered_and_counts() -> None:
    world = _World()
    world.connection.on_ping(b"1", world.clock.now_s)
    world.verdict = RateLimited(400)
    world.connection.on_ping(b"2", world.clock.now_s)
    assert (world.socket.pongs, world.kinds) == ([b"1"], ["control", "control"])


def test_connection_that_closes_counts_no_control_frames() -> None:
    world = _World()
    world.socket.closing = True
    world.connection.on_pong(world.clock.now_s)
    assert world.kinds == []


def test_connection_reads_go_to_the_store_and_wait_for_no_push() -> None:
    world = _World()
    world.send({"type": "pull", "id": "p", "cursor": None})
    assert world.began == ["p"]
    world.connection.on_writable()
    assert world.resumed == 1


def _large(name: str) -> dict[str, Any]:
    item = {"domain": "task", "id": name, "op": "put", "base": None, "data": {"n": "x" * LARGE_BYTES}}
    return {"type": "sync", "id": name, "key": name, "items": [item]}


def test_connection_large_message_is_handled_in_steps_and_nothing_is_read_before_its_end() -> None:
    world = _World()
    world.send(_large("a"))
    [(steps, charge)] = world.steps
    assert (world.submitted, world.connection.has_room) == ([], False)
    assert world.socket.partial_bytes > LARGE_BYTES
    for _ in steps:
        charge(0.001, world.clock.now_s)
    charge(0.02, world.clock.now_s)
    assert (len(world.submitted), world.connection.has_room, world.socket.partial_bytes) == (1, True, 0)
    assert world.socket.reads_again == 1
    assert world.device.bucket.tokens < 1000 - 20, "its time is taken from the rate as a whole"


def test_connection_large_message_of_a_socket_that_closed_is_dropped() -> None:
    world = _World()
    world.send(_large("a"))
    world.socket.ignoring = True
    list(world.steps[0][0])
    assert (world.submitted, world.socket.sent, world.connection.has_room) == ([], [], True)


def test_connection_long_message_weighs_more_than_one() -> None:
    world = _World()
    world.send(msgspec.json.encode({"type": "heartbeat", "id": "1", "more": "a" * (3 * COUNTED_BYTES)}))
    assert world.device.bucket.tokens == 1000 - 3


def test_connection_expensive_work_takes_its_milliseconds_from_the_rate_and_no_quick_one() -> None:
    world = _World()
    for began_s, spent_s, tokens in ((99.995, 0.0115, 1000.0), (99.96, 0.041, 960.0)):
        world.socket.began_s = began_s
        world.connection.charge(spent_s, 100.0)
        assert world.device.bucket.tokens == pytest.approx(tokens)
