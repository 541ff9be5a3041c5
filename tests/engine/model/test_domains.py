"""Rules of a domain: required fields and status steps, judged on the outcome."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.domains import Domain, DomainPolicy, DomainRules, Domains
from engine.runtime.setting_layers import Layer, settings

STEPS = {"NEW": ("OPEN",), "OPEN": ("DONE", "WAITING"), "WAITING": ("OPEN",), "DONE": ()}
TICKET = DomainRules("ticket", Domain(required=("title", "site"), status=STEPS))
FREE = DomainRules("note", Domain())

Json = dict[str, Any]


def violation(before: Any, after: Any) -> str | None:
    """Judge a step of status on a record that is right otherwise."""
    data: Json = {"title": "t", "site": "s"}
    standing = None if before is ... else data | {"status": before}
    return TICKET.violation(data | {"status": after}, standing)


@pytest.mark.parametrize("field", ["title", "site"])
@pytest.mark.parametrize("missing", [True, False])
def test_domain_required_field_missing_or_null_is_named(field: str, missing: bool) -> None:
    data: Json = {"title": "t", "site": "s"}
    if missing:
        del data[field]
    else:
        data[field] = None
    assert TICKET.violation(data, None) == f"data.{field} is required"


@pytest.mark.parametrize("empty", ["", 0, False, [], {}])
def test_domain_required_field_may_be_empty(empty: Any) -> None:
    assert TICKET.violation({"title": empty, "site": empty}, None) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("NEW", "OPEN"),
        ("NEW", "DONE"),
        ("NEW", "WAITING"),
        ("WAITING", "DONE"),
        ("OPEN", "OPEN"),
        ("DONE", "DONE"),
        ("WAITING", "WAITING"),
        (..., "DONE"),
        (None, "DONE"),
        ("LOST", "DONE"),
        ("LOST", "LOST"),
        (7, "DONE"),
        (7, 7),
        ("DONE", None),
        (..., None),
    ],
)
def test_domain_legal_status_step_passes(before: Any, after: Any) -> None:
    assert violation(before, after) is None


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("OPEN", "NEW", "data.status cannot go from OPEN to NEW; allowed: DONE, WAITING"),
        ("WAITING", "NEW", "data.status cannot go from WAITING to NEW; allowed: DONE, OPEN"),
        ("DONE", "OPEN", "data.status cannot go from DONE to OPEN; allowed: none"),
        ("NEW", "LOST", "data.status must be one of DONE, NEW, OPEN, WAITING"),
        (..., "LOST", "data.status must be one of DONE, NEW, OPEN, WAITING"),
        (..., "", "data.status must be one of DONE, NEW, OPEN, WAITING"),
        ("NEW", 7, "data.status must be one of DONE, NEW, OPEN, WAITING"),
        ("NEW", ["OPEN"], "data.status must be one of DONE, NEW, OPEN, WAITING"),
        (True, 1, "data.status must be one of DONE, NEW, OPEN, WAITING"),
        (1, 1.0, "data.status must be one of DONE, NEW, OPEN, WAITING"),
    ],
)
def test_domain_illegal_status_step_names_the_legal_ones(before: Any, after: Any, sentence: str) -> None:
    assert violation(before, after) == sentence


def test_domain_missing_status_passes() -> None:
    assert TICKET.violation({"title": "t", "site": "s"}, {"status": "DONE"}) is None


def test_domain_status_that_is_only_a_target_is_declared() -> None:
    rules = DomainRules("x", Domain(status={"A": ("B",)}))
    assert rules.violation({"status": "B"}, {"status": "A"}) is None
    assert rules.violation({"status": "A"}, {"status": "B"}) is not None
    assert rules.violation({"status": "B"}, None) is None


@given(
    data=st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5)),
    standing=st.none() | st.dictionaries(st.text(max_size=5), st.integers()),
)
def test_domain_without_rules_accepts_everything(data: Json, standing: Json | None) -> None:
    assert FREE.violation(data, standing) is None


_statuses = st.sampled_from("ABCDE")


@given(
    steps=st.dictionaries(_statuses, st.lists(_statuses, max_size=3).map(tuple), max_size=5),
    walk=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    start=_statuses,
)
def test_domain_status_reachable_in_several_steps_passes(
    steps: dict[str, tuple[str, ...]], walk: list[int], start: str
) -> None:
    rules = DomainRules("x", Domain(status=steps))
    at = start
    for choice in walk:
        if steps.get(at):
            at = steps[at][choice % len(steps[at])]
    if start in rules.reachable:
        assert rules.violation({"status": at}, {"status": start}) is None


@given(steps=st.dictionaries(_statuses, st.lists(_statuses, max_size=3).map(tuple), max_size=5))
def test_domain_reachable_statuses_are_the_closure_of_steps(steps: dict[str, tuple[str, ...]]) -> None:
    rules = DomainRules("x", Domain(status=steps))
    for start, reached in rules.reachable.items():
        assert set(steps.get(start, ())) <= reached
        for one in reached:
            assert set(steps.get(one, ())) <= reached
            assert any(one in steps.get(other, ()) for other in reached | {start})


def test_domains_default_policies_are_of_record_domains() -> None:
    domains = Domains(
        {
            "task": Domain(policy="field_merge", fallback="manual"),
            "note": Domain(),
            "voice": Domain(kind="event"),
        }
    )
    assert domains.default_policies == {
        "task": DomainPolicy("field_merge", "manual"),
        "note": DomainPolicy("manual"),
    }
    assert not domains.rules["voice"].is_record


def test_domains_delivered_ones_are_as_documented() -> None:
    """What devices rely on: policies, events, and steps of status."""
    delivered = tomllib.loads((Path(__file__).parents[3] / "config.toml").read_text())
    domains = Domains(dict(settings([Layer("config.toml", delivered)]).domains))
    assert {name: policy.policy for name, policy in domains.default_policies.items()} == {
        "journal": "client_wins",
        "attendance": "server_wins",
        "task": "field_merge",
        "work_order": "field_merge",
        "ticket": "preserve_escalation",
    }
    assert {name for name, rules in domains.rules.items() if not rules.is_record} == {
        "voice",
        "behavioral",
        "session",
        "metrics",
    }
    assert domains.rules["ticket"].domain.server_owned == (
        "escalation_level",
        "escalated_at",
        "escalated_by",
        "status",
    )
    for domain, before, after, legal in (
        ("task", "ASSIGNED", "COMPLETED", True),
        ("task", "COMPLETED", "ASSIGNED", True),
        ("ticket", "CLOSED", "OPEN", False),
        ("ticket", "CANCELLED", "OPEN", False),
        ("ticket", "NEW", "CLOSED", True),
        ("attendance", "CORRECTED", "VERIFIED", False),
        ("attendance", "REJECTED", "CORRECTED", True),
        ("work_order", "draft", "closed", True),
        ("work_order", "completed", "draft", False),
        ("work_order", "in_progress", "draft", False),
    ):
        found = domains.rules[domain].violation({"status": after}, {"status": before})
        assert (found is None) is legal, (domain, before, after)
