"""What the tool for telemetry sends is what a server takes: a weekend of hours, each once."""

from __future__ import annotations

import random
import time

import msgspec

from bench.tools.telemetry import _hours
from engine.model.telemetry import telemetry_row
from engine.wire.codec import JSON
from engine.wire.messages import Telemetry


def test_telemetry_tool_hours_are_taken_each_once() -> None:
    found = []
    for message in _hours(random.Random(1)):
        request = JSON.decode(msgspec.json.encode({"type": "telemetry", "id": "1", **message}))
        assert isinstance(request, Telemetry)
        found.append(telemetry_row(request, JSON, 1, "phone", time.time_ns() // 1000))
    assert 48 <= len({row.hour for row in found}) == len(found) <= 60
    assert {(len(row.counters), len(row.histograms)) for row in found} == {(12, 3)}
