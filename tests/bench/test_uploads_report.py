"""What the scenario ``uploads`` makes of what it measured: sums, bars, report."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bench.harness.meter import Usage
from bench.report.html import html_of
from bench.report.results import Report, Transfer, as_json
from bench.report.summary import row_of
from bench.report.text import text_of
from bench.uploads.criteria import PLAIN, PRODUCT, TUS, Sides, judge, transfer_of
from bench.uploads.plan import Transferred
from tests.bench.test_report import run_of


def transfer(name: str, mb_per_s: float = 100.0, **changes: Any) -> Transfer:
    usual: dict[str, Any] = {
        "begun": 100,
        "whole": 100,
        "chunks": 2000,
        "sent_bytes": round(mb_per_s * 2e6),
        "elapsed_s": 2.0,
        "download_s": 1.0,
        "cpu_ms": 400.0,
        "chunk_us": [1000, 2000, 3000],
    }
    peak_mib = changes.pop("peak_mib", 150)
    spent = Usage({"server": 1800.0}, 3000.0, 0, 0, peak_mib << 20)
    return transfer_of(name, Transferred(**(usual | changes)), spent)


def test_a_run_is_summed_up() -> None:
    one = transfer("a", 120.0, retries={"status 500": 2})
    assert one.mb_per_s == pytest.approx(120.0)
    assert one.download_mb_per_s == pytest.approx(240.0)
    assert one.cpus == {"client": 0.2, "server": 0.9}
    assert one.other_cpus == pytest.approx(0.4)
    assert one.rss_peak_mib == 150
    assert one.chunk.p50_ms == pytest.approx(2, rel=0.01)


def judged(ours: list[Transfer], beside_ms: int = 15, goes_on: Transfer | None = None) -> Report:
    sides = Sides()
    sides[PLAIN] = [transfer("a", rate) for rate in (100.0, 120.0, 200.0)]
    sides[PRODUCT] = ours
    sides[TUS] = [transfer("b", rate) for rate in (50.0, 60.0, 70.0)]
    on = goes_on or transfer("on", 40.0)
    report = Report(scenario="uploads", work="the work")
    report.transfers = [*sides[PLAIN], *ours, *sides[TUS], on]
    alone = [row_of(run_of(latencies_ms=[10]))]
    beside = [row_of(run_of(latencies_ms=[beside_ms]))]
    judge(report, sides, 60.0, alone, beside, [on])
    return report


def ours(*rates: float, **changes: Any) -> list[Transfer]:
    return [transfer(f"product, round {number}", rate, **changes) for number, rate in enumerate(rates, 1)]


def test_bars_are_met_by_who_is_near_the_disk_and_ahead_of_the_other() -> None:
    report = judged(ours(80.0, 84.0, 150.0))
    assert report.passed
    figures = {figure.name: figure.value for figure in report.figures}
    assert figures["product"] == pytest.approx(84.0)
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


@pytest.mark.parametrize(
    ("report", "missed"),
    [
        (judged(ours(60.0, 70.0, 150.0)), {"product over (a), by rounds"}),
        (
            judged(ours(45.0, 55.0, 150.0)),
            {"product over (a), by rounds", "product over (b), by rounds"},
        ),
        (judged(ours(90.0, 90.0, 190.0, peak_mib=161)), {"memory over uploads, more than idle"}),
        (judged(ours(90.0, 90.0, 190.0), 21), {"p95 of a sync beside uploads, over without"}),
        (judged(ours(90.0, 90.0, 190.0, whole=99)), {"uploads whole, every chunk and file verified"}),
        (
            judged(ours(90.0, 90.0, 190.0), goes_on=transfer("on", whole=99, fault_count=1)),
            {"uploads whole, every chunk and file verified", "faults of any side"},
        ),
    ],
)  # fmt: skip
def test_a_bar_that_is_missed_is_named(report: Report, missed: set[str]) -> None:
    assert {bar.name for bar in report.bars if not bar.met} == missed
    assert not report.passed


def test_what_was_sent_again_and_faults_are_in_the_text() -> None:
    on = transfer("on", retries={"status 423": 3}, fault_count=1, faults=["file f1: status 404"])
    text = text_of(judged(ours(90.0, 90.0, 190.0), goes_on=on))
    assert "on: sent again: status 423 3" in text
    assert "on: file f1: status 404" in text
