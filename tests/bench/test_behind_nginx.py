"""The benchmark of nginx: its devices come back and count, and missed bars are named."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession

from bench.load.proxy import Chances, proxied
from bench.report.results import Report
from bench.scenarios.behind_nginx import LAST, Back, Other, Way, head_bar, judge
from bench.scenarios.guided import Guided
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.services import rows

pytestmark = ON_SHARED


def _port(server: Running) -> int:
    port = urlsplit(server.url).port
    assert port is not None
    return port


async def live(device: Guided, spells: int) -> None:
    """Wait until a device is live after so many absences."""
    async with asyncio.timeout(20):
        while not (device.live and len(device.away_s) == spells):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)


async def test_guided_cut_off_comes_live_again_and_counts_it(shared: Running, tmp_path: Path) -> None:
    async with proxied("127.0.0.1", _port(shared), Random(1), Chances()) as proxy, ClientSession() as session:
        device = Guided("m", tmp_path, proxy.url, shared.token("m"), session)
        device.write()
        running = asyncio.create_task(device.run())
        await live(device, 0)
        first_s = device.live_at_s
        for task in list(proxy.tasks):  # the connections that there are
            task.cancel()
        await live(device, 1)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    [away_s] = device.away_s
    assert 0 < away_s < device.live_at_s - first_s
    sql = f"SELECT version FROM records JOIN tenants USING (tenant_id) WHERE name = '{shared.tenant()}'"
    [(version,)] = rows(shared.dsn, sql)
    assert version == len(device.applied) == device.edits == 2
    assert not list(device.faults({"record of m": version}))


@pytest.mark.parametrize(
    ("applied", "odd", "version", "count"),
    [([1, 2], [], 2, 0), ([1, 2], [], 3, 0), ([1, 2], [], 1, 1), ([1, 3], [], 3, 1), ([1], ["f"], 4, 2)],
)
async def test_guided_faults_names_what_is_not_as_it_was_acknowledged(
    tmp_path: Path, applied: list[int], odd: list[str], version: int, count: int
) -> None:
    async with ClientSession() as session:
        device = Guided("m", tmp_path, "http://127.0.0.1:1", "t", session)
    device.edits, device.applied, device.odd = 3, applied, odd
    assert len(list(device.faults({"record of m": version}))) == count


async def test_other_counts_answers_and_refusals(shared: Running, unused_tcp_port: int) -> None:
    way = Way("direct", _port(shared), shared.token)
    async with way.session() as session:
        other = Other("o", way, session)
        await other.run(lambda: other.answered < 2)
        assert (other.answered, other.errors) == (2, [])
        unheard = Other("o", way._replace(port=unused_tcp_port), session)
        await unheard.run(lambda: not unheard.errors)
        stranger = Other("o", way._replace(sign=lambda _: "no token"), session)
        await stranger.run(lambda: not stranger.errors)
    assert [verdict for _, verdict in unheard.errors] == ["ClientConnectorError"]
    assert [verdict for _, verdict in stranger.errors] == ["401 unauthenticated"]


def back(*, last_s: float = 1.0, beyond: int = 0) -> Back:
    refused = Counter({"503 unavailable": beyond} if beyond else {})
    seconds = {"no worker": 12.0, LAST: last_s, "a device away, at most": 13.0}
    return Back(seconds, Counter({"503 unavailable": 9}), refused, 10, [])


@pytest.mark.parametrize(
    ("way", "runs", "met"),
    [
        ("nginx", [back()], [True, True]),
        ("nginx", [back(last_s=15.1)], [False, True]),
        ("nginx", [back(), back(), back(last_s=99.0)], [True, True]),  # medians count
        ("nginx", [back(beyond=1), back(), back()], [True, False]),
        ("direct", [back(last_s=99.0, beyond=1)], []),
    ],
)
async def test_judge_bars_are_those_of_nginx(way: str, runs: list[Back], met: list[bool]) -> None:
    report = Report(scenario="behind_nginx", work="w")
    judge(report, way, "stop", runs)
    assert [bar.met for bar in report.bars] == met
    assert len(report.figures) == len(runs[0].seconds) + 2


@pytest.mark.parametrize(("status", "errors", "met"), [(200, 0, True), (502, 0, False), (200, 1, False)])
async def test_head_bar_is_missed_where_it_does_not_pass_or_costs_others(
    status: int, errors: int, met: bool
) -> None:
    url = SimpleNamespace(raw_path_qs="/v1")
    sent = SimpleNamespace(method="GET", url=url, headers={"A": "b"})
    answer: Any = SimpleNamespace(status=status, request_info=sent, headers={"C": "d"})
    assert head_bar("x", 200, answer, Counter({"503 unavailable": errors})).met is met
