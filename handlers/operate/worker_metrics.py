"""The metrics of all workers on their shared port, whichever worker answers there.

A worker that is asked on the shared port asks all others on their own ports. On its own port a worker returns
only its own metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import ClientError, ClientSession, ClientTimeout, web
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from handlers.operate.probe_access import WORKER_HEADER

#: A worker that takes longer is left out: a whole scrape usually has ten seconds.
PATIENCE_S: Final = 1.0
#: The address by which a process reaches itself when it listens on every address.
_LOOPBACK: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # reached, not bound


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
        host = _LOOPBACK.get(host, host)
        authority = f"[{host}]" if ":" in host else host
        self._shared_ports = (port, probe_port)
        self._others = {
            index: f"http://{authority}:{port + index}/metrics"
            for index in range(1, workers + 1)
            if index != worker
        }

    def asked_together(self, request: web.Request) -> bool:
        """Return whether a request came over a shared port, and so asks for the metrics of all workers."""
        transport = request.transport
        return transport is not None and transport.get_extra_info("sockname")[1] in self._shared_ports

    async def pages(self) -> dict[int, str | None]:
        """Return the metrics of the other workers as text; None for a worker that does not answer."""
        headers = {WORKER_HEADER: self.secret}
        async with ClientSession(timeout=ClientTimeout(total=PATIENCE_S), headers=headers) as session:
            pages = await asyncio.gather(*(_page(session, url) for url in self._others.values()))
        return dict(zip(self._others, pages, strict=True))


async def _page(session: ClientSession, url: str) -> str | None:
    try:
        async with session.get(url) as response:
            return await response.text() if response.status == 200 else None
    except (ClientError, TimeoutError, UnicodeDecodeError):
        return None


class Labelled(Collector):
    """Adds a label ``worker`` to each sample of a collector."""

    def __init__(self, collector: Collector, worker: int) -> None:
        self._collector = collector
        self._label = {"worker": str(worker)}

    def collect(self) -> Iterator[Metric]:
        """Collect once."""
        for family in self._collector.collect():
            family.samples = [
                sample._replace(labels={**sample.labels, **self._label}) for sample in family.samples
            ]
            yield family


class Merged(Collector):
    """Merges pages of metrics: each family once, with the samples of all pages, and ``more`` families.

    Raises:
        ValueError: A page cannot be parsed.
    """

    def __init__(self, pages: Iterable[str], *more: Metric) -> None:
        self._families = {family.name: family for family in more}
        for page in pages:
            for family in text_string_to_metric_families(page):
                known = self._families.setdefault(family.name, family)
                if known is not family:
                    known.samples.extend(family.samples)

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        yield from self._families.values()
