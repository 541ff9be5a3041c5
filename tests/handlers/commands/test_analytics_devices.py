"""``run.py analytics --devices``: what devices counted themselves, summed, and deleted after its time."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.harness.commands import Run, command
from tests.harness.in_process_server import Serve, serve
from tests.harness.services import execute, rows

__all__ = ["command", "serve"]


async def test_analytics_of_devices_are_summed_shown_and_deleted_after_their_time(
    command: Run, serve: Serve, dsn: str, tmp_path: Path
) -> None:
    server = await serve()
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for name, hours_ago, photos in (("phone", 1, 3), ("phone", 2, 4), ("tablet", 1, 5), ("tablet", 49, 6)):
        device = await server.device(name)
        hour = (midnight - timedelta(hours=hours_ago)).isoformat()
        shown = {"form_open": [[231, 19], [400, 1]]}
        await device.ask("telemetry", key="k", hour=hour, counters={"photos": photos}, histograms=shown)
    await server.drained()
    asked = ("analytics", "--tenant", "acme", "--devices", "--from", "7d")
    found = json.loads((await command(*asked, "--json")).out)
    assert [(one["name"], one["devices"], one["total"]) for one in found["rows"]] == [
        ("photos", 1, 6),
        ("form_open", 1, 20),
        ("photos", 2, 12),
        ("form_open", 2, 60),
    ]
    photos, form_open = found["total"]
    assert (photos["devices"], photos["total"], photos["p95_ms"]) == (2, 18, None)
    assert (form_open["total"], form_open["buckets"]) == (80, [[231, 76], [400, 4]])
    assert 9 < form_open["p95_ms"] < 10 < form_open["p99_ms"]
    lines = list(csv.DictReader(io.StringIO((await command(*asked, "--by", "hour", "--csv")).out)))
    assert [line["total"] for line in lines if line["kind"] == "counter"] == ["6", "4", "8"]
    table = (await command(*asked)).out.splitlines()
    assert table[0].split() == ["DAY", "NAME", "DEVICES", "COUNT", "P50", "P95", "P99"]
    assert table[-2].split() == ["all", "photos", "2", "18"]
    assert "told nothing" in (await command(*asked[:4], "--from", "2020-01-01", "--to", "2020-01-02")).out
    assert "leave --devices out" in (await command(*asked, "--html", "page.html")).refusal()
    execute(dsn, "UPDATE device_telemetry SET hour_start = hour_start - interval '29 days'")
    ended = await command("job", "cleanup", TIDEMARK__DATA__DIR=str(tmp_path))
    assert ended.status == 0, ended.err
    assert rows(dsn, "SELECT counts->>'telemetry' FROM job_runs WHERE job = 'cleanup'") == [("1",)]
    assert rows(dsn, "SELECT count(*)::int FROM device_telemetry") == [(3,)]
