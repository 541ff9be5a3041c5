"""The last judgement as every server process shows it, whoever judged."""

from __future__ import annotations

import re

import pytest

from tests.harness.commands import Run, command
from tests.harness.in_process_server import Running, Serve
from tests.harness.postgres_stalls import until
from tests.harness.ws_device import put

__all__ = ["command"]


async def shown(server: Running, name: str) -> dict[str, float]:
    """Read a metric by its labels."""
    async with server.http.get(f"{server.url}/metrics") as response:
        text = await response.text()
    return {labels: float(value) for labels, value in re.findall(rf"^{name}(\S*) (\S+)$", text, re.MULTILINE)}


async def test_health_metrics_show_what_another_process_judged(
    serve: Serve, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cluster.job_scheduler.LOOK_S", 0.05)
    earlier = await serve()
    phone = await earlier.device()
    for number in range(20):
        await phone.push(put(f"r{number}", None))
    await earlier.drained()
    server = await serve(metrics={"tenants": True})
    assert await shown(server, "tidemark_health_score") == {}
    ended = await command("job", "monitor")
    assert ended.status == 0, ended.err
    await until(lambda: shown(server, "tidemark_health_score"))
    assert await shown(server, "tidemark_health_score") == {"": 100}
    assert (await shown(server, "tidemark_health_status"))['{status="healthy"}'] == 1
    assert (await shown(server, "tidemark_health_tenants"))['{status="unknown"}'] == 1
    assert await shown(server, "tidemark_tenant_health_score") == {'{tenant="acme"}': 100}
    assert '{tenant="globex",status="unknown"}' in await shown(server, "tidemark_tenant_health_status")
    await server.drained()
    later = await serve()
    assert await shown(later, "tidemark_health_score") == {"": 100}, "read at the start"
