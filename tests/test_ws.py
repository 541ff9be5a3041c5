"""A sync over a WebSocket, end to end."""

from __future__ import annotations

from tests.device import put
from tests.serving import Running


async def test_a_change_reaches_every_other_device_of_the_tenant(server: Running) -> None:
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await tablet.ask("subscribe", cursor=None)
    results = await phone.sync("k1", put("a1", status="ASSIGNED"))
    assert results == [{"domain": "task", "id": "a1", "status": "applied", "version": 1, "seq": 1}]
    page = await tablet.changes()
    assert [(change["id"], change["version"], change["data"]) for change in page["changes"]] == [
        ("a1", 1, {"status": "ASSIGNED"})
    ]
