"""``run.py quarantine retry`` of a creation takes the edits along that were rejected with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from bench.harness.clusters import as_role
from compose.admin import QuarantineAdmin
from compose.command_commit import WorkCommitter
from engine.model.rows import WriteSet
from engine.operate.ports import RefusedError
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from storage.postgres.commands import command_database
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresTransaction
from storage.stores.sealed.sealing import Sealing
from tests.handlers.commands.test_quarantine_command import GOOD, LEFT, RECORDS, chosen, good, run, server
from tests.harness.commands import Run, command
from tests.harness.in_process_server import Running
from tests.harness.services import rows
from tests.harness.ws_device import Json, day, item

__all__ = ["chosen", "command", "good", "run", "server"]


@pytest.fixture
async def opened(server: Running) -> AsyncIterator[Database]:
    """The database of the server, as a command opens it."""
    async with command_database(as_role(server.dsn, "serving"), as_role(server.dsn, "jobs")) as opened:
        yield opened


async def behind(server: Running, *edits: Json) -> list[str]:
    """Have a phone's creation rejected and its later edits with it; gives their ids, in order."""
    phone = await server.device("phone")
    (made,) = await phone.push(item("put", "visit", "v1", data={"n": 1}, at=day(1)))
    assert made["error"]["code"] == "invalid_item"
    results = await phone.push(*edits)
    assert {result["error"]["code"] for result in results} == {"creation_rejected"}
    return [str(one) for (one,) in rows(server.dsn, "SELECT quarantine_id FROM quarantine ORDER BY place")]


def edit(hour: int, **data: Any) -> Json:
    """A later patch, made when the device knew of no version."""
    return item("patch", "visit", "v1", data=data, at=day(2).replace("T00", f"T{hour:02}"))


EDITS = [edit(3, a=1, b={"c": 1}), edit(4, b=None), edit(5, b={"d": 2})]


async def test_quarantine_creation_takes_the_edits_behind_it_along_in_order(
    run: Run, server: Running, good: str
) -> None:
    office = await server.device("office")
    creation, *edits = await behind(server, *EDITS)
    alone = await run("quarantine", "retry", edits[1])
    assert "send the whole record as a put (creation_rejected)" in alone.refusal()
    ended = await run("quarantine", "retry", creation, "--data", good)
    assert ended.status == 0
    assert ended.out.splitlines() == [
        "stored: visit v1 is at version 1",
        *(f"behind it {one}: stored: visit v1 is at version {number}" for number, one in enumerate(edits, 2)),
    ]
    assert rows(server.dsn, LEFT) == []
    (change,) = (await office.pull())["changes"]
    assert (change["version"], change["device_id"]) == (4, "phone")
    assert change["data"] == {"n": 1, "place": "gate", "a": 1, "b": {"d": 2}}
    late = await server.device("phone")
    (result,) = await late.push(edit(6, a=2))
    assert (result["status"], result["version"]) == ("applied", 5)


async def test_quarantine_edits_stay_with_a_creation_that_is_rejected_again(
    run: Run, server: Running
) -> None:
    ids = await behind(server, *EDITS)
    assert "data.place is required" in (await run("quarantine", "retry", ids[0])).refusal()
    assert [one for one, _ in rows(server.dsn, LEFT + " ORDER BY place")] == ids
    assert rows(server.dsn, RECORDS) == []


async def test_quarantine_edit_behind_a_creation_that_is_rejected_by_itself_stays_alone(
    run: Run, server: Running, good: str
) -> None:
    creation, first, bad, last = await behind(server, EDITS[0], edit(4, place=None), EDITS[2])
    ended = await run("quarantine", "retry", creation, "--data", good)
    assert ended.status == 1
    assert f"behind it {bad}: rejected again: data.place is required" in ended.out
    assert "1 of those behind it stay in the quarantine" in ended.err
    assert [one for one, _ in rows(server.dsn, LEFT)] == [bad]
    assert [row[2] for row in rows(server.dsn, RECORDS)] == [3]
    assert {first, last}.isdisjoint({bad})
    assert rows(server.dsn, "SELECT count(*)::int FROM quarantine") == [(1,)]


async def test_quarantine_item_that_was_recovered_with_its_creation_is_not_stored_again(
    server: Running, opened: Database, chosen: Settings
) -> None:
    creation, first, *_ = await behind(server, *EDITS)
    admin = QuarantineAdmin(opened, WorkCommitter(server.dsn, chosen, Sealing(), lambda _: None))
    late = await admin.find(first, None)
    await admin.retry(await admin.find(creation, None), GOOD)
    stored = rows(server.dsn, RECORDS)
    with pytest.raises(RefusedError, match="recovered at the same time"):
        await admin.retry(late, None)
    assert rows(server.dsn, RECORDS) == stored


async def test_quarantine_patch_that_was_rejected_itself_is_behind_nothing_when_it_is_corrected(
    run: Run, server: Running, good: str
) -> None:
    phone = await server.device("phone")
    first, second = await phone.push(
        item("patch", "visit", "v1", data={"n": 1}), item("patch", "visit", "v1", data={"m": 1})
    )
    assert [one["error"]["code"] for one in (first, second)] == ["invalid_item", "creation_rejected"]
    ((creation,), _) = rows(server.dsn, "SELECT quarantine_id FROM quarantine ORDER BY place")
    assert (await run("quarantine", "retry", str(creation), "--data", good)).status == 0
    assert [row[2] for row in rows(server.dsn, RECORDS)] == [2]
    assert rows(server.dsn, LEFT) == []


async def test_quarantine_crash_before_the_commit_leaves_a_creation_and_those_behind_it(
    server: Running, opened: Database, chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await behind(server, *EDITS)
    admin = QuarantineAdmin(opened, WorkCommitter(server.dsn, chosen, Sealing(), lambda _: None))
    case = await admin.find(ids[0], None)

    async def crash(self: PostgresTransaction, writes: WriteSet) -> None:
        await self.rollback()
        raise RuntimeError(str(writes.recovered))

    with monkeypatch.context() as patch:
        patch.setattr(PostgresTransaction, "commit", crash)
        with pytest.raises(StoreError):
            await admin.retry(case, GOOD)
    assert (len(rows(server.dsn, LEFT)), rows(server.dsn, RECORDS)) == (4, [])
    recovered = await admin.retry(case, GOOD)
    assert [one.version for one in (recovered.item, *recovered.behind.values())] == [1, 2, 3, 4]
    assert rows(server.dsn, LEFT) == []
