"""What the scenarios of several workers hold their figures against."""

from __future__ import annotations

from typing import Any

import pytest

from bench.live import scenario
from bench.live.delivery import Delivered
from bench.report.results import Report, Row
from bench.report.statistics import Latency
from bench.report.text import text_of
from bench.scenarios import scaling
from tests.bench.test_live import seen_of
from tests.bench.test_scenarios import options


def row_of(**changes: Any) -> Row:
    """Make a row of a run that went well."""
    usual: dict[str, Any] = {
        "name": "r",
        "loop": "closed",
        "asked": 10,
        "connected": 10,
        "connect_s": 0.1,
        "refusals": {},
        "stored_per_s": 1000.0,
        "latency": latency(4.0),
        "late_p50_ms": 0.0,
        "late_p99_ms": 0.0,
        "sent": 10,
        "unanswered": 0,
        "errors": {},
        "cpu_ms": {"generator": 0.1, "server": 0.2, "postgres": 0.3},
        "other_cpus": 0.0,
        "rss_peak_mib": 100.0,
        "audit": None,
        "worker_cpu_ms": [0.08, 0.12],
    }
    return Row(**(usual | changes))


def latency(p95_ms: float) -> Latency:
    """Make a latency whose other percentiles follow from one."""
    return Latency(p95_ms / 2, p95_ms, p95_ms * 2, p95_ms * 3)


def report() -> Report:
    """Make a report with nothing in it."""
    return Report(scenario="s", work="")


def missed(judged: Report) -> list[str]:
    """Name the bars that are not met."""
    return [bar.name for bar in judged.bars if not bar.met]


def scaled(**changes: dict[str, Any]) -> Report:
    """Judge rounds whose rows are as usual but for those of some turns, named by their place."""
    judged = report()
    rows = {
        turn.name: [row_of(**changes.get(f"turn_{place}", {}))] * 3
        for place, turn in enumerate(scaling.TURNS)
    }
    scaling.judge(judged, rows, 1200)
    return judged


def test_judge_scaling_equal_workers_meet_every_bar() -> None:
    judged = scaled()
    assert missed(judged) == []
    figures = {figure.name: figure.value for figure in judged.figures}
    assert figures["bound by CPU on 8 cores, generator elsewhere"] == pytest.approx(8 * 1000 / 0.5)
    assert figures["bound of one worker by its core"] == pytest.approx(5000)
    assert any("PostgreSQL's processes take the most: with 1.5 cores" in remark for remark in judged.remarks)


@pytest.mark.parametrize(
    ("place", "changes", "bar"),
    [
        (1, {"stored_per_s": 990.0}, "2 workers over 1, saturated"),
        (2, {"stored_per_s": 790.0}, "one tenant on 2 workers, over many tenants"),
        (3, {"stored_per_s": 690.0}, "8 workers over 2, saturated"),
        (5, {"latency": latency(4.5)}, "p95 of 2 workers, over 1"),
        (0, {"unanswered": 1}, "syncs refused or not answered"),
        (4, {"connected": 9}, "connected"),
    ],
)
def test_judge_scaling_loss_of_several_workers_misses_a_bar(
    place: int, changes: dict[str, Any], bar: str
) -> None:
    assert missed(scaled(**{f"turn_{place}": changes})) == [bar]


def sums(**changes: Any) -> Delivered:
    """Make sums of a run whose subscribers got everything soon."""
    usual: dict[str, Any] = {
        "from_ack": latency(5.0),
        "from_sending": latency(9.0),
        "per_s": 6000.0,
        "pages_per_s": 3000.0,
        "cpus": 0.2,
        "lag_p99_ms": 1.0,
        "faults": [],
    }
    return Delivered(**(usual | changes))


def lived(
    beside: dict[str, Any], wide: dict[str, Any], dense_row: dict[str, Any], dense: dict[str, Any]
) -> Report:
    """Judge a run of live that is as usual but for this."""
    judged = report()
    scenario.judge(
        judged,
        options(connections=1000, rate_per_s=1200.0),
        [row_of()],
        [row_of(**beside)],
        [sums(**wide)],
        row_of(**dense_row),
        sums(**dense),
    )
    return judged


def test_judge_live_reports_wanted_changes_and_changes_of_a_page() -> None:
    judged = lived({}, {}, {}, {"per_s": 50_000.0, "pages_per_s": 5_000.0})
    assert missed(judged) == []
    figures = {figure.name: figure for figure in judged.figures}
    assert figures["delivered, over 20 tenants"].beside == "60,000/s were to be"
    assert figures["changes of a page, over 200 tenants"].value == 2
    assert figures["changes of a page, over 20 tenants"].value == 10


@pytest.mark.parametrize(
    ("parts", "bar"),
    [
        (({}, {"from_ack": latency(21.0)}, {}, {}), "p95 from acknowledgement to subscriber"),
        (({"latency": latency(6.5)}, {}, {}, {}), "p95 of a sync with subscribers, over without"),
        (({}, {"faults": ["x"]}, {}, {}), "faults found in what subscribers hold"),
        (({}, {}, {}, {"faults": ["x"]}), "faults found in what subscribers hold"),
        (({}, {}, {"rss_peak_mib": 201.0}, {}), "memory with subscribers over 20 tenants, over 200"),
        (({}, {}, {"errors": {"overloaded": 1}}, {}), "syncs refused or not answered"),
    ],
)
def test_judge_live_loss_misses_a_bar(parts: tuple[dict[str, Any], ...], bar: str) -> None:
    judged = lived(*parts)
    assert missed(judged) == [bar]
    assert ("x" in judged.remarks) is (bar == "faults found in what subscribers hold")


@pytest.mark.parametrize(
    ("seen", "row", "grown_kib", "expected"),
    [
        ({}, {}, 25.0, []),
        ({"errors": {"closed_1006": 1}}, {}, 25.0, ["connections cut off or told of an error"]),
        ({"heartbeats": 2, "heartbeats_answered": 1}, {}, 25.0, ["heartbeats not answered"]),
        ({}, {"unanswered": 1}, 25.0, ["syncs refused or not answered"]),
        ({}, {"latency": latency(15.5)}, 25.0, ["p95 of a sync"]),
        ({}, {}, 25.1, ["an idle subscribed connection"]),
    ],
)
def test_judge_connections_misses_each_bar(
    seen: dict[str, Any], row: dict[str, Any], grown_kib: float, expected: list[str]
) -> None:
    judged = report()
    scenario.judge_connections(judged, row_of(**row), seen_of(**seen), grown_kib)
    assert missed(judged) == expected


def test_text_row_shows_the_cpu_of_each_worker() -> None:
    judged = report()
    judged.rows = [row_of()]
    assert "0.1000 + 0.2000 + 0.3000 (workers 0.0800, 0.1200)" in text_of(judged)
