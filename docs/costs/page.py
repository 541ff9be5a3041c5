"""Writes the tables of costs into docs/security.md."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from docs.costs.cost import Cost, Fixed
from docs.costs.resources import RESOURCES
from docs.costs.traffic import TRAFFIC
from docs.parts import with_part
from engine.wire.close_codes import CloseCode
from engine.wire.errors import ERRORS

#: Every cost, by the heading of its section.
COSTS: Final = TRAFFIC | RESOURCES
_DEFAULTS: Final = Path(__file__).parents[2] / "config.toml"
#: What a setting counts, by the end of its name; the others count what the first column names.
_UNITS: Final = {
    "bytes": "bytes",
    "minute": "a minute",
    "rows": "rows",
    "items": "items",
    "s": "s",
    "h": "hours",
    "d": "days",
}


def with_costs(text: str) -> str:
    """Return the page with its tables of costs made anew."""
    defaults = default_settings()
    sections = [_section(heading, costs, defaults) for heading, costs in COSTS.items()]
    return with_part(text, "costs", "\n".join(sections))


@cache
def default_settings() -> dict[str, Any]:
    """Read the defaults of all settings."""
    return tomllib.loads(_DEFAULTS.read_text("utf-8"))


def _section(heading: str, costs: tuple[Cost, ...], defaults: Mapping[str, Any]) -> str:
    lines = [
        f"### {heading}",
        "",
        "| what | of one | limit | setting | answer | metric |",
        "|---|---|---|---|---|---|",
        *(_row(cost, defaults) for cost in costs),
    ]
    return "\n".join(lines) + "\n"


def _row(cost: Cost, defaults: Mapping[str, Any]) -> str:
    metric, _, label = cost.metric.rstrip("}").partition("{")
    shown = f"`{metric}`" + (f" `{label}`" if label else "")
    return f"| {cells(cost, defaults)} | {shown} |"


def cells(cost: Cost, defaults: Mapping[str, Any]) -> str:
    """Return the cells of a row: the thing, of whom, its limit, the setting and what is answered past it."""
    limits = ", ".join(limit_text(limit, defaults) for limit in cost.limit)
    settings = ", ".join(f"`{limit}`" for limit in cost.limit if isinstance(limit, str)) or "fixed"
    answers = ", ".join(answer_text(answer) for answer in cost.answer)
    return f"{cost.taken} | {cost.owner} | {limits} | {settings} | {answers}"


def limit_text(limit: str | Fixed, defaults: Mapping[str, Any]) -> str:
    """Return a limit with its unit; of a setting its default."""
    if isinstance(limit, Fixed):
        return _quantity(limit.value, limit.unit)
    section, _, key = limit.partition(".")
    value = defaults[section][key]
    if not value:
        return "none"
    return _quantity(value, _UNITS.get(key.rpartition("_")[2], ""))


def _quantity(value: float, unit: str) -> str:
    if unit == "bytes":
        for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
            if value >= 1 << power and value % (1 << power) == 0:
                return f"{int(value) >> power:,} {name}"
    joint = "" if unit == "%" else " "
    return f"{value:,g}{joint}{unit}".strip() if value < 1_000_000 else f"{int(value):,} {unit}".strip()


def answer_text(answer: str | CloseCode) -> str:
    """Return what a client is told at the limit."""
    if isinstance(answer, CloseCode):
        return str(int(answer))
    return f"`{answer}`" if answer in ERRORS else answer
