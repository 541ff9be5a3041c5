"""What stands before the parser of frames: it lets through what is masked, wherever the stream is cut."""

from __future__ import annotations

import itertools
from typing import cast

from aiohttp import WebSocketError
from aiohttp.http import WebSocketReader
from hypothesis import given
from hypothesis import strategies as st

from handlers.frames import Frames, Masked
from tests.wire import frame

BINARY = 2


class _Parser:
    """Takes what the parser would."""

    def __init__(self) -> None:
        self.taken = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.taken += data
        return False, b""


class _Frames:
    def __init__(self) -> None:
        self.failures: list[WebSocketError] = []

    def set_exception(self, failure: WebSocketError) -> None:
        self.failures.append(failure)


SIZES = st.sampled_from([0, 1, 125, 126, 127, 65_535, 65_536, 65_600])


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=6), st.data())
def test_masked_hands_on_all_up_to_the_first_frame_without_a_mask(
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
    parser, queue = _Parser(), _Frames()
    masked = Masked(cast(WebSocketReader, parser), cast(Frames, queue))
    bounds = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    ended = False
    for begin, end in itertools.pairwise(bounds):
        if end > begin:
            ended, _ = masked.feed_data(stream[begin:end])
    if good == len(said):
        assert (parser.taken, queue.failures, ended) == (stream, [], False)
    else:
        assert ended
        assert [failure.code for failure in queue.failures] == [1002]
        taken = parser.taken[:good_bytes]
        assert taken == stream[:good_bytes]
        assert len(parser.taken) - good_bytes < 2, "of the frame itself no byte that matters"


def test_masked_of_a_long_frame_cut_where_a_short_one_would_end_looks_at_the_next() -> None:
    """255 as the byte of the length is no length: what it would mean is a frame of 133 bytes."""
    parser, queue = _Parser(), _Frames()
    masked = Masked(cast(WebSocketReader, parser), cast(Frames, queue))
    long, unmasked = frame(BINARY, bytes(65_600)), frame(BINARY, bytes(5), masked=False)
    for part in (long[:133], long[133:], unmasked):
        masked.feed_data(part)
    assert (parser.taken, [failure.code for failure in queue.failures]) == (long, [1002])
