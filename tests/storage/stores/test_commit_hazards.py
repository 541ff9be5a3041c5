"""What goes wrong around a batch, brought about in PostgreSQL itself.

Nobody hangs, nothing is lost, nothing is done twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import date, timedelta
from pathlib import Path

import pytest
from aiohttp import WSMsgType

from engine.model.rows import ReadSet, Record, WriteSet
from engine.runtime.ports import StorePoisonError, StoreRetryError
from storage.embedded.servers import Services
from storage.postgres.partitions.maintenance import ensure_partitions
from storage.stores.commit.store import PostgresStore
from storage.stores.sealed.sealing import Sealing
from tests.harness.in_process_server import Running, Serve
from tests.harness.postgres_stalls import (
    HOLDS,
    QUEUED,
    RETRIES,
    SLEEPS,
    UNKNOWN,
    WAITS_FOR_LOCK,
    backend,
    commits_held,
    counted,
    counts,
    deadlocks,
    tenants_held,
    until,
)
from tests.harness.server_process import ServerProcess
from tests.harness.services import Serving, execute, rows
from tests.harness.ws_device import Device, Json, connected, day, item, put, token


def _first_version_of(results: list[Json]) -> None:
    assert [(one["status"], one["version"], one["seq"]) for one in results] == [("applied", 1, 1)]


def _pushing(device: Device, key: str, *items: Json) -> asyncio.Task[Json]:
    return asyncio.create_task(device.told("synced", "sync", key=key, items=list(items)))


def _database(dsn: str) -> str:
    return str(rows(dsn, "SELECT current_database()")[0][0])


def _records(dsn: str) -> list[tuple[object, ...]]:
    return rows(dsn, "SELECT id, version, seq FROM records ORDER BY seq")


# -- before the commit ------------------------------------------------------------------------


async def test_nothing_is_answered_before_its_commit(server: Running) -> None:
    phone = await server.device()
    with commits_held(server.dsn) as gate:
        await phone.send({"type": "sync", "id": "s", "key": "k", "items": [put("a1", None, n=1)]})
        await backend(server.dsn, SLEEPS)
        for _ in range(3):
            assert (await phone.pull())["changes"] == []
        assert phone.unasked == []
        gate.let_go()
        _first_version_of((await phone.waited("synced"))["results"])


async def test_a_batch_is_durable_whatever_the_database_defaults_to(server: Running) -> None:
    execute(
        server.dsn,
        f"ALTER DATABASE {_database(server.dsn)} SET synchronous_commit = off",
        "CREATE TABLE seen (durable text)",
        "GRANT ALL ON seen TO PUBLIC",
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS"
        " $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
        "CREATE TRIGGER see AFTER INSERT ON records FOR EACH ROW EXECUTE FUNCTION see()",
    )
    await (await server.device()).push(put("a1", None, n=1))
    assert rows(server.dsn, "SELECT durable FROM seen") == [("on",)]


# -- cancelled by the server ------------------------------------------------------------------


async def test_a_statement_that_the_server_cancels_is_no_cancelled_task(dsn: str) -> None:
    """By its own ways aiopg raises the same for both."""
    database = Serving(dsn, 1)
    session = await database.acquire()
    running = asyncio.create_task(session.run("SELECT pg_sleep(60)"))
    execute(dsn, f"SELECT pg_cancel_backend({await backend(dsn, SLEEPS)})")
    await asyncio.wait({running})
    assert not running.cancelled()
    assert isinstance(running.exception(), StoreRetryError)
    assert await session.run("SELECT 1") == [(1,)]
    running = asyncio.create_task(session.run("SELECT pg_sleep(60)"))
    await backend(dsn, SLEEPS)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert session.closed
    await database.release(session)
    await database.close()


async def test_a_cancellation_that_comes_with_the_answer_is_heeded(dsn: str) -> None:
    """Were it forgotten, a committer would go on for ever."""
    database = Serving(dsn, 1)
    session = await database.acquire()
    running = asyncio.create_task(session.run("SELECT pg_sleep(0.01)"))
    while (waiter := session._link._waiter) is None:  # noqa: ASYNC110  # it is a matter of turns
        await asyncio.sleep(0)
    while not waiter.done():  # noqa: ASYNC110
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert session.closed
    await database.release(session)
    await database.close()


async def test_a_batch_cancelled_while_it_waits_for_its_tenants_runs_again(server: Running) -> None:
    phone = await server.device()
    with tenants_held(server.dsn, "acme") as holder:
        pushing = _pushing(phone, "k", put("a1", None, n=1))
        for cancelled in (1, 2):
            pid = await backend(server.dsn, WAITS_FOR_LOCK)
            execute(server.dsn, f"SELECT pg_cancel_backend({pid})")
            await counts(server, RETRIES, cancelled, unless=pushing)
        assert not pushing.done()
        holder.let_go()
        _first_version_of((await pushing)["results"])
    assert await counted(server, UNKNOWN) == 0


async def test_a_batch_cancelled_in_the_midst_of_its_commit_runs_again(server: Running) -> None:
    phone = await server.device()
    with commits_held(server.dsn) as gate:
        pushing = _pushing(phone, "k", put("a1", None, n=1))
        execute(server.dsn, f"SELECT pg_cancel_backend({await backend(server.dsn, SLEEPS)})")
        await counts(server, RETRIES, 1, unless=pushing)
        assert not pushing.done()
        gate.let_go()
        synced = await pushing
    _first_version_of(synced["results"])
    assert synced["replayed"] is False


async def test_a_statement_timeout_of_the_role_hangs_nobody(serve: Serve, dsn: str) -> None:
    execute(dsn, f"ALTER ROLE tidemark_serving IN DATABASE {_database(dsn)} SET statement_timeout = '100ms'")
    server = await serve()
    phone, tablet = await server.device("phone"), await server.device("tablet")
    with tenants_held(dsn, "acme") as stall:
        stall.run("SET LOCAL statement_timeout = 0; LOCK TABLE records")
        pushing = _pushing(phone, "k", put("a1", None, n=1))
        refusal = await tablet.refused("pull")
        assert (refusal["code"], refusal["retryable"]) == ("unavailable", True)
        await counts(server, RETRIES, 2, unless=pushing)
        stall.let_go()
        _first_version_of((await pushing)["results"])
    assert [one["id"] for one in (await tablet.pull())["changes"]] == ["a1"]


# -- commits of unknown outcome ---------------------------------------------------------------


@pytest.mark.parametrize("committed", [True, False], ids=["it commits after all", "it rolls back"])
async def test_a_commit_that_outlasts_the_clients_patience_is_settled_by_its_key(
    server: Running, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await tablet.ask("subscribe")
    monkeypatch.setattr("storage.postgres.connection.STATEMENT_S", 0.5)
    with commits_held(server.dsn) as gate:
        pushing = _pushing(phone, "k", put("a1", None, n=1))
        pid = await backend(server.dsn, SLEEPS)
        os.kill(pid, signal.SIGSTOP)
        try:
            await counts(server, RETRIES, 1, unless=pushing)
            assert not pushing.done()
            assert await counted(server, UNKNOWN) == 1
            gate.let_go()
            if not committed:
                execute(server.dsn, f"SELECT pg_terminate_backend({pid})")
        finally:
            os.kill(pid, signal.SIGCONT)
        synced = await pushing
    _first_version_of(synced["results"])
    assert synced["replayed"] is committed
    assert _records(server.dsn) == [("a1", 1, 1)]
    told = await tablet.changes()
    assert [(one["id"], one["version"]) for one in told["changes"]] == [("a1", 1)]


# -- whoever holds a tenant and does not move -------------------------------------------------


async def test_a_stopped_server_frees_its_tenants_before_others_tire_of_waiting(
    serve: Serve, dsn: str, services: Services, tmp_path: Path
) -> None:
    other = await serve()
    stopped = ServerProcess(dsn, services.redis_url, tmp_path)
    await stopped.start()
    try:
        async with connected(stopped.url, other.http, signed=token("acme", "stopped")) as device:
            with tenants_held(dsn, "acme") as holder:
                pushing = _pushing(device, "k", put("a1", None, n=1))
                await backend(dsn, WAITS_FOR_LOCK)
                os.kill(stopped.pid, signal.SIGSTOP)
                holder.let_go()
            try:
                await backend(dsn, HOLDS)
                _first_version_of(await (await other.device()).push(put("a2", None, n=1)))
                assert await counted(other, RETRIES) == 0
            finally:
                os.kill(stopped.pid, signal.SIGCONT)
            (result,) = (await pushing)["results"]
            assert (result["status"], result["seq"]) == ("applied", 2)
        assert await stopped.terminate() == 0
    finally:
        await stopped.stop()
    assert _records(dsn) == [("a2", 1, 1), ("a1", 1, 2)]


async def test_a_deadlock_is_run_again(serve: Serve, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody locks tenants in another order than every server does, and the server is the victim."""
    # However slow this machine is: else another lane takes one of the two that are to be one batch.
    monkeypatch.setattr("engine.commit.committer._BLOCKING_FOR_S", 60.0)
    execute(dsn, f"ALTER DATABASE {_database(dsn)} SET deadlock_timeout = '1s'")
    server = await serve()
    acme, again = await server.device("phone"), await server.device("tablet")
    globex = await server.device("phone", "globex")
    with tenants_held(dsn, "globex") as stall:
        stall.run("SET LOCAL deadlock_timeout = '1min'")
        with tenants_held(dsn, "acme"):  # meanwhile a batch of both tenants gathers
            pushing = [_pushing(acme, "k1", put("a1", None, n=1))]
            await backend(dsn, WAITS_FOR_LOCK)
            pushing += [_pushing(again, "k", put("a1", 1, n=2)), _pushing(globex, "k", put("g1", None, n=1))]
            await counts(server, QUEUED, 2)
        await until(lambda: asyncio.to_thread(_records, dsn))
        await backend(dsn, WAITS_FOR_LOCK)
        await asyncio.to_thread(stall.lock, "acme")
    versions = [(await one)["results"][0]["version"] for one in pushing]
    assert versions == [1, 2, 1]
    assert await counted(server, RETRIES) == 1
    await server.drained()
    assert await deadlocks(dsn) == 1


async def test_the_settings_of_a_batch_end_with_it(dsn: str) -> None:
    execute(dsn, "INSERT INTO tenants (name) VALUES ('acme')", "INSERT INTO tenant_counters VALUES (1)")
    database = Serving(dsn, 1)
    store = PostgresStore(database, 24, Sealing())
    wanted = ReadSet([1], [], [], [], [], [])

    async def settings() -> list[tuple[object, ...]]:
        return await database.query("SELECT name, setting FROM pg_settings ORDER BY name")

    before = await settings()
    transaction = await store.begin(wanted)
    assert transaction.snapshot.seqs == {1: 0}
    await transaction.commit(WriteSet({}, [], [], [], [], []))
    assert await settings() == before
    await (await store.begin(wanted)).rollback()
    assert await settings() == before
    refused = Record(1, "task", "a1", 1, 1, 0, None, 1, b"{")
    with pytest.raises(StorePoisonError):
        await (await store.begin(wanted)).commit(WriteSet({1: 1}, [refused], [], [], [], []))
    assert await settings() == before
    await database.close()


# -- what the database refuses, or would ------------------------------------------------------

_BAD = {
    "U+0000": r'{"n":"\u0000"}',
    "a lone surrogate": r'{"n":"\ud800"}',
    "an integer of 30 digits": '{"n":%s}' % ("9" * 30),
    "a number past every double": '{"n":1e400}',
}


async def test_a_value_that_the_database_would_refuse_rejects_its_item_alone(server: Running) -> None:
    """All of them in one batch, beside other devices' syncs."""
    good = await server.device("good")
    writers = [await server.device(f"d{number}") for number in range(len(_BAD))]
    frames = [
        (
            '{"type":"sync","id":"s","key":"k","items":['
            f'{{"domain":"task","id":"before{number}","op":"put","data":{{}}}},'
            f'{{"domain":"task","id":"bad","op":"put","data":{bad}}},'
            f'{{"domain":"task","id":"after{number}","op":"put","data":{{}}}}]}}'
        ).encode()
        for number, bad in enumerate(_BAD.values())
    ]
    with tenants_held(server.dsn, "acme"):
        first = _pushing(good, "k", put("a1", None, n=1))
        await backend(server.dsn, WAITS_FOR_LOCK)
        for writer, frame in zip(writers, frames, strict=True):
            await writer.send_frame(frame, WSMsgType.TEXT)
        await counts(server, QUEUED, len(frames))
    for writer in writers:
        results = (await writer.receive())["results"]
        assert [one["status"] for one in results] == ["applied", "rejected", "applied"]
        assert results[1]["error"]["code"] == "invalid_item"
    _first_version_of((await first)["results"])
    assert len(_records(server.dsn)) == 1 + 2 * len(_BAD)
    kept = rows(server.dsn, "SELECT device_id, record_id, code, item FROM quarantine ORDER BY device_id")
    stand_ins = [bad.replace(r"\ud800", r"\u0000") for bad in _BAD.values()]  # no decoder lets one through
    assert kept == [
        (f"d{number}", "bad", "invalid_item", f'{{"domain":"task","id":"bad","op":"put","data":{bad}}}')
        for number, bad in enumerate(stand_ins)
    ]
    assert await counted(server, "tidemark_batch_size_messages_count") == 2


async def test_a_message_that_the_database_refuses_is_found_among_many(server: Running) -> None:
    """A rule that only the database knows refuses one value: that message is quarantined, all else stored."""
    execute(
        server.dsn,
        "ALTER TABLE records ADD CHECK (data ->> 'text' IS DISTINCT FROM 'poison')",
    )
    reader = await server.device("reader")
    await reader.ask("subscribe")
    writers = [await server.device(f"d{number}") for number in range(12)]
    with tenants_held(server.dsn, "acme"):
        first = _pushing(await server.device("first"), "k", put("a1", None, n=1))
        await backend(server.dsn, WAITS_FOR_LOCK)
        pushing = [
            _pushing(
                writer,
                "k",
                put(f"own{number}", None, n=number),
                put(f"other{number}", None, text="poison" if number == 7 else "food"),
            )
            for number, writer in enumerate(writers)
        ]
        await counts(server, QUEUED, len(writers))
    _first_version_of((await first)["results"])
    for number, one in enumerate(pushing):
        results = (await one)["results"]
        assert [result["status"] for result in results] == ["rejected" if number == 7 else "applied"] * 2
    stored = {str(record_id) for record_id, _, _ in _records(server.dsn)}
    assert stored == {"a1"} | {f"{name}{n}" for name in ("own", "other") for n in range(12) if n != 7}
    assert [seq for _, _, seq in _records(server.dsn)] == list(range(1, 24))
    kept = rows(server.dsn, "SELECT device_id, record_id, code FROM quarantine ORDER BY record_id")
    assert kept == [("d7", "other7", "invalid_item"), ("d7", "own7", "invalid_item")]
    told: set[str] = set()
    while len(told) < len(stored):
        told |= {change["id"] for change in (await reader.changes())["changes"]}
    assert told == stored
    again = await writers[7].told(
        "synced", "sync", key="k", items=[put("own7", None, n=7), put("other7", None, text="poison")]
    )
    assert again["replayed"] is True


# -- a month later ----------------------------------------------------------------------------


async def test_an_event_sent_again_a_month_later_meets_its_row(server: Running) -> None:
    """The key is forgotten, and both tables have got partitions for the days that came."""
    phone = await server.device()
    ((today,),) = rows(server.dsn, "SELECT current_date")
    data = {"metric_name": "m", "value": 1, "timestamp": day(1)}
    events = [item("append", "metrics", "m1", at=at, data=data) for at in (f"{today}T23:59:59.9Z", day(1))]
    assert [one["status"] for one in await phone.sync("k", *events)] == ["applied"] * 2
    execute(server.dsn, "UPDATE sync_idempotency_record SET created_at = created_at - interval '721 hours'")
    assert isinstance(today, date)
    ensure_partitions(server.dsn, today + timedelta(days=1), 1)
    synced = await phone.told("synced", "sync", key="k", items=events)
    assert synced["replayed"] is False
    assert [one["status"] for one in synced["results"]] == ["unchanged"] * 2
    other = [one | {"data": data | {"value": 2}} for one in events]
    assert [one["status"] for one in await phone.push(*other)] == ["rejected"] * 2
    assert rows(server.dsn, "SELECT count(*) FROM events") == [(2,)]
