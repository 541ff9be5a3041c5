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
from bench.tools.behind_nginx import Back, Head, Other, Way, missed
from bench.tools.guided import Guided
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


def back(*, way: str = "nginx", last_s: float = 1.0, beyond: int = 0, faults: int = 0) -> Back:
    refused = Counter({"503 unavailable": beyond} if beyond else {})
    during = Counter({"503 unavailable": 9})
    return Back(way, "stop", 12.0, [0.5, last_s], [12.0, 13.0], during, refused, ["f"] * faults)


@pytest.mark.parametrize(
    ("row", "count"),
    [
        (back(), 0),
        (back(last_s=15.1), 1),
        (back(last_s=99.0, way="direct"), 0),
        (back(beyond=1), 1),
        (back(faults=2, way="direct"), 2),
    ],
)
async def test_missed_names_each_bar_that_is_missed(row: Back, count: int) -> None:
    assert len(missed([[row]], [])) == count


async def test_missed_counts_the_median_of_the_rounds() -> None:
    assert not missed([[back(), back(), back(last_s=99.0)]], [])
    assert len(missed([[back(), back(last_s=99.0), back(last_s=99.0)]], [])) == 1


async def test_missed_names_a_head_that_does_not_pass_or_costs_others() -> None:
    def head(status: int, **errors: int) -> Head:
        answer: Any = SimpleNamespace(status=status)
        return Head("x", 200, answer, Counter(errors))

    assert len(missed([], [head(200), head(502), head(200, unavailable=1)])) == 2
