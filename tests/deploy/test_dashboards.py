"""The dashboards are what their script makes, and each query has a value while servers are under load."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import ClientSession

from deploy.grafana.dashboards import DASHBOARDS, files
from tests.deploy.own_prometheus import Prometheus, prometheus
from tests.deploy.promtool import ROOT
from tests.harness.supervised import Supervise, Supervised
from tests.harness.uploads.tus_uploader import Uploader, photo
from tests.harness.ws_device import Device, connected, item, put, token

#: What Grafana puts in place of its variables.
_VARIABLES: Final = {
    "$__rate_interval": "15s",
    "$__range": "15s",
    "$job": ".*",
    "$instance": ".*",
}
#: Until every rate has two samples, and the servers have seen that jobs have run.
_PATIENCE_S: Final = 90
#: Of each device between its turns.
_PAUSE_S: Final = 0.05


def replaced(expr: str) -> str:
    """A query as Grafana sends it."""
    for name, value in _VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def _queries(path: Path) -> Iterator[tuple[str, str]]:
    """Each query of a dashboard's file, with the title of its panel."""
    for panel in json.loads(path.read_text("utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            yield f"{path.stem}: {panel['title']}: {target['legendFormat']}", target["expr"]


@pytest.mark.parametrize(("path", "text"), list(files()), ids=lambda value: getattr(value, "name", ""))
def test_dashboard_file_is_what_the_script_makes(path: Path, text: str) -> None:
    assert path.read_text("utf-8") == text, "run: python -m deploy.grafana.dashboards"


def test_dashboards_have_their_own_panels_each_with_a_text() -> None:
    for dashboard in DASHBOARDS:
        panels = [panel for row in dashboard.rows for panel in row.panels]
        assert len({panel.title for panel in panels}) == len(panels)
        assert all(panel.text.endswith(".") and panel.queries for panel in panels)


async def _sync(url: str, http: ClientSession, number: int, over: asyncio.Event) -> None:
    """Push until the load is over: new records, stale edits, conflicts for people, rejected items; pull."""
    signed = token("acme", f"device-{number}", role="supervisor")
    async with connected(url, http, signed=signed) as device:
        await device.ask("subscribe")
        for turn in takewhile(lambda _: not over.is_set(), count()):
            record = f"{number}-{turn}"
            await device.push(put(record, None, n=turn), item("put", "nowhere", record, data={}))
            await device.push(item("put", "journal", f"shared-{turn}", data={"by": number}))
            (noted,) = await device.push(item("put", "note", f"shared-{turn}", data={"by": number}))
            if noted["status"] == "conflict":
                await _settle(device, noted)
            await device.refused("pull", limit=0)
            await device.pull()
            await asyncio.sleep(_PAUSE_S)


async def _settle(device: Device, noted: dict[str, Any]) -> None:
    await device.ask(
        "resolve",
        conflict_id=noted["conflict_id"],
        choice="client",
        version=noted["version"],
    )


async def _upload(url: str, http: ClientSession, over: asyncio.Event) -> None:
    uploader = Uploader(http, url, token("acme", "camera"))
    for turn in takewhile(lambda _: not over.is_set(), count()):
        content = photo(5000, turn)
        await uploader.uploaded(content, filename=f"{turn}.jpg", record_id=f"record-{turn}")
        await asyncio.sleep(_PAUSE_S)


@asynccontextmanager
async def load(server: Supervised) -> AsyncIterator[None]:
    """Devices at both workers. They end by themselves: ``asyncio.wait_for`` may lose a cancellation."""
    over = asyncio.Event()
    async with ClientSession() as http, asyncio.TaskGroup() as devices:
        for number in range(4):
            devices.create_task(_sync(server.url_of(1 + number % 2), http, number, over))
        devices.create_task(_upload(server.url, http, over))
        try:
            yield
        finally:
            over.set()


async def _run_job(server: Supervised, job: str) -> None:
    """Run a job by hand, in a process of its own, with the settings of the server."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "run.py"), "job", job),
        env=server._environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, said


async def _answered(asked: Prometheus, queries: dict[str, str]) -> dict[str, float]:
    """The latest value of each query, once all have had one."""
    found: dict[str, float] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            while len(found) < len(queries):
                for title, expr in queries.items():
                    if title not in found and (values := await asked.values(expr)):
                        found[title] = values[0]
                await asyncio.sleep(0.2)
    latest = {title: await asked.values(expr) for title, expr in queries.items() if title in found}
    return found | {title: values[0] for title, values in latest.items() if values}


@pytest.mark.slow
async def test_queries_of_dashboards_and_rules_have_a_value_under_load(
    supervise: Supervise, tmp_path: Path
) -> None:
    server = await supervise(
        2,
        TIDEMARK__METRICS__TENANTS="true",
        TIDEMARK__ALERTS__WEBHOOK_URL="http://127.0.0.1:9/",
        TIDEMARK__ALERTS__PRIVATE_ADDRESSES="true",
        TIDEMARK__DOMAINS__NOTE__POLICY="manual",
        TIDEMARK__LIMITS__MESSAGES_PER_MINUTE="100000",
    )
    queries = {title: replaced(expr) for path, _ in files() for title, expr in _queries(path)}
    target = server.url.removeprefix("http://")
    async with load(server), prometheus(tmp_path, target, token()) as asked:
        for job in ("cleanup", "aggregate", "warm"):  # servers are told of it at their next look
            await _run_job(server, job)
        await asked.until("sum(tidemark_minute_rows_total) > 0")
        await _run_job(server, "monitor")
        for name, expr in (await asked.rules()).items():
            left = re.fullmatch(r"(.*) (==|>|<) [\d.]+", expr, re.DOTALL)
            assert left is not None, f"{name} ends with no comparison: {expr}"
            queries[f"rule {name}"] = left[1]
        found = await _answered(asked, queries)
        for title in queries:
            print(f"{found.get(title, math.nan):>16.6g}  {title}")  # noqa: T201  # the list that operators ask for
        assert {title: expr for title, expr in queries.items() if title not in found} == {}
