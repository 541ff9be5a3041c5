"""``run.py quarantine``: what was rejected is recovered once, or stays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bench.harness.clusters import as_role
from compose.admin import QuarantineAdmin
from compose.command_commit import WorkCommitter
from engine.model.rows import WriteSet
from engine.operate.ports import RefusedError
from engine.operate.rows import Recovered
from engine.runtime.ports import StoreError, StoreUnknownError
from engine.runtime.settings import Settings
from storage.postgres.commands import command_database
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresTransaction
from storage.stores.sealed.sealing import Sealing
from tests.harness.commands import Run, command
from tests.harness.in_process_server import Running, Serve, settings_with
from tests.harness.services import execute, rows
from tests.harness.ws_device import Json, day, item

__all__ = ["command"]

DOMAINS: Json = {
    "visit": {"policy": "client_wins", "required": ["place"]},
    "survey": {"policy": "manual", "required": ["place"]},
    "census": {"policy": "server_wins", "required": ["place"]},
    "audit": {"policy": "field_merge", "required": ["place"]},
}
RECORDS = "SELECT domain, id, version, device_id, data::text FROM records ORDER BY 1, 2"
KEYS = "SELECT count(*)::int FROM sync_idempotency_record"
LOG = "SELECT count(*)::int FROM conflict_resolution_log"
LEFT = "SELECT quarantine_id, retried_at IS NOT NULL FROM quarantine"


@pytest.fixture
async def opened(server: Running) -> AsyncIterator[Database]:
    """The database of the server, as a command opens it."""
    async with command_database(as_role(server.dsn, "serving"), as_role(server.dsn, "jobs")) as opened:
        yield opened


@pytest.fixture
def run(command: Run) -> Run:
    """Run commands with the test's domains."""
    variables = {
        f"TIDEMARK__DOMAINS__{name}__{key}".upper(): json.dumps(value) if key == "required" else value
        for name, domain in DOMAINS.items()
        for key, value in domain.items()
    }
    return lambda *arguments: command(*arguments, **variables)


@pytest.fixture
async def server(serve: Serve) -> Running:
    return await serve(domains=DOMAINS)


@pytest.fixture
def chosen() -> Settings:
    return settings_with(domains=DOMAINS)


@pytest.fixture
def good(tmp_path: Path) -> str:
    """A file of data that both domains take."""
    file = tmp_path / "data.json"
    file.write_text('{"n": 1, "place": "gate"}')
    return str(file)


async def rejected(server: Running, domain: str = "visit", tenant: str = "acme") -> str:
    """Have a phone's item without a place rejected; gives its id in the quarantine."""
    phone = await server.device("phone", tenant)
    (result,) = await phone.push(item("put", domain, "v1", data={"n": 1}, at=day(1)))
    assert result["status"] == "rejected"
    kept = f"SELECT quarantine_id FROM quarantine JOIN tenants USING (tenant_id) WHERE name = '{tenant}'"
    ((quarantine_id,),) = rows(server.dsn, kept)
    assert isinstance(quarantine_id, str)
    return quarantine_id


async def test_quarantine_item_is_listed_shown_rejected_again_and_stored(
    run: Run, server: Running, good: str
) -> None:
    quarantine_id = await rejected(server)
    (summary,) = json.loads((await run("quarantine", "list", "--json")).out)
    assert summary.pop("at") > day(9)
    named = {
        "tenant": "acme",
        "quarantine_id": quarantine_id,
        "device_id": "phone",
        "domain": "visit",
        "record_id": "v1",
        "code": "invalid_item",
        "message": "data.place is required",
    }
    assert summary == named
    shown = json.loads((await run("quarantine", "show", quarantine_id, "--json")).out)
    assert {key: shown[key] for key in named} == named
    assert shown["item"] == {"domain": "visit", "id": "v1", "op": "put", "data": {"n": 1}, "at": day(1)}
    assert "data.place is required (invalid_item)" in (await run("quarantine", "show", quarantine_id)).out

    keys = rows(server.dsn, KEYS)
    again = await run("quarantine", "retry", quarantine_id)
    assert "rejected again: data.place is required (invalid_item); it stays" in again.refusal()
    assert rows(server.dsn, LEFT) == [(quarantine_id, True)]
    assert rows(server.dsn, KEYS) == keys
    stored = await run("quarantine", "retry", quarantine_id, "--data", good)
    assert (stored.status, stored.out) == (0, "stored: visit v1 is at version 1\n")
    assert rows(server.dsn, LEFT) == []
    office = await server.device("office")
    (change,) = (await office.pull())["changes"]
    assert (change["device_id"], change["at"], change["data"]) == ("phone", day(1), {"n": 1, "place": "gate"})
    gone = await run("quarantine", "retry", quarantine_id, "--data", good)
    assert gone.refusal() == f"Error: there is no item in the quarantine {quarantine_id}"


async def test_quarantine_retry_of_an_item_without_a_time_has_that_of_its_arrival(
    run: Run, server: Running, good: str
) -> None:
    phone = await server.device("phone")
    await phone.push(item("put", "visit", "v1", data={}))
    ((quarantine_id, at_us),) = rows(server.dsn, "SELECT quarantine_id, at_us FROM quarantine")
    assert (await run("quarantine", "retry", str(quarantine_id), "--data", good)).status == 0
    assert rows(server.dsn, "SELECT at_us FROM records") == [(at_us,)]


#: Domain, what another device stored meanwhile, what the command says, and the record in the end.
MEANWHILE: dict[str, tuple[str, Json, str, tuple[Any, ...]]] = {
    "unchanged": (
        "visit",
        {"place": "gate", "n": 1},
        "nothing to store: visit v1 is as the item has it already",
        (1, "tablet"),
    ),
    "resolved": (
        "visit",
        {"place": "hall"},
        "settled: visit v1 moved on meanwhile: by client_wins the winner is client",
        (2, "phone"),
    ),
    "conflict": (
        "survey",
        {"place": "hall"},
        "held: survey v1 moved on meanwhile: settle it with run.py conflicts show",
        (1, "tablet"),
    ),
}


@pytest.mark.parametrize(("domain", "data", "said", "stands"), MEANWHILE.values(), ids=MEANWHILE)
async def test_quarantine_retry_on_a_record_created_since_merges_as_a_devices_edit(
    run: Run,
    server: Running,
    good: str,
    domain: str,
    data: Json,
    said: str,
    stands: tuple[Any, ...],
) -> None:
    quarantine_id = await rejected(server, domain)
    tablet = await server.device("tablet")
    await tablet.push(item("put", domain, "v1", data=data, at=day(2)))
    ended = await run("quarantine", "retry", quarantine_id, "--data", good)
    assert ended.status == 0
    assert said in ended.out
    assert rows(server.dsn, LEFT) == []
    assert [row[2:4] for row in rows(server.dsn, RECORDS)] == [stands]
    held = json.loads((await run("conflicts", "list", "--json")).out)
    assert [(one["device_id"], one["record_id"]) for one in held] == (
        [("phone", "v1")] if domain == "survey" else []
    )


async def test_quarantine_event_is_recovered(run: Run, server: Running, tmp_path: Path) -> None:
    phone = await server.device("phone")
    await phone.push(item("append", "metrics", "m1", data={"metric_name": "x"}, at=day(3)))
    ((quarantine_id,),) = rows(server.dsn, "SELECT quarantine_id FROM quarantine")
    data = tmp_path / "event.json"
    data.write_text(f'{{"metric_name": "x", "value": 1.5, "timestamp": "{day(3)}"}}')
    ended = await run("quarantine", "retry", str(quarantine_id), "--data", str(data))
    assert ended.out == "stored: metrics m1\n"
    assert rows(server.dsn, "SELECT id, device_id FROM events") == [("m1", "phone")]
    assert rows(server.dsn, LEFT) == []


async def test_quarantine_id_is_found_in_its_tenant_alone(run: Run, server: Running, good: str) -> None:
    quarantine_id = await rejected(server)
    await rejected(server, tenant="globex")
    elsewhere = await run("quarantine", "retry", quarantine_id, "--tenant", "globex")
    assert f"there is no item in the quarantine {quarantine_id} of globex" in elsewhere.refusal()
    execute(server.dsn, f"UPDATE quarantine SET quarantine_id = '{quarantine_id}'")
    both = await run("quarantine", "show", quarantine_id)
    assert "choose one with --tenant: acme, globex" in both.refusal()
    one = await run("quarantine", "retry", quarantine_id, "--tenant", "globex", "--data", good)
    assert one.status == 0
    left = "SELECT name FROM quarantine JOIN tenants USING (tenant_id)"
    assert rows(server.dsn, left) == [("acme",)]
    assert rows(server.dsn, "SELECT name FROM records JOIN tenants USING (tenant_id)") == [("globex",)]


#: An item as it is kept, what a retry without data says, and whether one with data stores it.
KEPT: dict[str, tuple[str, str, bool]] = {
    "a number that JSON has not": (
        '{"domain":"visit","id":"v1","op":"put","data":{"n":NaN}}',
        "this cannot be sent, correct it with --data: not json",
        True,
    ),
    "a lone surrogate": (
        r'{"domain":"visit","id":"v1","op":"put","data":{"n":"\ud800"}}',
        "rejected again: data: U+0000 and lone surrogates",
        True,
    ),
    "no item at all": ('{"msgpack_hex":"c1"}', "rejected again: ", False),
    "no object": ("7", "this cannot be sent", False),
}


@pytest.mark.parametrize(("kept", "said", "recovers"), KEPT.values(), ids=KEPT)
async def test_quarantine_item_that_json_refuses_stays_until_it_is_corrected(
    run: Run, server: Running, good: str, kept: str, said: str, recovers: bool
) -> None:
    quarantine_id = await rejected(server)
    execute(server.dsn, f"UPDATE quarantine SET item = '{kept}'")
    assert (await run("quarantine", "show", quarantine_id)).status == 0
    assert json.loads((await run("quarantine", "show", quarantine_id, "--json")).out)["item"]
    assert said in (await run("quarantine", "retry", quarantine_id)).refusal()
    ended = await run("quarantine", "retry", quarantine_id, "--data", good)
    assert ended.status == (0 if recovers else 1)
    assert len(rows(server.dsn, LEFT)) == (0 if recovers else 1)
    assert len(rows(server.dsn, RECORDS)) == (1 if recovers else 0)


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"place": NaN}', "[" * 40 + "]" * 40])
async def test_quarantine_retry_with_impossible_data_changes_nothing(
    run: Run, server: Running, tmp_path: Path, text: str
) -> None:
    quarantine_id = await rejected(server)
    file = tmp_path / "data.json"
    file.write_text(text)
    assert (await run("quarantine", "retry", quarantine_id, "--data", str(file))).refusal()
    assert [row[0] for row in rows(server.dsn, LEFT)] == [quarantine_id]
    assert rows(server.dsn, RECORDS) == []


# -- once, whatever fails and whoever tries beside ---------------------------------------------

GOOD = b'{"place":"gate"}'


async def test_quarantine_crash_before_the_commit_leaves_everything_as_it_was(
    server: Running, opened: Database, chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantine_id = await rejected(server)
    admin = QuarantineAdmin(opened, WorkCommitter(server.dsn, chosen, Sealing(), lambda _: None))
    case = await admin.find(quarantine_id, None)

    async def crash(self: PostgresTransaction, writes: WriteSet) -> None:
        await self.rollback()
        raise RuntimeError(str(writes.recovered))

    with monkeypatch.context() as patch:
        patch.setattr(PostgresTransaction, "commit", crash)
        with pytest.raises(StoreError, match="run the command again"):
            await admin.retry(case, GOOD)
    assert rows(server.dsn, LEFT) == [(quarantine_id, False)]
    assert rows(server.dsn, RECORDS) == []
    assert (await admin.retry(case, GOOD)).item.status == "applied"
    assert rows(server.dsn, LEFT) == []


@pytest.mark.parametrize("failure", [RuntimeError("killed"), StoreUnknownError("lost")])
async def test_quarantine_commit_whose_answer_is_lost_stored_it_once(
    server: Running, opened: Database, chosen: Settings, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    quarantine_id = await rejected(server)
    moved: list[set[int]] = []
    admin = QuarantineAdmin(opened, WorkCommitter(server.dsn, chosen, Sealing(), moved.append))
    case = await admin.find(quarantine_id, None)
    commit = PostgresTransaction.commit
    failures = [failure]

    async def lost(self: PostgresTransaction, writes: WriteSet) -> None:
        await commit(self, writes)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(PostgresTransaction, "commit", lost)
    if isinstance(failure, StoreUnknownError):  # what is not known is settled at once, by the key
        assert (await admin.retry(case, GOOD)).item.status == "applied"
        assert moved == [{case.row.tenant_id}]
    else:
        with pytest.raises(StoreError, match="run the command again"):
            await admin.retry(case, GOOD)
        assert (await admin.retry(case, GOOD)).item.version == 1
    assert rows(server.dsn, LEFT) == []
    assert rows(server.dsn, RECORDS) == [("visit", "v1", 1, "phone", GOOD.decode())]
    with pytest.raises(RefusedError, match="there is no item"):
        await admin.find(quarantine_id, None)


async def test_quarantine_retry_that_fails_keeps_the_item(
    server: Running, opened: Database, chosen: Settings
) -> None:
    quarantine_id = await rejected(server)
    phone = await server.device("phone")
    await phone.sync(f"quarantine:{quarantine_id}", item("put", "task", "t1", data={}))
    admin = QuarantineAdmin(opened, WorkCommitter(server.dsn, chosen, Sealing(), lambda _: None))
    with pytest.raises(RefusedError):
        await admin.retry(await admin.find(quarantine_id, None), GOOD)
    assert rows(server.dsn, LEFT) == [(quarantine_id, False)]


@pytest.mark.parametrize("other", [GOOD, b'{"place":"hall"}'])
async def test_quarantine_two_retries_at_once_store_it_once(
    server: Running, opened: Database, chosen: Settings, other: bytes
) -> None:
    quarantine_id = await rejected(server)
    admin = QuarantineAdmin(opened, WorkCommitter(server.dsn, chosen, Sealing(), lambda _: None))
    case = await admin.find(quarantine_id, None)
    ended = await asyncio.gather(
        admin.retry(case, GOOD),
        admin.retry(case, other),
        return_exceptions=True,
    )
    results = [one.item for one in ended if isinstance(one, Recovered)]
    assert [(one.status, one.version) for one in results] == [("applied", 1)] * (2 if other == GOOD else 1)
    refusals = [str(one) for one in ended if isinstance(one, RefusedError)]
    assert refusals == ([] if other == GOOD else ["another retry stored this item, with other data"])
    assert rows(server.dsn, LEFT) == []
    ((*_, version, _, data),) = rows(server.dsn, RECORDS)
    assert version == 1
    assert data in (GOOD.decode(), other.decode())


# -- what the server's record wins against ---------------------------------------------------------


async def test_quarantine_item_that_would_lose_to_the_server_stays_and_both_sides_are_shown(
    run: Run, server: Running, good: str
) -> None:
    quarantine_id = await rejected(server, "census")
    tablet = await server.device("tablet")
    await tablet.push(item("put", "census", "v1", data={"place": "hall", "who": "Ann"}, at=day(2)))
    before = [rows(server.dsn, one) for one in (RECORDS, KEYS, LEFT, LOG)]
    for _ in range(2):
        ended = await run("quarantine", "retry", quarantine_id, "--data", good)
        assert ended.status == 1
        assert f"server    census v1, version 1, of {day(2)} by tablet" in ended.out
        assert f"client    put of {day(1)} by phone, on no base" in ended.out
        assert [line.split() for line in ended.out.splitlines()[3:7]] == [
            ["FIELD", "SERVER", "NOW", "CLIENT"],
            ["n", "1"],
            ["place", '"hall"', '"gate"'],
            ["who", '"Ann"'],
        ]
        assert "by server_wins the server's record wins: nothing was written, and the item stays" in ended.err
        assert "with --hold" in ended.err
        assert [rows(server.dsn, one) for one in (RECORDS, KEYS, LEFT, LOG)] == before

    held = await run("quarantine", "retry", quarantine_id, "--data", good, "--hold")
    assert held.status == 0
    (conflict,) = json.loads((await run("conflicts", "list", "--json")).out)
    assert conflict["conflict_id"] in held.out
    assert rows(server.dsn, LEFT) == []
    assert rows(server.dsn, RECORDS) == before[0]
    phone = await server.device("phone")
    (listed,) = (await phone.ask("conflicts"))["conflicts"]
    assert listed["client"]["data"] == {"n": 1, "place": "gate"}
    settled = await run("conflicts", "resolve", conflict["conflict_id"], "--choice", "client")
    assert settled.status == 0
    assert [row[2] for row in rows(server.dsn, RECORDS)] == [2]


async def test_quarantine_hold_changes_nothing_where_there_is_no_conflict(
    run: Run, server: Running, good: str
) -> None:
    quarantine_id = await rejected(server, "census")
    stored = await run("quarantine", "retry", quarantine_id, "--data", good, "--hold")
    assert (stored.status, stored.out) == (0, "stored: census v1 is at version 1\n")


async def test_quarantine_hold_where_fields_are_merged_keeps_what_is_known_by_field(
    run: Run, server: Running, tmp_path: Path
) -> None:
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.push(item("put", "audit", "v1", data={"place": "gate"}, at=day(1)))
    await phone.push(item("patch", "audit", "v1", base=1, data={"place": None}, at=day(3)))
    ((quarantine_id, _),) = rows(server.dsn, LEFT)
    data = tmp_path / "who.json"
    data.write_text('{"who": "Ann"}')
    stored = await run("quarantine", "retry", quarantine_id, "--data", str(data), "--hold")
    assert (stored.status, stored.out) == (0, "stored: audit v1 is at version 2\n")
    (merged,) = await tablet.push(item("patch", "audit", "v1", base=1, data={"n": 5}, at=day(2)))
    assert (merged["winner"], merged["data"]) == ("client", {"place": "gate", "who": "Ann", "n": 5})


async def test_quarantine_hold_of_a_field_that_both_changed_opens_a_conflict(
    run: Run, server: Running, tmp_path: Path
) -> None:
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.push(item("put", "audit", "v1", data={"place": "gate"}, at=day(1)))
    await tablet.push(item("patch", "audit", "v1", base=1, data={"place": "hall"}, at=day(3)))
    await phone.push(item("patch", "audit", "v1", base=1, data={"place": "\0"}, at=day(2)))
    ((quarantine_id, _),) = rows(server.dsn, LEFT)
    data = tmp_path / "place.json"
    data.write_text('{"place": "yard"}')
    assert (await run("quarantine", "retry", quarantine_id, "--data", str(data))).status == 1
    assert (await run("quarantine", "retry", quarantine_id, "--data", str(data), "--hold")).status == 0
    (conflict,) = json.loads((await run("conflicts", "list", "--json")).out)
    assert (conflict["record_id"], conflict["device_id"]) == ("v1", "phone")
    assert rows(server.dsn, LEFT) == []


# -- what no data corrects, and what is given up -----------------------------------------------------

COUNTED = (
    "SELECT quarantine_rows::int, quarantine_bytes::int FROM tenant_counters JOIN tenants USING (tenant_id)"
)


@pytest.mark.parametrize(
    ("sent", "remedy"),
    [
        (item("patch", "visit", "v9", base=3, data={"place": "gate"}), "send the whole record as a put"),
        (
            item("append", "visit", "v9", data={"place": "gate"}, at=day(1)),
            "send it anew without",
        ),
        (item("nonsense", "visit", "v9", data={"place": "gate"}), "send it anew without"),
        (item("put", "nowhere", "v9", data={"place": "gate"}), "add the domain to the settings"),
    ],
)
async def test_quarantine_retry_of_an_uncorrectable_item_says_so_and_drop_removes_it(
    run: Run, server: Running, good: str, sent: Json, remedy: str
) -> None:
    phone = await server.device("phone")
    await phone.push(sent)
    ((quarantine_id, _),) = rows(server.dsn, LEFT)
    refused = (await run("quarantine", "retry", str(quarantine_id), "--data", good)).refusal()
    assert "no --data corrects that" in refused
    assert remedy in refused
    assert f"run.py quarantine drop {quarantine_id}" in refused
    asked = await run("quarantine", "drop", str(quarantine_id))
    assert asked.status == 1
    assert len(rows(server.dsn, LEFT)) == 1
    dropped = await run("quarantine", "drop", str(quarantine_id), "--yes")
    assert (dropped.status, dropped.out[:8]) == (0, "dropped ")
    assert rows(server.dsn, LEFT) == []
    assert rows(server.dsn, f"{COUNTED} WHERE name = 'acme'") == [(0, 0)]
    assert "there is no item" in (await run("quarantine", "drop", str(quarantine_id), "--yes")).refusal()


async def test_quarantine_drop_of_an_item_recovered_since_changes_nothing(
    server: Running, opened: Database, chosen: Settings
) -> None:
    quarantine_id = await rejected(server)
    admin = QuarantineAdmin(opened, WorkCommitter(server.dsn, chosen, Sealing(), lambda _: None))
    case = await admin.find(quarantine_id, None)
    await admin.retry(case, GOOD)
    with pytest.raises(RefusedError, match="left the quarantine just now"):
        await admin.drop(case)
    assert rows(server.dsn, f"{COUNTED} WHERE name = 'acme'") == [(0, 0)]


async def test_quarantine_list_and_show_give_the_reason_of_the_last_retry(
    run: Run, server: Running, tmp_path: Path
) -> None:
    quarantine_id = await rejected(server)
    data = tmp_path / "nul.json"
    data.write_text('{"place": "\\u0000"}')
    refused = (await run("quarantine", "retry", quarantine_id, "--data", str(data))).refusal()
    (summary,) = json.loads((await run("quarantine", "list", "--json")).out)
    assert summary["message"] in refused
    assert summary["message"].startswith("data: U+0000")
    shown = (await run("quarantine", "show", quarantine_id)).out
    assert f"{summary['message']} (invalid_item)" in shown
    assert "and rejected again, for that reason" in shown


async def test_quarantine_retry_of_an_edit_with_wrong_data_leaves_it_behind_its_creation(
    run: Run, server: Running, good: str, tmp_path: Path
) -> None:
    creation_id = await rejected(server)
    phone = await server.device("phone")
    await phone.push(item("patch", "visit", "v1", data={"n": 2}, at=day(2)))
    ((edit_id,),) = rows(server.dsn, "SELECT quarantine_id FROM quarantine WHERE code = 'creation_rejected'")
    data = tmp_path / "wrong.json"
    data.write_text('{"n": "\\u0000"}')
    assert (await run("quarantine", "retry", str(edit_id), "--data", str(data))).status == 1
    stored = await run("quarantine", "retry", creation_id, "--data", good)
    assert stored.status == 0
    assert f"behind it {edit_id}: stored" in stored.out
    assert rows(server.dsn, LEFT) == []


async def test_quarantine_item_is_found_by_the_beginning_of_its_id_and_told_by_all_of_it(
    run: Run, server: Running
) -> None:
    quarantine_id = await rejected(server)
    again = await run("quarantine", "retry", quarantine_id[:6])
    assert f"run.py quarantine drop {quarantine_id}" in again.err or "it stays" in again.err
    dropped = await run("quarantine", "drop", quarantine_id[:6], "--yes")
    assert dropped.out.startswith(f"dropped {quarantine_id} (")
    assert rows(server.dsn, LEFT) == []


async def test_quarantine_retry_prints_json(run: Run, server: Running, good: str) -> None:
    quarantine_id = await rejected(server)
    again = await run("quarantine", "retry", quarantine_id, "--json")
    assert again.status != 0
    assert json.loads(again.out)["item"]["error"]["message"] == "data.place is required"
    assert "1 of 1 stay in the quarantine" in again.err
    stored = json.loads((await run("quarantine", "retry", quarantine_id, "--data", good, "--json")).out)
    assert (stored["quarantine_id"], stored["item"]["status"], stored["lost"]) == (
        quarantine_id,
        "applied",
        None,
    )
