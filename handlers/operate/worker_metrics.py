"""The metrics of all workers on their shared port, whichever worker answers there.

A worker that is asked on the shared port asks all others on their own ports. On its own port a worker returns
only its own metrics.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from engine.runtime.metrics import Value
from handlers.operate.exposition import Joined, pieces
from handlers.operate.own_address import own_host
from handlers.operate.probe_access import WORKER_HEADER

#: A worker that takes longer is left out: a whole scrape usually has ten seconds.
PATIENCE_S: Final = 1.0


class WorkerMetrics:
    """The workers of one supervisor.

    Args:
        worker: The number of this worker, from 1.
        workers: How many there are.
        host: Where they listen.
        port: Their shared port; each also has the port ``port`` + its number.
        probe_port: Their shared port for probes; 0 without one.
        secret: Shows a worker that another one asks.
    """

    def __init__(
        self, worker: int, workers: int, host: str, port: int, probe_port: int = 0, secret: str = ""
    ) -> None:
        self.worker = worker
        self.secret = secret
        self._shared_ports = (port, probe_port)
        self._others = {
            index: f"http://{own_host(host)}:{port + index}/metrics"
            for index in range(1, workers + 1)
            if index != worker
        }

    def asked_together(self, request: web.Request) -> bool:
        """Return whether a request came over a shared port, and so asks for the metrics of all workers."""
        transport = request.transport
        return transport is not None and transport.get_extra_info("sockname")[1] in self._shared_ports

    async def joined(self, own_page: bytes) -> bytes:
        """Return the pages of all workers as one.

        A worker that does not answer is left out; ``tidemark_worker_up`` is 0 for it.

        Args:
            own_page: The metrics of this worker.
        """
        headers = {WORKER_HEADER: self.secret}
        async with ClientSession(timeout=ClientTimeout(total=PATIENCE_S), headers=headers) as session:
            found = await asyncio.gather(*(_page(session, url) for url in self._others.values()))
        pages = dict(zip(self._others, found, strict=True)) | {self.worker: own_page}
        up = {str(worker): float(pages[worker] is not None) for worker in sorted(pages)}
        joined = Joined()
        for worker in sorted(pages):
            joined.add(pages[worker] or b"")
            await asyncio.sleep(0)
        page = bytearray()
        for family in joined.families():
            page += family
            await asyncio.sleep(0)
        for text in pieces([Value("gauge", "tidemark_worker_up", "Whether a worker answers", up, "worker")]):
            page += text.encode()
        return bytes(page)


async def _page(session: ClientSession, url: str) -> bytes | None:
    try:
        async with session.get(url, allow_redirects=False) as response:
            return await response.read() if response.status == 200 else None
    except (ClientError, TimeoutError):
        return None
