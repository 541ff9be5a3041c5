"""The benchmark of nginx: its devices come back and count, and missed bars are named."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from bench.tools.behind_nginx import Back, missed
from bench.tools.behind_nginx_heads import Head
from bench.tools.fleet import Member, Other, Way
from tests.harness.in_process_server import ON_SHARED, Running
from tests.harness.services import rows

pytestmark = ON_SHARED


def way(server: Running) -> Way:
    """Past nginx."""
    port = urlsplit(server.url).port
    assert port is not None
    return Way(port)


async def live(member: Member, spells: int) -> None:
    """Wait until a device is live after so many absences."""
    async with asyncio.timeout(20):
        while not (member.live and len(member.away_s) == spells):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)


async def test_member_sent_away_comes_live_again_and_counts_it(shared: Running) -> None:
    member = Member("m", shared.token("m"), way(shared), "seed")
    running = asyncio.create_task(member.run())
    await live(member, 0)
    first_s = member.live_at_s
    await shared.device("m")  # takes its place
    await live(member, 1)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    [away_s] = member.away_s
    assert 0 < away_s < member.live_at_s - first_s
    sql = f"SELECT version FROM records JOIN tenants USING (tenant_id) WHERE name = '{shared.tenant()}'"
    assert rows(shared.dsn, sql) == [(member.pushed,)]
    assert member.pushed >= 2
    assert member.rejected == 0


async def test_other_counts_answers_and_refusals(shared: Running, unused_tcp_port: int) -> None:
    other = Other("o", shared.token("o"), way(shared))
    await other.run(lambda: other.answered < 2)
    assert (other.answered, other.errors) == (2, [])
    unheard = Other("o", shared.token("o"), Way(unused_tcp_port))
    await unheard.run(lambda: not unheard.errors)
    stranger = Other("o", "no token", way(shared))
    await stranger.run(lambda: not stranger.errors)
    assert [verdict for _, verdict in unheard.errors] == ["ClientConnectorError"]
    assert [verdict for _, verdict in stranger.errors] == ["401 unauthenticated"]


def back(*, way: str = "nginx", last_s: float = 1.0, beyond: int = 0, faults: int = 0) -> Back:
    return Back(
        way=way,  # type: ignore[arg-type]
        fault="stop",
        workers_away_s=12.0,
        p50_s=0.5,
        p95_s=0.9,
        last_s=last_s,
        away_p50_s=12.0,
        away_last_s=13.0,
        errors_during={"503 unavailable": 9},
        errors_beyond={"503 unavailable": beyond} if beyond else {},
        faults=["f"] * faults,
    )


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
    assert len(missed([row], [])) == count


async def test_missed_names_a_head_that_does_not_pass_or_costs_others() -> None:
    passed = Head("x", (200,), 1, 1, 200, {})
    refused = Head("x", (200,), 1, 1, 502, {})
    costly = Head("x", (200,), 1, 1, 200, {"503 unavailable": 1})
    assert len(missed([], [passed, refused, costly])) == 2
