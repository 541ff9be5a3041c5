"""What each component counts, on a whole server."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from compose import capacity_watch
from compose.capacity_watch import CapacityWatch
from engine.runtime.metrics import MetricSource, Value
from storage.embedded.servers import Services
from storage.postgres.pool import Database
from storage.postgres.pool_metrics import PoolMetrics
from tests.harness.in_process_server import SHARED, Running, Serve, settings_with
from tests.harness.services import Serving, outage
from tests.harness.ws_device import day, item, put

#: Samples by name and labels.
Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scraped(server: Running) -> Page:
    text = (await server.get("/metrics")).body.decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(page: Page, name: str, **labels: str) -> float:
    return page[name, frozenset(labels.items())]


def values_of(source: MetricSource) -> dict[str, Any]:
    return {metric.name: metric.values for metric in source.metrics() if isinstance(metric, Value)}


class Growth:
    """How much the counters of a server have grown."""

    def __init__(self, before: Page) -> None:
        self._before = before
        self.after: Page = {}

    def of(self, name: str, **labels: str) -> float:
        """The growth of one sample."""
        return value(self.after, name, **labels) - value(self._before, name, **labels)

    def every(self, name: str, label: str) -> dict[str, float]:
        """The growth of each value of a label that grew."""
        found = {
            dict(labels)[label]: self.of(name, **dict(labels)) for key, labels in self.after if key == name
        }
        return {key: grown for key, grown in found.items() if grown}


@asynccontextmanager
async def growth(server: Running) -> AsyncIterator[Growth]:
    grown = Growth(await scraped(server))
    yield grown
    grown.after = await scraped(server)


def note(base: int | None, record_id: str = "n1", **fields: Any) -> dict[str, Any]:
    return item("put", "note", record_id, base=base, **fields)


async def test_items_are_counted_by_status_and_replays_not_again(serve: Serve) -> None:
    server = await serve(**SHARED)
    phone, tablet = await server.device("phone"), await server.device("tablet")
    async with growth(server) as grown:
        await phone.push(put("a", None, n=1), put("b", None, n=1), item("put", "nowhere", "c", data={}))
        await phone.sync("k", put("a", 1, n=1))
        await phone.sync("k", put("a", 1, n=1))
        await tablet.push(put("b", None, m=2))
        await phone.push(note(None, data={"a": 1}))
        await tablet.push(note(None, data={"a": 2}))
    assert grown.every("tidemark_items_total", "status") == {
        "applied": 3,
        "rejected": 1,
        "unchanged": 1,
        "resolved": 1,
        "conflict": 1,
    }


async def test_syncs_are_counted_by_outcome(server: Running, services: Services) -> None:
    phone = await server.device("phone")
    async with growth(server) as grown:
        await phone.sync("k", put("a", None, n=1))
        await phone.refused("sync", key="k", items=[put("a", None, n=2)])
        async with server.http.get(f"{server.url}/v1/sync", headers={"Upgrade": "websocket"}) as refused:
            assert refused.status == 401
        with outage(services, server.dsn), pytest.MonkeyPatch.context() as patch:
            patch.setattr("engine.commit.lane.RETRY_FOR_S", 0.0)
            await phone.refused("sync", key="l", items=[put("b", None, n=1)])
    assert grown.every("tidemark_syncs_total", "outcome") == {"succeeded": 1, "failed": 1, "refused": 1}
    assert grown.every("tidemark_syncs_refused_total", "code") == {"unavailable": 1}


async def test_tenants_are_labels_only_where_the_setting_says_so(serve: Serve) -> None:
    server = await serve()
    await (await server.device()).push(put("a", None, n=1))
    assert not [name for name, labels in await scraped(server) if "tenant" in dict(labels)]


async def test_tenants_have_their_own_counts(serve: Serve) -> None:
    server = await serve(metrics={"tenants": True}, **SHARED)
    phone, tablet = await server.device("phone"), await server.device("tablet")
    other = await server.device("other", tenant="globex")
    await phone.push(note(None, data={"a": 1}), put("a", None, n=1))
    await tablet.push(note(None, data={"a": 2}), put("a", None, n=2))
    await other.sync("k", put("a", None, n=1))
    await other.refused("sync", key="k", items=[put("a", None, n=2)])
    page = await scraped(server)
    found = {
        (name.removeprefix("tidemark_tenant_"), *sorted(dict(labels).values())): count
        for (name, labels), count in page.items()
        if "tenant" in dict(labels) and count and "bytes" not in name and "seconds" not in name
    }
    assert found == {
        ("connections", "acme"): 2,
        ("connections", "globex"): 1,
        ("syncs_total", "acme", "succeeded"): 2,
        ("syncs_total", "globex", "succeeded"): 1,
        ("syncs_total", "failed", "globex"): 1,
        ("items_total", "acme"): 4,
        ("items_total", "globex"): 1,
        ("conflicts_total", "acme", "held"): 1,
        ("conflicts_total", "acme", "settled"): 1,
    }
    assert value(page, "tidemark_tenant_received_bytes_total", tenant="acme") > 0
    assert value(page, "tidemark_tenant_sync_seconds_total", tenant="acme") > 0


async def test_items_of_an_aborted_message_are_rejected(serve: Serve) -> None:
    server = await serve(**SHARED)
    phone = await server.device("phone")
    async with growth(server) as grown:
        await phone.push(put("a", None, n=1), item("put", "nowhere", "c", data={}), atomic=True)
    assert grown.every("tidemark_items_total", "status") == {"rejected": 2}


async def test_conflicts_are_counted_by_policy_and_outcome_once(serve: Serve) -> None:
    server = await serve(**SHARED)
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.push(note(None, data={"a": 1}), item("put", "visit", "v", data={"place": 1}))
    async with growth(server) as grown:
        await tablet.push(item("put", "visit", "v", data={"place": 2}))
        (held,) = await tablet.push(note(None, data={"a": 2}, at=day(2)))
        await tablet.push(note(None, data={"a": 3}, at=day(3)))
        (conflict,) = (await tablet.ask("conflicts"))["conflicts"]
        await tablet.told(
            "resolved",
            "resolve",
            conflict_id=held["conflict_id"],
            choice="client",
            version=1,
            changes=conflict["client"].get("changes"),
        )
    found = {
        (dict(labels)["policy"], dict(labels)["outcome"]): count
        for (name, labels), _ in grown.after.items()
        if name == "tidemark_conflicts_total" and (count := grown.of(name, **dict(labels)))
    }
    assert found == {("client_wins", "client"): 1, ("manual", "open"): 1, ("manual", "held"): 1}
    assert grown.every("tidemark_conflicts_settled_total", "choice") == {"client": 1}


async def test_batches_and_commits_are_counted(server: Running) -> None:
    phone = await server.device("phone")
    async with growth(server) as grown:
        for number in range(3):
            await phone.push(put(f"a{number}", None, n=1))
    for name in ("batch_size_messages", "batch_duration_seconds", "commit_duration_seconds"):
        assert grown.of(f"tidemark_{name}_count") == 3
    assert grown.of("tidemark_batch_size_messages_sum") == 3
    assert (
        0 < grown.of("tidemark_commit_duration_seconds_sum") < grown.of("tidemark_batch_duration_seconds_sum")
    )
    assert grown.of("tidemark_database_round_trips_total", pool="commit") == 6
    assert grown.of("tidemark_database_statements_total", pool="commit") > 6


async def test_lookups_and_connections_are_counted(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.cache.devices._READ_TIMEOUT_S", 60.0)  # a handshake goes on without its row
    async with growth(server) as grown:
        await server.device("phone")
        await server.device("phone")
    assert grown.of("tidemark_policy_read_duration_seconds_count") == 2
    assert grown.of("tidemark_device_read_duration_seconds_count") == 2
    assert grown.of("tidemark_device_row_duration_seconds_count") == 1, "the second time it has a row"
    assert grown.of("tidemark_device_reads_total") == 1
    assert value(grown.after, "tidemark_database_connections_limit", pool="commit") == 2
    assert value(grown.after, "tidemark_database_connections", pool="reads") >= 1
    assert value(grown.after, "tidemark_database_connections", pool="jobs") == 1, "which looks for due jobs"
    assert value(grown.after, "tidemark_database_connections", pool="uploads") == 0
    assert value(grown.after, "tidemark_database_connections_busy", pool="commit") == 0


async def test_delivery_to_subscribers_is_counted(server: Running) -> None:
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await tablet.ask("subscribe")
    async with growth(server) as grown:
        await phone.push(put("a", None, n=1))
        await tablet.changes()
        await phone.pull()
    assert value(grown.after, "tidemark_subscriptions") == 1
    assert grown.of("tidemark_live_pages_total") == 1
    assert grown.of("tidemark_delivery_duration_seconds_count") == 1
    assert grown.of("tidemark_pulls_total") == 1
    assert grown.of("tidemark_stored_pages_total") == 0


async def test_refusals_are_counted_by_cause(serve: Serve) -> None:
    server = await serve(limits={"messages_per_minute": 2})
    phone = await server.device("phone")
    await phone.push(put("a", None, n=1))
    await phone.push(put("a", 1, n=2))
    async with growth(server) as grown:
        await phone.refused("sync", key="k", items=[put("a", 2, n=3)])
        await phone.refused("sync", key="k", items=[put("a", 2, n=3)])
        async with server.http.get(f"{server.url}/v1/sync", headers={"Upgrade": "websocket"}) as refused:
            assert refused.status == 401
    assert grown.every("tidemark_refusals_total", "cause") == {"device_rate": 2}
    assert grown.every("tidemark_handshakes_refused_total", "code") == {"unauthenticated": 1}
    assert grown.every("tidemark_errors_total", "code") == {"rate_limited": 2, "unauthenticated": 1}


async def test_capacity_tells_what_tenants_hold_and_how_full_the_disks_are(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(**SHARED)
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.push(note(None, data={"a": 1}), put("a", None, n=1), item("put", "nowhere", "c", data={}))
    await tablet.push(note(None, data={"a": 2}))
    database = Serving(server.dsn, 1)
    watch = CapacityWatch(database, settings_with(data={"dir": str(tmp_path)}))
    await watch.check()
    await database.close()
    found = values_of(watch.state)
    rows = found["tidemark_held_rows"]
    assert {kind: count for kind, count in rows.items() if count} == {
        "record": 2,
        "conflict": 1,
        "quarantine": 1,
        "answer": 2,
    }
    assert found["tidemark_open_conflicts"] == 1
    assert found["tidemark_database_full"] == 0
    for disk in ("database", "files"):
        assert 0 < float(found[f"tidemark_{disk}_free_bytes"]) < float(found[f"tidemark_{disk}_disk_bytes"])


async def test_capacity_without_a_directory_of_files_tells_nothing_of_its_disk(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> object:
        raise OSError

    monkeypatch.setattr(shutil, "disk_usage", fails)
    database = Serving(server.dsn, 1)
    watch = CapacityWatch(database, settings_with())
    await watch.check()
    await database.close()
    assert "tidemark_files_free_bytes" not in {metric.name for metric in watch.state.metrics()}


async def test_capacity_disk_of_files_that_hangs_holds_up_no_other_look(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, answers = [], threading.Event()
    usage = shutil.disk_usage("/")

    def hangs(directory: object) -> object:
        looks.append(directory)
        answers.wait()
        return usage

    monkeypatch.setattr(shutil, "disk_usage", hangs)
    monkeypatch.setattr(capacity_watch, "_FILES_S", 0.01)
    database = Serving(server.dsn, 1)
    watch = CapacityWatch(database, settings_with())
    try:
        async with asyncio.timeout(10):
            await watch.check()
            await watch.check()
        assert (len(looks), watch.state.files_free_bytes) == (1, None)
    finally:
        answers.set()
    while watch.state.files_free_bytes is None:
        await watch.check()
    assert watch.state.files_disk_bytes == usage.total
    await database.close()


async def test_capacity_disk_is_watched_while_reports_keep_their_connection(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.pool._WAIT_S", 0.01)
    reports, reads = Database(dsn, 1), Database(dsn, 1)
    settings = settings_with(postgres={"max_bytes": 1}, data={"dir": str(tmp_path)})
    watch = CapacityWatch(reads.with_everyone(reports), settings)
    async with reports.connection():
        await watch.check()
    full, held = watch.state.full, watch.state.files_free_bytes
    await reports.close()
    await reads.close()
    assert full is not None
    assert "the limit is 1" in full
    assert held is not None


async def test_pool_counts_waits_and_failures(dsn: str) -> None:
    database = Serving(dsn, 1)
    first = await database.acquire()
    waiting = asyncio.create_task(database.query("SELECT 1"))
    await asyncio.sleep(0)
    usage = database.usage
    assert (usage.limit, usage.busy, usage.idle, usage.waits) == (1, 1, 0, 1)
    await database.release(first)
    await waiting
    assert (usage.busy, database.usage.idle, usage.opened) == (0, 1, 1)
    assert usage.wait_s > 0
    await database.close()
    nowhere = Database("host=127.0.0.1 port=1", 1)
    for _ in range(2):
        with pytest.raises(Exception, match="cannot connect"):
            await nowhere.query("SELECT 1")
    found = values_of(PoolMetrics({"reads": nowhere}))
    assert found["tidemark_database_connection_failures"] == {"reads": 2}
    assert found["tidemark_database_connections_busy"] == {"reads": 0}


async def test_build_is_told(server: Running) -> None:
    page = await scraped(server)
    (labels,) = [dict(labels) for name, labels in page if name == "tidemark_build_info"]
    assert labels.keys() == {"version", "python", "schema"}
    assert value(page, "tidemark_resident_memory_bytes") > 1 << 20
