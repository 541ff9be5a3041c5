"""Logs: whole JSON lines without payloads, whoever reads them and however slowly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from handlers.operate.logging import LineWriter, _BoundedEvents, counters

_ROOT = Path(__file__).parents[3]
_SET_UP = """
import logging, sys, warnings
import structlog
from engine.runtime.settings import Log
from handlers.operate.logging import configure
configure(Log(level="info", format=sys.argv[1]), worker=3)
log = structlog.get_logger()
"""


def _logged(script: str, form: str = "json") -> str:
    ended = subprocess.run(
        [sys.executable, "-c", _SET_UP + script, form], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
    return ended.stdout


def _lines(script: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _logged(script).splitlines()]


def test_log_line_is_one_object_with_its_time_level_and_worker() -> None:
    lines = _lines('log.debug("unheard"); log.info("batch_done", tenant="acme", duration_ms=1.5)')
    assert len(lines) == 1
    assert list(lines[0])[:3] == ["timestamp", "level", "event"]
    stamp = lines[0].pop("timestamp")
    assert stamp.endswith("Z")
    assert datetime.fromisoformat(stamp).utcoffset() is not None
    assert lines[0] == {
        "level": "info",
        "event": "batch_done",
        "tenant": "acme",
        "duration_ms": 1.5,
        "worker": 3,
    }


def test_log_values_that_json_refuses_do_not_lose_the_line() -> None:
    lines = _lines(r'log.info("odd", number=1 << 70, text="\ud800", raw=b"x", kept={1: {2}})')
    assert (lines[0]["number"], lines[0]["text"], lines[0]["raw"]) == (1 << 70, "\ud800", "b'x'")


def test_log_of_an_exception_omits_its_text() -> None:
    lines = _lines(
        """
try:
    try:
        raise KeyError("payload")
    except KeyError as error:
        raise ConnectionRefusedError(111, "payload") from error
except OSError:
    log.exception("failed")
log.error("failed", exc_info=ExceptionGroup("payload", [ValueError("payload")]))
"""
    )
    assert "payload" not in str(lines)
    first = lines[0]["exception"]
    assert (first["type"], first["errno"], first["cause"]["type"]) == (
        "ConnectionRefusedError",
        111,
        "KeyError",
    )
    assert first["trace"] == ["<string>:13 <module>"]
    assert lines[1]["exception"]["of"][0]["type"] == "ValueError"


def test_log_of_libraries_begins_at_warnings() -> None:
    lines = _lines(
        """
logging.getLogger("aiohttp.server").error("bad request from %s\\nGET /secret", "here")
logging.getLogger("asyncio").info("unheard")
warnings.warn("old")
"""
    )
    assert [(line["event"], line["level"], line["logger"]) for line in lines] == [
        ("library_message", "error", "aiohttp.server"),
        ("library_message", "warning", "py.warnings"),
    ]
    assert lines[0]["message"] == "bad request from here"


@pytest.mark.parametrize("form", ["json", "console"])
def test_log_has_no_lines_for_garbled_or_broken_requests(form: str) -> None:
    script = """
from aiohttp.http_exceptions import BadStatusLine, InvalidURLError
for error in (BadStatusLine("x"), InvalidURLError("x"), ConnectionResetError(), ValueError("x")):
    try:
        raise error
    except Exception:
        logging.getLogger("aiohttp.server").exception("Error handling request")
"""
    logged = _logged(script, form)
    assert logged.count("library_message") == 1
    assert "ValueError" in logged


def test_log_console_format_has_the_text_of_exceptions() -> None:
    shown = _logged(
        """
log.info("hello", tenant="acme")
try:
    1 / 0
except ArithmeticError:
    log.exception("failed")
""",
        "console",
    )
    assert "hello" in shown
    assert "tenant=acme" in shown
    assert "division by zero" in shown


def test_log_flood_of_an_event_is_bounded_and_counted_and_hides_no_other() -> None:
    now_s = [0.0]
    bounded = _BoundedEvents(lambda: now_s[0])

    def passes(name: str) -> dict[str, Any] | None:
        try:
            return dict(bounded(None, "info", {"event": name}))
        except structlog.DropEvent:
            return None

    before = counters.left_out
    assert [passes("flood") for _ in range(500)] == [{"event": "flood"}] * 120 + [None] * 380
    assert counters.left_out == before + 380
    assert passes("other") == {"event": "other"}
    now_s[0] = 0.6
    assert passes("flood") == {"event": "flood", "left_out": 380}
    assert passes("flood") is None
    now_s[0] = 60.6
    assert [passes("flood") for _ in range(2)] == [{"event": "flood", "left_out": 1}, {"event": "flood"}]


def test_log_of_a_process_is_bounded() -> None:
    lines = _lines("for _ in range(300): log.info('flood')\nlog.info('last')")
    assert [line["event"] for line in lines] == ["flood"] * 120 + ["last"]


def test_log_reader_that_reads_nothing_blocks_nothing() -> None:
    reading, writing = os.pipe()
    writer = LineWriter(writing, waiting_lines=10)
    line = b"x" * 1000
    for _ in range(1000):  # more than pipe and queue hold together
        writer.put(line)
    dropped = writer.take_dropped()
    assert dropped > 0
    assert writer.take_dropped() == 0
    with os.fdopen(reading, "rb") as reader:
        assert [reader.readline() for _ in range(1000 - dropped)] == [line + b"\n"] * (1000 - dropped)
        writer.put(b"last")
        writer.close()
        os.close(writing)
        assert reader.read() == b"last\n"


def test_log_reader_that_is_gone_blocks_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LineWriter(writing)
    for _ in range(100):
        writer.put(b"to nobody")
    writer.close()
    os.close(writing)
    assert writer.take_dropped() == 0
