"""Each alert rule fires on its cause and clears after it, by promtool, and has its page of the runbook."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.book.rows import table
from tests.deploy.promtool import ALERTS, ROOT, promtool

_RUNBOOK: Final = ROOT / "docs" / "runbook.md"
_INCIDENTS: Final = ROOT / "docs" / "incidents.md"
_PARTS: Final = ("**Summary.**", "**Look first.**", "**Remedy.**")
#: The cause of each alert lasts so many minutes, and then as many pass without it.
_MINUTES: Final = 90


def level(bad: float, good: float) -> str:
    """The values of a gauge."""
    return f"{bad}x{_MINUTES - 1} {good}x{_MINUTES - 1}"


def growth(bad: float, good: float = 0) -> str:
    """The values of a counter, by how much it grows in a minute."""
    reached = bad * (_MINUTES - 1)
    return f"0+{bad}x{_MINUTES - 1} {reached + good}+{good}x{_MINUTES - 1}"


_ON: Final = 'job="tidemark",instance="a"'


def syncs(failed: float, code: str = "unavailable") -> dict[str, str]:
    """100 syncs a minute, of which some fail while the cause lasts: half of them are refused with a code."""
    return {
        f'tidemark_syncs_refused_total{{{_ON},code="{code}"}}': growth(failed / 2),
        f'tidemark_syncs_total{{{_ON},outcome="succeeded"}}': growth(100 - failed, 100),
        f'tidemark_syncs_total{{{_ON},outcome="failed"}}': growth(failed / 2),
        f'tidemark_syncs_total{{{_ON},outcome="refused"}}': growth(failed / 2),
    }


def durations(metric: str, bad_s: float, good_s: float) -> dict[str, str]:
    """100 values a minute, all of one duration, then all of another one."""
    bounds = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
    return {
        f'{metric}_bucket{{{_ON},le="{bound}"}}': growth(100 * (bad_s <= bound), 100 * (good_s <= bound))
        for bound in bounds
    } | {f'{metric}_bucket{{{_ON},le="+Inf"}}': growth(100, 100)}


def security_events(event: str, bad: float) -> dict[str, str]:
    """So many events a minute while the cause lasts."""
    return {f'tidemark_security_events_total{{{_ON},event="{event}"}}': growth(bad)}


def items(status: str) -> dict[str, str]:
    """100 items a minute, of which ten have a status while the cause lasts."""
    return {
        f'tidemark_items_total{{{_ON},status="applied"}}': growth(90, 100),
        f'tidemark_items_total{{{_ON},status="{status}"}}': growth(10),
    }


#: The series by which each alert fires, and then clears.
CASES: dict[str, dict[str, str]] = {
    "TidemarkDown": {f"up{{{_ON}}}": level(0, 1)},
    "TidemarkWorkerDown": {f'tidemark_worker_up{{{_ON},worker="2"}}': level(0, 1)},
    "TidemarkRestarts": {f"tidemark_start_time_seconds{{{_ON}}}": growth(60)},
    "TidemarkOutage": {
        f'tidemark_syncs_total{{{_ON},outcome="succeeded"}}': growth(40, 100),
        f'tidemark_syncs_total{{{_ON},outcome="refused"}}': growth(60),
        f'tidemark_syncs_refused_total{{{_ON},code="unavailable"}}': growth(30),
        f'tidemark_syncs_refused_total{{{_ON},code="overloaded"}}': growth(30),
    },
    "TidemarkSyncsFail": syncs(6),
    "TidemarkDatabaseAway": {f'tidemark_errors_total{{{_ON},code="unavailable"}}': growth(1)},
    "TidemarkInternalErrors": {f'tidemark_errors_total{{{_ON},code="internal"}}': growth(1)},
    "TidemarkMessagesPoisoned": {f"tidemark_messages_poisoned_total{{{_ON}}}": growth(1)},
    "TidemarkSyncsSlow": durations("tidemark_sync_duration_seconds", 0.9, 0.1),
    "TidemarkQueueOld": {f"tidemark_queue_age_seconds{{{_ON}}}": level(6, 0.1)},
    "TidemarkOverloaded": {f'tidemark_errors_total{{{_ON},code="overloaded"}}': growth(120)},
    "TidemarkLoopHeld": durations("tidemark_loop_delay_seconds", 0.4, 0.05),
    "TidemarkConnectionsShort": {
        f'tidemark_database_wait_seconds_total{{{_ON},pool="reads"}}': growth(40, 1)
    },
    "TidemarkBusDown": {f"tidemark_bus_up{{{_ON}}}": level(0, 1)},
    "TidemarkDatabaseFull": {f"tidemark_database_full{{{_ON}}}": level(1, 0)},
    "TidemarkDatabaseDiskLow": {
        f"tidemark_database_free_bytes{{{_ON}}}": level(9, 20),
        f"tidemark_database_disk_bytes{{{_ON}}}": level(100, 100),
    },
    "TidemarkFilesDiskLow": {
        f"tidemark_files_free_bytes{{{_ON}}}": level(9, 20),
        f"tidemark_files_disk_bytes{{{_ON}}}": level(100, 100),
    },
    "TidemarkTenantNearlyFull": {
        f'tidemark_tenant_fullest_ratio{{{_ON},bound="record_rows"}}': level(0.85, 0.5)
    },
    "TidemarkTenantFull": {f"tidemark_messages_without_room_total{{{_ON}}}": growth(1)},
    "TidemarkConflictsMany": items("resolved"),
    "TidemarkConflictsWait": {f"tidemark_open_conflicts{{{_ON}}}": level(1200, 900)},
    "TidemarkItemsRejected": items("rejected"),
    "TidemarkUploadsAbandoned": {f"tidemark_upload_abandonment_ratio{{{_ON}}}": level(0.25, 0.1)},
    "TidemarkHandshakesRefused": {
        f'tidemark_handshakes_refused_total{{{_ON},code="unauthenticated"}}': growth(30, 1),
        f"tidemark_connections_opened_total{{{_ON}}}": growth(10, 10),
    },
    "TidemarkHealthNotStored": {f"tidemark_health_flush_failures_total{{{_ON}}}": growth(1)},
    "TidemarkHealthCritical": {f'tidemark_health_status{{{_ON},status="critical"}}': level(1, 0)},
    "TidemarkHealthNotJudged": {f"tidemark_health_judged_timestamp_seconds{{{_ON}}}": level(0, 10_800)},
    "TidemarkAlertsNotSent": {
        f'tidemark_alerts_sent_total{{{_ON},target="webhook",outcome="failed"}}': growth(1)
    },
    "TidemarkJobFails": {
        f'tidemark_job_runs_total{{{_ON},exported_job="cleanup",outcome="failed"}}': growth(1)
    },
    "TidemarkJobMissed": {
        f'tidemark_job_last_success_timestamp_seconds{{{_ON},exported_job="uploads"}}': level(0, 10_800)
    },
    "TidemarkMinutesNotStored": {f"tidemark_minute_flush_failures_total{{{_ON}}}": growth(1)},
    "TidemarkTokensRefused": security_events("token_refused", 100),
    "TidemarkClientsRefused": security_events("connections_refused", 50)
    | security_events("socket_closed", 50),
    "TidemarkBusMessagesRejected": security_events("bus_message_rejected", 1),
    "TidemarkSealedDataUnreadable": {f'tidemark_sealed_failures_total{{{_ON},cause="value"}}': growth(1)},
    "TidemarkSecurityEventsDropped": {f"tidemark_security_events_dropped_total{{{_ON}}}": growth(1)},
}


def _rules() -> dict[str, str]:
    """Each alert with the section of the runbook that it names."""
    text = ALERTS.read_text("utf-8")
    names = re.findall(r"- alert: (\w+)", text)
    sections = re.findall(r'runbook_url: "\{\{ \$externalLabels\.book \}\}/docs/runbook\.html#(\w+)"', text)
    return dict(zip(names, sections, strict=True))


def _firing(alert: str, minute: int, *, fires: bool) -> dict[str, Any]:
    expr = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    samples = [{"labels": "{}", "value": 1}] if fires else []
    return {"expr": expr, "eval_time": f"{minute}m", "exp_samples": samples}


def test_rules_pass_promtool_check() -> None:
    assert f"{len(CASES)} rules found" in promtool("check", "rules", ALERTS)
    promtool("check", "config", "--syntax-only", ALERTS.with_name("prometheus.yml"))


def test_rules_have_a_case_each() -> None:
    assert list(CASES) == list(_rules())


@pytest.mark.parametrize("alert", CASES)
def test_rule_fires_on_its_cause_and_clears_after_it(alert: str, tmp_path: Path) -> None:
    firing = [
        _firing(alert, 0, fires=alert == "TidemarkDatabaseFull"),
        _firing(alert, _MINUTES - 1, fires=True),
        _firing(alert, 2 * _MINUTES - 1, fires=False),
    ]
    _test_rule(CASES[alert], tmp_path, promql_expr_test=firing)


def test_rule_of_restarts_is_silent_in_a_rolling_restart(tmp_path: Path) -> None:
    begins = {
        f'tidemark_start_time_seconds{{{_ON},worker="{worker}"}}': f"0x{worker} 60x40" for worker in range(8)
    }
    firing = [_firing("TidemarkRestarts", 14, fires=False)]
    _test_rule(begins, tmp_path, promql_expr_test=firing)


def test_rule_of_outage_is_silent_where_one_device_fails_and_others_bring_little(tmp_path: Path) -> None:
    series = syncs(100, "internal")
    firing = [
        _firing("TidemarkOutage", _MINUTES - 1, fires=False),
        _firing("TidemarkSyncsFail", _MINUTES - 1, fires=True),
    ]
    _test_rule(series, tmp_path, promql_expr_test=firing)


def _test_rule(series: Mapping[str, str], tmp_path: Path, **wanted: object) -> None:
    """Have promtool evaluate the rules each minute over series, each given with its values."""
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": inputs, **wanted}
    tests = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(tests), "utf-8")  # JSON is YAML
    promtool("test", "rules", path)


def test_rules_carry_what_on_call_and_the_status_page_need() -> None:
    page = _INCIDENTS.read_text("utf-8")
    levels, people, statuses = (
        {row[0] for row in table(page, name)} for name in ("level", "on_call", "status")
    )
    labels = re.findall(r"labels: \{(.+)\}", ALERTS.read_text("utf-8"))
    carried = [dict(label.split(": ") for label in one.split(", ")) for one in labels]
    assert len(carried) == len(CASES)
    assert {one["level"] for one in carried} == levels
    assert {one["on_call"] for one in carried} == people
    assert {one["status"] for one in carried} == statuses
    for one in carried:
        assert list(one) == ["severity", "level", "on_call", "status"]
        assert (one["severity"] == "critical") == (one["level"] in {"P0", "P1"}), one
        assert (one["status"] == "major_outage") == (one["level"] == "P0"), one
        assert (one["status"] == "partial_outage") == (one["level"] == "P1"), one


def test_alert_links_to_its_section_in_the_book(tmp_path: Path) -> None:
    alert = {
        "exp_labels": {
            "job": "tidemark",
            "instance": "a",
            "severity": "warning",
            "level": "P2",
            "on_call": "operations",
            "status": "degraded_performance",
        },
        "exp_annotations": {
            "summary": "a does not reach Redis",
            "runbook_url": "https://book.example.org/docs/runbook.html#tidemarkbusdown",
        },
    }
    firing = [{"eval_time": "10m", "alertname": "TidemarkBusDown", "exp_alerts": [alert]}]
    config = ALERTS.with_name("prometheus.yml").read_text("utf-8")
    (book,) = re.findall(r'external_labels: \{book: "(\S+)"\}', config)
    _test_rule(CASES["TidemarkBusDown"], tmp_path, alert_rule_test=firing, external_labels={"book": book})


def test_rules_and_sections_of_the_runbook_are_the_same() -> None:
    sections = re.split(r"^## ", _RUNBOOK.read_text("utf-8"), flags=re.MULTILINE)[1:]
    found = {section.partition("\n")[0]: section for section in sections}
    named = {alert: anchor for alert, anchor in _rules().items() if alert.lower() == anchor}
    assert [heading for heading in found if heading.startswith("Tidemark")] == list(named) == list(_rules())
    for heading, section in found.items():
        if heading in named:
            assert [part for part in _PARTS if part not in section] == [], heading
