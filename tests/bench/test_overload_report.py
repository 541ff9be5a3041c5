"""What the scenario ``overload`` makes of what outcome: sums, verdict, report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.load_run import Run
from bench.harness.meter import Usage
from bench.load.plan import Outcome, Plan, Ready, Step
from bench.load.workload import ONLINE
from bench.overload.scenario import back_to_normal_s, judge, oddities
from bench.report.html import html_of
from bench.report.results import Report, Row, Window
from bench.report.statistics import Latency, percentile
from bench.report.summary import row_of
from bench.report.text import text_of
from bench.report.written import as_json
from tests.bench.test_report import titles

Json = dict[str, Any]

PLAN = Plan(
    host="h",
    ports=[1],
    prefix="0a1b2c3d",
    devices=["0a1b2c3d-0"],
    tokens=["t"],
    backlog=ONLINE,
    steps=[Step("a", 300.0, 0.1), Step("b", 100.0, 0.2)],
)


def outcome_of(*syncs: tuple[int, int, int, int], **changes: Any) -> Outcome:
    """Syncs as (due_ms, sent_ms, done_ms, code); the codes are stored, overloaded and rate_limited."""
    due_us, sent_us, done_us = (
        [sync[place] * 1000 if sync[place] >= 0 else -1 for sync in syncs] for place in range(3)
    )
    usual: Json = {
        "device": [0] * len(syncs),
        "due_us": due_us,
        "sent_us": sent_us,
        "done_us": done_us,
        "code": [sync[3] for sync in syncs],
        "codes": ["unanswered", "synced", "overloaded", "rate_limited"],
        "seqs": [],
        "lag_us": [1000, 3000],
        "ended": {},
    }
    return Outcome(**(usual | changes))


def run_of(outcome: Outcome, usage: Sequence[Usage] = ()) -> Run:
    return Run(PLAN, ["acme"], Ready(1, 0.0, {}), outcome, usage)


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(1, 100))
def test_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[int], percent: int) -> None:
    def not_above(limit: int) -> int:
        return sum(value <= limit for value in values)

    enough = [value for value in values if 100 * not_above(value) >= percent * len(values)]
    assert percentile(sorted(values), percent) == min(enough)


def test_row_sums_up_one_step() -> None:
    """The second step of two: 100 to 300 ms."""
    outcome = outcome_of(
        (50, 50, 150, 1),  # of the first step, stored in the second
        (100, 102, 110, 1),
        (150, 160, 350, 1),  # answered after its end
        (200, 200, 210, 2),
        (210, 210, 230, 3),
        (220, 220, -1, 0),  # never answered
        (290, 310, 320, 1),  # sent too late
        (295, -1, -1, 0),  # its connection was gone
    )
    usage = Usage({"generator": 20.0, "server": 100.0}, 180.0, 2 << 20, 3 << 20)
    load = row_of(run_of(outcome, [usage, usage]), times=2.0)
    assert (load.name, load.times) == ("b", 2.0)
    assert load.wanted_per_s == 7 / 0.2
    assert load.offered_per_s == 5 / 0.2
    assert load.stored_per_s == 2 / 0.2
    assert load.refused_per_s == 2 / 0.2
    assert load.refused == {"overloaded": 1, "rate_limited": 1}
    assert load.latency == Latency(30.0, 200.0, 200.0, 200.0)
    assert load.refusal == Latency(10.0, 20.0, 20.0, 20.0)
    assert load.waiting == 2
    assert (load.late_p99_ms, load.lag_p99_ms) == (20.0, 3.0)
    assert load.frame_us == pytest.approx(4000.0)
    assert load.cpus == {"generator": pytest.approx(0.1), "server": pytest.approx(0.5)}
    assert load.other_cpus == pytest.approx(0.3)
    assert load.rss_peak_mib == 3.0
    assert not load.offered


def test_row_of_an_empty_step_is_zeros() -> None:
    load = row_of(run_of(outcome_of()), place=0)
    assert (load.offered_per_s, load.latency.max_ms, load.frame_us, load.rss_peak_mib) == (0, 0, 0, None)
    assert load.offered


def test_row_windows_are_by_due_time_in_the_step() -> None:
    outcome = outcome_of(
        *((10, 10, 20, 1), (110, 110, 120, 1), (199, 199, 500, 1), (150, 150, 160, 2)),
        *((210, 210, -1, 0), (220, -1, -1, 0), (310, 310, 320, 1)),
    )
    row = row_of(run_of(outcome))
    assert row.windows == [Window(0.0, 2, 1, 0, 301.0), Window(0.1, 0, 0, 1, None)]


def window(tenth: int, p95_ms: float, refused: int = 0) -> Window:
    return Window(tenth / 10, 5, refused, 0, p95_ms)


@pytest.mark.parametrize(
    ("p95s_ms", "expected_s"),
    [
        ([9.0, 9.0, 9.0], 0.1),
        ([99.0, 9.0, 9.0, 9.0], 0.2),
        ([9.0, 99.0, 9.0, 9.0, 9.0], 0.3),  # one window alone is luck
        ([99.0, 9.0, 9.0], None),
        ([15.0, 15.0, 15.0], 0.1),
        ([15.1, 15.0, 15.0, 15.0], 0.2),
    ],
)
def test_back_to_normal_takes_windows_in_a_row(p95s_ms: list[float], expected_s: float | None) -> None:
    found = back_to_normal_s([window(n, p95) for n, p95 in enumerate(p95s_ms)], 10.0)
    assert found == (None if expected_s is None else pytest.approx(expected_s))


def test_back_to_normal_five_ms_more_are_normal_and_a_refusal_is_not() -> None:
    fine = [window(n, 6.0) for n in range(3)]
    assert back_to_normal_s(fine, 1.0) == pytest.approx(0.1)
    assert back_to_normal_s([window(0, 6.1), *fine[1:]], 1.0) is None
    assert back_to_normal_s([window(0, 6.0, refused=1), *fine[1:]], 1.0) is None


def load(name: str, times: float | None = None, **changes: Any) -> Row:
    usual: Json = {
        "wanted_per_s": 100.0,
        "offered_per_s": 100.0,
        "stored_per_s": 100.0,
        "refused_per_s": 0.0,
        "refused": {},
        "latency": Latency(1.0, 2.0, 3.0, 4.0),
        "loop": "open",
        "asked": 1,
        "connected": 1,
        "connect_s": 0.1,
        "refusals": {},
        "refusal": Latency(0.0, 0.0, 0.0, 0.0),
        "waiting": 0,
        "late_p99_ms": 0.5,
        "lag_p99_ms": 0.25,
        "frame_us": 20.0,
        "cpus": {"generator": 0.1, "server": 0.5, "postgres": 0.3},
        "other_cpus": 0.0,
        "rss_peak_mib": 100.0,
    }
    return Row(name=name, times=times, **(usual | changes))


def report_of(top: Row, *quiet: Row) -> Report:
    beside = quiet or (load("quiet beside, round 1", latency=Latency(1.0, 2.0, 5.0, 6.0)),)
    windows = [window(n, 10.0) for n in range(6)]
    loads = [
        load("capacity"),
        load("1 times", 1.0),
        load("normal before", windows=windows),
        top,
        load("normal after", windows=windows),
        load("quiet alone, round 1"),
        *beside,
        load("capacity again", stored_per_s=90.0),
    ]
    return Report(scenario="overload", work="the work", rows=loads)


OVER = {
    "wanted_per_s": 1000.0,
    "offered_per_s": 960.0,
    "stored_per_s": 85.0,
    "refused_per_s": 875.0,
    "refused": {"overloaded": 875},
    "refusal": Latency(1.0, 2.0, 40.0, 50.0),
    "rss_peak_mib": 150.0,
}


def test_judge_overload_meets_all_bars() -> None:
    report = report_of(load("10 times", 10.0, **OVER))
    judge(report)
    assert [(bar.name, bar.value and round(bar.value, 3), bar.met) for bar in report.bars] == [
        ("of each load at least offered", 96.0, True),
        ("stored at 10 times capacity, over capacity", 0.85, True),
        ("p99 of refusals at 10 times", 40.0, True),
        ("memory at 10 times, over 1 times", 1.5, True),
        ("back to normal after", 0.1, True),
        ("syncs of the quiet tenant refused beside a flood", 0, True),
        ("p99 of a quiet tenant beside a flood, over alone", 1.667, True),
    ]
    figures = {figure.name: (figure.value, figure.beside) for figure in report.figures}
    assert figures["capacity"] == (100.0, "90/s at the end")
    assert figures["p99 of a quiet tenant beside a flood"] == (5.0, "3.00 ms alone")
    assert report.passed
    assert report.remarks == []


@pytest.mark.parametrize(("stored_per_s", "said"), [(109.0, 0), (111.0, 1)])
def test_judge_capacity_taken_too_low_is_named(stored_per_s: float, said: int) -> None:
    report = report_of(load("10 times", 10.0, **(OVER | {"stored_per_s": stored_per_s})))
    judge(report)
    assert ["capacity was taken too low" in remark for remark in report.remarks] == [True] * said


def test_judge_load_that_was_not_offered_has_no_bar() -> None:
    report = report_of(load("10 times", 10.0, **(OVER | {"offered_per_s": 900.0})))
    judge(report)
    assert [bar.name for bar in report.bars if not bar.met] == ["of each load at least offered"]
    assert not any("10 times" in bar.name for bar in report.bars)
    assert "900 of 1,000 syncs/s were really offered" in report.remarks[0]
    assert "900 (not measured)" in text_of(report)
    (whole,) = msgspec.json.decode(as_json([report]))["reports"]
    assert [one["offered"] for one in whole["rows"]] == [True, True, True, False, True, True, True, True]


def test_judge_server_that_collapses_misses_its_bars() -> None:
    nothing = Latency(0.0, 0.0, 0.0, 0.0)
    report = report_of(
        load("10 times", 10.0, **(OVER | {"stored_per_s": 0.0, "refused_per_s": 0.0, "refusal": nothing})),
        load("quiet beside, round 1", refused={"overloaded": 3}, latency=nothing),
    )
    after = [window(n, 900.0) for n in range(6)]
    report.rows[4] = msgspec.structs.replace(report.rows[4], windows=after)
    judge(report)
    assert {bar.name for bar in report.bars if not bar.met} == {
        "stored at 10 times capacity, over capacity",
        "syncs of the quiet tenant refused beside a flood",
        "p99 of a quiet tenant beside a flood, over alone",
    }
    assert report.faulty
    assert report.remarks == [
        "10 times: nothing was refused",
        "latency was not back to normal within 0.5 s",
    ]


def test_oddities_name_silence_and_closed_connections() -> None:
    outcome = outcome_of((1, 1, -1, 0), (2, -1, -1, 0), (3, 3, 4, 1), ended={"closed_4429": 2})
    assert oddities(run_of(outcome)) == [
        "run of b: 1 syncs were never answered",
        "run of b: said without being asked: closed_4429 2",
    ]


def test_report_shows_each_load_and_draws_it() -> None:
    report = report_of(load("10 times", 10.0, **OVER))
    judge(report)
    text = text_of(report)
    assert "overloaded 875" in text
    assert "0.10 + 0.50 + 0.30" in text
    page = html_of([report])
    assert titles(page) == ["Throughput against offered load"]
    assert "back to normal after" in page
