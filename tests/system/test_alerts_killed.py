"""An alert whose process was killed while it was sent arrives again, under the same id."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from compose.server import SystemClock
from engine.operate.alert_delivery import AlertDelivery
from engine.operate.monitor.report import Finding, Judgement, Report, Values
from handlers.operate.webhooks import Webhook
from storage.embedded.servers import Services
from storage.stores.monitoring.alerts import PostgresAlerts
from tests.harness.alert_receiver import Receiver, receiver
from tests.harness.server_process import ServerProcess
from tests.harness.services import Serving, execute, rows

__all__ = ["receiver"]

FINDING = Finding("success_rate", None, "critical", 0.5, 0.95, "half of the syncs failed")
REPORT = Report(
    tenant=None,
    judged_at=datetime(2026, 1, 1, tzinfo=UTC),
    window_s=900,
    status="critical",
    score=40,
    reasons=[],
    findings=[FINDING],
    unjudged=[],
    values=Values(),
)


@pytest.mark.slow
async def test_alert_of_a_killed_server_is_sent_again_with_its_id(
    services: Services, dsn: str, tmp_path: Path, receiver: Receiver
) -> None:
    over = asyncio.Event()

    async def hangs() -> web.StreamResponse:
        await over.wait()
        return web.Response()

    receiver.answer = hangs
    server = ServerProcess(
        dsn,
        services.redis_url,
        tmp_path,
        TIDEMARK__ALERTS__WEBHOOK_URL=receiver.url,
        TIDEMARK__ALERTS__PRIVATE_ADDRESSES="true",
    )
    database = Serving(dsn, 1)
    check = AlertDelivery(PostgresAlerts(database), [Webhook(receiver.url, "warning")], SystemClock())
    try:
        await server.start()
        await check.checked(Judgement(status="critical", reports=[REPORT]), everything=True)
        await receiver.until(1)
        await server.kill()
        assert rows(dsn, "SELECT told, attempts, held_until > now() FROM alerts") == [(None, 0, True)]
        execute(dsn, "UPDATE alerts SET held_until = now()")
        receiver.answer = receiver.takes
        await server.start()
        killed, sent = await receiver.until(2)
        assert killed == sent
        async with asyncio.timeout(30):
            while "alert_sent" not in server.events:  # noqa: ASYNC110  # lines of another process
                await asyncio.sleep(0.05)
        assert await server.terminate() == 0
        assert rows(dsn, "SELECT told, pending FROM alerts") == [("critical", None)]
    finally:
        over.set()
        await server.stop()
        await database.close()
