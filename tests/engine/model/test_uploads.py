"""What a request makes of an upload, against a model that knows only bytes."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.uploads import (
    FINISHED,
    Append,
    AppendPlan,
    State,
    Upload,
    UploadRef,
    concatenated_bytes,
    plan_append,
    visible_to,
)
from engine.wire.errors import SyncError

LARGEST = 12
NOW_US = 1_000_000


def upload(**changed: object) -> Upload:
    made = Upload(
        ref=UploadRef(1, "a" * 32),
        device_id="d1",
        user=None,
        kind="single",
        file_name="a.jpg",
        content_type="image/jpeg",
        domain="task",
        record_id="r1",
        metadata="",
        size_bytes=10,
        reserved_bytes=10,
        expires_at_us=NOW_US + 1,
    )
    return msgspec.structs.replace(made, **changed)


class Bytes:
    """An upload as a string of bytes that may be given its length late."""

    def __init__(self, size: int | None, room: int) -> None:
        self.content = b""
        self.size = size
        self.room = room

    def refusal(self, request: Append) -> str | None:
        """Say what is wrong with a request, if anything, in the order in which it matters to a client."""
        if request.offset_bytes != len(self.content):
            return "offset_mismatch"
        sizes = {size for size in (self.size, request.size_bytes) if size is not None}
        if request.completes and request.length_bytes is not None:
            sizes.add(len(self.content) + request.length_bytes)
        if len(sizes) > 1:
            return "inconsistent_length"
        size = max(sizes) if sizes else None
        if size == len(self.content) and request.length_bytes:
            return "upload_complete"
        most = self.room if size is None else size
        if not len(self.content) <= most <= self.room:
            return "too_large"
        if request.length_bytes is not None and len(self.content) + request.length_bytes > most:
            return "too_large"
        self.size = size
        return None


sizes = st.none() | st.integers(0, LARGEST)
requests = st.builds(Append, st.integers(0, LARGEST), st.none() | st.integers(0, 5), sizes, st.booleans())


@given(size=sizes, script=st.lists(st.tuples(requests, st.integers(0, 5), st.booleans()), max_size=12))
def test_plan_append_agrees_with_a_model_of_bytes(
    size: int | None, script: list[tuple[Append, int, bool]]
) -> None:
    room = LARGEST if size is None else size
    model = Bytes(size, room)
    kept = upload(size_bytes=size, reserved_bytes=room)
    for asked, arrived, aligned in script:
        request = msgspec.structs.replace(asked, offset_bytes=kept.offset_bytes) if aligned else asked
        refusal = model.refusal(request)
        if refusal is not None:
            with pytest.raises(SyncError) as refused:
                plan_append(kept, request)
            assert refused.value.code == refusal
            continue
        plan = plan_append(kept, request)
        came = min(arrived, plan.max_bytes, request.length_bytes or arrived)
        model.content += b"x" * came
        kept = msgspec.structs.replace(
            kept, offset_bytes=kept.offset_bytes + came, size_bytes=plan.size_bytes
        )
        assert (kept.offset_bytes, kept.size_bytes) == (len(model.content), model.size)
        assert kept.offset_bytes <= room, "never more than was let in"
        assert kept.complete is (model.size == len(model.content))


@pytest.mark.parametrize("state", get_args(State))
@pytest.mark.parametrize("device", ["d1", "d2"])
def test_visible_to_own_device_alone_and_by_state(state: State, device: str) -> None:
    kept = upload(state=state)
    if device == "d1" and state in {"open", "concatenated"} | FINISHED:
        assert visible_to(kept, device, NOW_US) is kept
        return
    with pytest.raises(SyncError) as refused:
        visible_to(kept, device, NOW_US)
    assert refused.value.code == ("upload_gone" if device == "d1" else "not_found")


def test_visible_to_none_not_found() -> None:
    with pytest.raises(SyncError) as refused:
        visible_to(None, "d1", NOW_US)
    assert refused.value.code == "not_found"


@pytest.mark.parametrize(
    ("state", "held", "late_us", "gone"),
    [
        ("open", False, 0, False),
        ("open", False, 1, True),
        ("open", True, 1, False),
        ("attached", False, 1, False),
    ],
)
def test_visible_to_unlocked_past_expiry_gone(state: State, held: bool, late_us: int, gone: bool) -> None:
    kept = upload(state=state, locked=held)
    if gone:
        with pytest.raises(SyncError, match="expired"):
            visible_to(kept, "d1", NOW_US + late_us)
    else:
        assert visible_to(kept, "d1", NOW_US + late_us) is kept


@pytest.mark.parametrize("state", sorted({*FINISHED, "concatenated"}))
def test_plan_append_finished_takes_only_empty_requests(state: State) -> None:
    # What a finished upload reserves depends on its state.
    done = upload(state=state, offset_bytes=10, reserved_bytes=0 if state == "duplicate" else 10)
    for length_bytes in (0, None):
        plan = plan_append(done, Append(10, length_bytes))
        assert (plan, plan.complete) == (AppendPlan(0, 10), True)
    with pytest.raises(SyncError) as refused:
        plan_append(done, Append(10, 1))
    assert refused.value.code == "upload_complete"


def test_append_plan_unknown_size_is_not_complete() -> None:
    assert not plan_append(upload(size_bytes=None, offset_bytes=10), Append(10)).complete


def test_plan_append_final_upload_refused() -> None:
    with pytest.raises(SyncError) as refused:
        plan_append(upload(kind="final"), Append(0, 1))
    assert refused.value.code == "forbidden"


def test_ready_to_finish_only_open_complete_and_not_partial() -> None:
    assert upload(offset_bytes=10).ready_to_finish
    assert not upload(offset_bytes=9).ready_to_finish
    assert not upload(offset_bytes=10, kind="partial").ready_to_finish
    assert not upload(offset_bytes=10, state="stored").ready_to_finish


def test_concatenated_bytes_complete_parts_within_the_limit() -> None:
    def part(size: int, offset: int) -> Upload:
        return upload(kind="partial", size_bytes=size, offset_bytes=offset)

    assert concatenated_bytes([part(4, 4), part(5, 5)], 9) == 9
    for parts, max_bytes, code in (
        ([part(4, 4), part(5, 5)], 8, "too_large"),
        ([part(4, 4), part(5, 4)], 9, "invalid_message"),
        ([part(4, 4), upload(offset_bytes=10)], 99, "invalid_message"),
    ):
        with pytest.raises(SyncError) as refused:
            concatenated_bytes(parts, max_bytes)
        assert refused.value.code == code
