"""The page of metrics: by promtool's rules, and as the documentation lists it."""

from __future__ import annotations

from typing import Final

from aiohttp import ClientSession
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.promtool import ROOT, promtool
from tests.harness.in_process_server import Serve
from tests.harness.supervised import Supervise
from tests.harness.ws_device import connected, put, token

_DOCS: Final = ROOT / "docs" / "metrics.md"


def rows(page: str) -> dict[str, str]:
    """The row of the documentation for each metric of a page that has a value."""
    found: dict[str, str] = {}
    for family in text_string_to_metric_families(page):
        if not family.samples:  # its labels are not known
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le", "worker"})
        if name == "tidemark_worker_up":
            labels = ["worker"]
        cells = " ".join(f"`{label}`" for label in labels)
        found[name] = f"| `{name}` | {cells} | {family.documentation} |".replace("|  |", "| |")
    return found


async def test_metrics_of_a_process_pass_promtool_and_are_documented(serve: Serve) -> None:
    server = await serve(metrics={"tenants": True})
    await (await server.device()).push(put("a", None, n=1))
    page = (await server.get("/metrics")).body.decode()
    assert promtool("check", "metrics", sent=page) == ""
    listed = _DOCS.read_text("utf-8").splitlines()
    assert [row for row in rows(page).values() if row not in listed] == []


async def test_metrics_of_several_workers_pass_promtool_and_are_documented(supervise: Supervise) -> None:
    server = await supervise(2, TIDEMARK__METRICS__TENANTS="true")
    async with ClientSession() as http:
        async with connected(server.url, http, signed=token("acme", "phone")) as device:
            await device.push(put("a", None, n=1))
        async with http.get(f"{server.url}/metrics") as response:
            page = await response.text()
    assert promtool("check", "metrics", sent=page) == ""
    assert rows(page)["tidemark_worker_up"] in _DOCS.read_text("utf-8").splitlines()
