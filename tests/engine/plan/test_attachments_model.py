"""Files that are sent again and again and taken back by some: none that stands is lost, no other stays."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.uploads import Upload
from engine.plan.work import Attach, AttachAnswer
from tests.engine.plan.test_attachments import SAME, TASK, FilePlanner
from tests.harness.uploads.stored_files import upload

#: Three of them are one file, the fourth is not.
UPLOADS = [upload(1), upload(2, **SAME), upload(3, **SAME), upload(4)]
_batches = st.lists(
    st.lists(
        st.tuples(st.sampled_from(["send", "send", "free", "clean"]), st.sampled_from(UPLOADS)), max_size=4
    ),
    max_size=8,
)


class Files:
    """One record with files, and what is known of them by what was answered alone."""

    def __init__(self) -> None:
        self.planner = FilePlanner().with_task()
        self.standing: set[str] = set()
        self.removed: set[str] = set()

    def work(self, step: str, one: Upload) -> Attach:
        """Return the work; a file that is sent twice is an answer that was lost."""
        work = self.planner.stored(one, self.planner.rows.uploads.get(one.ref, "stored"))
        return (
            work
            if step == "send"
            else msgspec.structs.replace(work, entry=None, only_if_deleted=step == "clean")
        )

    def batch(self, steps: list[tuple[str, Upload]]) -> None:
        """Run a batch and look at all there is."""
        batch = [self.work(*step) for step in steps]
        for work, outcome in zip(batch, self.planner.plan(*batch).outcomes, strict=True):
            assert isinstance(outcome, AttachAnswer)
            if outcome.state == "freed":
                self.standing.discard(work.upload_id)
            elif work.entry is not None and outcome.state in ("attached", "duplicate"):
                self.standing.add(work.upload_id)
            self.removed |= {outcome.deletable} if outcome.deletable is not None else set()
        self.look()

    def look(self) -> None:
        """Compare what stands with what is there."""
        entry = self.planner.rows.records[TASK].attachments or b"[]"
        shown = {one["file_id"]: one["sha256"] for one in msgspec.json.decode(entry)}
        stands = {one.sha256 for one in UPLOADS if one.ref.upload_id in self.standing}
        assert sorted(shown.values()) == sorted(filter(None, stands))
        assert not shown.keys() & self.removed, "the bytes of a file that is there are gone"
        for ref, state in self.planner.rows.uploads.items():
            assert (state in ("attached", "retained")) is (ref.upload_id in shown)
            assert (state in ("attached", "duplicate")) <= (ref.upload_id in self.standing)

    def put(self, op: str) -> None:
        """Delete the record, or bring it back."""
        item = {"domain": "task", "id": "a", "op": op, "base": self.planner.rows.records[TASK].version}
        self.planner.plan(self.planner.push(item if op == "delete" else item | {"data": {}}))


@settings(deadline=None)
@given(batches=_batches, deletes=st.sets(st.integers(0, 7)))
def test_attach_file_exists_exactly_while_an_upload_of_it_is_not_freed(
    batches: list[list[tuple[str, Upload]]], deletes: set[int]
) -> None:
    files = Files()
    for number, steps in enumerate(batches):
        if number in deletes:
            alive = files.planner.rows.records[TASK].data is not None
            files.put("delete" if alive else "put")
        files.batch(steps)
