"""``bench --compare``: the interval of a ratio, its verdict, and two versions by turns."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from bench.cli import bench
from bench.harness.environment import BenchError
from bench.report.results import Report, Row
from bench.report.statistics import Latency, Ratio, ratio_of
from bench.report.written import as_json
from bench.scenarios.comparison import judge, rows_of
from storage.embedded.servers import Services
from tests.harness.services import data_dir


def noisy(middle: float, spread: float, seed: int, count: int = 20) -> list[float]:
    draw = Random(seed)
    return [middle * draw.uniform(1 - spread, 1 + spread) for _ in range(count)]


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("times", "verdict"), [(1.0, "no difference"), (1.1, "worse"), (0.9, "better")])
def test_ratio_of_rounds_finds_the_difference(paired: bool, times: float, verdict: str) -> None:
    found = ratio_of(noisy(10, 0.02, 1), noisy(10 * times, 0.02, 2), rate=False, paired=paired)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(times, rel=0.03)
    assert found.verdict(0.03) == verdict


def test_ratio_of_a_rate_is_turned_round() -> None:
    found = ratio_of([100.0] * 4, [50.0] * 4, rate=True, paired=True)
    assert found == Ratio(2.0, 2.0, 2.0)


def test_ratio_pairs_rounds_so_that_a_slow_machine_does_not_matter() -> None:
    before = [10.0, 20.0, 40.0, 80.0]
    found = ratio_of(before, [value * 1.05 for value in before], rate=False, paired=True)
    assert found.high - found.low < 1e-9
    assert found.verdict(0.03) == "worse"
    assert found.verdict(0.06) == "no difference"
    assert ratio_of(before, before, rate=False, paired=False).high > 2


def row(side: str, loop: Any, number: int, ms: float) -> Row:
    return Row(
        name=f"{side}, {loop}, round {number}",
        loop=loop,
        asked=1,
        connected=1,
        connect_s=0.0,
        refusals={},
        stored_per_s=1000 / ms,
        latency=Latency(ms, ms, ms, ms),
        cpu_ms={"server": ms, "postgres": ms},
    )


def rows(now_ms: float) -> list[Row]:
    return [
        row(side, loop, number, ms)
        for side, ms in (("now", now_ms), ("before", 10.0))
        for loop in ("closed", "open")
        for number in range(1, 13)
    ]


@pytest.mark.parametrize(("now_ms", "missed"), [(10.2, 0), (9.0, 0), (10.5, 3)])
def test_judge_comparison_fails_where_this_version_is_worse(now_ms: float, missed: int) -> None:
    report = Report(scenario="compare", work="")
    judge(report, rows(now_ms), 0.03, paired=True)
    assert [bar.met for bar in report.bars].count(False) == missed
    assert [figure.value for figure in report.figures] == pytest.approx([now_ms / 10] * 3)


def test_rows_of_a_report_are_those_that_were_now(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    file.write_bytes(as_json([Report(scenario="compare", work="", rows=rows(10.0))]))
    found = rows_of(file)
    assert [one.name for one in found][:2] == ["before, closed, round 1", "before, closed, round 2"]
    assert len(found) == 24
    assert rows_of(tmp_path / "v1") == []
    for text, sentence in (("{}", "no report of bench"), ('{"reports":[]}', "no comparison is in it")):
        file.write_text(text)
        with pytest.raises(BenchError, match=sentence):
            rows_of(file)


@pytest.mark.slow
def test_compare_with_a_commit_and_then_with_its_report(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMARK__DATA__DIR", str(data_dir(services) / tmp_path.name))
    file = tmp_path / "r.json"
    usual = ["--connections", "4", "--rate", "50", "--tenants", "2", "--duration", "1", "--rounds", "2"]
    first = CliRunner().invoke(bench, [*usual, "--compare", "HEAD", "--margin", "1", "--json", str(file)])
    assert file.exists(), first.output
    (report,) = msgspec.json.decode(file.read_bytes())["reports"]
    assert [one["name"] for one in report["rows"]][:4] == [
        *("now, closed, round 1", "now, open, round 1", "before, closed, round 1", "before, open, round 1")
    ]
    assert "throughput is not worse" in first.output
    second = CliRunner().invoke(bench, [*usual, "--compare", str(file), "--margin", "1"])
    assert "cost by p95, now over before" in second.output
    nobody = CliRunner().invoke(bench, ["--compare", "no-such-commit"])
    assert (nobody.exit_code, "no-such-commit is no commit" in nobody.output) == (1, True)
