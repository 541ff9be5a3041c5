"""What becomes of a file and its record's entry, in batches that are planned over rows in memory."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import pytest

from engine.commit.queue import CommitLimits, CommitQueue
from engine.feed.pages import encode_change
from engine.model.rows import ConflictRef, Record, RecordKey
from engine.model.uploads import State, Upload, UploadRef
from engine.plan.attachments import entry
from engine.plan.batch import Plan, read_set
from engine.plan.weighing import select
from engine.plan.work import Attach, AttachAnswer, Outcome
from tests.engine.plan.test_batch import NOW_US, Planner
from tests.harness.uploads.stored_files import upload

Json = dict[str, Any]

TASK = RecordKey(1, "task", "a")


class FilePlanner(Planner):
    """Plans batches in which files arrive."""

    def stored(self, one: Upload, state: State = "stored") -> Attach:
        """Have a file stored, and return the work that attaches it."""
        self.rows.uploads[one.ref] = state
        assert one.domain is not None
        assert one.record_id is not None
        assert one.file_name is not None
        assert one.sha256 is not None
        self.rows.contents[one.ref] = (one.domain, one.record_id, one.file_name, one.sha256)
        return Attach(
            one.ref.tenant_id,
            one.device_id,
            one.domain,
            one.record_id,
            one.ref.upload_id,
            entry(one, NOW_US),
            NOW_US,
        )

    def freed(self, one: Upload) -> Attach:
        """Return the work that takes a file out."""
        return msgspec.structs.replace(self.stored(one, self.rows.uploads[one.ref]), entry=None)

    def with_task(self) -> FilePlanner:
        """Have the record."""
        self.plan(self.push({"domain": "task", "id": "a", "op": "put", "data": {"n": 1}}))
        return self

    def files(self, key: RecordKey = TASK) -> list[str]:
        """Name the files of a record as the feed shows them."""
        shown = json.loads(encode_change(self.rows.records[key]))
        assert shown.get("attachments") != []
        return [one["file_id"] for one in shown.get("attachments", [])]


def _outcome(planned: Plan) -> Outcome:
    (outcome,) = planned.outcomes
    return outcome


def _id(number: int) -> str:
    return f"{number:032x}"


def test_attach_file_takes_a_new_seq_and_no_new_version() -> None:
    planner = FilePlanner().with_task()
    before = planner.rows.records[TASK]
    planned = planner.plan(planner.stored(upload(1)))
    assert _outcome(planned) == AttachAnswer("attached", 2)
    ((change, session_id),) = planned.changes
    assert session_id == "", "its sender hears of it, too"
    assert change == msgspec.structs.replace(before, seq=2, attachments=change.attachments)
    assert json.loads(encode_change(change))["attachments"] == [
        {
            "file_id": _id(1),
            "filename": "gate 1.jpg",
            "filetype": "image/jpeg",
            "size_bytes": 1001,
            "sha256": f"{1:064x}",
            "device_id": "phone",
            "at": "2026-01-02T03:04:05Z",
        }
    ]
    assert planner.rows.uploads[UploadRef(1, _id(1))] == "attached"


def test_attach_file_causes_no_conflict() -> None:
    """The version stands, so that an edit made on it applies, and whose the chain of edits is stays known."""
    planner = FilePlanner().with_task()
    planner.plan(planner.stored(upload(1, device_id="tablet")))
    planned = planner.plan(
        planner.push(
            {"domain": "task", "id": "a", "op": "patch", "base": 1, "data": {"n": 2}}, device="planner"
        )
    )
    assert json.loads(planned.outcomes[0].results)[0]["status"] == "applied"  # type: ignore[union-attr]
    assert planner.rows.records[TASK].version == 2
    assert planner.files() == [_id(1)]


def test_attach_without_record_waits() -> None:
    planner = FilePlanner()
    work = planner.stored(upload(1))
    planned = planner.plan(work)
    assert _outcome(planned) == AttachAnswer("waiting", None)
    assert not planned.writes.seqs
    assert not planned.writes.uploads
    planner.with_task()
    assert _outcome(planner.plan(work)) == AttachAnswer("attached", 2)
    assert planner.files() == [_id(1)]


def test_attach_file_and_record_in_one_batch() -> None:
    planner = FilePlanner()
    push = planner.push({"domain": "task", "id": "a", "op": "put", "data": {"n": 1}})
    planned = planner.plan(push, planner.stored(upload(1)), planner.stored(upload(2)))
    assert planned.outcomes[1:] == [AttachAnswer("attached", 2), AttachAnswer("attached", 3)]
    assert planner.files() == [_id(1), _id(2)]
    assert len(planned.writes.records) == 1


def test_attach_repeated_attaches_once() -> None:
    planner = FilePlanner().with_task()
    work = planner.stored(upload(1))
    planned = planner.plan(work, work)
    assert planned.outcomes == [AttachAnswer("attached", 2), AttachAnswer("attached", 2)]
    again = planner.plan(work)
    assert _outcome(again) == AttachAnswer("attached", 2)
    assert not again.changes
    assert not again.writes.records
    assert planner.files() == [_id(1)]


@pytest.mark.parametrize(
    ("fields", "state", "count"),
    [
        ({"file_name": "gate 1.jpg", "sha256": f"{1:064x}"}, "duplicate", 1),
        ({"file_name": "gate 1.jpg"}, "attached", 2),
        ({"sha256": f"{1:064x}"}, "attached", 2),
    ],
)
def test_attach_same_name_and_content_is_a_duplicate(fields: Json, state: str, count: int) -> None:
    planner = FilePlanner().with_task()
    planner.plan(planner.stored(upload(1)))
    second = upload(2, **fields)
    work = planner.stored(second)
    for _ in range(2):
        outcome = _outcome(planner.plan(work))
        assert isinstance(outcome, AttachAnswer)
        assert outcome.state == state
        assert len(planner.files()) == count
        assert planner.rows.uploads[second.ref] == state


SAME: Json = {"file_name": "gate 1.jpg", "sha256": f"{1:064x}"}


def _twice(planner: FilePlanner) -> tuple[Upload, Upload]:
    """Have a file sent by two devices."""
    first, second = upload(1), upload(2, device_id="tablet", **SAME)
    planner.plan(planner.stored(first))
    assert _outcome(planner.plan(planner.stored(second))) == AttachAnswer("duplicate", None, _id(2))
    return first, second


def test_free_file_with_a_duplicate_stays() -> None:
    planner = FilePlanner().with_task()
    first, second = _twice(planner)
    freed = planner.freed(first)
    for _ in range(2):
        planned = planner.plan(freed)
        assert _outcome(planned) == AttachAnswer("freed", None), "its bytes are the duplicate's"
        assert not planned.changes
        assert (planner.files(), planner.rows.uploads[first.ref]) == ([_id(1)], "retained")
    assert _outcome(planner.plan(planner.stored(first, "retained"))) == AttachAnswer("freed", None)
    assert _outcome(planner.plan(planner.stored(second, "duplicate"))) == AttachAnswer(
        "duplicate", None, _id(2)
    )
    assert _outcome(planner.plan(planner.freed(second))) == AttachAnswer("freed", 3, _id(1))
    assert (planner.files(), set(planner.rows.uploads.values())) == ([], {"freed"})


def test_free_duplicate_keeps_the_file() -> None:
    planner = FilePlanner().with_task()
    first, second = _twice(planner)
    planned = planner.plan(planner.freed(second))
    assert _outcome(planned) == AttachAnswer("freed", None, _id(2))
    assert not planned.changes
    assert (planner.files(), planner.rows.uploads[first.ref]) == ([_id(1)], "attached")
    assert _outcome(planner.plan(planner.freed(first))) == AttachAnswer("freed", 3, _id(1))


def test_attach_duplicate_of_a_retained_file_keeps_it() -> None:
    planner = FilePlanner().with_task()
    first, second = _twice(planner)
    planner.plan(planner.freed(first))
    third = upload(3, **SAME)
    assert _outcome(planner.plan(planner.stored(third))) == AttachAnswer("duplicate", None, _id(3))
    assert _outcome(planner.plan(planner.freed(second))) == AttachAnswer("freed", None, _id(2))
    assert planner.files() == [_id(1)]
    assert _outcome(planner.plan(planner.freed(third))) == AttachAnswer("freed", 3, _id(1))
    assert planner.files() == []


def test_attach_and_free_duplicate_in_one_batch() -> None:
    """Each sees what those before it did, whatever the rows said."""
    planner = FilePlanner().with_task()
    first, second = upload(1), upload(2, **SAME)
    batch = [planner.stored(first), planner.stored(second), planner.freed(first), planner.freed(second)]
    planned = planner.plan(*batch)
    assert planned.outcomes == [
        AttachAnswer("attached", 2),
        AttachAnswer("duplicate", None, _id(2)),
        AttachAnswer("freed", None),
        AttachAnswer("freed", 3, _id(1)),
    ]
    assert planner.files() == []
    batch = [planner.stored(first), planner.freed(first), planner.stored(second)]
    planned = planner.plan(*batch)
    assert planned.outcomes[1:] == [AttachAnswer("freed", 5, _id(1)), AttachAnswer("attached", 6)], (
        "it has its own"
    )
    assert planner.files() == [_id(2)]


@pytest.mark.parametrize(
    "other", [{"tenant": 2}, {"record_id": "b"}, {"file_name": "x"}, {"sha256": f"{2:064x}"}]
)
def test_free_other_files_do_not_keep_it(other: Json) -> None:
    planner = FilePlanner().with_task()
    first = upload(1)
    planner.plan(planner.stored(first))
    planner.stored(upload(2, **SAME | other), "duplicate")
    assert _outcome(planner.plan(planner.freed(first))) == AttachAnswer("freed", 3, _id(1))


def test_free_file_of_a_tombstone_goes_with_its_last_upload() -> None:
    planner = FilePlanner().with_task()
    uploads = _twice(planner)
    planner.plan(planner.push({"domain": "task", "id": "a", "op": "delete", "base": 1}))
    batch = [msgspec.structs.replace(planner.freed(one), only_if_deleted=True) for one in uploads]
    assert planner.plan(*batch).outcomes == [AttachAnswer("freed", None), AttachAnswer("freed", None, _id(1))]
    assert planner.rows.records[TASK].attachments == b"[]"
    assert set(planner.rows.uploads.values()) == {"freed"}


@pytest.mark.parametrize("state", ["open", "retained", "refused", "cancelled", "expired", "freed", None])
def test_attach_upload_without_bytes_is_freed(state: State | None) -> None:
    planner = FilePlanner().with_task()
    one = upload(1)
    work = planner.stored(one, state or "open")
    if state is None:
        del planner.rows.uploads[one.ref]
    planned = planner.plan(work, msgspec.structs.replace(work, entry=None))
    assert planned.outcomes == [AttachAnswer("freed", None, _id(1) if state == "freed" else None)] * 2
    assert not planned.writes.records
    assert not planned.writes.uploads


def test_push_new_version_keeps_the_files() -> None:
    planner = FilePlanner().with_task()
    planner.plan(planner.stored(upload(1)))
    for item in (
        {"op": "patch", "base": 1, "data": {"n": 2}},
        {"op": "put", "base": 2, "data": {"m": 1}},
        {"op": "delete", "base": 3},
    ):
        planner.plan(planner.push({"domain": "task", "id": "a", **item}))
    tombstone = planner.rows.records[TASK]
    assert tombstone.attachments is not None
    assert "attachments" not in json.loads(encode_change(tombstone)), "of a deleted record none are shown"
    planner.plan(planner.push({"domain": "task", "id": "a", "op": "put", "base": 4, "data": {"n": 3}}))
    assert planner.rows.records[TASK].version == 5
    assert planner.files() == [_id(1)]


def test_resolve_keeps_the_files() -> None:
    planner = FilePlanner()
    form = RecordKey(1, "form", "a")
    planner.plan(planner.push({"domain": "form", "id": "a", "op": "put", "data": {"n": 1}}))
    planner.plan(planner.push({"domain": "form", "id": "a", "op": "put", "data": {"n": 2}}, device="tablet"))
    planner.plan(planner.stored(upload(1, domain="form")))
    (conflict,) = planner.rows.conflicts.values()
    assert planner.rows.conflicts[ConflictRef(1, conflict.conflict_id)].outcome == "open"
    planner.plan(planner.resolution(conflict, "client", 1))
    assert planner.rows.records[form].version == 2
    assert planner.files(form) == [_id(1)]


def test_push_aborted_keeps_the_files() -> None:
    planner = FilePlanner().with_task()
    planner.plan(
        planner.stored(upload(1)),
        planner.push(
            {"domain": "task", "id": "a", "op": "patch", "base": 1, "data": {"n": 2}},
            {"domain": "task", "id": "b", "op": "patch", "base": 7, "data": {"n": 2}},
            atomic=True,
        ),
    )
    assert planner.rows.records[TASK].version == 1
    assert planner.files() == [_id(1)]


def test_attach_deleted_record_waits_until_it_is_back() -> None:
    planner = FilePlanner().with_task()
    planner.plan(planner.push({"domain": "task", "id": "a", "op": "delete", "base": 1}))
    work = planner.stored(upload(1))
    assert _outcome(planner.plan(work)) == AttachAnswer("waiting", None)
    planner.plan(planner.push({"domain": "task", "id": "a", "op": "put", "base": 2, "data": {"n": 2}}))
    assert _outcome(planner.plan(work)) == AttachAnswer("attached", 4)


def test_free_file_announces_one_change() -> None:
    planner = FilePlanner().with_task()
    first, second = upload(1), upload(2)
    planner.plan(planner.stored(first), planner.stored(second))
    for one, seq, left in ((first, 4, [_id(2)]), (second, 5, [])):
        assert _outcome(planner.plan(planner.freed(one))) == AttachAnswer("freed", seq, one.ref.upload_id)
        assert planner.files() == left
        assert planner.rows.uploads[one.ref] == "freed"
        again = planner.plan(planner.freed(one))
        assert _outcome(again) == AttachAnswer("freed", None, one.ref.upload_id)
        assert not again.writes.records
    assert planner.rows.records[TASK].attachments == b"[]"
    third = upload(3)
    planner.plan(planner.stored(third))
    assert planner.files() == [_id(3)]


def test_free_file_of_a_tombstone_announces_nothing() -> None:
    """The feed shows none of it, so that nobody is told; brought back it has what is left."""
    planner = FilePlanner().with_task()
    first, second = upload(1), upload(2)
    planner.plan(planner.stored(first), planner.stored(second))
    planner.plan(planner.push({"domain": "task", "id": "a", "op": "delete", "base": 1}))
    planned = planner.plan(planner.freed(first))
    assert _outcome(planned) == AttachAnswer("freed", None, _id(1))
    assert not planned.changes
    assert not planned.writes.seqs
    assert len(planned.writes.records) == 1
    planner.plan(planner.push({"domain": "task", "id": "a", "op": "put", "base": 2, "data": {"n": 1}}))
    assert planner.files() == [_id(2)]


def test_free_file_without_record_is_freed() -> None:
    planner = FilePlanner()
    one = upload(1)
    planner.stored(one)
    planned = planner.plan(planner.freed(one))
    assert _outcome(planned) == AttachAnswer("freed", None, _id(1))
    assert not planned.writes.records
    assert planner.rows.uploads[one.ref] == "freed"


@pytest.mark.parametrize(("state", "left"), [("stored", "waiting"), ("attached", "attached")])
def test_free_only_if_deleted_keeps_files_of_a_live_record(
    state: State, left: Literal["attached", "waiting"]
) -> None:
    """It looked at the record some time before: whether that is deleted is looked at under the lock again."""
    planner = FilePlanner().with_task()
    one = upload(1)
    if state == "attached":
        planner.plan(planner.stored(one))
    work = msgspec.structs.replace(planner.stored(one, state), entry=None, only_if_deleted=True)
    planned = planner.plan(work)
    assert _outcome(planned) == AttachAnswer(left, None)
    assert not planned.writes.records
    assert not planned.writes.uploads
    assert planner.files() == ([_id(1)] if state == "attached" else [])
    planner.plan(planner.push({"domain": "task", "id": "a", "op": "delete", "base": 1}))
    assert _outcome(planner.plan(work)) == AttachAnswer("freed", None, _id(1))
    assert planner.rows.uploads[one.ref] == "freed"


def test_attach_record_of_another_tenant_is_not_touched() -> None:
    planner = FilePlanner().with_task()
    assert _outcome(planner.plan(planner.stored(upload(1, tenant=2)))) == AttachAnswer("waiting", None)
    assert planner.rows.records[TASK].attachments is None


def test_attach_file_name_is_kept_unchanged() -> None:
    planner = FilePlanner().with_task()
    name = 'a "quote"\\ \x01\x02 ü \U0001f511 ../../etc/passwd\r\n.jpg'
    planner.plan(planner.stored(upload(1, file_name=name)), planner.stored(upload(2)))
    shown = json.loads(encode_change(planner.rows.records[TASK]))["attachments"]
    assert [one["filename"] for one in shown] == [name, "gate 2.jpg"]


def test_select_files_of_records_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.plan.weighing.BATCH_US", 1e9)
    planner = FilePlanner()
    work = planner.stored(upload(1))
    heavy = Record(*TASK, 1, 1, 0, None, 1, b"{}", None, b'["%s"]' % (b"x" * (4 << 20)))
    planner.rows.records[TASK] = heavy
    batch = [work] * 8
    selected = select(list(batch), planner.rows.snapshot(read_set(list(batch), planner.context)))
    assert list(selected.deferred) == [3, 4, 5, 6, 7]


def test_queue_file_counts_its_entry() -> None:
    queue = CommitQueue(CommitLimits(10, 1 << 20, 10, 1 << 20))
    work = FilePlanner().stored(upload(1))
    assert queue.add(work, lambda _: None, 0.0)
    assert work.entry is not None
    assert queue.size_bytes > len(work.entry)
    assert queue.items == 1
