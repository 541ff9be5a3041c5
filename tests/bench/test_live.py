"""What subscribers of the benchmark note, and how it is summed up and held against the tables."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import msgspec
import pytest

from bench.harness.environment import BenchError
from bench.harness.load_run import Run, spread
from bench.harness.stage import add_tenants
from bench.live.delivery import Tables, check_files, delivered, sources, tables_of
from bench.live.subscribers import Seen, Subscriber, Watch, WatchPlan, digest
from bench.load.plan import Outcome, Plan, Ready, Step
from tests.harness.services import execute

TENANTS = ["acme", "globex"]
BEGAN_US = 5_000_000


def page(*changes: tuple[str, int, int]) -> bytes:
    """Write a page of changes: id, version, seq."""
    listed = [
        {"domain": "task", "id": name, "version": version, "seq": seq, "data": {}}
        for name, version, seq in changes
    ]
    return msgspec.json.encode({"type": "changes", "id": "live", "cursor": "c", "changes": listed})


@pytest.fixture
async def seen() -> Seen:
    """What a process notes."""
    return Seen()


@pytest.fixture
async def subscriber(seen: Seen) -> Subscriber:
    """The process's connection 3."""
    return Subscriber(3, seen)


async def test_subscriber_knows_its_records_and_notes_each_page(subscriber: Subscriber, seen: Seen) -> None:
    subscriber.received(page(("a", 1, 1)))
    subscriber.received(page(("b", 1, 2), ("a", 2, 3)))
    subscriber.received(page())
    assert subscriber.versions == {"a": 2, "b": 1}
    assert subscriber.seq == 3
    assert [noted[:4] for noted in seen.pages] == [(3, 1, 1, 1), (3, 2, 3, 2)]
    assert seen.backwards == 0


async def test_watch_notes_pages_from_the_beginning_on() -> None:
    plan = WatchPlan(host="h", ports=[1], tokens=["t"], sources=[], heartbeats=False)
    watch = Watch(plan)
    (subscriber,) = watch._subscribers
    subscriber.received(page(("a", 1, 1)))
    watch.begin()
    gc.unfreeze()
    gc.enable()
    subscriber.received(page(("a", 2, 2)))
    await asyncio.sleep(0.03)
    found = await watch.finish([2])
    assert [noted[:4] for noted in found.pages] == [(0, 2, 2, 1)]
    assert (found.digests, found.short, found.errors) == ([digest({"a": 2})], [], {})
    assert found.lag_us


async def test_subscriber_version_that_goes_backwards_is_counted(subscriber: Subscriber, seen: Seen) -> None:
    subscriber.received(page(("a", 2, 5)))
    subscriber.received(page(("a", 1, 6), ("a", 1, 7)))
    assert seen.backwards == 1


async def test_subscriber_other_messages_are_counted(subscriber: Subscriber, seen: Seen) -> None:
    subscriber.received(b'{"type":"heartbeat_ack","id":"beat","health_score":97}')
    subscriber.received(b'{"type":"error","code":"cursor_expired"}')
    subscriber.received(b'{"type":"goodbye","reason":"shutdown"}')
    subscriber.ended(4409)
    assert seen.heartbeats_answered == 1
    assert seen.errors == {"cursor_expired": 1, "shutdown": 1, "closed_4409": 1}


def test_digest_depends_on_versions_and_not_on_their_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert len({digest(held) for held in ({}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1})}) == 5


def run_of(*acks: tuple[int, int, int, int]) -> Run:
    """Make a run of acks: device, seq, when due and when answered in microseconds after the beginning."""
    device, seq, due_us, answered_us = ([*column] for column in zip(*acks, strict=True))
    count = len(acks)
    outcome = Outcome(
        device=device,
        due_us=due_us,
        sent_us=[0] * count,
        done_us=answered_us,
        code=[1] * count,
        record=list(range(count)),
        base=[0] * count,
        seqs=seq,
    )
    plan = Plan(
        host="h",
        ports=[1, 1],
        prefix="0a1b2c3d",
        devices=["r-0", "r-1"],
        tokens=["t", "t"],
        steps=[Step("r", 1.0, 2.0)],
    )
    return Run(plan, TENANTS, Ready(2, 0.0, {}), outcome, began_s=BEGAN_US / 1e6)


def seen_of(*arrived: tuple[int, int, int, int], **changes: Any) -> Seen:
    """Make what was seen of pages: connection, lowest and highest seq, when after the beginning."""
    usual: dict[str, Any] = {
        "pages": [(*page, page[2] - page[1] + 1, BEGAN_US + at_us) for *page, at_us in arrived],
        "digests": ["A", "G"],
        "lag_us": [100, 300],
        "cpus": 0.25,
    }
    return Seen(**(usual | changes))


TABLES = Tables({"acme": 2, "globex": 1}, {"acme": "A", "globex": "G"})


def test_delivered_is_timed_by_tenant_and_seq() -> None:
    run = run_of((0, 1, 0, 4_000), (0, 2, 1_000, 6_000), (1, 1, 2_000, 9_000), (1, 2, -500, 10))
    seen = seen_of((0, 1, 2, 16_000), (1, 1, 2, 8_000), (0, 3, 3, 2_500_000))
    found = delivered(run, seen, TENANTS, TABLES)
    assert found.from_ack.max_ms == 12.0
    assert found.from_ack.p50_ms == 10.0  # 0, 10, 12: it was there before the acknowledgement, and due before
    assert found.from_sending.max_ms == 16.0
    assert found.from_sending.p50_ms == 15.0
    assert (found.per_s, found.pages_per_s, found.changes_per_page) == (2.0, 1.0, 2.0)
    assert found.lag_p99_ms == 0.3
    assert found.faults == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"digests": ["A", "A"]}, "subscriber 1 of globex holds other versions than the tables"),
        ({"short": [0]}, "subscriber 0 of acme did not get to seq 2"),
        ({"backwards": 7}, "7 changes came with a lower version than their record had"),
        ({"errors": {"closed_1006": 2}}, "subscribers were told or cut off: closed_1006 2"),
    ],
)
def test_delivered_subscriber_that_lacks_something_is_named(changes: dict[str, Any], fault: str) -> None:
    found = delivered(run_of((0, 1, 0, 10)), seen_of((0, 1, 1, 20), **changes), TENANTS, TABLES)
    assert found.faults == [fault]


def test_tables_are_read_by_tenant(dsn: str) -> None:
    add_tenants(dsn, ["acme", "globex", "other"])
    execute(
        dsn,
        "INSERT INTO records (tenant_id, domain, id, version, seq, at_us, device_id, chain_from, data)"
        " SELECT tenant_id, 'task', name || n, n, n + 3, 0, 'd', 1, '{}'"
        " FROM tenants, generate_series(1, 2) AS n WHERE name <> 'globex'",
    )
    found = tables_of(dsn, TENANTS)
    assert found.seqs == {"acme": 5, "globex": 0}
    assert found.digests == {"acme": digest({"acme1": 1, "acme2": 2}), "globex": digest({})}


@pytest.mark.parametrize(("tenants", "workers"), [(1, 2), (2, 2), (20, 2), (20, 8), (3, 4)])
def test_spread_is_even_over_workers_for_each_tenant(tenants: int, workers: int) -> None:
    ports = list(range(1, workers + 1))
    given = spread(ports, 400, tenants)
    for share in (given, *(given[tenant::tenants] for tenant in range(tenants))):
        counts = [share.count(port) for port in ports]
        assert max(counts) - min(counts) <= workers // 2


def test_sources_of_very_many_connections_are_several_addresses() -> None:
    assert sources(10_000) == []
    assert [sources(25_000)[index] for index in (0, 9_999, 10_000, 24_999)] == [
        "127.0.0.2",
        "127.0.0.2",
        "127.0.0.3",
        "127.0.0.4",
    ]


def test_check_files_too_low_a_limit_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.live.delivery.resource.getrlimit", lambda _: (1024, 8000))
    check_files(15_000, 3, 2, 400)
    with pytest.raises(BenchError, match=r"open 8,000 files and 15,400 are needed .*ulimit -Hn 15400"):
        check_files(15_000, 3, 1, 400)
