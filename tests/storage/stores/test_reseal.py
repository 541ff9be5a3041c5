"""Sealing again what is stored: nothing but the sealed form of values changes, whatever happens beside it."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

import msgspec
import pytest

from engine.cluster.jobs import Begun, JobRun
from engine.operate import reseal as job
from engine.operate.figures.voice import Result, Verification
from engine.operate.reseal import Reseal, UnreadableValuesError
from engine.runtime.ports import StoreError
from engine.seal.sealer import key_number
from storage.postgres.blocking import connected
from storage.postgres.pool import Database
from storage.stores.keys import reseal
from storage.stores.keys.admin import PostgresKeyAdmin
from storage.stores.keys.reseal import PostgresReseal
from storage.stores.keys.reseal_statements import PAGE_SETTINGS, statements_of
from storage.stores.keys.sealed_columns import SEALED_TABLES, SealedTable
from storage.stores.keys.verify import PostgresVerify
from storage.stores.monitoring.voice import PostgresVoice
from storage.stores.sealed import sealing as places
from storage.stores.sealed.sealing import Sealing
from tests.harness.key_ring import MadeUpRing, sealing_of
from tests.harness.services import PLACES, Serving, execute, rows
from tests.storage.stores.test_sealing import HASH, RECORD, SECRET, TABLES, _write

ALL = (*TABLES, "upload_session", "voice_verification_log")
#: Rows that no store of these tests writes.
_FILES = (
    "INSERT INTO upload_session (tenant_id, upload_id, device_id, kind, file_name, content_type, domain,"
    " record_id, metadata, reserved_bytes, wanted_sha256, sha256, expires_at) SELECT 1,"
    f" ('00000000-0000-0000-0000-00000000000' || n)::uuid, 'phone', 'whole', '{SECRET}.pdf', 'a/b',"
    f" (ARRAY['patient', 'task', NULL])[n], 'r1', 'filename {SECRET}', 0, '{HASH}', NULL, now()"
    " FROM generate_series(1, 3) AS n"
)
_VOICE = (
    "INSERT INTO voice_verification_log (tenant_id, verification_id, device_id, user_id, occurred_at, result)"
    " VALUES (1, '%s', 'phone', %s, 'epoch', '%s')"
)
MORE = (
    _FILES,
    _VOICE % (f"{SECRET}-1", f"'{SECRET}'", '{"verified":true}'),
    _VOICE % (f"{SECRET}-2", "NULL", '{"verified":false,"confidence_score":0.5}'),
)
_VOICE_IDS = "SELECT verification_id FROM voice_verification_log"
DOMAINS = ("patient", "voice")
#: Sealed long enough ago for servers to follow, and after the tenant was made.
SEALED = (
    "UPDATE tenants SET created_at = now() - interval '1 day'",
    "UPDATE sync_idempotency_record SET created_at = now() - interval '1 hour'",
    "INSERT INTO sealed_domains SELECT unnest(ARRAY['patient', 'voice']), now() - interval '1 minute'",
)
WANTED = (
    "UPDATE reseal_passes SET wanted_at = now() - interval '6 seconds', done_at = now() - interval '1 hour'"
)


_NEWER = "UPDATE records SET version = 3, seq = 9, data = '{\"name\":\"newer\"}' WHERE id = 'r1'"


class _Clock:
    now_us = staticmethod(lambda: 0)
    monotonic_s = staticmethod(lambda: 0.0)


class World:
    """A database with a row of each kind, and what seals it again."""

    def __init__(self, dsn: str, database: Database) -> None:
        self.dsn = dsn
        self.database = database
        self.ring = MadeUpRing()
        self.sealing = sealing_of(*DOMAINS, others=["task"], ring=self.ring)

    async def run(self, page_rows: int = 2) -> dict[str, Any]:
        """Run the job; return its counts."""

        async def refresh() -> None:
            await self.ring.load([1])

        run = JobRun(Begun("reseal", 0, 1, 0), _Clock())
        run.rest = _no_rest  # type: ignore[method-assign]
        await Reseal(PostgresReseal(self.database, self.sealing, refresh, page_rows))(run)
        return dict(run.counts)

    def dump(self) -> dict[str, list[str]]:
        """Every row of every table as text."""
        return {
            table: sorted(str(row) for (row,) in rows(self.dsn, f"SELECT t::text FROM {table} AS t"))
            for table in ALL
        }

    def key_numbers(self) -> set[int]:
        """The keys of all sealed values."""
        return {
            key_number(b64decode(str(value)))
            for table in SEALED_TABLES
            for column in table.columns
            if column.form != "changes"
            for (value,) in rows(
                self.dsn,
                f"SELECT trim(both '\"' FROM trim(leading E'\\x1e' FROM {column.name}::text))"
                f" FROM {table.name}"
                f" WHERE left({column.name}::text, 1) IN ('\"', E'\\x1e')",
            )
        }


async def _no_rest() -> None:
    pass


@pytest.fixture
async def world(dsn: str) -> AsyncIterator[World]:
    execute(dsn, "INSERT INTO tenants (name) VALUES ('one')", "INSERT INTO tenant_counters VALUES (1)")
    database = Serving(dsn, 2)
    await _write(database, Sealing())
    execute(dsn, *MORE, *SEALED)
    yield World(dsn, database)
    await database.close()


def test_sealed_tables_have_each_place_that_stores_seal() -> None:
    hashed = (places.VOICE_ID, places.REQUEST)
    named = {
        value
        for value in vars(places).values()
        if isinstance(value, str) and value.split(".")[0] in ALL and value not in hashed
    }
    assert {column.place for table in SEALED_TABLES for column in table.columns} == named


def test_sealed_tables_have_events_after_those_that_move_to_them() -> None:
    names = [table.name for table in SEALED_TABLES]
    assert names.index("events_later") < names.index("events")


@pytest.mark.parametrize("dsn", ["template", *PLACES[2:]], indirect=True)
async def test_reseal_seals_plain_rows_rotates_and_unseals_without_another_change(world: World) -> None:
    plain = world.dump()
    counts = await world.run()
    sealed = world.dump()
    assert not [line for lines in sealed.values() for line in lines if SECRET in line or HASH in line][1:]
    assert any("paint" in line for line in sealed["records"])
    assert world.key_numbers() == {1}
    assert rows(world.dsn, "SELECT id, version, seq, at_us FROM records ORDER BY id") == [
        ("r1", 2, 1, RECORD.at_us),
        ("r2", 2, 2, RECORD.at_us),
        ("r3", 2, 3, RECORD.at_us),
    ]
    assert counts["tenants"] == 1
    assert counts["values"] == 19
    assert await world.run() == {}

    world.ring.newest = 2
    execute(world.dsn, WANTED)
    assert (await world.run())["values"] == 19
    assert world.key_numbers() == {2}
    assert {str(one)[1:11] for (one,) in rows(world.dsn, _VOICE_IDS)} == {"0100000002"}
    assert [len(lines) for lines in world.dump().values()] == [len(lines) for lines in sealed.values()]

    world.sealing.follow([])
    execute(world.dsn, "DELETE FROM sealed_domains", WANTED)
    await world.run()
    assert world.dump() == plain


def _at_row(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Act before a row of the pass is made anew, counted over all pages: after its read, before its write."""
    changed = reseal._changed
    made = count(1)

    def counted(*arguments: Any) -> object:
        if next(made) == number:
            act()
        return changed(*arguments)

    monkeypatch.setattr(reseal, "_changed", counted)


async def test_reseal_row_that_changes_between_read_and_write_keeps_the_change(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = msgspec.structs.replace(RECORD, version=3, seq=9, data=b'{"name":"newer"}')
    _at_row(monkeypatch, 1, lambda: execute(world.dsn, _NEWER))
    await world.run()
    ((version, stored),) = rows(world.dsn, "SELECT version, data::text FROM records WHERE id = 'r1'")
    assert version == 3
    opened = world.sealing.open(places.RECORD_DATA, 1, "patient", "r1", 3, str(stored))
    assert opened == newer.data
    assert SECRET not in str(world.dump()["records"])


async def test_reseal_that_fails_midway_goes_on_where_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short() -> None:
        raise StoreError("cut short")

    _at_row(monkeypatch, 4, cut_short)
    with pytest.raises(StoreError, match="cut short"):
        await world.run(1)
    ((place, values),) = rows(world.dsn, "SELECT place, resealed FROM reseal_passes")
    assert (place, values) == ("events", 4)
    assert (await world.run(1))["values"] == 15
    assert world.key_numbers() == {1}
    assert rows(world.dsn, "SELECT place, resealed, done_at IS NULL FROM reseal_passes") == [
        (None, 19, False)
    ]


#: A failover loses the page of the first record and its position, which had not waited for a standby.
_LOST_PAGE = f"UPDATE records SET data = '{{\"name\":\"{SECRET}\"}}' WHERE id = 'r1'"
_LOST_POSITION = "UPDATE reseal_passes SET place = NULL, position = NULL, resealed = 0"


async def test_reseal_failover_between_read_and_write_does_lost_pages_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _at_row(monkeypatch, 3, lambda: execute(world.dsn, _LOST_PAGE, _LOST_POSITION))
    await world.run(1)
    assert SECRET not in str(world.dump()["records"])


async def test_reseal_failover_before_the_end_does_lost_pages_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, lost = PostgresReseal._page, [_LOST_PAGE, _LOST_POSITION]

    async def last(*arguments: Any) -> object:
        done = await page(*arguments)
        if arguments[2].table == len(SEALED_TABLES) - 1 and done is None and lost:
            execute(world.dsn, *lost)
            lost.clear()
        return done

    monkeypatch.setattr(PostgresReseal, "_page", last)
    await world.run(1)
    assert lost == []
    assert SECRET not in str(world.dump()["records"])
    assert rows(world.dsn, "SELECT done_at IS NOT NULL FROM reseal_passes") == [(True,)]


async def test_reseal_goes_on_behind_values_that_cannot_be_opened_and_names_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.run()
    said: list[dict[str, object]] = []
    monkeypatch.setattr(job._log, "error", lambda _, **fields: said.append(fields), raising=False)
    execute(
        world.dsn,
        "UPDATE records SET data = (SELECT data FROM events LIMIT 1) WHERE id = 'r1'",
        "UPDATE quarantine SET item = E'\\x1eno base64, and not of this server'",
        "UPDATE voice_verification_log SET result = to_json('AQAAAAkA' || repeat('A', 200))"
        " WHERE device_id = 'phone' AND ctid = (SELECT min(ctid) FROM voice_verification_log)",
        WANTED,
    )
    data = "SELECT data::text FROM records WHERE id = 'r1'"
    kept = rows(world.dsn, data)
    world.ring.newest = 2
    with pytest.raises(UnreadableValuesError, match="which were left as they are: 3;"):
        await world.run()
    assert rows(world.dsn, data) == kept
    assert rows(world.dsn, "SELECT unreadable_values, done_at IS NOT NULL FROM reseal_passes") == [(3, True)]
    ((listed,),) = rows(world.dsn, "SELECT unreadable FROM reseal_passes")
    assert [(one["table"], one["domain"]) for one in listed] == [  # type: ignore[attr-defined]  # of jsonb
        ("records", "patient"),
        ("quarantine", "patiant"),
        ("voice_verification_log", "voice"),
    ]
    assert [(one["table"], one["domain"], one["values"]) for one in said] == [
        ("records", "patient", 1),
        ("quarantine", "patiant", 1),
        ("voice_verification_log", "voice", 1),
    ]
    assert SECRET not in str(said)
    (state,) = await PostgresKeyAdmin(world.database).tenants()
    assert (state.unreadable_values, len(state.unreadable)) == (3, 3)
    execute(world.dsn, "DELETE FROM records WHERE id = 'r1'", "DELETE FROM quarantine")
    execute(world.dsn, "DELETE FROM voice_verification_log WHERE octet_length(result::text) < 220", WANTED)
    assert "unreadable" not in await world.run()
    assert world.key_numbers() == {2}


async def test_reseal_row_with_a_value_that_cannot_be_opened_has_its_others_sealed(world: World) -> None:
    await world.run()
    execute(
        world.dsn,
        "UPDATE conflict_resolution_log SET server_data = (SELECT data FROM events LIMIT 1),"
        f" client_data = json_build_object('name', '{SECRET}')",
        WANTED,
    )
    found = "SELECT server_data::text FROM conflict_resolution_log"
    before = rows(world.dsn, found)
    world.ring.newest = 2
    with pytest.raises(UnreadableValuesError, match=f"which were left as they are: {len(before)};"):
        await world.run()
    assert rows(world.dsn, found) == before
    assert SECRET not in str(world.dump()["conflict_resolution_log"])


async def test_reseal_goes_on_behind_a_held_change_that_is_no_list(world: World) -> None:
    execute(world.dsn, "UPDATE conflict_resolution_log SET client_changes = '\"no list\"'")
    (conflicts,) = rows(world.dsn, "SELECT count(*) FROM conflict_resolution_log")[0]
    with pytest.raises(UnreadableValuesError, match=f"which were left as they are: {conflicts};"):
        await world.run()
    assert rows(world.dsn, "SELECT done_at IS NOT NULL FROM reseal_passes") == [(True,)]
    assert SECRET not in str(world.dump()["conflict_resolution_log"])


async def test_verify_finds_damage_to_values_of_the_current_key_that_a_pass_skips(world: World) -> None:
    await world.run()
    verify = PostgresVerify(world.database, world.sealing, 2)
    looked: list[int] = []
    whole = await verify.verify(1, looked.append)
    assert whole == (11, 0, [])
    assert looked == sorted(looked)
    execute(
        world.dsn,
        "UPDATE records SET data = (SELECT last_data FROM records WHERE id = 'r2') WHERE id = 'r1'",
        # One character behind the head is another one.
        "UPDATE quarantine SET item = overlay(item PLACING"
        " CASE substr(item, 60, 1) WHEN 'A' THEN 'B' ELSE 'A' END FROM 60 FOR 1)",
        WANTED,
    )
    assert "unreadable" not in await world.run()
    execute(
        world.dsn,
        "UPDATE conflict_resolution_log SET client_changes = '\"no list\"' WHERE client_changes IS NOT NULL",
    )
    found = await verify.verify(1, looked.append)
    assert [(one.table, one.domain) for one in found.unreadable] == [
        ("records", "patient"),
        ("conflict_resolution_log", "patient"),
        ("quarantine", "patiant"),
    ]
    (state,) = await PostgresKeyAdmin(world.database).tenants()
    assert (state.unreadable_values, state.unreadable) == (3, found.unreadable)
    execute(world.dsn, "DELETE FROM records WHERE id = 'r1'", "DELETE FROM quarantine")
    execute(world.dsn, "DELETE FROM conflict_resolution_log")
    assert (await verify.verify(1, looked.append)).unreadable_values == 0
    (state,) = await PostgresKeyAdmin(world.database).tenants()
    assert state.unreadable_values == 0


async def test_reseal_waits_until_servers_follow(world: World) -> None:
    execute(world.dsn, "UPDATE sealed_domains SET since = now()")
    store = PostgresReseal(world.database, world.sealing, _no_rest)
    assert 4 < await store.wait_s() <= 5
    assert await store.next_tenant(0) is None
    execute(world.dsn, "UPDATE sealed_domains SET since = now() - interval '6 seconds'")
    assert await store.wait_s() == 0
    assert await store.next_tenant(0) == 1


async def test_reseal_leaves_tenants_that_came_after_the_sealing(world: World) -> None:
    execute(world.dsn, "UPDATE tenants SET created_at = now()")
    assert await world.run() == {}


async def test_reseal_wanted_again_during_a_pass_begins_another(world: World) -> None:
    store = PostgresReseal(world.database, world.sealing, _no_rest, 1)
    await store.begin(1)
    await store.step(1)
    world.ring.newest = 2
    await world.ring.load([1])
    execute(
        world.dsn,
        "UPDATE reseal_passes SET wanted_at = now() - interval '5 seconds'",
        "SELECT pg_sleep(0.001)",
    )
    await world.run()
    assert world.key_numbers() == {2}


async def test_reseal_of_many_tenants_waits_once_for_older_transactions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(
        world.dsn,
        "INSERT INTO tenants (name, created_at) SELECT 'more' || n, now() - interval '1 day'"
        " FROM generate_series(1, 3) AS n",
    )
    numbers: list[object] = []
    run = Database.execute

    async def counted(database: Database, statement: Any, *arguments: Any, **named: Any) -> Any:
        if statement == reseal._NUMBER:
            numbers.append(statement)
        return await run(database, statement, *arguments, **named)

    monkeypatch.setattr(Database, "execute", counted)
    assert (await world.run())["tenants"] == 4
    assert len(numbers) == 1
    assert len(rows(world.dsn, "SELECT FROM reseal_passes WHERE done_at IS NOT NULL")) == 4


async def test_reseal_tenant_that_cannot_begin_leaves_the_passes_of_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(
        world.dsn,
        "INSERT INTO tenants (name, created_at) VALUES ('more', now() - interval '1 day')",
        "INSERT INTO reseal_passes (tenant_id, began_at) SELECT tenant_id, now() FROM tenants"
        " WHERE name = 'more'",
    )
    monkeypatch.setattr(reseal, "_OLDER_S", 0.0)
    open_one = await world.database.begin()
    await open_one.query("SELECT pg_current_xact_id()")
    try:
        with pytest.raises(StoreError, match="pg_prepared_xacts"):
            await world.run()
    finally:
        await open_one.rollback()
    done = "SELECT name FROM reseal_passes JOIN tenants USING (tenant_id) WHERE done_at IS NOT NULL"
    assert rows(world.dsn, done) == [("more",)]
    assert (await world.run())["tenants"] == 1


async def test_voice_put_again_before_the_pass_logs_nothing_twice(world: World) -> None:
    voice = PostgresVoice(world.database, world.sealing)
    again = Verification(f"{SECRET}-1", "phone", SECRET, 0, Result(verified=True))
    assert await voice.put(1, [again]) == 0, "in plain"
    await world.run()
    world.ring.newest = 2
    await world.ring.load([1])
    assert await voice.put(1, [again]) == 0, "by the key of before"
    new = again._replace(verification_id="another")
    assert [await voice.put(1, [again, new]), await voice.put(1, [new])] == [1, 0]
    assert len(rows(world.dsn, _VOICE_IDS)) == 3


async def test_reseal_voice_row_logged_again_since_it_is_sealed_is_dropped(world: World) -> None:
    found = world.sealing
    await found.load_missing([1])
    twin = found.keyed_hash(places.VOICE_ID, 1, "voice", f"{SECRET}-1")
    sealed = found.seal(places.VOICE_RESULT, 1, "voice", twin, 0, b'{"verification_id":"x","user_id":null}')
    assert sealed is not None
    values = f"(1, E'{twin}', 'phone', NULL, 'epoch', '{sealed.decode()}')"
    execute(
        world.dsn,
        "INSERT INTO voice_verification_log (tenant_id, verification_id, device_id, user_id, occurred_at,"
        f" result) VALUES {values}",
    )
    await world.run()
    assert len(world.dump()["voice_verification_log"]) == 2
    assert SECRET not in str(world.dump()["voice_verification_log"])


@pytest.mark.parametrize("table", SEALED_TABLES, ids=lambda table: table.name)
def test_reseal_page_is_read_in_the_order_of_the_primary_key(dsn: str, table: SealedTable) -> None:
    values = {
        "tenant": 1,
        "limit": 200,
        "on": True,
        "unsealed": ["task"],
        "head": "0100000001",
        "followed": 0.0,
        **{f"a{at}": _SOME[column.kind] for at, column in enumerate(table.key)},
    }
    with connected(dsn) as connection, connection, connection.cursor() as cursor:
        cursor.execute(f"{PAGE_SETTINGS.text}; EXPLAIN {statements_of(table).page}", values)
        whole = "\n".join(line for (line,) in cursor.fetchall())
    plan = whole.split("CTE page")[1].split("Subquery Scan")[0]
    assert "Index Scan using" in plan
    assert "Sort  (cost" not in plan, "an index gives the order"
    assert "Seq Scan" not in plan


_SOME = {"text": "x", "bigint": 1, "uuid": "0f" * 16, "timestamptz": "2026-01-01"}
