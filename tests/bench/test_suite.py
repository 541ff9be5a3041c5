"""Several scenarios in one run: what they are given, how long they take, and the verdict by targets."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import SCENARIOS, bench
from bench.harness.environment import BenchError
from bench.harness.server import Server
from bench.harness.stage import Options, tallied
from bench.report.results import OPEN_CONNECTIONS, Bar, Figure, Report, lost_bar
from bench.report.statistics import drift_of
from bench.report.summary import row_of
from bench.report.targets import WANTED, Target, targets_of
from bench.report.text import text_of_targets
from bench.report.written import read_whole
from bench.scenarios import concurrent, soak
from bench.scenarios.suite import SUITES, Part, Scenario, Suite, expected_s, options_of
from tests.bench.test_report import run_of
from tests.bench.test_scenarios import faultless, options
from tests.harness.in_process_server import Serve
from tests.harness.services import rows
from tests.harness.ws_device import SECRET

#: In which direction a value misses.
_WORSE = {"at most": 1.01, "at least": 0.99}


ALL = [*WANTED, Target(OPEN_CONNECTIONS, None, "at most", 35, "open", scenario="all")]


def reports_of(**changed: float) -> list[Report]:
    """Reports with every figure at the limit of its target, but for some by a name of the figure."""
    found: dict[str, Report] = {}
    for one in WANTED:
        report = found.setdefault(one.scenario, Report(scenario=one.scenario, work=""))
        report.figures.append(Figure(one.name, changed.get(one.name, one.limit), one.unit))
    most = Figure(OPEN_CONNECTIONS, changed.get(OPEN_CONNECTIONS, 35), "open")
    found["cleanup"].figures.append(most)
    return list(found.values())


def test_targets_at_their_limits_are_met() -> None:
    targets = targets_of(reports_of(), every=True)
    assert all(one.met for one in targets)
    assert len(targets) == len(ALL) + 1


@pytest.mark.parametrize("wanted", [one for one in ALL if one.limit], ids=lambda one: one.name)
def test_targets_value_beyond_a_limit_is_missed(wanted: Any) -> None:
    reports = reports_of(**{wanted.name: wanted.limit * _WORSE[wanted.bound]})
    assert [one.name for one in targets_of(reports, every=True) if not one.met] == [wanted.name]
    assert f"MISSED  {wanted.scenario}: {wanted.name}" in text_of_targets(targets_of(reports, every=True))


def test_targets_nothing_measured_is_missed_and_named() -> None:
    targets = targets_of([Report(scenario="uploads", work="")], every=True)
    assert {one.name for one in targets if one.met} == {"server processes that ended by themselves"}
    assert "NOT MEASURED" in text_of_targets(targets)
    (only,) = {one.scenario for one in targets_of([Report(scenario="uploads", work="")], every=False)}
    assert only == "uploads"


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_targets_value_that_is_not_finite_is_not_measured(value: float) -> None:
    found = targets_of(reports_of(**{"p95": value, "items stored": value}), every=True)
    assert {one.name: one.verdict for one in found if not one.met} == {
        "p95": "not measured",
        "items stored": "not measured",
    }


def test_targets_name_how_much_was_measured() -> None:
    reports = [
        Report(scenario="high_volume", work="", figures=[Figure("average of a sync", 9, "ms", "of 5")])
    ]
    assert re.search(r" 9 ms +at most 95 ms +of 5\n", text_of_targets(targets_of(reports, every=True)))


def test_targets_crash_is_not_measured_where_a_scenario_could_not_go_on() -> None:
    reports = [*reports_of(), Report(scenario="limits", work="", failed=True)]
    assert {one.name: one.verdict for one in targets_of(reports, every=True) if not one.met} == {
        OPEN_CONNECTIONS: "not measured",
        "server processes that ended by themselves": "not measured",
    }


@pytest.mark.parametrize(("scenario", "missed"), [("concurrent", True), ("faults", False)])
def test_targets_count_crashes_where_no_scenario_kills(scenario: str, missed: bool) -> None:
    reports = reports_of()
    next(one for one in reports if one.scenario == scenario).logged = {"worker_died": 1}
    assert any(not one.met for one in targets_of(reports, every=True)) is missed


class _Crashed:
    """A server that is gone."""

    def __init__(self) -> None:
        self.logged = Counter({"worker_died": 2})
        self.alive = False


async def test_crash_is_counted_though_the_scenario_could_not_go_on() -> None:
    logged = {"worker_died": 1}
    with pytest.raises(BenchError):
        async with tallied(cast(Server, _Crashed()), logged):
            raise BenchError("nobody answers")
    assert logged == {"worker_died": 3, "server_ended": 1}


@pytest.mark.parametrize("name", SUITES)
def test_suite_measures_every_target(name: Suite) -> None:
    assert {one.scenario for one in WANTED} <= {part.scenario.__name__ for part in SUITES[name]}


def test_suite_durations_are_within_what_is_promised() -> None:
    long, short = options(duration_s=300.0), options(duration_s=None)
    assert sum(expected_s(part, long, "all") for part in SUITES["all"]) < 30 * 60
    assert sum(expected_s(part, short, "quick") for part in SUITES["quick"]) < 3 * 60


def test_suite_duration_is_for_concurrent_alone() -> None:
    found = {
        part.scenario.__name__: options_of(part, options(duration_s=7.0), "all") for part in SUITES["all"]
    }
    assert {name: one.duration_s for name, one in found.items() if one.duration_s} == {"concurrent": 7.0}
    assert found["faults"].rounds == 21
    assert found["concurrent"].rounds is None


def test_concurrent_syncs_that_are_lost_miss_targets() -> None:
    done_us = [1_002_000] * 95 + [3_500_000] * 5 + [-1] * 3  # five after the end of the step
    rows = [row_of(run_of(codes=["unanswered"] * 3, done_us=done_us))]
    report = Report(scenario="concurrent", work="", figures=concurrent.stored_figures(rows))
    report.bars.append(lost_bar(rows))
    found = {one.name: one for one in targets_of([report], every=False) if one.value is not None}
    assert {name: (round(one.value or 0, 1), one.met) for name, one in found.items()} == {
        "syncs stored in time": (92.2, False),
        "success": (97.1, False),
        "syncs refused or not answered": (3, False),
    }


async def _broken(_: Options) -> Report:
    raise BenchError("the disk is full")


async def _faulty(_: Options) -> Report:
    raise ZeroDivisionError("the disk is full")


async def _slow_product(_: Options) -> Report:
    """Miss a bar that is no target."""
    bars = [Bar("product over (a), by rounds", 0.5, "at least", 0.7, "times")]
    return Report(scenario="uploads", work="", bars=bars)


async def _wrong_product(_: Options) -> Report:
    """Miss a bar of correctness."""
    bars = [Bar("faults found in what subscribers hold", 1, "at most", 0, "", must=True)]
    return Report(scenario="live", work="", bars=bars)


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([], 0),
        ([Part(_slow_product, 1)], 0),
        ([Part(_wrong_product, 1)], 1),
        ([Part(_broken, 1)], 1),
        ([Part(_faulty, 1)], 1),
    ],
)
def test_suite_verdict_is_by_targets_and_correctness_and_a_broken_part_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: list[Part], status: int
) -> None:
    def part_of(report: Report) -> Part:
        async def scenario(_: Options) -> Report:
            return report

        return Part(scenario, 1)

    every = [*parts, *map(part_of, reports_of())]
    monkeypatch.setitem(SUITES, "quick", every)
    monkeypatch.setenv("TIDEMARK__AUTH__SECRET", "of the server")
    monkeypatch.setenv("TIDEMARK__SERVER__PORT", "8099")
    file = tmp_path / "report.json"
    result = CliRunner().invoke(bench, ["--quick", "--json", str(file), "--html", str(tmp_path / "r.html")])
    assert result.exit_code == status, result.output
    assert f"1 of {len(every)}" in result.output
    whole = read_whole(file)
    assert len(whole.reports) == len(every)
    # What holds over all scenarios is not known where one could not go on.
    hidden = [not any(one.failed for one in whole.reports)] * 2
    assert [one.met for one in whole.targets] == [*[True] * len(WANTED), *hidden]
    assert msgspec.json.decode(file.read_bytes())["passed"] is not bool(status)
    assert whole.origin.commit
    assert whole.origin.versions["uvloop"]
    assert whole.origin.settings["auth.secret"] != "of the server"
    assert (
        {"server.port", "auth.secret"}
        <= whole.origin.settings.keys()
        < {"server.port", "auth.secret", "data.dir"}
    )
    broken = any(one.failed for one in whole.reports)
    assert ("the disk is full" in result.output) is broken


async def _interrupted(_: Options) -> Report:
    raise KeyboardInterrupt


async def _cancelled(_: Options) -> Report:
    raise asyncio.CancelledError


@pytest.mark.parametrize("interrupted", [_interrupted, _cancelled])
def test_suite_interrupted_keeps_the_reports_of_scenarios_that_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, interrupted: Scenario
) -> None:
    monkeypatch.setitem(
        SUITES, "quick", [Part(_slow_product, 1), Part(interrupted, 1), Part(_slow_product, 1)]
    )
    file = tmp_path / "report.json"
    result = CliRunner().invoke(bench, ["--quick", "--json", str(file)])
    assert result.exit_code == 1, result.output
    assert [(one.scenario, one.failed) for one in read_whole(file).reports] == [
        ("uploads", False),
        (interrupted.__name__, True),
        ("_slow_product", True),
    ]


@pytest.mark.parametrize(
    "changed",
    [("--connections", "10"), ("--rate", "10"), ("--workers", "2"), ("--tenants", "2"), ("--saturate",)],
)
def test_suite_load_other_than_that_of_the_targets_is_refused(changed: tuple[str, ...]) -> None:
    result = CliRunner().invoke(bench, ["--quick", *changed])
    assert result.exit_code == 2
    assert f"leave {changed[0]} out" in result.output


@pytest.mark.parametrize(("changed", "judged"), [((), True), (("--connections", "10"), False)])
def test_scenario_of_another_load_judges_no_target(
    monkeypatch: pytest.MonkeyPatch, changed: tuple[str, ...], judged: bool
) -> None:
    monkeypatch.setitem(SCENARIOS, "uploads", _slow_product)
    result = CliRunner().invoke(bench, ["--scenario", "uploads", *changed])
    assert ("Targets:" in result.output) is judged


@given(st.floats(-50, 50), st.floats(1, 500), st.integers(3, 60))
def test_drift_of_a_line_is_its_slope(per_h: float, mean: float, count: int) -> None:
    at_s = [60.0 * place for place in range(count)]
    drift = drift_of(at_s, [mean + per_h * at / 3600 for at in at_s])
    assert drift.per_h == pytest.approx(per_h, abs=1e-6)
    assert drift.most_per_h == pytest.approx(per_h, abs=1e-4)


@pytest.mark.parametrize(
    ("segment_s", "noise_mib", "grows_mib", "missed"),
    [
        (60.0, 0.5, 0.0, []),
        (60.0, 0.5, 1.0, ["drift of memory in an hour, upper bound"]),
        (60.0, 50.0, 0.0, ["drift of memory in an hour, upper bound"]),  # noise tells nothing
        (5.0, 0.5, 0.0, [f"drift of {what} in an hour, upper bound" for what in ("p95", "memory")]),
    ],
)
def test_soak_memory_that_grows_or_whose_drift_is_not_known_misses_its_bar(
    segment_s: float, noise_mib: float, grows_mib: float, missed: list[str]
) -> None:
    row = row_of(run_of())
    segments = [
        # The first fifth, in which caches fill, does not count; one segment is as good as the next.
        msgspec.structs.replace(
            row, rss_end_mib=100.0 + place * grows_mib + noise_mib * (place % 2) if place > 11 else 9.0
        )
        for place in range(60)
    ]
    report = Report(scenario="soak", work="", rows=segments)
    soak.judge(report, segment_s)
    assert [bar.name for bar in report.bars if not bar.met] == missed
    figures = {one.name: one.value for one in report.figures}
    if noise_mib < 1:
        slope = 3600 * grows_mib / segment_s
        assert figures["drift of memory in an hour"] == pytest.approx(slope, abs=20)


async def test_soak_too_short_for_a_slope_is_refused() -> None:
    with pytest.raises(BenchError, match="--duration 30"):
        await soak.soak(options(duration_s=10.0))


@pytest.mark.slow
async def test_soak_same_devices_sync_in_each_segment_and_all_is_audited(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve(limits={"messages_per_minute": 1_000_000})
    monkeypatch.setenv("TIDEMARK__POSTGRES__DSN", server.dsn)
    monkeypatch.setenv("TIDEMARK__AUTH__SECRET", SECRET.decode())
    monkeypatch.setattr(soak, "_LEAST_S", 0.3)
    report = await soak.soak(options(url=server.url, duration_s=1.8))
    assert [row.name for row in report.rows] == [f"segment {number}" for number in range(1, 7)]
    assert all(faultless(row) and row.audit is not None and row.audit.items for row in report.rows)
    assert rows(server.dsn, "SELECT count(DISTINCT device_id)::int FROM records") == [(3,)]
    assert "drift of p95 in an hour" in {figure.name for figure in report.figures}
