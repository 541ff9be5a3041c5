"""A device's own changes are ordered by ``at`` as it sent them, whatever the server thinks of its clock."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest

from engine.commit.validation import MessageValidator, Session
from engine.model.domains import Domain, DomainPolicy, Domains, Policy
from engine.model.rows import RecordKey
from engine.model.tenants import Tenant
from engine.operate.quarantine_retry import retry_push
from engine.plan.batch import plan, read_set
from engine.plan.context import PlanContext
from engine.plan.quarantine import quarantined
from engine.plan.work import PushAnswer
from engine.wire.codec import JSON
from engine.wire.messages import Sync
from engine.wire.timestamps import to_text
from tests.harness.memory_store import Memory

Json = dict[str, Any]

NOW_US = 1_767_323_045_000_000
SECOND_US = 1_000_000
KEY = RecordKey(1, "task", "a")


class Server:
    """Plans one message at a time under one policy, over rows in memory."""

    def __init__(self, policy: Policy, fallback: Policy = "most_recent_wins") -> None:
        ids, self._keys = itertools.count(1), itertools.count(1)
        chosen = msgspec.convert({"policy": policy, "fallback": fallback}, DomainPolicy)
        domains = Domains({"task": Domain(policy="manual")})
        self.rows = Memory()
        self.validator = MessageValidator(domains, 500)
        self.context = PlanContext(
            domains, lambda _: {"task": chosen}, lambda: f"id-{next(ids)}", 1000, 1 << 20
        )

    def push(
        self,
        data: Json,
        at_s: float | None,
        base: int | None = None,
        *,
        device: str = "phone",
        offset_s: float = 0,
        now_s: float = 10,
    ) -> Json:
        """Push a patch; times are seconds after a fixed instant. Returns its result."""
        item: Json = {"domain": "task", "id": "a", "op": "patch", "base": base, "data": data}
        if at_s is not None:
            item["at"] = to_text(NOW_US + round(at_s * SECOND_US))
        frame = {"type": "sync", "id": "1", "key": f"k{next(self._keys)}", "items": [item]}
        sync = JSON.decode(json.dumps(frame).encode())
        assert isinstance(sync, Sync)
        offset_us = round(offset_s * SECOND_US)
        session = Session(tenant=Tenant(1, "t"), device_id=device, session_id="s", clock_offset_us=offset_us)
        work = self.validator.push(sync, session, NOW_US + round(now_s * SECOND_US))
        planned = plan([work], self.rows.snapshot(read_set([work], self.context)), self.context)
        self.rows.apply(planned.writes, {1})
        (answer,) = planned.outcomes
        assert isinstance(answer, PushAnswer)
        (result,) = json.loads(answer.results)
        assert isinstance(result, dict)
        return result

    @property
    def data(self) -> Any:
        """The record as it stands."""
        data = self.rows.records[KEY].data
        return None if data is None else json.loads(data)


POLICIES: list[tuple[Policy, Policy]] = [
    ("server_wins", "server_wins"),
    ("most_recent_wins", "server_wins"),
    ("manual", "manual"),
    ("field_merge", "server_wins"),
    ("field_merge", "manual"),
    ("field_merge", "most_recent_wins"),
]


@pytest.mark.parametrize(("policy", "fallback"), POLICIES)
def test_own_edits_slow_line_taken_for_a_wrong_clock_both_apply(policy: Policy, fallback: Policy) -> None:
    server = Server(policy, fallback)
    assert server.push({"n": 0}, 0)["status"] == "applied"
    assert server.push({"n": 1}, 1, base=1, offset_s=6)["status"] == "applied"
    assert server.push({"n": 2}, 2, base=1)["status"] == "applied"
    assert server.push({"n": 3}, 2, base=1)["status"] == "applied", "a tie comes after it"
    assert server.data == {"n": 3}


@pytest.mark.parametrize(("policy", "fallback"), POLICIES)
def test_own_edits_earlier_one_comes_late_is_a_conflict(policy: Policy, fallback: Policy) -> None:
    server = Server(policy, fallback)
    server.push({"n": 0}, 0)
    server.push({"n": 2}, 2, base=1)
    assert server.push({"n": 1}, 1, base=1, offset_s=60)["status"] in ("resolved", "conflict")
    assert server.data == {"n": 2}


def test_own_edits_on_a_version_that_won_a_conflict_later_ones_win_too() -> None:
    server = Server("most_recent_wins")
    server.push({"n": 0}, 0, device="office")
    server.push({"n": 7}, 1, base=1, device="office")
    for number, offset_s in ((1, 6), (2, 0), (3, 0)):
        result = server.push({"n": number}, 2, base=1, offset_s=offset_s)
        assert (result["status"], result["winner"]) == ("resolved", "client")
    result = server.push({"n": 9}, 1.5, base=1, offset_s=60)
    assert (result["winner"], server.data) == ("server", {"n": 3})


@pytest.mark.parametrize("fallback", ["server_wins", "manual", "most_recent_wins", "client_wins"])
def test_field_merge_field_last_changed_by_the_same_device_takes_the_later_own_edit(fallback: Policy) -> None:
    server = Server("field_merge", fallback)
    server.push({"a": 0, "b": 0, "c": 0}, 0, device="office")
    server.push({"b": 1}, 1, base=1, device="office")
    assert server.push({"a": 1}, 2, base=1, offset_s=6)["winner"] == "client"
    server.push({"c": 1}, 3, base=3, device="office")
    assert server.push({"a": 2}, 2, base=1)["winner"] == "client", "neither is the office's last version its"
    assert server.data == {"a": 2, "b": 1, "c": 1}


def test_field_merge_own_edit_earlier_than_the_fields_last_loses_to_it() -> None:
    server = Server("field_merge")
    server.push({"a": 0, "b": 0}, 0, device="office")
    server.push({"b": 1}, 1, base=1, device="office")
    server.push({"a": 2}, 2, base=1)
    assert server.push({"a": 1}, 1, base=1, offset_s=60)["winner"] == "server"
    assert server.data == {"a": 2, "b": 1}


def test_field_merge_a_field_of_another_device_is_judged_by_corrected_times() -> None:
    server = Server("field_merge")
    server.push({"a": 0}, 0)
    server.push({"a": 1}, 5, base=1, device="office")
    assert server.push({"a": 2}, 1, base=1)["winner"] == "server"
    assert server.push({"a": 2}, 1, base=1, offset_s=5)["winner"] == "client"


def test_own_edits_without_at_come_after_and_are_no_measure_for_those_with_one() -> None:
    server = Server("server_wins")
    server.push({"n": 0}, -100)
    assert server.push({"n": 1}, None, base=1)["status"] == "applied"
    assert server.push({"n": 2}, -99, base=1)["status"] == "applied", "the clock is slow, and nobody knows"
    assert server.push({"n": 3}, None, base=1, now_s=-200)["status"] == "applied"
    assert server.push({"n": 4}, -99.5, base=1)["winner"] == "server"
    assert server.data == {"n": 3}


def test_own_edits_without_at_on_the_version_that_stands_begin_anew() -> None:
    server = Server("server_wins")
    server.push({"n": 0}, 7200)
    assert server.push({"n": 1}, None, base=1)["status"] == "applied"
    assert server.push({"n": 2}, 1, base=1)["status"] == "applied", "the clock was set back before both"


def test_own_edits_record_created_without_at_any_later_one_applies() -> None:
    server = Server("server_wins")
    server.push({"n": 0}, None)
    assert server.push({"n": 1}, -50)["status"] == "applied"


def test_own_edits_late_merge_does_not_set_the_last_sent_time_back() -> None:
    server = Server("field_merge", "most_recent_wins")
    server.push({"a": 0, "b": 0}, 0)
    server.push({"a": 2}, 3, base=1)
    assert server.push({"b": 1}, 1, base=1)["status"] == "resolved", "a late one of another field"
    assert server.rows.records[KEY].sent_at_us == NOW_US + 3 * SECOND_US
    assert server.push({"a": 1}, 2, base=1)["winner"] == "server"
    assert server.data == {"a": 2, "b": 1}


def test_own_edits_clock_set_back_between_answered_edits_goes_on_from_the_last() -> None:
    server = Server("server_wins")
    server.push({"n": 0}, 7200)
    assert server.push({"n": 1}, 1, base=1)["status"] == "applied"
    assert server.push({"n": 2}, 2, base=1)["status"] == "applied"


def test_own_edits_row_of_an_earlier_release_is_judged_by_corrected_times() -> None:
    server = Server("server_wins")
    server.push({"n": 0}, 0)
    server.push({"n": 1}, 1, base=1, offset_s=3)
    server.rows.records[KEY] = msgspec.structs.replace(server.rows.records[KEY], sent_at_us=None)
    assert server.push({"n": 2}, 2, base=1)["winner"] == "server"
    assert server.push({"n": 2}, 2, base=1, offset_s=3)["status"] == "applied"


def test_quarantined_item_keeps_its_corrected_at() -> None:
    server = Server("most_recent_wins")
    sent = b'{"domain":"task","id":"a","op":"put","at":"2026-01-02T01:04:05Z"}'
    sync = JSON.decode(b'{"type":"sync","key":"k","items":[%b]}' % sent)
    assert isinstance(sync, Sync)
    offset_us = 7_200_000_000 - 9_000_000
    session = Session(tenant=Tenant(1, "t"), device_id="phone", session_id="s", clock_offset_us=offset_us)
    push = server.validator.push(sync, session, NOW_US)
    planned = plan([push], server.rows.snapshot(read_set([push], server.context)), server.context)
    (row,) = planned.writes.quarantine
    assert quarantined(push, [], lambda: "") == []
    again = retry_push([row], "t", b'{"n":1}', server.validator, NOW_US + 86_400_000_000)
    (change,) = again.items
    assert msgspec.structs.asdict(change)["at_us"] == NOW_US - 9_000_000
    assert msgspec.structs.asdict(change)["sent_at_us"] == NOW_US - 7_200_000_000
