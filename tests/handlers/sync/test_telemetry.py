"""``telemetry``: what a device counted itself is stored once, apart from what the server measures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.services import rows

pytestmark = ON_SHARED

COUNTS = {"counters": {"photos": 3, "crashes": 0}, "histograms": {"form_open": [[231, 4], [673, 1]]}}


def hour(back: int = 1) -> str:
    """The beginning of an hour so many hours ago."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return (now - timedelta(hours=back)).isoformat()


def stored(server: Running, tenant: str = "acme") -> list[tuple[object, ...]]:
    """Rows by device: parts, values, buckets and counts."""
    found: list[tuple[object, ...]] = rows(
        server.dsn,
        "SELECT device_id, part, counter_values, histogram_buckets, histogram_counts FROM device_telemetry"
        " JOIN tenants USING (tenant_id) WHERE tenants.name = '" + server.tenant(tenant) + "' ORDER BY 1, 2",
    )
    return found


async def test_telemetry_is_stored_once_by_key_over_connections_and_transports(shared: Running) -> None:
    phone = await shared.device("phone")
    first = await phone.ask("telemetry", key="k", hour=hour(), **COUNTS)
    assert (first["type"], first["replayed"]) == ("telemetry_ack", False)
    again = await shared.device("phone")
    assert (await again.ask("telemetry", key="k", hour=hour(), **COUNTS))["replayed"] is True
    body: dict[str, Any] = {"key": "k", "hour": hour(), **COUNTS}
    reply = await shared.post("/v1/telemetry", body)
    assert (reply.status, reply.message) == (200, {"type": "telemetry_ack", "replayed": True})
    assert (await shared.post("/v1/telemetry", body, "tablet")).message["replayed"] is False
    assert (await shared.post("/v1/telemetry", body, tenant="globex")).message["replayed"] is False
    row = (1, [0, 3], [231, 673], [4, 1])
    assert stored(shared) == [("phone", *row), ("tablet", *row)]
    assert stored(shared, "globex") == [("phone", *row)]
