"""The metrics of all workers on the port that they share, so that no scrape depends on who answers it.

Whoever is asked there asks each worker at its own port. On its own port a worker tells of itself alone.
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

#: A worker that takes longer is left out: a scrape as a whole has ten seconds as a rule.
PATIENCE_S: Final = 1.0
#: Where to reach oneself when listening at every address.
_LOOPBACK: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # reached, not bound


class WorkerMetrics:
    """Workers 1 to ``workers`` on one port, each at ``port`` + its number as well; this one is ``worker``.

    They share ``probe_port``, too, if there is one, and show each other ``secret``.
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
        """Whether a request came over the shared port, so that it is for all."""
        transport = request.transport
        return transport is not None and transport.get_extra_info("sockname")[1] in self._shared_ports

    async def pages(self) -> dict[int, str | None]:
        """Ask the others for their metrics as text; None for one that does not answer."""
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
    """What a collector collects, each sample with a label ``worker``."""

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
    """Pages of metrics as one: each family once, with the samples of all, and ``more`` families besides.

    Raises ValueError on a page that is none.
    """

    def __init__(self, pages: Iterable[str], *more: Metric) -> None:
        self._families = {family.name: family for family in more}
        for page in pages:
            for family in text_string_to_metric_families(page):
                known = self._families.setdefault(family.name, family)
                if known is not family:
                    known.samples.extend(family.samples)

    def collect(self) -> Iterator[Metric]:
        """Give the families."""
        yield from self._families.values()
