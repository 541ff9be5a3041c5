"""What a person who waits sees: a line on a terminal, and nothing of it elsewhere."""

from __future__ import annotations

import asyncio
import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from bench.harness import progress
from bench.harness.child import Child
from bench.load.generator import Generator
from bench.load.plan import Plan, Ready, Step


class _Terminal(io.StringIO):
    def __init__(self, *, is_one: bool) -> None:
        super().__init__()
        self._is_one = is_one

    def isatty(self) -> bool:
        return self._is_one


def _told(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """Return what a suite of two scenarios writes during its second one."""
    stderr = _Terminal(is_one=terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    progress.part_begins("uploads", 2, 2, 30.0, 30.0)
    progress.progress("round 1")
    progress.live("uploads: 12 MB")
    progress.over()
    progress.live("alone")
    return stderr.getvalue()


def test_live_line_is_written_anew_on_a_terminal_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _told(monkeypatch, terminal=True).split("\r\x1b[K")
    assert lines[1:] == [
        "2 of 2: uploads, about 30 s of the 30 s that are left\n",
        "round 1\n",
        "2 of 2: uploads, 30 s left | uploads: 12 MB",
        "",
        "alone",
    ]


def test_live_line_is_quiet_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = "2 of 2: uploads, about 30 s of the 30 s that are left\nround 1\n"
    assert _told(monkeypatch, terminal=False) == sentences


async def test_child_ticks_are_shown_and_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = _Terminal(is_one=True)
    monkeypatch.setattr(sys, "stderr", stderr)
    out = asyncio.StreamReader()
    out.feed_data(b'{"tick":"1,203/s"}\n{"connected":3,"connect_s":0.5,"refusals":{}}\n')
    process: Any = SimpleNamespace(stdin=object(), stdout=out, pid=1)
    assert await Child("a generator", process).read(Ready) == Ready(3, 0.5, {})
    assert stderr.getvalue() == "\r\x1b[K1,203/s"


def test_generator_line_tells_rate_p95_and_errors_of_the_last_second() -> None:
    plan = Plan(
        host="h",
        ports=[1],
        prefix="0a1b2c3d",
        devices=["d"],
        tokens=["t"],
        steps=[Step("warm-up", 1.0, 1.0), Step("round 1", 100.0, 10.0)],
    )
    generator = Generator(plan)
    outcome: Any = generator._outcome
    now_us = 5_000_000
    generator._now_us = lambda: now_us  # type: ignore[method-assign]
    # A hundred in the last second, with 1 to 100 ms; one before, which took much longer.
    outcome.due_us = [1_000_000, *(4_000_000 + place * 1000 for place in range(100))]
    outcome.done_us = [4_900_000, *(4_000_000 + place * 1000 + (place + 1) * 1000 for place in range(100))]
    outcome.code = [1] * 101
    line = generator._live()
    assert line == "round 1: 100/s, p95 96.0 ms, 0 errors, 6 s left"
