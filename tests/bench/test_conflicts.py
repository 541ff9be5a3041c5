"""The oracle of the scenario ``conflicts`` against the contract's sentences, and the scenario against it."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from bench.cli import bench
from bench.conflicts import scenario
from bench.conflicts.oracle import POLICIES, Item, Outcome, Policy, Server, outcome
from bench.conflicts.scenario import VARIANTS, case_of
from bench.report.results import Report
from engine.model.domains import Domains
from engine.model.domains import Policy as KnownPolicy
from engine.runtime.setting_layers import Layer, settings
from storage.embedded.servers import Services
from tests.bench.test_scenarios import options
from tests.harness.services import data_dir

CONFIG = Path(__file__).parents[2] / "config.toml"
SERVER = Server({"note": "theirs", "status": "OPEN", "place": "A"}, 100, frozenset({"note"}))
GONE = Server(None, 100, frozenset(), {"note": "last", "place": "A"})
PATCH = {"note": "mine", "status": "NEW"}


def merged(**fields: str) -> dict[str, str]:
    return {"note": "theirs", "status": "OPEN", "place": "A"} | fields


B = merged(place="B")


@pytest.mark.parametrize(
    ("policy", "server", "item", "data", "winners"),
    [
        ("server_wins", SERVER, Item("patch", 200, PATCH), SERVER.data, {"server"}),
        ("client_wins", SERVER, Item("patch", 50, PATCH), merged(**PATCH), {"client"}),
        ("client_wins", SERVER, Item("put", 50, {"note": "mine"}), {"note": "mine"}, {"client"}),
        ("client_wins", SERVER, Item("delete", 50), None, {"client"}),
        ("client_wins", GONE, Item("patch", 50, {"note": "x"}), {"note": "x", "place": "A"}, {"client"}),
        ("most_recent_wins", SERVER, Item("patch", 101, PATCH), merged(**PATCH), {"client"}),
        ("most_recent_wins", SERVER, Item("patch", 100, PATCH), SERVER.data, {"server"}),
        ("preserve_escalation", SERVER, Item("patch", 50, PATCH), merged(note="mine"), {"merged"}),
        ("preserve_escalation", SERVER, Item("delete", 200), SERVER.data, {"server"}),
        ("preserve_escalation", GONE, Item("put", 200, {"note": "mine"}), None, {"server"}),
        ("field_merge", SERVER, Item("patch", 50, PATCH), merged(status="NEW"), {"merged"}),
        ("field_merge", SERVER, Item("patch", 200, PATCH), merged(**PATCH), {"client", "merged"}),
        ("field_merge", SERVER, Item("put", 50, {"note": "x", "place": "B"}, ["place"]), B, {"merged"}),
        ("field_merge", SERVER, Item("put", 50, {"note": "x"}), SERVER.data, {"server"}),
        ("field_merge", SERVER, Item("delete", 200), None, {"client", "merged"}),
        ("field_merge", GONE, Item("patch", 50, PATCH), None, {"server"}),
    ],
)  # fmt: skip
def test_oracle_settles_as_the_contract_says(
    policy: Policy, server: Server, item: Item, data: dict[str, Any] | None, winners: set[str]
) -> None:
    assert outcome(policy, server, item) == Outcome("resolved", frozenset(winners), data)


def test_oracle_manual_is_held_and_the_server_record_stands() -> None:
    assert outcome("manual", SERVER, Item("patch", 200, PATCH)) == Outcome(
        "conflict", frozenset(), SERVER.data
    )


@pytest.mark.parametrize(
    ("server", "item", "held"),
    [
        (SERVER, Item("patch", 200, PATCH), True),  # the note of both
        (SERVER, Item("patch", 200, {"note": "theirs", "place": "B"}), False),
        (SERVER, Item("put", 50, {"note": "x", "place": "B"}, ["place"]), False),
        (SERVER, Item("put", 200, {"note": "x"}), True),
        (SERVER, Item("delete", 200), True),
        (GONE, Item("patch", 200, PATCH), True),
    ],
)
def test_oracle_field_merge_holds_what_falls_to_manual(server: Server, item: Item, held: bool) -> None:
    found = outcome("field_merge", server, item, "manual")
    assert found == (outcome("manual" if held else "field_merge", server, item))


def test_oracle_knows_every_policy() -> None:
    assert {*POLICIES} == {*KnownPolicy.__args__}  # type: ignore[attr-defined]


def test_cases_each_variant_is_a_conflict_with_data_of_its_own() -> None:
    cases = [case_of(number) for number in range(2 * len(VARIANTS))]
    assert len({str(case) for case in cases}) == len(cases)
    assert not any(case.item.op == "delete" and case.server.data is None for case in cases)


def test_cases_lead_to_statuses_that_the_delivered_rules_allow() -> None:
    """A whole put leads back to the first status; where the server's stands, nothing does."""
    domains = Domains(dict(settings([Layer("config.toml", tomllib.loads(CONFIG.read_text()))]).domains))
    assert domains.default_policies == scenario.DELIVERED
    for name, (before, after) in scenario._STATUSES.items():
        assert domains.rules[name].violation({"status": after}, {"status": before}) is None
        if scenario.DELIVERED[name].policy in {"client_wins", "field_merge"}:
            assert domains.rules[name].violation({"status": before}, {"status": after}) is None


async def test_conflicts_on_a_server_match_the_oracle(
    services: Services, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMARK__DATA__DIR", str(data_dir(services) / tmp_path.name))
    monkeypatch.setattr(scenario, "SIZES", (2 * len(VARIANTS),))
    monkeypatch.setattr(scenario, "DEVICES", 2)
    monkeypatch.setattr(scenario, "BY_HAND", 8)
    report = await scenario.conflicts(options())
    assert [bar.name for bar in report.bars if not bar.met] == []
    assert len(report.bars) == 2 * (len(POLICIES) + 2)
    *every, as_said, alone = [figure for figure in report.figures if figure.unit == "%"]
    shares = {one.name.partition(",")[0]: one.value for one in every}
    assert as_said.value == 100
    assert alone.value == pytest.approx(shares.pop("as delivered")) == 100
    assert alone.beside == f"of {2 * len(VARIANTS)} in the log, policies as delivered"
    # What field_merge cannot settle waits for a person in one of five domains.
    assert 80 < shares.pop("with a person") < 100
    # A patch that conflicts with a tombstone is settled while the server keeps its data.
    assert shares == {policy: 0 if policy == "manual" else 100 for policy in POLICIES}


def test_judge_other_outcome_and_missing_answer_miss_their_bars() -> None:
    report = Report(scenario="conflicts", work="")
    found = scenario.Found(Counter({"resolved": 8, "conflict": 1}), [1000, 3000], [], ["r1: wrong"])
    scenario.judge(report, "client_wins", 10, found)
    assert [bar.met for bar in report.bars] == [False, False]
    assert [figure.value for figure in report.figures] == [80, 1.0]
    assert report.remarks == ["client_wins, 10: r1: wrong"]


def test_high_volume_stores_all_items(
    services: Services, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMARK__DATA__DIR", str(data_dir(services) / tmp_path.name))
    file = tmp_path / "r.json"
    result = CliRunner().invoke(bench, ["--scenario", "high_volume", "--duration", "3", "--json", str(file)])
    assert result.exit_code == 0, result.output
    (report,) = msgspec.json.decode(file.read_bytes())["reports"]
    assert report["rows"][0]["audit"]["items"] == 10_000
    assert [figure["name"] for figure in report["figures"]] == [
        "average of a sync",
        "p95 of a sync",
        "connections to PostgreSQL",
    ]
