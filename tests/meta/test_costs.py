"""The tables of costs in docs/security.md: each limit is a setting or a constant, and a metric shows it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final, get_args

from docs.costs.cost import Fixed, Silent
from docs.costs.page import COSTS
from engine.wire.close_codes import CloseCode
from engine.wire.errors import ERRORS
from tests.harness.in_process_server import ON_SHARED, Running

ROWS: Final = [(f"{cost.owner}: {cost.taken}", cost) for costs in COSTS.values() for cost in costs]
DEFAULTS: Final = tomllib.loads((Path(__file__).parents[2] / "config.toml").read_text("utf-8"))
SETTINGS: Final = {limit for _, cost in ROWS for limit in cost.limit if isinstance(limit, str)}
#: In sections of limits: what is no limit but a choice, or is of single tenants.
NO_LIMITS: Final = {
    "uploads.image_types",
    "uploads.document_types",
    "uploads.voice_types",
    "uploads.tenant_quotas",
    "uploads.grace_h",
    "devices.flush_s",
    "feed.page_interval_ms",
}


def value(limit: str | Fixed) -> float:
    if isinstance(limit, Fixed):
        return limit.value
    section, _, key = limit.partition(".")
    return float(DEFAULTS[section][key])


def test_cost_each_has_a_limit_and_an_answer() -> None:
    answers = {*CloseCode, *ERRORS, *get_args(Silent)}
    for name, cost in ROWS:
        assert any(value(limit) > 0 for limit in cost.limit), name
        assert cost.answer, name
        assert set(cost.answer) <= answers, name


@ON_SHARED
async def test_cost_metrics_are_told_from_the_start(shared: Running) -> None:
    page = (await shared.get("/metrics")).body.decode()
    for name, cost in ROWS:
        metric, _, label = cost.metric.rstrip("}").partition("{")
        key, _, value = label.partition("=")
        row = f'\n{metric}{{{key}="{value}"}} ' if label else f"\n{metric} "
        assert row in page or (not label and f"\n{metric}{{" in page), (name, cost.metric)


def test_cost_every_setting_that_limits_is_in_a_table() -> None:
    sections = ("limits", "tenant_limits", "uploads", "devices", "feed")
    limits = {f"{section}.{key}" for section in sections for key in DEFAULTS[section]}
    assert limits - SETTINGS - NO_LIMITS == set()
