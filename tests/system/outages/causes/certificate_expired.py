"""The certificate of nginx runs out, and its renewal did not run."""

from __future__ import annotations

import pytest
from aiohttp import ClientConnectorCertificateError, ClientSession, TCPConnector

from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site


async def _begin(site: Site) -> None:
    """The certificate runs out; nginx is restarted, and every device has to connect again."""
    site.edge.certificates.use("expired")
    await site.edge.stop()
    await site.edge.start()


async def _symptom(site: Site) -> str:
    await site.until_readiness(200)
    await site.fleet.held()
    connector = TCPConnector(ssl=site.edge.certificates.trusting)
    async with ClientSession(connector=connector) as session:
        with pytest.raises(ClientConnectorCertificateError) as refused:
            await session.get(f"{site.front}/healthz")
    return f"/readyz answers 200, a device says {refused.value}\n{site.fleet.waiting} edits wait on devices"


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("notAfter", "Certificate will expire"),
    layout=Layout(edge=True),
)
