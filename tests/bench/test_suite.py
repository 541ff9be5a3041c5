"""Several scenarios in one run: what they are given, how long they take, and the verdict by targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import bench
from bench.harness.environment import BenchError
from bench.harness.stage import Options
from bench.report.results import Bar, Figure, Report
from bench.report.statistics import drift_of
from bench.report.summary import row_of
from bench.report.targets import WANTED, targets_of
from bench.report.text import text_of_targets
from bench.report.written import read_whole
from bench.scenarios import soak
from bench.scenarios.suite import SUITES, Part, Suite, expected_s, options_of
from tests.bench.test_report import run_of
from tests.bench.test_scenarios import options
from tests.harness.in_process_server import Serve
from tests.harness.services import rows
from tests.harness.ws_device import SECRET

#: In which direction a value misses.
_WORSE = {"at most": 1.01, "at least": 0.99}


def reports_of(**changed: float) -> list[Report]:
    """Reports with every figure at the limit of its target, but for some by a name of the figure."""
    found: dict[str, Report] = {}
    for one in WANTED:
        report = found.setdefault(one.scenario, Report(scenario=one.scenario, work=""))
        report.figures.append(Figure(one.figure, changed.get(one.figure, one.limit), one.unit))
    return list(found.values())


def test_targets_at_their_limits_are_met() -> None:
    targets = targets_of(reports_of(), every=True)
    assert all(one.met for one in targets)
    assert len(targets) == len(WANTED) + 1


@pytest.mark.parametrize("wanted", [one for one in WANTED if one.limit], ids=lambda one: one.figure)
def test_targets_value_beyond_a_limit_is_missed(wanted: Any) -> None:
    reports = reports_of(**{wanted.figure: wanted.limit * _WORSE[wanted.bound]})
    assert [one.name for one in targets_of(reports, every=True) if not one.met] == [wanted.figure]
    assert f"MISSED  {wanted.scenario}: {wanted.figure}" in text_of_targets(targets_of(reports, every=True))


def test_targets_nothing_measured_is_missed_and_named() -> None:
    targets = targets_of([Report(scenario="uploads", work="")], every=True)
    assert {one.name for one in targets if one.met} == {"server processes that ended by themselves"}
    assert "NOT MEASURED" in text_of_targets(targets)
    (only,) = {one.scenario for one in targets_of([Report(scenario="uploads", work="")], every=False)}
    assert only == "uploads"


@pytest.mark.parametrize(("scenario", "missed"), [("concurrent", True), ("faults", False)])
def test_targets_count_crashes_where_no_scenario_kills(scenario: str, missed: bool) -> None:
    reports = reports_of()
    next(one for one in reports if one.scenario == scenario).logged = {"worker_died": 1}
    assert any(not one.met for one in targets_of(reports, every=True)) is missed


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


async def _broken(_: Options) -> Report:
    raise BenchError("the disk is full")


async def _faulty(_: Options) -> Report:
    raise ZeroDivisionError("the disk is full")


async def _slow_product(_: Options) -> Report:
    """Miss a bar that is no target."""
    bars = [Bar("product over (a), by rounds", 0.5, "at least", 0.7, "times")]
    return Report(scenario="uploads", work="", bars=bars)


@pytest.mark.parametrize(
    ("parts", "status"),
    [([], 0), ([Part(_slow_product, 1)], 0), ([Part(_broken, 1)], 1), ([Part(_faulty, 1)], 1)],
)
def test_suite_verdict_is_by_targets_and_a_broken_part_does_not_end_it(
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
    assert [one.met for one in whole.targets] == [True] * (len(WANTED) + 1)
    assert msgspec.json.decode(file.read_bytes())["passed"] is not bool(status)
    assert whole.origin.commit
    assert whole.origin.versions["uvloop"]
    assert whole.origin.settings["auth.secret"] != "of the server"
    assert (
        {"server.port", "auth.secret"}
        <= whole.origin.settings.keys()
        < {"server.port", "auth.secret", "data.dir"}
    )
    assert ("the disk is full" in result.output) is bool(status)


@given(st.floats(-50, 50), st.floats(1, 500), st.integers(3, 60))
def test_drift_of_a_line_is_its_slope(per_h: float, mean: float, count: int) -> None:
    at_s = [60.0 * place for place in range(count)]
    drift = drift_of(at_s, [mean + per_h * at / 3600 for at in at_s])
    assert drift.per_h == pytest.approx(per_h, abs=1e-6)
    assert drift.least_per_h == pytest.approx(per_h, abs=1e-4)


@pytest.mark.parametrize(
    ("grows_mib", "missed"), [(0.0, []), (1.0, ["drift of memory in an hour, lower bound"])]
)
def test_soak_memory_that_grows_misses_its_bar(grows_mib: float, missed: list[str]) -> None:
    row = row_of(run_of())
    segments = [
        # The first fifth, in which caches fill, does not count; one segment is as good as the next.
        msgspec.structs.replace(
            row, rss_end_mib=100.0 + place * grows_mib + 0.5 * (place % 2) if place > 11 else 9.0
        )
        for place in range(60)
    ]
    report = Report(scenario="soak", work="", rows=segments)
    soak.judge(report, 60.0)
    assert [bar.name for bar in report.bars if not bar.met] == missed
    figures = {one.name: one.value for one in report.figures}
    assert figures["drift of memory in an hour"] == pytest.approx(60 * grows_mib, abs=1)


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
    assert all(row.faultless and row.audit is not None and row.audit.items for row in report.rows)
    assert rows(server.dsn, "SELECT count(DISTINCT device_id)::int FROM records") == [(3,)]
    assert "drift of p95 in an hour" in {figure.name for figure in report.figures}
