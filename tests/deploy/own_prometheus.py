"""A Prometheus of a test's own, with the configuration and the rules of ``deploy/prometheus``."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from aiohttp import ClientError, ClientSession

from bench.harness.server import free_ports
from tests.deploy.promtool import ALERTS, program

_PATIENCE_S: Final = 60
_CONFIG: Final = ALERTS.with_name("prometheus.yml")


class Prometheus:
    """One that runs."""

    def __init__(self, url: str, http: ClientSession) -> None:
        self._url = url
        self._http = http

    async def query(self, expr: str) -> list[float]:
        """The values of an instant query; the test fails if it errs."""
        data = await self._get("query", query=expr)
        return [float(sample["value"][1]) for sample in data["result"]]

    async def values(self, expr: str) -> list[float]:
        """The values of a query that are numbers."""
        return [value for value in await self.query(expr) if not math.isnan(value)]

    async def until(self, expr: str) -> None:
        """Wait until a query has a value."""
        async with asyncio.timeout(_PATIENCE_S):
            while not await self.query(expr):  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.2)

    async def rules(self) -> dict[str, str]:
        """The expressions of all alert rules by name, as Prometheus writes them."""
        return {name: rule["query"] for name, rule in (await self.alerts()).items()}

    async def alerts(self) -> dict[str, Any]:
        """All alert rules by name: ``query``, ``duration`` in seconds, ``labels``, ``annotations``."""
        groups = (await self._get("rules"))["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    async def ready(self) -> None:
        """Wait until it answers."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                try:
                    async with self._http.get(f"{self._url}/-/ready") as response:
                        if response.status == 200:
                            return
                except ClientError:
                    pass
                await asyncio.sleep(0.05)

    async def _get(self, path: str, **parameters: str) -> Any:
        async with self._http.get(f"{self._url}/api/v1/{path}", params=parameters) as response:
            answer = msgspec.json.decode(await response.read())
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]


@asynccontextmanager
async def prometheus(folder: Path, target: str, token: str, every: str = "1s") -> AsyncIterator[Prometheus]:
    """Start one that scrapes a target, and judges by the rules, as often as told.

    Args:
        folder: Where its data are kept.
        target: The host and the port of the metrics.
        token: An operator's.
        every: The time between two scrapes.
    """
    secret = folder / "token"
    secret.write_text(token, "utf-8")
    config = _CONFIG.read_text("utf-8")
    for before, after in (
        ("15s", every),
        ("127.0.0.1:8080", target),
        ("/etc/prometheus/tidemark.token", str(secret)),
        ("[alerts.yml]", f"[{ALERTS}]"),
        ("127.0.0.1:9093", "127.0.0.1:1"),
    ):
        assert before in config
        config = config.replace(before, after)
    path = folder / "prometheus.yml"
    path.write_text(config, "utf-8")
    port = free_ports(1)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program("prometheus"),
            f"--config.file={path}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stderr=log,  # that nobody takes its alerts, for one
        )
    try:
        async with ClientSession() as http:
            found = Prometheus(f"http://127.0.0.1:{port}", http)
            await found.ready()
            yield found
    finally:
        process.kill()  # its data are of no use to anybody
        await process.wait()
