"""``run.py monitor``: each metric and each status by a real cause, and every mistake as 3."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from storage.embedded.servers import Services
from tests.harness.commands import Run, command
from tests.harness.health_causes import failures, pushes
from tests.harness.in_process_server import Serve
from tests.harness.postgres_stalls import WAITS_FOR_LOCK, backend, tenants_held
from tests.harness.services import execute, outage
from tests.harness.uploads.tus_uploader import photo, uploader
from tests.harness.ws_device import Json, put

__all__ = ["command"]

#: One day's end is no healthy device's fault: what these devices do is judged.
HOURS = ("--hours", "0.25")


async def judged(command: Run, *arguments: str, **variables: str) -> tuple[int, Json]:
    """Run the monitor for acme; return its exit status and the report."""
    ended = await command("monitor", "--tenant", "acme", *HOURS, "--json", *arguments, **variables)
    (report,) = json.loads(ended.out)["reports"]
    return ended.status, report


def found(report: Json) -> dict[str, str]:
    """Return the severities of a report's findings by metric."""
    return {one["metric"]: one["severity"] for one in report["findings"]}


# -- the six metrics, by what devices do -----------------------------------------------------------


async def test_monitor_good_syncs_are_healthy_and_exit_0(serve: Serve, command: Run) -> None:
    server = await serve()
    await pushes(await server.device(), 20)
    await server.drained()
    status, report = await judged(command)
    assert (status, report["status"], report["score"], report["findings"]) == (0, "healthy", 100, [])
    values = report["values"]
    assert (values["syncs"], values["success_rate"], values["devices"]) == (20, 1.0, 1)
    assert values["device_health"] == 100
    ended = await command("monitor", *HOURS)
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert lines[0].endswith("Z: healthy")
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["TENANT", "STATUS", "SCORE", "SYNCS"],
        ["(all)", "healthy", "100", "20"],
        ["acme", "healthy", "100", "20"],
    ]


async def test_monitor_conflicts_are_degraded_and_exit_1(serve: Serve, command: Run) -> None:
    server = await serve()
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await pushes(phone, 20)
    for number in range(2):
        (result,) = await tablet.push(put(f"r{number}", None, n=-1))
        assert result["status"] == "resolved"
    await server.drained()
    status, report = await judged(command)
    assert (status, report["status"], found(report)) == (1, "degraded", {"conflict_rate": "warning"})
    assert report["score"] == 79
    assert report["reasons"] == ["conflict rate 9.1 % (2 conflicts of 22 items): a warning above 5 % (-21)"]


async def test_monitor_failing_device_is_critical_and_exit_2(serve: Serve, command: Run) -> None:
    server = await serve()
    await pushes(await server.device("tablet"), 14)
    await failures(await server.device("phone"), 5)
    await server.drained()
    status, report = await judged(command)
    assert (status, report["status"], found(report)) == (
        (2, "critical", {"success_rate": "critical", "device_health": "info"})
    )
    assert report["values"]["success_rate"] == 0.75
    ended = await command("monitor", *HOURS)
    assert ended.status == 2
    assert "  success rate 75 % (5 of 20 syncs failed): critical below 95 %" in ended.out


async def test_monitor_failures_of_many_syncs_are_critical_by_the_minute(serve: Serve, command: Run) -> None:
    """Of 700 syncs 2 % failed: the rate is good, but a minute has more than ten."""
    server = await serve()
    devices = [await server.device(f"tablet-{number}") for number in range(10)]
    await asyncio.gather(*(pushes(device, 70) for device in devices))
    await failures(await server.device("phone"), 14)
    await server.drained()
    often = {"failed_per_minute_critical": 0.5, "failed_per_minute_early": 0.5}
    own = {"acme": {**often, "conflict_rate_warning": 1, "conflict_rate_early": 1}}
    status, report = await judged(command, TIDEMARK__MONITOR__TENANTS=json.dumps(own))
    assert status == 2
    assert found(report)["failed_per_minute"] == "critical"
    assert "success_rate" not in found(report)


async def test_monitor_slow_syncs_are_degraded(serve: Serve, command: Run) -> None:
    """A long transaction of another program holds the tenant, and every sync waits for it."""
    server = await serve()
    devices = [await server.device(f"tablet-{number}") for number in range(20)]
    with tenants_held(server.dsn, "acme"):
        waiting = [asyncio.create_task(pushes(device, 1)) for device in devices]
        await backend(server.dsn, WAITS_FOR_LOCK)
        await asyncio.sleep(0.7)  # the cause itself, not a wait for anything
    await asyncio.gather(*waiting)
    await server.drained()
    status, report = await judged(command)
    assert (status, report["status"]) == (1, "degraded")
    assert found(report)["sync_duration"] == "warning"
    assert report["values"]["sync_duration_ms"] > 500


async def test_monitor_abandoned_uploads_are_degraded(serve: Serve, command: Run, tmp_path: Any) -> None:
    server = await serve()
    phone = uploader(server)
    await pushes(await server.device(), 20)
    for number in range(15):
        await phone.uploaded(photo(100, number), filename=f"{number}.jpg")
    for _ in range(5):
        await phone.begun(100)
    execute(server.dsn, "UPDATE upload_session SET expires_at = now() WHERE state = 'open'")
    ended = await command("job", "uploads", "--data-dir", str(tmp_path))
    assert ended.status == 0, ended.err
    await server.drained()
    status, report = await judged(command)
    assert (status, found(report)) == (1, {"upload_abandonment": "warning"})
    assert report["values"]["upload_abandonment"] == 0.25


async def test_monitor_unhealthy_devices_are_degraded(serve: Serve, command: Run) -> None:
    """Three devices failed at nearly everything, though not lately."""
    server = await serve()
    for number in range(3):
        await failures(await server.device(f"phone-{number}"), 10)
    await server.drained()
    execute(server.dsn, "DELETE FROM sync_minutes")
    server = await serve()
    await pushes(await server.device("tablet"), 20)
    await server.drained()
    status, report = await judged(command)
    assert (status, found(report)) == (1, {"device_health": "warning"})
    assert report["values"]["device_health"] < 70


async def test_monitor_stalled_device_is_named_as_an_early_warning(serve: Serve, command: Run) -> None:
    server = await serve()
    phone = await server.device()
    await pushes(phone, 20)
    await phone.told("heartbeat_ack", "heartbeat", queue_depth=40)
    await server.drained()
    earlier = "date_trunc('hour', now(), 'UTC') - interval '{ago} hours'"
    for ago, depth in ((2, 10), (1, 20)):
        execute(
            server.dsn,
            "INSERT INTO sync_device_hours (tenant_id, device_id, hour_start, syncs, failed, conflicts,"
            f" queue_depth) VALUES (1, 'phone', {earlier.format(ago=ago)}, 3, 0, 0, {depth})",
        )
    status, report = await judged(command)
    assert (status, found(report)) == (0, {"stalled_devices": "info"})
    assert report["values"]["stalled"] == ["phone"]


# -- outages and silence ---------------------------------------------------------------------------


async def test_monitor_outage_of_the_service_is_critical_though_no_device_failed(
    serve: Serve, command: Run, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.commit.lane.RETRY_FOR_S", 0.1)
    server = await serve()
    devices = [await server.device(f"phone-{number}") for number in range(6)]
    with outage(services, server.dsn):
        for device in devices:
            refusal = await device.refused("sync", key="k", items=[put("r", None)])
            assert refusal["code"] == "unavailable"
        ended = await command("monitor", *HOURS)
        assert ended.status == 3
        assert ended.refusal().startswith("Error: the database is away")
    await server.drained()
    status, report = await judged(command)
    assert (status, report["status"], report["score"]) == (2, "critical", 0)
    assert report["values"]["refused"] == 6
    assert "6 of them refused by the service" in report["reasons"][0]


async def test_monitor_refused_handshakes_are_critical_for_all_together(
    serve: Serve, command: Run, services: Services
) -> None:
    """No tenant is known for them: the database is away, and theirs was not read at the start."""
    server = await serve()
    with outage(services, server.dsn):
        for number in range(5):
            async with server.http.ws_connect(
                f"{server.url}/v1/sync",
                headers=server.headers(f"phone-{number}", "elsewhere"),
                protocols=("tidemark.v1.json",),
            ) as socket:
                assert (await socket.receive_json())["code"] == "unavailable"
    await server.drained()
    ended = await command("monitor", *HOURS, "--json")
    together, *tenants = json.loads(ended.out)["reports"]
    assert (ended.status, together["status"], together["values"]["refused"]) == (2, "critical", 5)
    assert {report["status"] for report in tenants} == {"unknown"}


async def test_monitor_silence_is_unknown_and_exit_3(serve: Serve, command: Run) -> None:
    await serve()
    status, report = await judged(command)
    assert (status, report["status"], report["score"]) == (3, "unknown", None)
    assert report["reasons"] == ["no syncs within 15 minutes"]
    ended = await command("monitor")
    assert (ended.status, "no syncs within 24 hours" in ended.out) == (3, True)


async def test_monitor_too_few_syncs_to_judge_are_unknown_and_exit_3(serve: Serve, command: Run) -> None:
    server = await serve()
    await failures(await server.device(), 3)
    await server.drained()
    status, report = await judged(command)
    assert (status, report["status"], report["findings"]) == (3, "unknown", [])
    assert report["reasons"][0].endswith("too few to judge: min_syncs is 20, min_failures 5")


async def test_monitor_thresholds_of_a_tenant_come_from_settings(serve: Serve, command: Run) -> None:
    server = await serve()
    await failures(await server.device(), 3)
    await server.drained()
    own = json.dumps({"acme": {"min_failures": 3}})
    assert (await judged(command, TIDEMARK__MONITOR__TENANTS=own))[0] == 2
    assert (await judged(command, TIDEMARK__MONITOR__MIN_FAILURES="3"))[0] == 2


# -- calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--hours", "0"), "0.0 is not in the range"),
        (("--hours", "49"), "49.0 is not in the range"),
        (("--hours", "many"), "is not a valid float"),
        (("--interval", "0"), "not in the range"),
        (("--alert-threshold", "mild"), "is not one of"),
        (("--frequently",), "No such option"),
        (("acme",), "unexpected extra argument"),
        (("--tenant",), "requires an argument"),
        (("--tenant", "nobody"), "there is no tenant nobody"),
        (("--webhook", "alerts.example"), "--webhook: the URL has to begin with"),
        (("--slack-webhook", "ftp://a.example/"), "--slack-webhook: the URL has to begin with"),
        (("--test-alert",), "no receiver"),
        (("--test-alert", "--json", "--tenant", "acme"), "leave --tenant, --json out"),
        (("--interval", "5"), "belongs to --continuous"),
        (("--alert-threshold", "any"), "belongs to --webhook"),
        (("--config", "/nonexistent.toml"), "/nonexistent.toml"),
    ],
)
async def test_monitor_mistake_in_the_call_exits_3_with_a_sentence(
    command: Run, arguments: tuple[str, ...], said: str
) -> None:
    ended = await command("monitor", *arguments)
    assert (ended.status, ended.out) == (3, "")
    assert said in ended.refusal()


@pytest.mark.parametrize("arguments", [("--wrong", "monitor"), ("--wrong=x", "monitor", "--tenant", "token")])
async def test_monitor_mistake_before_its_name_exits_3(command: Run, arguments: tuple[str, ...]) -> None:
    ended = await command(*arguments)
    assert (ended.status, ended.out) == (3, "")
    assert "No such option" in ended.refusal()
    assert (await command("--wrong", "token", "--tenant", "monitor")).status == 2, "as every other command"


async def test_monitor_database_that_is_not_there_exits_3(command: Run, dsn: str) -> None:
    ended = await command("monitor", TIDEMARK__POSTGRES__DSN=dsn.replace("dbname=", "dbname=not_"))
    assert ended.status == 3
    ended.refusal()


async def test_monitor_failure_of_its_own_exits_3(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("engine.operate.health.gathered", broken)
    ended = await command("monitor")
    assert ended.status == 3
    assert "RuntimeError: a bug" in ended.err


async def test_monitor_help_exits_0(command: Run) -> None:
    assert (await command("monitor", "--help")).status == 0
