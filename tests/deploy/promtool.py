"""Debian's Prometheus and its promtool, where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
ALERTS: Final = ROOT / "deploy" / "prometheus" / "alerts.yml"


def program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``; the test is skipped without it, and fails under CI."""
    found = shutil.which(name)
    if found is not None:
        return found
    reason = f"no {name}: install Debian's prometheus"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def promtool(*arguments: str | Path, sent: str = "") -> str:
    """Run promtool, and give all that it says; the test fails with it if promtool does."""
    ended = subprocess.run(
        [program("promtool"), *map(str, arguments)],
        input=sent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout
