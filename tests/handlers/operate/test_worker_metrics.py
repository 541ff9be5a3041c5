"""Metrics of several workers: the same whoever answers on the shared port, one's own on a port of its own."""

from __future__ import annotations

import asyncio
import os
import signal

from aiohttp import ClientSession, web
from prometheus_client.parser import text_string_to_metric_families

from handlers.operate.worker_metrics import WorkerMetrics
from tests.harness.in_process_server import Running
from tests.harness.supervised import Supervise
from tests.harness.ws_device import connected, put, token

#: Samples by name and labels.
Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def _read(text: str) -> Page:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    page = {(one.name, frozenset(one.labels.items())): one.value for one in samples}
    assert len(page) == len(samples), "a sample is there twice"
    return page


async def _scrape(url: str) -> Page:
    async with ClientSession() as http, http.get(url + "/metrics") as response:
        assert response.status == 200
        return _read(await response.text())


def _of(page: Page, name: str) -> dict[str, float]:
    """A metric's values by worker."""
    return {dict(labels)["worker"]: value for (sample, labels), value in page.items() if sample == name}


#: What moves by itself: the bus, what is written behind, the loop, connections to the database, the process.
_MOVING = (
    "tidemark_bus_",
    "tidemark_cpu_",
    "tidemark_database_",
    "tidemark_files_",
    "tidemark_health_",
    "tidemark_loop_",
    "tidemark_minute",
    "tidemark_resident_",
    "tidemark_worker_up",
)


def _steady(page: Page) -> Page:
    """Return a page without the metrics that move by themselves."""
    return {key: value for key, value in page.items() if not key[0].startswith(_MOVING)}


async def test_worker_metrics_of_the_shared_port_are_of_all_workers(supervise: Supervise) -> None:
    server = await supervise()
    async with ClientSession() as http:
        for worker, pushes in ((1, 3), (2, 5)):
            async with connected(
                server.url_of(worker), http, signed=token("acme", f"device-{worker}")
            ) as device:
                for number in range(pushes):
                    await device.push(put(f"{worker}-{number}", None, n=number))
    own = [await _scrape(server.url_of(worker)) for worker in (1, 2)]
    for index, page in enumerate(own, start=1):
        assert {dict(labels)["worker"] for _, labels in page} == {str(index)}
    for _ in range(8):  # the system chooses who answers
        page = await _scrape(server.url)
        assert _of(page, "tidemark_worker_up") == {"1": 1, "2": 1}
        assert _of(page, "tidemark_messages_received_total") == {"1": 3, "2": 5}
        assert _of(page, "tidemark_sync_duration_seconds_count") == {"1": 3, "2": 5}
        assert _steady(page) == _steady(own[0]) | _steady(own[1])


async def test_worker_metrics_of_a_silent_worker_are_missing_and_it_is_down(supervise: Supervise) -> None:
    server = await supervise()
    stopped = server.pid_of(2)
    os.kill(stopped, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            page = None
            while page is None:  # until the one that runs is chosen to answer
                try:
                    async with asyncio.timeout(3):
                        page = await _scrape(server.url)
                except TimeoutError:
                    continue
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert _of(page, "tidemark_worker_up") == {"1": 1, "2": 0}
    assert _of(page, "tidemark_connections").keys() == {"1"}


async def test_worker_metrics_of_one_process_have_no_label(server: Running) -> None:
    page = await _scrape(server.url)
    assert ("tidemark_connections", frozenset()) in page
    assert not any(name == "tidemark_worker_up" or dict(labels).get("worker") for name, labels in page)


async def test_worker_metrics_of_a_port_that_redirects_are_missing_and_it_is_told_no_secret_elsewhere() -> (
    None
):
    asked: list[web.Request] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(text="# HELP evil x\n# TYPE evil gauge\nevil 1\n")

    async def redirecting(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(request.url.with_path("/elsewhere"))

    app = web.Application()
    app.add_routes([web.get("/elsewhere", elsewhere), web.get("/metrics", redirecting)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        metrics = WorkerMetrics(1, 2, "127.0.0.1", runner.addresses[0][1] - 2, secret="of the workers")
        page = await metrics.joined(b"")
    finally:
        await runner.cleanup()
    assert _of(_read(page.decode()), "tidemark_worker_up") == {"1": 1, "2": 0}
    assert not asked
