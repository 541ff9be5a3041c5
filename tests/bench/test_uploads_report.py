"""What the scenario ``uploads`` makes of what it measured: sums, bars, report."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bench.harness.meter import Usage
from bench.report.html import html_of
from bench.report.results import Report, Transfer
from bench.report.statistics import latency_of
from bench.report.summary import row_of
from bench.report.text import text_of
from bench.report.written import as_json
from bench.uploads.criteria import PLAIN, PRODUCT, TUS, judge
from bench.uploads.scenario import transfer_of
from tests.bench.test_report import run_of


def transfer(name: str, mb_per_s: float = 100.0, **changes: Any) -> Transfer:
    usual: dict[str, Any] = {
        "begun": 100,
        "whole": 100,
        "chunks": 2000,
        "elapsed_s": 2.0,
        "mb_per_s": mb_per_s,
        "download_mb_per_s": 2 * mb_per_s,
        "chunk": latency_of([1000, 2000, 3000]),
        "retries": {},
        "cpus": {"client": 0.2},
        "other_cpus": None,
        "rss_peak_mib": 0.0,
        "fault_count": 0,
        "faults": [],
    }
    peak_mib = changes.pop("peak_mib", 150)
    spent = Usage({"server": 1800.0}, 3000.0, 0, peak_mib << 20)
    return transfer_of(name, Transfer(name="", **(usual | changes)), spent)


def test_transfer_sums_up_a_run() -> None:
    one = transfer("a", 120.0)
    assert one.name == "a"
    assert one.cpus == {"client": 0.2, "server": 0.9}
    assert one.other_cpus == pytest.approx(0.4)
    assert one.rss_peak_mib == 150


def judged(ours: list[Transfer], beside_ms: int = 15, goes_on: Transfer | None = None) -> Report:
    sides = {
        PLAIN: [transfer("a", rate) for rate in (100.0, 120.0, 200.0)],
        PRODUCT: ours,
        TUS: [transfer("b", rate) for rate in (50.0, 60.0, 70.0)],
    }
    on = goes_on or transfer("on", 40.0)
    report = Report(scenario="uploads", work="the work")
    report.transfers = [*sides[PLAIN], *ours, *sides[TUS], on]
    alone = [row_of(run_of(latencies_ms=[10]))]
    beside = [row_of(run_of(latencies_ms=[beside_ms]))]
    judge(report, sides, 60.0, alone, beside, [on])
    return report


def ours(*rates: float, **changes: Any) -> list[Transfer]:
    return [transfer(f"product, round {number}", rate, **changes) for number, rate in enumerate(rates, 1)]


def test_judge_uploads_near_the_disk_and_ahead_of_tus_meets_all_bars() -> None:
    report = judged(ours(80.0, 84.0, 150.0))
    assert report.passed
    figures = {figure.name: figure.value for figure in report.figures}
    assert figures["product, every chunk with its checksum"] == pytest.approx(84.0)
    # 0.8, 0.7 and 0.75 of (a); 1.6, 1.4 and 2.1 times (b)
    assert figures["product as a ratio of (a)"] == pytest.approx(0.75)
    assert figures["product as a ratio of (b)"] == pytest.approx(1.6)
    # 0.9 CPUs over 84 MB/s
    assert figures["CPU of a MB, product"] == pytest.approx(900 / 84)
    text = text_of(report)
    assert "by rounds: 0.80, 0.70, 0.75" in text
    assert "product, round 2  100/100" in text
    assert "Uploads" in html_of([report])
    whole = msgspec.json.decode(as_json([report]))
    assert whole["reports"][0]["transfers"][0]["mb_per_s"] == pytest.approx(100.0)
