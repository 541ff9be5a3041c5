"""Cases of planning that worlds drawn at random rarely meet."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from engine.commit.validation import MessageValidator, Session
from engine.model.domains import Domain, DomainPolicy, Domains
from engine.model.rows import Conflict, ConflictRef, EventKey, OpenConflictRef, RecordKey
from engine.model.tenants import Tenant
from engine.plan.batch import Plan, plan, read_set
from engine.plan.context import PlanContext
from engine.plan.held_changes import changes_of
from engine.plan.work import Push, PushAnswer, Resolution, ResolveAnswer, Work
from engine.wire.codec import JSON
from engine.wire.errors import SyncError
from engine.wire.messages import Choice, Resolve, Sync
from tests.harness.memory_store import Memory

Json = dict[str, Any]

NOW_US = 1_767_323_045_000_000
AT = "2026-01-02T03:04:00Z"
DOMAINS = Domains(
    {
        "task": Domain(policy="server_wins"),
        "form": Domain(policy="manual"),
        "note": Domain(policy="field_merge", fallback="manual"),
        "visit": Domain(policy="client_wins", required=("place",)),
        "voice": Domain(kind="event"),
    }
)


class Planner:
    """Plans batches over rows in memory."""

    def __init__(
        self, domains: Domains = DOMAINS, answer_data_bytes: int = 1 << 20, record_bytes: int = 1000
    ) -> None:
        ids = itertools.count(1)
        self.rows = Memory()
        self.validator = MessageValidator(domains, 500)
        self.context = PlanContext(
            domains,
            lambda _: domains.default_policies,
            lambda: f"id-{next(ids)}",
            record_bytes,
            answer_data_bytes,
        )
        self.now_us = NOW_US
        self._keys = itertools.count(1)

    def push(
        self, *items: Json, device: str = "phone", tenant: int = 1, atomic: bool = False, key: str = ""
    ) -> Push:
        """Return the work of a sync, under a fresh key by default."""
        frame = {
            "type": "sync",
            "id": "1",
            "key": key or f"k{next(self._keys)}",
            "atomic": atomic,
            "items": items,
        }
        request = JSON.decode(json.dumps(frame).encode())
        assert isinstance(request, Sync)
        session = Session(tenant=Tenant(tenant, "t"), device_id=device, session_id="s")
        return self.validator.push(request, session, self.now_us)

    def resolution(
        self, conflict: Conflict, choice: Choice, version: int, data: Json | None = None
    ) -> Resolution:
        """Return the work of a resolve by the conflict's own device."""
        session = Session(tenant=Tenant(1, "t"), device_id=conflict.device_id, session_id="s")
        request = Resolve("1", conflict.conflict_id, choice, version, data)
        return self.validator.resolution(request, session, conflict, self.now_us)

    def plan(self, *batch: Work) -> Plan:
        """Plan one batch and write it."""
        listed = list(batch)
        planned = plan(listed, self.rows.snapshot(read_set(listed, self.context)), self.context)
        if planned.unread_conflicts:
            state = self.rows.snapshot(read_set(listed, self.context, planned.unread_conflicts))
            planned = plan(listed, state, self.context, planned.unread_conflicts)
        self.rows.apply(planned.writes, {work.tenant_id for work in batch})
        return planned

    def results(self, *batch: Push) -> list[list[Json]]:
        """Plan one batch and give the results of each of its messages."""
        found: list[list[Json]] = []
        for outcome in self.plan(*batch).outcomes:
            assert isinstance(outcome, PushAnswer)
            found.append(json.loads(outcome.results))
        return found


def item(domain: str, record_id: str, /, base: int | None = None, op: str = "put", **data: Any) -> Json:
    """Make an item."""
    return {"domain": domain, "id": record_id, "op": op, "base": base, "at": AT, "data": data}


def statuses(results: list[Json]) -> list[str]:
    """Give the statuses of results."""
    return [result["status"] for result in results]


BAD = item("nothing", "x")


def test_push_aborted_leaves_no_event() -> None:
    planner = Planner()
    event = item("voice", "v", op="append", x=1)
    aborted, again = planner.results(planner.push(event, BAD, atomic=True), planner.push(event))
    assert [result["error"]["code"] for result in aborted] == ["batch_aborted", "unknown_domain"]
    assert statuses(again) == ["applied"]
    assert EventKey(1, "voice", "v", NOW_US - 5_000_000) in planner.rows.events


def test_push_aborted_leaves_no_record() -> None:
    planner = Planner()
    aborted, again = planner.results(
        planner.push(item("task", "a", x=1), item("task", "a", 1, x=2), BAD, atomic=True),
        planner.push(item("task", "a", x=3), item("task", "b", x=3)),
    )
    assert statuses(aborted) == ["rejected"] * 3
    assert [(result["version"], result["seq"]) for result in again] == [(1, 1), (1, 2)]
    assert not planner.rows.quarantine


def test_push_aborted_keeps_the_rows_as_before() -> None:
    planner = Planner()
    planner.results(planner.push(item("form", "f", x=1), device="planner"))
    ((_, held),) = planner.results(
        planner.push(item("form", "f", 1, x=2), item("form", "f", 7, x=3), atomic=True)
    )
    assert held == {
        "domain": "form",
        "id": "f",
        "status": "conflict",
        "version": 1,
        "seq": 1,
        "data": {"x": 1},
    }
    assert not planner.rows.conflicts


def test_answer_over_its_limit_has_no_more_data() -> None:
    planner = Planner(answer_data_bytes=250)
    everything = [item("task", f"r{number}", x="x" * 92) for number in range(4)]
    planner.results(planner.push(*everything, device="planner"))
    meeting = planner.push(*[item("task", f"r{number}", 9, x="other") for number in range(4)], key="k")
    (results,) = planner.results(meeting)
    assert statuses(results) == ["resolved"] * 4
    assert ["data" in result for result in results] == [True, True, False, False]
    assert [result["version"] for result in results] == [1] * 4
    assert planner.results(meeting) == [results], "the kept answer is the answer"


LARGE = "x" * 250_000


def large_record(planner: Planner, domain: str) -> None:
    """Have another device store a record of 250 KB."""
    planner.results(planner.push(item(domain, "a", place="hall", note=LARGE, n=1), device="planner"))


def stored_bytes(planner: Planner) -> int:
    """Add up what the log and the kept answers hold."""
    rows = planner.rows
    logged = sum(len(row.server_data or b"") + len(row.client_data or b"") for row in rows.conflicts.values())
    return logged + sum(len(row.results) for row in rows.keys.values())


@pytest.mark.parametrize("domain", ["task", "form", "note", "visit"])
@pytest.mark.parametrize("change", [{"n": 2}, {"note": None}, {"note": {"a": 1}}])
def test_conflict_log_small_change_of_a_large_record_stores_little(domain: str, change: Json) -> None:
    planner = Planner(record_bytes=1 << 18)
    large_record(planner, domain)
    before_bytes = stored_bytes(planner)
    for base in range(7, 17):
        planner.results(planner.push(item(domain, "a", base, "patch", **change), device=f"phone{base}"))
    overwritten_bytes = len(LARGE) if domain in ("visit", "note") and "note" in change else 0
    assert stored_bytes(planner) - before_bytes < overwritten_bytes + 10 * 5000
    assert planner.rows.conflicts


def test_conflict_log_lost_change_has_the_small_fields_it_met() -> None:
    planner = Planner(record_bytes=1 << 18)
    large_record(planner, "task")
    planner.results(planner.push(item("task", "a", 7, "put", n=2)))
    assert [row.server_data for row in planner.rows.conflicts.values()] == [b'{"n":1,"place":"hall"}']


def test_conflict_log_won_change_has_all_that_it_replaced() -> None:
    planner = Planner(record_bytes=1 << 18)
    large_record(planner, "visit")
    planner.results(planner.push(item("visit", "a", 7, "patch", note="short", new=1)))
    (row,) = planner.rows.conflicts.values()
    assert row.server_data is not None
    assert json.loads(row.server_data) == {"note": LARGE}


def test_conflict_log_objects_have_what_differs() -> None:
    planner = Planner()
    planner.results(
        planner.push(item("visit", "a", place={"hall": 1, "row": 2, "seat": {"n": 1}}), device="planner")
    )
    planner.results(planner.push(item("visit", "a", 7, "patch", place={"row": 3, "seat": {"m": 1}})))
    assert [row.server_data for row in planner.rows.conflicts.values()] == [b'{"place":{"row":2}}']


def test_replay_data_that_was_not_stored_is_restored() -> None:
    planner = Planner(record_bytes=1 << 18)
    large_record(planner, "task")
    losing = planner.push(item("task", "a", 7, "patch", n=2), item("task", "a", 8, "patch", n=3), key="k")
    (results,) = planner.results(losing)
    assert [len(result["data"]["note"]) for result in results] == [len(LARGE)] * 2
    assert max(len(row.results) for row in planner.rows.keys.values()) < 1000
    (again,) = planner.plan(losing).outcomes
    assert isinstance(again, PushAnswer)
    assert again.replayed
    assert json.loads(again.results) == results


def test_replay_record_of_a_later_version_has_no_data() -> None:
    planner = Planner(record_bytes=1 << 18)
    large_record(planner, "task")
    losing = planner.push(item("task", "a", 7, "patch", n=2), key="k")
    ((told,),) = planner.results(losing)
    planner.results(planner.push(item("task", "a", 1, "patch", n=4), device="planner"))
    ((again,),) = planner.results(losing)
    assert again == {name: value for name, value in told.items() if name != "data"}


def test_replay_is_within_the_limit_of_an_answer() -> None:
    planner = Planner(answer_data_bytes=300_000, record_bytes=1 << 18)
    large_record(planner, "task")
    losing = planner.push(*[item("task", "a", base, "patch", n=2) for base in (7, 8, 9)], key="k")
    (results,) = planner.results(losing)
    assert ["data" in result for result in results] == [True, False, False]
    assert planner.results(losing) == [results]


def test_replay_null_data_does_not_count() -> None:
    planner = Planner(answer_data_bytes=0)
    planner.results(planner.push(item("task", "a", x=1), device="planner"))
    planner.results(planner.push(item("task", "a", 1, op="delete"), device="planner"))
    ((result,),) = planner.results(planner.push(item("task", "a", 9, x=2)))
    assert (result["status"], result["data"]) == ("resolved", None)


def test_push_record_limit_counts_what_would_be_stored() -> None:
    planner = Planner()
    fits = "ä" * 496  # with {"x":""} it is 1000 bytes
    ((put, append),) = planner.results(
        planner.push(item("task", "a", x=fits), item("voice", "v", op="append", x=fits))
    )
    assert (put["status"], append["status"]) == ("applied", "applied")
    results = planner.results(
        planner.push(item("task", "b", x=fits + "y"), item("voice", "w", op="append", x=fits + "y")),
        planner.push(item("task", "a", 1, op="patch", y=1)),
        planner.push(item("task", "a", 1, op="patch", x=None, y=1)),
    )
    codes = [result.get("error", {}).get("code") for result in itertools.chain(*results)]
    assert codes == ["too_large", "too_large", "too_large", None]


def _open_conflict(planner: Planner) -> Conflict:
    planner.results(planner.push(item("form", "f", x=1), device="planner"))
    planner.results(planner.push(item("form", "f", 9, y=2)))
    ((_, conflict),) = planner.rows.conflicts.items()
    return conflict


def test_resolve_server_side_is_kept_under_changed_rules() -> None:
    planner = Planner()
    conflict = _open_conflict(planner)
    stricter = Planner(Domains({"form": Domain(required=("signature",))}))
    stricter.rows = planner.rows
    for choice in ("client", "merged"):
        (refused,) = stricter.plan(stricter.resolution(conflict, choice, 1, {"z": 3})).outcomes
        assert isinstance(refused, SyncError)
        assert (refused.code, refused.message) == ("invalid_message", "data.signature is required")
    (settled,) = stricter.plan(stricter.resolution(conflict, "server", 1)).outcomes
    assert settled == ResolveAnswer(conflict.conflict_id, 2, 2)
    assert stricter.rows.records[RecordKey(1, "form", "f")].data == b'{"x":1}'


def test_resolve_domain_no_longer_configured_names_the_remedy() -> None:
    planner = Planner()
    conflict = _open_conflict(planner)
    without = Planner(Domains({"task": Domain()}))
    without.rows = planner.rows
    for choice in ("client", "server", "merged"):
        (refused,) = without.plan(without.resolution(conflict, choice, 1, {"z": 3})).outcomes
        assert isinstance(refused, SyncError)
        assert refused.code == "invalid_message"
        assert "form" in refused.message


def test_conflict_later_change_joins_and_keeps_the_place() -> None:
    planner = Planner()
    first = _open_conflict(planner)
    planner.now_us += 1_000_000
    planner.results(planner.push(item("form", "f", 1, x=5), device="planner"))
    results, other = planner.results(
        planner.push(item("form", "f", 9, y=3), item("form", "f", 9, y=4)),
        planner.push(item("form", "f", 9, y=5), device="tablet"),
    )
    assert [result["conflict_id"] for result in results] == [first.conflict_id] * 2
    assert other[0]["conflict_id"] != first.conflict_id
    now = planner.rows.conflicts[ConflictRef(1, first.conflict_id)]
    assert [one.data for one in changes_of(now)] == [b'{"y":4}']
    assert (now.client_count, now.client_data, now.opened_at_us) == (3, first.client_data, NOW_US)
    joined = [row for row in planner.rows.conflicts.values() if row.held_in == first.conflict_id]
    assert [(row.outcome, row.client_data, row.server_version, row.opened_at_us) for row in joined] == [
        ("held", b'{"y":3}', 2, NOW_US + 1_000_000),
        ("held", b'{"y":4}', 2, NOW_US + 1_000_000),
    ]


def test_conflict_change_after_settling_opens_a_new_one() -> None:
    planner = Planner()
    first = _open_conflict(planner)
    settled, answer = planner.plan(
        planner.resolution(first, "client", 1), planner.push(item("form", "f", 9, y=3))
    ).outcomes
    assert settled == ResolveAnswer(first.conflict_id, 2, 2)
    assert isinstance(answer, PushAnswer)
    (result,) = json.loads(answer.results)
    assert result["status"] == "conflict"
    assert result["conflict_id"] != first.conflict_id
    assert [row.outcome for row in planner.rows.conflicts.values()] == ["client", "open"]


def test_push_same_key_twice_in_one_batch_applies_once() -> None:
    planner = Planner()
    message = item("task", "a", x=1)
    first, again, other = planner.plan(
        planner.push(message, key="k"),
        planner.push(message, key="k"),
        planner.push(message, message, key="k"),
    ).outcomes
    assert isinstance(first, PushAnswer)
    assert again == PushAnswer(first.results, replayed=True)
    assert isinstance(other, SyncError)
    assert other.code == "idempotency_key_reused"
    assert planner.rows.seqs == {1: 1}


def test_read_set_names_what_the_plan_needs() -> None:
    planner = Planner()
    events = item("voice", "v", op="append")
    wanted = read_set(
        [
            planner.push(item("task", "a"), item("form", "b"), item("note", "c"), BAD, events, tenant=3),
            planner.push(item("task", "a"), item("task", "a"), tenant=3),
            planner.push(tenant=2),
        ],
        planner.context,
    )
    assert wanted.tenants == [2, 3]
    assert wanted.records == [RecordKey(3, domain, name) for domain, name in _names("task a form b note c")]
    assert wanted.events == [EventKey(3, "voice", "v", NOW_US - 5_000_000)]
    assert wanted.open_conflicts == [
        OpenConflictRef(3, "phone", domain, name) for domain, name in _names("form b note c")
    ]
    assert len(wanted.keys) == 3
    assert wanted.conflicts == []


def _names(text: str) -> list[tuple[str, str]]:
    words = text.split()
    return list(zip(words[::2], words[1::2], strict=True))


def test_context_as_of_now_keeps_the_policies() -> None:
    now: dict[int, Mapping[str, DomainPolicy]] = {1: {"task": DomainPolicy("manual")}, 2: {}}
    context = PlanContext(DOMAINS, lambda tenant: now[tenant], str, 1, 1)
    still = context.as_of_now({1, 2})
    now[1] = {"task": DomainPolicy("client_wins")}
    assert still.policies(1) == {"task": DomainPolicy("manual")}
    assert context.policies(1) == {"task": DomainPolicy("client_wins")}


def _many(count: int) -> Json:
    return {f"f{number}": number for number in range(count)}


def _codes_of(results: list[Json]) -> list[str | None]:
    return [result.get("error", {}).get("code") for result in results]


def test_push_too_many_fields_reject_the_item() -> None:
    planner = Planner(record_bytes=1 << 18)
    ((fits, above, event),) = planner.results(
        planner.push(
            item("task", "a", **_many(1000)),
            item("task", "b", **_many(1001)),
            item("voice", "c", op="append", **_many(1001)),
        )
    )
    assert _codes_of([fits, above, event]) == [None, "too_large", None]
    ((grown, within),) = planner.results(
        planner.push(
            item("task", "a", 1, op="patch", more=1), item("task", "a", 1, op="patch", f0=None, more=1)
        )
    )
    assert _codes_of([grown, within]) == ["too_large", None]
    assert "1001 fields, the limit is 1000" in grown["error"]["message"]


def test_push_record_with_too_many_fields_may_change_without_gaining() -> None:
    planner = Planner(record_bytes=1 << 18)
    planner.context = msgspec.structs.replace(planner.context, record_fields=2000)
    planner.validator = MessageValidator(DOMAINS, 500, 2000)
    planner.results(planner.push(item("note", "a", **_many(1500))))
    planner.context = msgspec.structs.replace(planner.context, record_fields=1000)
    planner.validator = MessageValidator(DOMAINS, 500)
    ((changed, grown, whole, less),) = planner.results(
        planner.push(
            item("note", "a", 1, op="patch", f0=7),
            item("note", "a", 2, op="patch", more=1),
            item("note", "a", 2, **_many(1500)),
            item("note", "a", 2, op="patch", f1=None),
        )
    )
    assert _codes_of([changed, grown, whole, less]) == [None, "too_large", "too_large", None]
    (stored,) = planner.rows.records.values()
    assert (stored.version, len(json.loads(stored.data or b""))) == (3, 1499)


def test_field_merge_unknown_names_in_changed_change_nothing() -> None:
    planner = Planner()
    planner.results(planner.push(item("note", "a", x=1, y=1)))
    planner.results(planner.push(item("note", "a", 1, op="patch", y=2), device="tablet"))
    put = {**item("note", "a", 1, x=3, y=1), "changed": [*map(str, range(5000)), "x", "x"]}
    ((result,),) = planner.results(planner.push(put))
    assert (result["winner"], result["data"]) == ("merged", {"x": 3, "y": 2})


def test_push_touching_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty bytes of change may read, log and write a whole record, each of them."""
    monkeypatch.setattr("engine.plan.push.MESSAGE_TOUCHES_BYTES", 3000)
    planner = Planner()
    planner.results(planner.push(item("task", "a", x="x" * 900)))
    changes = [item("task", "a", version, op="patch", y=version) for version in range(1, 5)]
    heavy = planner.push(*changes, key="heavy")
    (outcome,) = planner.plan(heavy).outcomes
    assert isinstance(outcome, SyncError)
    assert outcome.code == "too_large"
    assert [statuses(one) for one in planner.results(planner.push(*changes[:3], key="heavy"))] == [
        ["applied"] * 3
    ]
