"""Alerts from end to end: devices cause one, the monitor judges, a receiver is told of it and of its end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from bench.harness.clusters import role_variables
from storage.embedded.servers import Services
from tests.harness.alert_receiver import Receiver, receiver
from tests.harness.commands import Run, command
from tests.harness.health_causes import failures, pushes
from tests.harness.in_process_server import Running, Serve
from tests.harness.postgres_stalls import WAITS_FOR_LOCK, backend, tenants_held
from tests.harness.services import execute, outage, rows
from tests.harness.uploads.tus_uploader import photo, uploader
from tests.harness.ws_device import put

__all__ = ["command", "receiver"]

ALLOWED: Final = {"TIDEMARK__ALERTS__PRIVATE_ADDRESSES": "true"}
Deed = Callable[[Running, Run, Path], Awaitable[None]]


async def _failing(server: Running, *_: object) -> None:
    await pushes(await server.device("tablet"), 14)
    await failures(await server.device("phone"), 5)


async def _conflicting(server: Running, *_: object) -> None:
    await pushes(await server.device("tablet"), 20)
    phone = await server.device("phone")
    for number in range(2):
        await phone.push(put(f"r{number}", None, n=-1))


async def _slow(server: Running, *_: object) -> None:
    devices = [await server.device(f"tablet-{number}") for number in range(20)]
    with tenants_held(server.dsn, "acme"):
        waiting = [asyncio.create_task(pushes(device, 1)) for device in devices]
        await backend(server.dsn, WAITS_FOR_LOCK)
        await asyncio.sleep(0.7)  # the cause itself, not a wait for anything
    await asyncio.gather(*waiting)


async def _failing_by_the_minute(server: Running, *_: object) -> None:
    await pushes(await server.device("tablet"), 20)
    await failures(await server.device("phone"), 160)


async def _abandoning(server: Running, command: Run, home: Path) -> None:
    phone = uploader(server)
    await pushes(await server.device(), 20)
    for number in range(15):
        await phone.uploaded(photo(100, number), filename=f"{number}.jpg")
    for _ in range(5):
        await phone.begun(100)
    execute(server.dsn, "UPDATE upload_session SET expires_at = now() WHERE state = 'open'")
    assert (await command("job", "uploads", "--data-dir", str(home))).status == 0


async def _finishing(server: Running, *_: object) -> None:
    phone = uploader(server)
    for number in range(15, 27):
        await phone.uploaded(photo(100, number), filename=f"{number}.jpg")


async def _unhealthy(server: Running, *_: object) -> None:
    for number in range(3):
        await failures(await server.device(f"phone-{number}"), 10)


async def _succeeding(server: Running, *_: object) -> None:
    for number in range(5):
        await pushes(await server.device(f"good-{number}"), 40)


async def _later(server: Running, *_: object) -> None:
    """A quarter of an hour passes, in which devices succeed."""
    await server.drained()
    execute(server.dsn, "UPDATE sync_minutes SET minute_start = minute_start - interval '16 minutes'")


#: The metric, its severity, what devices do, and what ends it.
CASES: Final[list[tuple[str, str, Deed, list[Deed]]]] = [
    ("success_rate", "critical", _failing, [_succeeding]),
    ("conflict_rate", "warning", _conflicting, [_succeeding]),
    ("sync_duration", "warning", _slow, [_succeeding]),
    ("failed_per_minute", "critical", _failing_by_the_minute, [_later, _succeeding]),
    ("upload_abandonment", "warning", _abandoning, [_finishing]),
    ("device_health", "warning", _unhealthy, [_succeeding]),
]


@pytest.mark.parametrize(("metric", "severity", "cause", "relief"), CASES, ids=[one[0] for one in CASES])
async def test_alert_of_each_metric_fires_by_its_cause_and_clears_at_its_end(
    serve: Serve,
    command: Run,
    receiver: Receiver,
    tmp_path: Path,
    metric: str,
    severity: str,
    cause: Deed,
    relief: list[Deed],
) -> None:
    """Each check is a run of its own, as after a restart of what watches: only the database remembers."""

    async def check() -> None:
        arguments = "monitor", "--tenant", "acme", "--hours", "0.25", "--webhook", receiver.url
        await command(*arguments, **ALLOWED)

    async def told(kind: str) -> list[dict[str, Any]]:
        return [one for one in receiver.alerts() if (one["metric"], one["kind"]) == (metric, kind)]

    server = await serve()
    await cause(server, command, tmp_path)
    await server.drained()
    await check()
    await check()
    (fired,) = await told("fired")
    assert (fired["tenant"], fired["severity"]) == ("acme", severity)
    assert await told("cleared") == []
    server = await serve()
    for deed in relief:
        await deed(server, command, tmp_path)
        if deed is _later:
            server = await serve()
    await server.drained()
    await check()
    (cleared,) = await told("cleared")
    assert cleared["severity"] == severity
    assert cleared["id"] != fired["id"]
    await check()
    assert len(await told("cleared")) == 1


async def test_alert_is_over_by_the_window_and_threshold_that_it_began_with(
    serve: Serve, command: Run, receiver: Receiver, tmp_path: Path
) -> None:
    server = await serve()
    await _conflicting(server, command, tmp_path)
    await server.drained()
    for chosen in ((), ("--alert-threshold", "critical"), ("--hours", "0.25"), ()):
        arguments = "monitor", "--tenant", "acme", "--webhook", receiver.url
        await command(*arguments, *chosen, **ALLOWED)
    told = [one["kind"] for one in receiver.alerts() if one["metric"] == "conflict_rate"]
    assert told == ["fired", "fired"], "of two windows"


async def test_alert_receiver_that_is_away_is_said_without_its_url(
    serve: Serve, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.commands.monitor._PATIENCE_S", 0.0)
    server = await serve()
    await _failing(server)
    await server.drained()
    arguments = "monitor", "--tenant", "acme", "--slack-webhook", "http://127.0.0.1:1/hidden"
    ended = await command(*arguments, **ALLOWED)
    assert ended.status == 2
    assert "alerts that could not be sent: 1;" in ended.err
    assert "hidden" not in ended.out + ended.err


async def test_monitor_urls_of_its_call_are_not_in_the_process_list_also_given_twice(
    dsn: str, receiver: Receiver
) -> None:
    lines: list[str] = []

    async def look() -> web.StreamResponse:
        lines.append(Path(f"/proc/{process.pid}/cmdline").read_text())
        return await receiver.takes()

    receiver.answer = look
    named = "--webhook", f"{receiver.url}&old", f"--webhook={receiver.url}", "--slack-webhook", receiver.url
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "run.py",
        "monitor",
        "--test-alert",
        *named,
        env={**os.environ, **ALLOWED, **role_variables(dsn)},
    )
    assert await process.wait() == 0
    assert len(lines) == 2
    assert all(line.endswith("monitor\0--test-alert\0") for line in lines)


async def test_alert_of_a_job_is_sent_by_a_server(serve: Serve, command: Run, receiver: Receiver) -> None:
    chosen = {"webhook_url": receiver.url, "private_addresses": True}
    variables = {"TIDEMARK__ALERTS__WEBHOOK_URL": receiver.url, **ALLOWED}
    server = await serve()
    await _failing(server)
    await server.drained()
    await serve(alerts=chosen)
    await command("job", "monitor", **variables)
    told = await receiver.until(2)
    assert sorted((one["metric"], str(one["tenant"]), one["kind"]) for one in told) == [
        ("success_rate", "None", "fired"),
        ("success_rate", "acme", "fired"),
    ]


async def test_database_alert_outage_before_the_first_check_is_told_from_memory(
    serve: Serve, services: Services, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.operate.database_alert.AWAY_S", 0.2)
    monkeypatch.setattr("compose.alerts._LOOK_S", 0.05)
    server = await serve(alerts={"webhook_url": receiver.url, "private_addresses": True})
    assert rows(server.dsn, "SELECT FROM job_runs") == [], "as after a restart, until the next check is due"
    with outage(services, server.dsn):
        (fired,) = await receiver.until(1)
    _, cleared = await receiver.until(2)
    assert (fired["metric"], fired["kind"], fired["tenant"]) == ("database", "fired", None)
    assert (cleared["metric"], cleared["kind"]) == ("database", "cleared")
    assert fired["id"] != cleared["id"]
