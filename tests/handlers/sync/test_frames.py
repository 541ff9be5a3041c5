"""The gate before the parser of frames: what it lets through, in which turns, and what it charges."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import pytest
from aiohttp import WebSocketError, web
from aiohttp.http import WebSocketReader
from hypothesis import given
from hypothesis import strategies as st

from handlers.sync.frames import FRAGMENTS, TURN_S, Gate
from tests.harness.raw_http import frame

TEXT, BINARY, PONG, CONTINUATION = 1, 2, 10, 0
SIZES = st.sampled_from([0, 1, 125, 126, 127, 65_535, 65_536, 65_600])


class _World:
    """Parser, sink, pacer, protocol, clock and loop of a gate. A feed costs the parser ``frame_s``."""

    def __init__(self, frame_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.frame_s = frame_s
        self.fed: list[bytes] = []
        self.failures: list[WebSocketError] = []
        self.paused = self.closed = False
        self.has_room = True
        self.wait_s = 0.0
        self.charged_s = 0.0
        self.fragments = 0
        self.held_bytes = 0
        self.most_held_bytes = 1 << 30
        self.due: list[Callable[[], None]] = []
        self.yields = False
        self.sink = self.pacer = self
        self.began_s = 0.0
        me = cast(Any, self)
        self.gate = Gate(cast(WebSocketReader, _Parser(self)), me, cast(web.RequestHandler, self), me)

    @property
    def taken(self) -> bytes:
        return b"".join(self.fed)

    # -- as the frames, their sink and their pacer --

    def set_exception(self, failure: WebSocketError) -> None:
        self.failures.append(failure)

    def charge(self, spent_s: float, now_s: float) -> float:
        assert now_s == self.now_s
        self.charged_s += spent_s
        return self.wait_s

    def slot(self, work: Callable[[], None]) -> Any:
        self.due.append(work)
        return _Turn()

    def count_fragments(self) -> None:
        self.fragments += 1

    def on_partial(self, before_bytes: int, after_bytes: int) -> bool:
        assert before_bytes == self.held_bytes
        self.held_bytes = after_bytes
        return after_bytes <= self.most_held_bytes

    # -- as the protocol --

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    # -- as the clock --

    def monotonic_s(self) -> float:
        return self.now_s

    def run_slots(self) -> int:
        """Give the turns that are waited for until there are none; returns how many they were."""
        given = 0
        while self.due:
            self.due.pop(0)()
            given += 1
        return given


class _Turn:
    def cancel(self) -> None:
        """Nothing is run by itself here."""


class _Parser:
    def __init__(self, world: _World) -> None:
        self._world = world

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._world.fed.append(data)
        self._world.now_s += self._world.frame_s
        return False, b""

    def feed_eof(self) -> None:
        """Nothing more is fed."""


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=6), st.data())
def test_gate_passes_on_all_frames_before_the_first_without_a_mask(
    said: list[tuple[int, bool]], data: st.DataObject
) -> None:
    frames = [frame(BINARY, bytes([255]) * size, masked=masked) for size, masked in said]
    stream = b"".join(frames)
    good = next((at for at, (_, masked) in enumerate(said) if not masked), len(said))
    good_bytes = sum(len(one) for one in frames[:good])
    edges = st.sampled_from(sorted({0, *(sum(map(len, frames[:at])) for at in range(len(frames) + 1))}))
    # 133 bytes are what a frame would have whose length were not in the bytes behind its head.
    offsets = st.sampled_from([*range(17), 133])
    cuts = data.draw(st.lists(st.builds(lambda edge, off: edge + off, edges, offsets), max_size=8))
    world = _World(data.draw(st.sampled_from([0.0, TURN_S])))
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    ended = False
    for begin, end in itertools.pairwise(bounds):
        if end > begin:
            ended, _ = world.gate.feed_data(stream[begin:end])
            world.run_slots()
    if good == len(said):
        assert world.failures == []
        assert not ended
        assert not world.paused
        assert world.taken == stream
    else:
        assert ended or world.closed
        assert [failure.code for failure in world.failures] == [1002]
        assert world.taken == stream[:good_bytes], "of the frame itself no byte"


def test_gate_of_a_long_frame_cut_where_a_short_one_would_end_looks_at_the_next() -> None:
    """255 as the byte of the length is no length: what it would mean is a frame of 133 bytes."""
    world = _World()
    long, unmasked = frame(BINARY, bytes(65_600)), frame(BINARY, bytes(5), masked=False)
    for part in (long[:133], long[133:], unmasked):
        world.gate.feed_data(part)
    assert (world.taken, [failure.code for failure in world.failures]) == (long, [1002])


@pytest.mark.parametrize("opcode", [TEXT, PONG])
def test_gate_of_a_read_with_many_frames_gives_the_loop_back_after_each_turn(opcode: int) -> None:
    world = _World(TURN_S / 4)
    stream = frame(opcode, b"x") * 10
    world.gate.feed_data(stream)
    assert len(world.fed) == 4, "a turn is over with the frame in which its time is"
    assert world.paused, "nothing more is read before the rest is done"
    assert world.run_slots() == 2
    assert world.taken == stream
    assert not world.paused


def test_gate_without_room_waits_until_it_is_told_and_keeps_the_order() -> None:
    world = _World()
    first, second, third = (frame(TEXT, text) for text in (b"1", b"2", b"3"))
    world.has_room = False
    world.gate.feed_data(first + second[:3])
    world.gate.feed_data(second[3:] + third)
    assert (world.fed, world.paused, world.due) == ([], True, [])
    world.has_room = True
    world.gate.go_on()
    world.gate.go_on()
    assert world.run_slots() == 1, "it goes on once, in a turn of its own"
    assert world.fed == [first, second, third]
    assert not world.paused


def test_gate_charges_the_time_of_a_frame_and_waits_for_a_turn_past_the_share() -> None:
    """What inflates, or is laborious otherwise, costs its sender time and nobody else."""
    world = _World(0.004)
    world.wait_s = 0.3
    world.gate.feed_data(frame(TEXT, b"x"))
    assert world.charged_s == 0.004
    assert world.paused
    world.gate.go_on()
    assert len(world.due) == 1, "room does not bring another turn"
    world.wait_s = 0.0
    world.run_slots()
    assert not world.paused


@pytest.mark.parametrize(
    ("said", "waits"),
    [
        (frame(TEXT, b"x"), False),
        (frame(TEXT, b"x") * 2, True),
        (b"\xc1" + frame(TEXT, b"x")[1:], True),
    ],
    ids=["one frame", "several", "deflated"],
)
def test_gate_waits_behind_others_of_its_tenant_with_expensive_frames(said: bytes, *, waits: bool) -> None:
    world = _World()
    world.yields = True
    world.gate.feed_data(said)
    assert (world.paused, len(world.due), world.taken) == ((True, 1, b"") if waits else (False, 0, said))
    world.run_slots()
    assert (world.paused, world.taken) == (False, said)


def test_gate_charges_many_small_frames_in_portions() -> None:
    world = _World(TURN_S / 10)
    for _ in range(100):
        world.gate.feed_data(frame(PONG, b""))
    assert world.charged_s == pytest.approx(100 * TURN_S / 10, rel=0.5)
    assert not world.paused


def test_gate_counts_frames_that_end_no_message() -> None:
    world = _World()
    empty = b"\x00\x80\0\0\0\0"  # a continuation that is not the last one, of nothing
    world.gate.feed_data(empty * FRAGMENTS)
    for _ in range(FRAGMENTS):
        world.gate.feed_data(empty)
    for _ in range(FRAGMENTS):
        world.gate.feed_data(frame(TEXT, b"whole"))
    assert world.fragments == 2


def test_gate_at_the_end_of_the_stream_drops_what_waits() -> None:
    world = _World()
    world.has_room = False
    world.gate.feed_data(frame(TEXT, b"1"))
    world.gate.feed_eof()
    world.has_room = True
    world.gate.go_on()
    assert (world.due, world.fed) == ([], [])


def test_gate_without_a_sink_keeps_frames() -> None:
    world = _World()
    world.pacer = None  # type: ignore[assignment]
    said = frame(TEXT, b"1")
    world.gate.feed_data(said)
    assert (world.fed, world.paused) == ([], True)
    world.pacer = world
    world.gate.go_on()
    world.run_slots()
    assert world.fed == [said]


def test_gate_counts_the_bytes_of_an_incomplete_message() -> None:
    world = _World()
    begun, ping = frame(TEXT, b"a" * 1000, final=False), frame(9, b"?")
    world.gate.feed_data(begun[:500])
    assert world.held_bytes == 500
    world.gate.feed_data(begun[500:] + ping)
    assert world.held_bytes == len(begun)
    world.gate.feed_data(ping)
    assert world.held_bytes == len(begun)
    world.gate.feed_data(frame(CONTINUATION, b"a"))  # by itself a whole frame, of which nothing waits
    assert world.held_bytes == 0
    world.gate.feed_data(frame(TEXT, b"a" * 1000))
    assert world.held_bytes == 0


def test_gate_reads_nothing_more_once_too_much_waits() -> None:
    world = _World()
    world.most_held_bytes = 1500
    begun = frame(TEXT, b"a" * 1000, final=False)
    assert world.gate.feed_data(begun) == (False, b"")
    assert world.gate.feed_data(frame(CONTINUATION, b"a" * 1000, final=False)) == (True, b"")
    assert world.held_bytes == 0
    fed = len(world.fed)
    assert world.gate.feed_data(begun) == (True, b"")
    assert len(world.fed) == fed


def test_gate_that_ends_has_nothing_waiting() -> None:
    world = _World()
    world.gate.feed_data(frame(TEXT, b"a" * 1000)[:700])
    assert world.held_bytes == 700
    world.gate.feed_eof()
    assert world.held_bytes == 0
