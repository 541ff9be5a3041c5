"""An alert judged by promtool, on one page of metrics: as quick as the cheapest outage has to be."""

from __future__ import annotations

import json
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.promtool import ALERTS, promtool


def assert_fires(alert: str, page: str, place: Path) -> None:
    """Have promtool judge an hour in which a page's metrics stay as they are: the alert has to be sent."""
    _, _, rule = ALERTS.read_text("utf-8").partition(f"- alert: {alert}\n")
    rule, _, _ = rule.partition("- alert: ")
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    series = [
        {"series": f"{one.name}{{{_labels(one.labels)}}}", "values": f"{one.value:g}x60"}
        for one in samples
        if one.name in rule
    ]
    expr = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    firing = {"expr": expr, "eval_time": "1h", "exp_samples": [{"labels": "{}", "value": 1}]}
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [firing]}
    tests = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}
    path = place / "lasting.yml"
    path.write_text(json.dumps(tests), "utf-8")  # JSON is YAML
    promtool("test", "rules", path)


def _labels(own: dict[str, str]) -> str:
    labels = {"job": "tidemark", "instance": "a"} | own
    return ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
