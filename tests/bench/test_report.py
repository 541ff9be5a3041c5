"""Reports: the verdicts, the text, the JSON, the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.baselines.compare import sum_up
from bench.harness.audit import Audit
from bench.harness.load_run import Run
from bench.harness.meter import Usage
from bench.load.plan import Loop, Outcome, Plan, Ready, Step
from bench.report.html import html_of
from bench.report.results import Bar, Machine, Report, Row, Window, median_latency
from bench.report.statistics import merged, over
from bench.report.summary import row_of
from bench.report.text import text_of
from bench.report.written import Whole, as_json

MACHINE = Machine(2, "a processor", "Linux 6", "3.11")
CLEAN = Audit(100, 50, 2, 0, [])
FAULTY = Audit(100, 50, 2, 1, ["acme/x: acknowledged at version 1 and not there"])


def run_of(
    name: str = "round 1",
    loop: Loop = "open",
    machine_ms: float = 0.0,
    latencies_ms: Sequence[float] = range(1, 101),
    codes: Sequence[str] = (),
    **changes: Any,
) -> Run:
    """Make a run of two seconds with a sync for each latency, and one for each code of a refusal."""
    plan = Plan(
        host="h",
        ports=[1],
        prefix="0a1b2c3d",
        devices=["r-0"],
        tokens=["t"],
        loop=loop,
        steps=[Step("warm-up", 1.0, 1.0), Step(name, 50.0, 2.0)],
    )
    stored, refused = len(latencies_ms), len(codes)
    names = ["unanswered", "synced", *dict.fromkeys(one for one in codes if one != "unanswered")]
    usual: dict[str, Any] = {
        "device": [0] * (stored + refused),
        "due_us": [1_000_000] * (stored + refused),
        "sent_us": [1_001_000] * (stored + refused),
        "done_us": [1_000_000 + int(ms * 1000) for ms in latencies_ms]
        + [-1 if code == "unanswered" else 1_002_000 for code in codes],
        "code": [1] * stored + [names.index(code) for code in codes],
        "codes": names,
        "base": [0] * stored,
    }
    usage = Usage(*({"generator": 10.0, "server": 20.0, "postgres": 30.0}, machine_ms, 2 << 20, 3 << 20))
    ready = Ready(1, 0.1, changes.pop("refusals", {}))
    return Run(plan, ["acme"], ready, Outcome(**(usual | changes)), [usage, usage])


def titles(page: str) -> list[str]:
    return re.findall(r"<figure><h3>(.*?)</h3><svg", page)


def report(*rows: Row, **fields: Any) -> Report:
    return Report(scenario="concurrent", work="the work", machine=MACHINE, rows=list(rows), **fields)


def test_row_sums_up_a_run() -> None:
    row = row_of(run_of(), CLEAN)
    assert row.stored_per_s == 50
    assert row.latency.p50_ms == pytest.approx(50, rel=0.001)
    assert row.latency.p95_ms == pytest.approx(95, rel=0.001)
    assert row.latency.p99_ms == pytest.approx(99, rel=0.001)
    assert row.latency.max_ms == pytest.approx(100, rel=0.001)
    assert row.cpu_ms == {"generator": 0.1, "server": 0.2, "postgres": 0.3}
    assert row.rss_peak_mib == 3


def test_median_latency_is_over_rounds() -> None:
    rows = [row_of(run_of(latencies_ms=[ms])) for ms in (9, 2, 4)]
    assert median_latency(rows).p50_ms == pytest.approx(4, rel=0.001)


@pytest.mark.parametrize(
    ("bar", "met"),
    [
        (Bar("b", 5.0, "at most", 5.0, "ms"), True),
        (Bar("b", 5.1, "at most", 5.0, "ms"), False),
        (Bar("b", 100.0, "at least", 100.0, "%"), True),
        (Bar("b", 99.9, "at least", 100.0, "%"), False),
    ],
)
def test_bar_is_met_or_missed(bar: Bar, met: bool) -> None:
    assert bar.met is met
    assert report(bars=[bar]).passed is met
    assert ("MISSED" in text_of(report(bars=[bar]))) is not met


@pytest.mark.parametrize("value", [None, math.inf, math.nan])
def test_bar_not_measured_is_missed(value: float | None) -> None:
    bars = [Bar("b", value, bound, 1.0, "ms") for bound in ("at most", "at least")]
    assert [bar.met for bar in bars] == [False, False]
    assert "MISSED  b  - ms" in text_of(report(bars=bars))
    assert read_reports(as_json([report(bars=bars)])) == [None, None]


def test_report_bar_of_correctness_missed_makes_it_faulty() -> None:
    bars = [Bar("b", 1, "at most", 0, "", must=must) for must in (False, True)]
    assert [report(bars=[bar]).faulty for bar in bars] == [False, True]


def test_median_latency_of_rounds_without_answers_meets_no_bar() -> None:
    silent, fast = row_of(run_of(latencies_ms=())), row_of(run_of(latencies_ms=[4]))
    assert median_latency([silent, fast, silent]).p95_ms == math.inf
    assert median_latency([silent, fast, fast]).p95_ms == pytest.approx(4, rel=0.001)
    assert over(1.0, median_latency([silent]).p95_ms) == math.inf


def read_reports(text: bytes) -> list[float | None]:
    (one,) = msgspec.json.decode(text, type=Whole).reports
    return [bar.value for bar in one.bars]


def test_report_fault_of_an_audit_fails_it() -> None:
    assert report(row_of(run_of(), CLEAN)).passed
    faulty = report(row_of(run_of(), CLEAN), row_of(run_of(), FAULTY))
    assert not faulty.passed
    assert FAULTY.faults[0] in text_of(faulty)


def test_text_names_errors_refusals_and_log_events() -> None:
    codes = ["overloaded"] * 3 + ["unanswered"] * 2
    row = row_of(run_of(codes=codes, refusals={"HTTP/1.1 401": 4}))
    text = text_of(report(row, logged={"batch_unavailable": 5}))
    assert "errors: overloaded 3, unanswered: 2" in text
    assert "handshakes refused: HTTP/1.1 401 4" in text
    assert "the server logged: batch_unavailable 5" in text


def test_report_busy_machine_is_named() -> None:
    """Of two seconds and 60 ms of our own, others took half a second, or a tenth of one."""
    busy = report(row_of(run_of(machine_ms=1060.0), None))
    assert busy.rows[0].other_cpus == pytest.approx(0.5)
    assert "something else kept up to 0.5 of 2 CPUs busy" in text_of(busy)
    assert "something else" not in text_of(report(row_of(run_of(machine_ms=160.0), None)))


def test_json_has_the_verdicts() -> None:
    bars = [Bar("b", 2.0, "at most", 1.0, "ms")]
    whole = msgspec.json.decode(as_json([report(row_of(run_of(), CLEAN), bars=bars), report()]))
    assert whole["passed"] is False
    assert [one["passed"] for one in whole["reports"]] == [False, True]
    assert whole["reports"][0]["bars"][0]["met"] is False
    assert whole["reports"][0]["rows"][0]["latency"]["p50_ms"] == pytest.approx(50, rel=0.001)


def test_page_has_its_charts_inside_and_loads_nothing() -> None:
    page = html_of(
        [
            report(row_of(run_of("open < round"), CLEAN)),
            msgspec.structs.replace(report(row_of(run_of(loop="closed"), None)), scenario="limits"),
        ]
    )
    assert titles(page) == ["Percentiles of latency, ms", "CPU of a sync, µs", "Throughput, syncs/s"]
    assert page.count("<svg") == len(titles(page))
    assert "open &lt; round" in page
    assert "open < round" not in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page.replace('xlink:href="#', 'href="#'))
    assert not re.search(r"@import|url\((?!#)", page)


def test_page_row_without_answers_is_drawn() -> None:
    silent = row_of(run_of(loop="closed", latencies_ms=()), None)
    assert silent.cpu_ms == {}
    assert titles(html_of([report(silent)])) == []


def test_page_long_run_is_drawn_over_time() -> None:
    long = msgspec.structs.replace(row_of(run_of(), CLEAN), windows=[Window(0.1, 2, 1, 0, 1.0)] * 20)
    assert titles(html_of([report(long)]))[0] == "Latency over time, ms"


def test_page_flame_graph_is_a_document_of_its_own(tmp_path: Path) -> None:
    drawn = tmp_path / "flames.svg"
    drawn.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    page = html_of([report(row_of(run_of(), CLEAN), flame_graph=str(drawn))])
    assert '<iframe sandbox="allow-scripts" srcdoc="&lt;!doctype html&gt;' in page
    assert "<script" not in page


def test_histograms_of_rounds_merge_to_that_of_all() -> None:
    rows = [row_of(run_of(latencies_ms=some)) for some in (range(1, 51), range(51, 101))]
    whole = merged(row.histogram for row in rows)
    assert whole == row_of(run_of()).histogram.durations()
    assert whole.percentile_ms(0.95) == pytest.approx(95, rel=0.02)


def summed_up(rival: float, ours: float, connections: int = 100) -> Report:
    def rows(*rates: float) -> list[Row]:
        return [row_of(run_of(loop="closed", latencies_ms=[1] * round(rate * 2))) for rate in rates]

    report = Report(scenario="limits", work="the work")
    sum_up(report, connections, rows(rival, rival * 0.8, rival), rows(ours, ours, ours * 5))
    return report


def test_sum_up_product_is_a_ratio_of_the_simplest_pipeline() -> None:
    found = {figure.name: figure for figure in summed_up(20_000, 8_000).figures}
    ratio = found["product as a ratio of (c) at 100"]
    assert ratio.value == pytest.approx(0.5)
    assert ratio.beside == "by rounds: 0.40, 0.50, 2.00"
    assert found["(c) simplest durable pipeline at 100"].beside == "1.16 of 17,300/s"
    assert found["CPU of a sync, (c) over product, at 100"].value > 0


@pytest.mark.parametrize(("rival", "said"), [(15_560, 1), (15_580, 0)])
def test_sum_up_rival_below_its_table_is_named(rival: float, said: int) -> None:
    assert len(summed_up(rival, 1_000).remarks) == said
