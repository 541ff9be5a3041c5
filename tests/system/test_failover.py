"""A primary that dies, and the standby that takes over: the server goes over to it by itself.

With a synchronous standby, what was acknowledged is on both, and what is only on one was not acknowledged.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import ClientSession

from bench.harness.clusters import PASSWORD, USER, Cluster, migrate_for_roles
from storage.postgres.migrate import newest_migration
from storage.postgres.pool import Database
from storage.postgres.readiness import faults
from storage.stores.epoch import PostgresEpoch
from tests.harness.in_process_server import Serve
from tests.harness.numbered_edits import audit, editors_of, progressed
from tests.harness.postgres_stalls import UNKNOWN, WAITS_FOR_STANDBY, backend, counts, until
from tests.harness.services import cluster, execute, rows
from tests.harness.ws_device import put

DEVICES = 12
ACKS = 200


@pytest.fixture
def primary() -> Iterator[Cluster]:
    """A PostgreSQL with our schema."""
    with cluster("a") as made:
        migrate_for_roles(made.dsn)
        yield made


@pytest.fixture
def standby(primary: Cluster) -> Iterator[Cluster]:
    """A standby without which the primary confirms no commit."""
    copy = primary.copy("b")
    execute(primary.dsn, "ALTER SYSTEM SET synchronous_standby_names = 'b'", "SELECT pg_reload_conf()")
    copy.start()
    try:
        yield copy
    finally:
        copy.stop()


@pytest.fixture
def dsn(primary: Cluster, standby: Cluster) -> str:
    """Both, the standby first."""
    hosts = f"{standby.address},{primary.address}"
    return f"postgresql://{USER}:{PASSWORD}@{hosts}/{USER}?target_session_attrs=read-write"


async def test_failover_standby_takes_over_under_load(
    primary: Cluster, standby: Cluster, serve: Serve, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(dsn, "INSERT INTO tenants (name) VALUES ('initech')")
    server = await serve()
    progress = asyncio.Condition()
    editors = editors_of(DEVICES, progress)
    async with ClientSession() as session, asyncio.TaskGroup() as group:
        for editor in editors:
            group.create_task(editor.run(server, session))
        await progressed(editors, progress, ACKS)

        await asyncio.to_thread(primary.kill)
        await asyncio.to_thread(standby.promote)
        before = [dict(editor.acknowledged) for editor in editors]
        await progressed(editors, progress, ACKS)
        assert (await server.get("/readyz")).status == 200

        monkeypatch.setattr("engine.commit.lane.RETRY_FOR_S", 0.5)
        await asyncio.to_thread(standby.kill)
        async with asyncio.timeout(60), progress:
            while not any("unavailable" in editor.refused for editor in editors):
                await progress.wait()
        assert (await server.get("/readyz")).status == 503
        await asyncio.to_thread(standby.start)
        await progressed(editors, progress, ACKS)
        for editor in editors:
            editor.stopping = True
    assert [editor.wrong for editor in editors if editor.wrong] == []
    audit(standby.dsn, editors)
    for editor, acknowledged in zip(editors, before, strict=True):
        device = await server.device(editor.name, editor.tenant)
        number = max(acknowledged)
        again = await device.told("synced", "sync", key=f"key {number}", items=[editor.item(number)])
        assert again["replayed"]
        assert again["results"][0]["seq"] == acknowledged[number]


async def test_failover_unconfirmed_commit_applied_by_the_successor(
    primary: Cluster, standby: Cluster, serve: Serve, dsn: str
) -> None:
    """A wait for the standby that is cancelled leaves the change on a primary that then dies."""
    server = await serve()
    phone, tablet = await server.device(), await server.device("tablet")
    await phone.sync("k1", put("a1", None, n=1))
    await asyncio.to_thread(standby.stop)
    items = [put("a2", None, n=2)]
    await phone.send({"type": "sync", "id": "s2", "key": "k2", "items": items})
    answer = asyncio.create_task(phone.socket.receive())
    pid = await backend(primary.dsn, WAITS_FOR_STANDBY)
    execute(primary.dsn, f"SELECT pg_cancel_backend({pid})")
    await counts(server, UNKNOWN, 1, unless=answer)
    assert not answer.done()
    assert rows(primary.dsn, "SELECT id, seq FROM records ORDER BY seq") == [("a1", 1), ("a2", 2)]

    await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(standby.start)
    assert rows(standby.dsn, "SELECT id, seq FROM records ORDER BY seq") == [("a1", 1)]
    assert not answer.done()
    await asyncio.to_thread(standby.promote)
    synced = (await asyncio.wait_for(answer, 30)).json()
    assert (synced["type"], synced["replayed"]) == ("synced", False)
    assert synced["results"][0]["seq"] == 2
    again = await phone.told("synced", "sync", key="k2", items=items)
    assert (again["replayed"], again["results"]) == (True, synced["results"])
    page = await tablet.pull()
    assert [(one["id"], one["seq"]) for one in page["changes"]] == [("a1", 1), ("a2", 2)]
    assert rows(standby.dsn, "SELECT id, version, seq FROM records ORDER BY seq") == [
        ("a1", 1, 1),
        ("a2", 1, 2),
    ]
    assert not PostgresEpoch(dsn).restored()


async def test_failover_each_address_of_a_name_tried(
    primary: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def addresses(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, 0)) for at in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    database = Database(f"postgresql://{USER}:{PASSWORD}@db.example:{primary.port}/{USER}", 1)
    assert await database.query("SELECT 1") == [(1,)]
    await database.close()


async def test_readiness_database_that_may_lose_commits_not_ready(primary: Cluster) -> None:
    database = Database(primary.dsn, 1)
    assert await faults(database, newest_migration()) == []
    for number, name in enumerate(("fsync", "full_page_writes", "synchronous_commit"), start=1):
        execute(primary.dsn, f"ALTER SYSTEM SET {name} = off", "SELECT pg_reload_conf()")

        async def told(expected: int = number) -> bool:
            return len(await faults(database, newest_migration())) == expected

        await until(told)
        assert any(f"{name} = off" in fault for fault in await faults(database, newest_migration()))
    await database.close()
