"""What a server told of itself during a run: reads from memory, the stages of a sync, requests to PostgreSQL.

The system that this one replaces claimed 85 % of reads from memory, in 1 ms, and measured none of it.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiohttp import ClientError, ClientSession, ClientTimeout

from bench.harness.load_run import Target
from bench.report.results import Figure

#: How often it is asked whether devices still connect: a page takes a worker's loop two milliseconds.
#: More often while they do, so that few reads of the load count as cold.
_SAMPLE_S: Final = 2.0
_CONNECTING_S: Final = 0.2
_PAGE_S: Final = ClientTimeout(10.0)
_READ: Final = "tidemark_device_reads_total"
#: A sample of a page; of its labels, the one that may matter here.
_SAMPLE: Final = re.compile(
    r'^(tidemark_\w+)(?:\{(?:.*?(?:outcome="(\w+)"|le="([^"]+)").*?|.*?)\})? (\S+)$', re.MULTILINE
)

#: Read apart, because of several workers the longest delay counts and not the sum.
_DELAY: Final = re.compile(r"^tidemark_loop_delay_longest_seconds(?:\{.*\})? (\S+)$", re.MULTILINE)

#: What the server times of a sync, each within the one before: the last two are of a batch of many.
STAGES: Final = {
    "sync": "a sync in the server",
    "batch": "its batch, from the queue to the answers",
    "commit": "the writes of its batch, with COMMIT",
}
#: Values by name, with the outcome or the bound of a bucket behind a blank; added up over workers and pools.
_Page = defaultdict[str, float]


@asynccontextmanager
async def own_figures(target: Target) -> AsyncIterator[list[Figure]]:
    """Yield a list that has the figures once the block is over.

    It stays empty if the server does not tell its metrics to this process.
    """
    figures: list[Figure] = []
    async with ClientSession(timeout=_PAGE_S) as http:
        url = f"http://{target.host}:{target.port}/metrics"
        before = await _page(http, url)
        pages: list[_Page] = []
        watching = asyncio.create_task(_watch(http, url, pages))
        try:
            yield figures
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        after = await _page(http, url)
    if before is not None and after is not None:
        figures += figures_of(before, [*pages, after])


async def longest_delay_ms(target: Target) -> float:
    """Return the longest delay of the loop of any worker since this was asked last."""
    async with ClientSession() as http, http.get(f"http://{target.host}:{target.port}/metrics") as response:
        return 1000 * max(float(text) for text in _DELAY.findall(await response.text()))


async def _watch(http: ClientSession, url: str, pages: list[_Page]) -> None:
    read = 0.0
    while True:
        page = await _page(http, url)
        connecting = page is not None and page[_READ] > read
        if page is not None:
            pages.append(page)
            read = page[_READ]
        await asyncio.sleep(_CONNECTING_S if connecting or not read else _SAMPLE_S)


async def _page(http: ClientSession, url: str) -> _Page | None:
    with suppress(ClientError, TimeoutError):
        async with http.get(url) as response:
            if response.status == 200:
                return page_of(await response.text())
    return None


def page_of(text: str) -> _Page:
    """Read a page."""
    page: _Page = defaultdict(float)
    for name, outcome, bound, value in _SAMPLE.findall(text):
        page[f"{name} {outcome or bound}".strip()] += float(value)
    return page


def figures_of(before: _Page, pages: list[_Page]) -> Iterator[Figure]:
    """Yield the figures of a run, without those whose metrics the server does not have.

    Args:
        before: The page as the run began.
        pages: Pages during the run, and the one at its end.
    """
    after = pages[-1]
    # Reads are cold until the last device has connected: tenants and devices are read for the first time.
    warm = next(page for page in pages if page[_READ] == after[_READ])

    def grown(name: str) -> float:
        return after[name] - before[name]

    for what, said in (("policy", "policies"), ("device", "devices")):
        hits, misses = grown(f"tidemark_{what}_hits_total"), grown(f"tidemark_{what}_misses_total")
        if what == "device":  # a sync finds the device that its handshake read
            misses += grown(_READ)
        if hits + misses:
            value = 100 * hits / (hits + misses)
            yield Figure(f"{said} read from memory", value, "%", f"of {hits + misses:,.0f} reads")
        metric = f"tidemark_{what}_read_duration_seconds"
        for kind, first, last in (("cold", before, warm), ("warm", warm, after)):
            if count := last[f"{metric}_count"] - first[f"{metric}_count"]:
                mean_ms = 1000 * (last[f"{metric}_sum"] - first[f"{metric}_sum"]) / count
                within_ms = 1000 * _within(metric, first, last, 0.95)
                beside = f"of {count:,.0f} reads, mean {mean_ms:.3g} ms"
                yield Figure(f"{kind} read of {said}, 95 % within", within_ms, "ms", beside)
    metric = "tidemark_device_row_duration_seconds"
    if count := grown(f"{metric}_count"):
        beside = f"of {count:,.0f} writes, mean {1000 * grown(f'{metric}_sum') / count:.3g} ms"
        within_ms = 1000 * _within(metric, before, after, 0.95)
        yield Figure("row of a new device, 95 % within", within_ms, "ms", beside)
    for metric, name in STAGES.items():
        if count := grown(f"tidemark_{metric}_duration_seconds_count"):
            mean_ms = 1000 * grown(f"tidemark_{metric}_duration_seconds_sum") / count
            yield Figure(name, mean_ms, "ms", f"mean of {count:,.0f}")
    succeeded = grown("tidemark_syncs_total succeeded")
    if succeeded:
        trips = grown("tidemark_database_round_trips_total") / succeeded
        statements = grown("tidemark_database_statements_total") / succeeded
        yield Figure("requests to PostgreSQL", trips, "a sync", f"{statements:.3g} statements a sync")


def _within(metric: str, before: _Page, after: _Page, part: float) -> float:
    """Return the least bound of a histogram, in seconds, that this part of its values does not exceed."""
    prefix = f"{metric}_bucket "
    buckets = {
        float(name.removeprefix(prefix)): after[name] - before[name]
        for name in after
        if name.startswith(prefix)
    }
    most = max(buckets.values())
    return min(bound for bound, count in buckets.items() if count >= part * most)
