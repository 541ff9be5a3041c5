"""``run.py analytics``: what devices did is what it shows, of the present hour and of hours that are over."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from tests.harness.commands import Run, command
from tests.harness.in_process_server import Running, Serve, serve
from tests.harness.services import execute, rows
from tests.harness.ws_device import item, put

__all__ = ["command", "serve"]

#: Ages everything that is counted by three hours.
AGE = (
    "UPDATE tenant_counters SET sync_hour = sync_hour - 3",
    "UPDATE sync_minutes SET minute_start = minute_start - interval '3 hours', late = false",
    "UPDATE sync_device_hours SET hour_start = hour_start - interval '3 hours'",
    "UPDATE cluster_state SET commits_counted_since = commits_counted_since - interval '9 hours'",
)


async def shown(command: Run, *more: str) -> dict[str, Any]:
    """Return what the command prints as JSON."""
    found: dict[str, Any] = json.loads((await command("analytics", "--tenant", "acme", "--json", *more)).out)
    return found


async def synced(server: Running) -> None:
    """Send four syncs, one of them twice, with every status but ``conflict``; one more is refused."""
    phone, tablet = await server.device("phone"), await server.device("tablet")
    title = "long enough to save something by a patch " * 5
    await phone.sync("once", put("a", None, title=title), put("b", None, n=1))
    await phone.sync("once", put("a", None, title=title), put("b", None, n=1))
    await phone.refused("sync", key="once", items=[put("c", None, n=1)])
    await phone.push(item("patch", "task", "a", base=1, data={"n": 2}), item("put", "nowhere", "x", data={}))
    await tablet.push(item("put", "journal", "j", base=None, data={"n": 1}))
    await phone.push(item("put", "journal", "j", base=None, data={"n": 2}))
    await server.drained()


async def test_analytics_of_the_present_hour_are_what_was_committed(command: Run, serve: Serve) -> None:
    server = await serve()
    await synced(server)
    found = await shown(command)
    total = found["total"]
    assert (total["succeeded"], total["replayed"], total["failed"], total["refused"]) == (4, 1, 1, 0)
    assert (total["sync_requests"], total["items"], total["without_duration"]) == (6, 6, 0)
    assert total["conflicts_total"] == 1
    assert total["domains"]["task"] == {
        "applied": 3,
        "unchanged": 0,
        "resolved": 0,
        "conflict": 0,
        "rejected": 0,
    }
    assert total["domains"]["other"]["rejected"] == 1, "names that devices make up are not kept"
    assert sum(total["domains"]["journal"].values()) == 2
    assert total["bytes_saved_patch"] > 200
    assert total["bytes_synced"] > 300
    assert total["p95_duration_ms"] > 0
    assert [period["sync_requests"] for period in found["periods"]] == [6]
    assert [(period["unique_devices"], period["unique_users"]) for period in found["periods"]] == [(2, 0)]
    assert (await shown(command, "--to", "2020-01-01"))["periods"] == []


async def test_analytics_of_hours_that_are_over_stay_the_same_once_summed(
    command: Run, serve: Serve, dsn: str
) -> None:
    server = await serve()
    await synced(server)
    execute(dsn, *AGE)
    before = await shown(command)
    assert before["total"]["succeeded"] == 4
    for _ in range(2):
        await command("job", "aggregate")
        assert await shown(command) == before
        execute(dsn, "UPDATE cluster_state SET aggregated_until = 'epoch'")
    assert rows(dsn, "SELECT sync_counts FROM tenant_counters WHERE sync_counts IS NOT NULL") == []
    execute(dsn, "DELETE FROM sync_hour_counts", "DELETE FROM sync_minutes")
    await command("job", "aggregate")
    assert (await shown(command))["total"] == before["total"], "hours without anything are not overwritten"


async def test_analytics_hours_and_days_are_rows_of_csv_and_of_the_table(
    command: Run, serve: Serve, dsn: str
) -> None:
    server = await serve()
    await synced(server)
    execute(dsn, *AGE)
    server = await serve()
    phone = await server.device("phone")
    await phone.push(put("z", None, n=1))
    await server.drained()
    assert len(rows(dsn, "SELECT FROM sync_hour_counts")) == 1, (
        "the first commit of an hour sets the last aside"
    )
    lines = list(csv.DictReader(io.StringIO((await command("analytics", "--tenant", "acme", "--csv")).out)))
    assert [(line["succeeded"], line["unique_devices"]) for line in lines] == [("4", "2"), ("1", "1")]
    table = (await command("analytics", "--tenant", "acme", COLUMNS="160")).out.splitlines()
    assert table[0].split()[:3] == ["HOUR", "SYNCS", "FAILED"]
    assert [line.split()[2] for line in table[1:3]] == ["6", "1"]
    assert [line.count("█") > 0 for line in table[1:4]] == [True, True, False]
    assert table[3].split()[:2] == ["all", "7"]
    days = await shown(command, "--by", "day")
    assert sum(day["sync_requests"] for day in days["periods"]) == 7


async def test_analytics_refuses_a_span_that_is_none_and_an_unknown_tenant(command: Run) -> None:
    span = ("analytics", "--tenant", "acme", "--from", "2026-01-02", "--to", "2026-01-02")
    assert "--from has to be before --to" in (await command(*span)).refusal()
    assert "there is no tenant" in (await command(*span[:3])).refusal()


async def test_analytics_devices_and_users_of_a_day_are_no_sum_of_hours(
    command: Run, serve: Serve, dsn: str
) -> None:
    server = await serve()
    for device, user in (("phone", "ann"), ("tablet", "ann"), ("radio", None)):
        await (await server.device(device, sub=user)).push(put(device, None, n=1))
    await (await server.device("silent", sub="bob")).ask("heartbeat")
    await server.drained()
    start = "date_trunc('day', now(), 'UTC') - interval '2 days'"
    execute(
        dsn,
        f"UPDATE sync_device_hours SET hour_start = {start}",
        "INSERT INTO sync_device_hours (tenant_id, device_id, hour_start, syncs, failed, conflicts, user_id)"
        f" VALUES (1, 'phone', {start} + interval '5 hours', 3, 1, 0, 'cid'),"
        f" (1, 'failing', {start} + interval '5 hours', 3, 3, 0, 'dan')",
        f"UPDATE tenant_counters SET sync_hour = extract(epoch FROM {start} + interval '5 hours') / 3600",
        "UPDATE cluster_state SET commits_counted_since = 'epoch'",
        "DELETE FROM sync_minutes",
    )
    for _ in range(2):
        (day,) = (await shown(command, "--by", "day"))["periods"]
        assert (day["unique_devices"], day["unique_users"]) == (3, 2)
        await command("job", "aggregate")
    assert rows(dsn, "SELECT unique_devices, unique_users FROM sync_analytics_day") == [(3, 2)]
    execute(dsn, "DELETE FROM sync_device_hours")
    (day,) = (await shown(command, "--by", "day"))["periods"]
    assert (day["unique_devices"], day["unique_users"]) == (3, 2)
    (hour,) = (await shown(command, "--from", "7d"))["periods"]
    assert (hour["unique_devices"], hour["unique_users"]) == (1, 1)


async def test_analytics_count_bytes_that_compression_saved(command: Run, serve: Serve) -> None:
    server = await serve(server={"compress": True})
    phone = await server.device("phone", compress=15)
    await phone.push(put("a", None, text="the same again and again " * 200))
    await phone.pull(cursor=None)
    await server.drained()
    assert (await shown(command))["total"]["bytes_saved_compression"] > 4000


def spoken(number: int, **data: Any) -> dict[str, Any]:
    """Make an event of a voice verification."""
    event = {"verification_id": f"v{number}", "timestamp": "2026-01-02T03:04:05Z", "verified": True}
    return item("append", "voice", f"e{number}", at=f"2026-01-0{number}T03:04:05Z", data=event | data)


async def test_analytics_of_voice_are_of_each_verification_once(
    command: Run, serve: Serve, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.operate.figures.voice._EVENTS", 2)
    server = await serve()
    phone, tablet = await server.device("phone"), await server.device("tablet")
    scores = {"confidence_score": 0.75, "quality_score": 0.5, "processing_time_ms": 120}
    await phone.push(spoken(1, **scores), spoken(2, **scores), spoken(3, verified=False))
    await phone.push(spoken(4, verified="perhaps"), spoken(5, verification_id="v1", verified=False))
    await tablet.push(spoken(6, confidence_score=1e300, verification_id="x" * 9000))
    await tablet.push(spoken(7, confidence_score="high", user_id="u1"))
    await server.drained()
    execute(dsn, *AGE, "UPDATE events SET received_at = received_at - interval '3 hours'")
    for times in range(2):
        done = json.loads((await command("job", "aggregate", "--json")).out)
        assert done["counts"].get("verifications", 0) == (4, 0)[times]
        assert done["counts"]["verifications_unusable"] == 2
        execute(dsn, "UPDATE cluster_state SET aggregated_until = 'epoch'")
    assert rows(dsn, "SELECT verification_id, user_id FROM voice_verification_log ORDER BY 1") == [
        *(("v1", None), ("v2", None), ("v3", None), ("v7", "u1"))
    ]
    found = await shown(command, "--voice", "--from", "2026-01-01", "--to", "2026-01-08")
    assert [(row["start"][:10], row["device_id"], row["verified_rate"]) for row in found["rows"]] == [
        *(("2026-01-01", "phone", 1.0), ("2026-01-02", "phone", 1.0), ("2026-01-03", "phone", 0.0)),
        ("2026-01-07", "tablet", 1.0),
    ]
    assert found["total"]["confidence_score"] == 0.75
    assert found["total"]["avg_processing_ms"] == 120
    table = (await command("analytics", "--tenant", "acme", "--voice", "--from", "2026-01-01")).out
    assert "75.0%" in table.splitlines()[-1]
    execute(
        dsn,
        "UPDATE voice_verification_log SET (created_at, occurred_at) = (now() - interval '61 days', 'epoch')",
    )
    kept = {"TIDEMARK__RETENTION__EVENTS_D": "40000"}
    assert "verifications_deleted" not in (await command("job", "aggregate", "--json", **kept)).out
    execute(dsn, "UPDATE voice_verification_log SET created_at = now() WHERE verification_id = 'v1'")
    kept = {"TIDEMARK__RETENTION__EVENTS_D": "60"}
    done = json.loads((await command("job", "aggregate", "--json", **kept)).out)
    assert done["counts"]["verifications_deleted"] == 3
    assert "no voice verifications" in (await command("analytics", "--tenant", "acme", "--voice")).out
