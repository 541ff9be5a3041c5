"""``telemetry``: what a device counted itself is stored once, apart from what the server measures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.commit import admission
from engine.model.telemetry import MAX_BYTES, MAX_PARTS
from storage.embedded.servers import Services
from tests.harness.in_process_server import ON_SHARED, Running, Serve
from tests.harness.services import outage, rows
from tests.harness.ws_device import put

COUNTS = {"counters": {"photos": 3, "crashes": 0}, "histograms": {"form_open": [[231, 4], [673, 1]]}}


def hour(back: int = 1) -> str:
    """The beginning of an hour so many hours ago."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return (now - timedelta(hours=back)).isoformat()


def stored(server: Running, tenant: str = "acme") -> list[tuple[object, ...]]:
    """Rows by device: parts, values, buckets and counts."""
    return rows(
        server.dsn,
        "SELECT device_id, part::int, counter_values, histogram_buckets, histogram_counts"
        f" FROM device_telemetry JOIN tenants USING (tenant_id) WHERE name = '{server.tenant(tenant)}'"
        " ORDER BY 1, 2",
    )


@ON_SHARED
async def test_telemetry_is_stored_once_by_key_over_connections_and_transports(shared: Running) -> None:
    phone = await shared.device("phone")
    first = await phone.ask("telemetry", key="k", hour=hour(), **COUNTS)
    assert (first["type"], first["replayed"]) == ("telemetry_ack", False)
    again = await shared.device("phone", encoding="msgpack")
    assert (await again.ask("telemetry", key="k", hour=hour(), **COUNTS))["replayed"] is True
    body: dict[str, Any] = {"key": "k", "hour": hour(), **COUNTS}
    reply = await shared.post("/v1/telemetry", body)
    assert (reply.status, reply.message) == (200, {"type": "telemetry_ack", "replayed": True})
    assert (await shared.post("/v1/telemetry", body, "tablet")).message["replayed"] is False
    assert (await shared.post("/v1/telemetry", body, tenant="globex")).message["replayed"] is False
    row = (1, [0, 3], [231, 673], [4, 1])
    assert stored(shared) == [("phone", *row), ("tablet", *row)]
    assert stored(shared, "globex") == [("phone", *row)]


@ON_SHARED
async def test_telemetry_past_a_bound_is_refused_and_the_connection_goes_on(shared: Running) -> None:
    phone = await shared.device("phone")

    async def refused(**fields: Any) -> str:
        code: str = (await phone.refused("telemetry", **{"key": "k", "hour": hour(), **fields}))["code"]
        return code

    await phone.ask("telemetry", key="k", hour=hour(), **COUNTS)
    assert await refused(counters={"photos": 4}) == "idempotency_key_reused"
    assert await refused(hour=hour(24 * 8)) == "invalid_message"
    assert await refused(hour="yesterday") == "invalid_message"
    assert await refused(counters={"photos": -1}) == "invalid_message"
    assert await refused(histograms={"h": "HISTFAAAAC94nK1"}) == "invalid_message"
    assert await refused(histograms={"h": [[1, 1]] * MAX_BYTES}) == "too_large"
    for part in range(1, MAX_PARTS):
        await phone.ask("telemetry", key=str(part), hour=hour())
    assert await refused(key="one too many") == "too_large"
    assert (await shared.post("/v1/telemetry", {"key": "k", "hour": hour(24 * 8)})).verdict == (
        422,
        "invalid_message",
    )
    assert len(stored(shared)) == MAX_PARTS
    assert [result["status"] for result in await phone.push(put("a", None, n=1))] == ["applied"]


@ON_SHARED
async def test_telemetry_past_its_rate_is_refused_and_nothing_else_is(
    shared: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "TELEMETRY_PER_MINUTE", 3)
    phone = await shared.device("phone")
    for back in range(1, 4):
        await phone.ask("telemetry", key="k", hour=hour(back))
    refusal = await phone.refused("telemetry", key="k", hour=hour(4))
    assert (refusal["code"], refusal["retry_after_ms"] > 10_000) == ("rate_limited", True)
    assert (await shared.post("/v1/telemetry", {"key": "k", "hour": hour(4)})).status == 429
    assert [result["status"] for result in await phone.push(put("a", None, n=1))] == ["applied"]
    assert len(stored(shared)) == 3


async def test_telemetry_of_a_database_that_is_away_is_not_acknowledged_and_stored_when_it_is_back(
    serve: Serve, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.runtime.batching.RETRY_FOR_S", 0.1)
    server = await serve()
    phone = await server.device("phone")
    with outage(services, server.dsn):
        refusal = await phone.refused("telemetry", key="k", hour=hour(), **COUNTS)
        assert (refusal["code"], refusal["retryable"]) == ("unavailable", True)
    assert (await phone.ask("telemetry", key="k", hour=hour(), **COUNTS))["type"] == "telemetry_ack"
    assert len(stored(server)) == 1


async def test_telemetry_moves_no_figure_that_the_server_measures(serve: Serve) -> None:
    server = await serve()
    phone = await server.device("phone")
    counted = {"syncs": 10**9, "failed": 10**9, "conflicts": 10**9}
    await phone.ask("telemetry", key="k", hour=hour(0), counters=counted, histograms={"sync": [[673, 10**9]]})
    assert (await phone.ask("heartbeat"))["health_score"] == 100
    await server.drained()
    assert rows(server.dsn, "SELECT sum(syncs + failed + items + duration_us)::int FROM sync_minutes") == [
        (0,)
    ]
    health = (
        "SELECT sum(total_syncs + failed_syncs + conflicts + sync_duration_us)::int FROM sync_device_health"
    )
    assert rows(server.dsn, health) == [(0,)]
    assert rows(server.dsn, "SELECT count(*)::int FROM tenant_counters WHERE sync_counts IS NOT NULL") == [
        (0,)
    ]
