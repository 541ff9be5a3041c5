"""``run.py conflicts``: a person settles at a prompt what a supervisor's device would settle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from storage.embedded.servers import Services
from tests.harness.commands import Run, command
from tests.harness.in_process_server import Running, Serve
from tests.harness.services import execute, rows
from tests.harness.ws_device import Device, day, item

__all__ = ["command"]

NOTE = {"domains": {"note": {"policy": "manual"}}}


@pytest.fixture
def run(command: Run, services: Services) -> Run:
    """Run commands with the test's domain."""
    variables = {"TIDEMARK__DOMAINS__NOTE__POLICY": "manual", "TIDEMARK__REDIS__URL": services.redis_url}
    return lambda *arguments: command("conflicts", *arguments, **variables)


async def opened(server: Running, tenant: str = "acme") -> tuple[Device, str]:
    """Have a tablet's change of n1 wait against a phone's version 1; gives the phone and the id."""
    phone, tablet = await server.device("phone", tenant), await server.device("tablet", tenant)
    await phone.push(item("put", "note", "n1", data={"a": 1, "b": True, "same": 0}, at=day(1)))
    sent = {"a": 2, "c": "x", "same": 0}
    (held,) = await tablet.push(item("put", "note", "n1", data=sent, at=day(2), base=9))
    return phone, held["conflict_id"]


async def records(phone: Device) -> list[tuple[Any, ...]]:
    changes = (await phone.pull())["changes"]
    return [(one["version"], one["device_id"], one["data"]) for one in changes]


async def test_conflicts_command_is_listed_shown_and_settled(run: Run, serve: Serve, tmp_path: Path) -> None:
    phone, conflict_id = await opened(await serve(**NOTE))
    listed = await run("list", "--json")
    (summary,) = json.loads(listed.out)
    assert summary.pop("opened_at") > day(9)
    assert summary == {
        "tenant": "acme",
        "conflict_id": conflict_id,
        "domain": "note",
        "record_id": "n1",
        "device_id": "tablet",
        "policy": "manual",
        "op": "put",
        "base": 9,
        "server_version": 1,
        "changes": 1,
        "outcome": "open",
        "settled_by": None,
        "settled_at": None,
    }
    shown = json.loads((await run("show", conflict_id, "--json")).out)
    assert shown["record"] == {
        "version": 1,
        "at": day(1),
        "device_id": "phone",
        "data": {"a": 1, "b": True, "same": 0},
    }
    assert shown["client"]["data"] == {"a": 2, "c": "x", "same": 0}
    assert (shown["outcome"], shown["settled"]) == ("open", None)
    assert shown["differences"] == [
        {"field": "a", "server": 1, "client": 2},
        {"field": "b", "server": True},
        {"field": "c", "client": "x"},
    ]
    text = (await run("show", conflict_id)).out
    assert f"run.py conflicts resolve {conflict_id} --version 1 --changes 1 --choice" in text
    assert ["a", "1", "2"] in [line.split() for line in text.splitlines()]

    merged = tmp_path / "merged.json"
    merged.write_text('{"a": 2, "b": false}')
    settling = ("resolve", conflict_id, "--choice", "merged", "--data", str(merged), "--version", "1")
    settled = await run(*settling)
    assert (settled.status, settled.out) == (0, "settled: note n1 is at version 2\n")
    assert await records(phone) == [(2, "operator", {"a": 2, "b": False})]
    again = await run(*settling)
    assert again.out == settled.out  # the same decision has the same answer
    other = await run("resolve", conflict_id, "--choice", "server")
    assert "settled already: `run.py conflicts show" in other.refusal()
    assert len(await records(phone)) == 1
    after = json.loads((await run("show", conflict_id, "--json")).out)["settled"]
    assert (after["choice"], after["by"], after["version"]) == ("merged", "operator", 2)
    assert json.loads((await run("list", "--json")).out) == []


async def test_conflicts_command_resolve_reaches_a_live_subscription(run: Run, serve: Serve) -> None:
    phone, conflict_id = await opened(await serve(**NOTE))
    backlog = await phone.ask("subscribe", cursor=None)
    assert [one["version"] for one in backlog["changes"]] == [1]
    assert (await run("resolve", conflict_id, "--choice", "client")).status == 0
    assert [one["version"] for one in (await phone.changes())["changes"]] == [2]


async def test_conflicts_command_resolve_of_a_changed_record_is_refused(run: Run, serve: Serve) -> None:
    phone, conflict_id = await opened(await serve(**NOTE))
    await phone.push(item("put", "note", "n1", data={"a": 5}, base=1))
    stale = await run("resolve", conflict_id, "--choice", "client", "--version", "1")
    assert "at version 2 now, not 1: look again with `run.py conflicts show" in stale.refusal()
    assert await records(phone) == [(2, "phone", {"a": 5})]
    settled = await run("resolve", conflict_id, "--choice", "client")
    assert settled.out == "settled: note n1 is at version 3\n"
    assert await records(phone) == [(3, "operator", {"a": 2, "c": "x", "same": 0})]


async def test_conflicts_command_resolved_version_counts_as_another_devices(run: Run, serve: Serve) -> None:
    server = await serve(**NOTE)
    _, conflict_id = await opened(server)
    await run("resolve", conflict_id, "--choice", "server")
    namesake = await server.device("operator")
    (result,) = await namesake.push(item("put", "note", "n1", data={"a": 9}, base=1))
    assert (result["status"], result["version"]) == ("conflict", 2)


async def test_conflicts_command_id_is_found_in_its_tenant_alone(run: Run, serve: Serve, dsn: str) -> None:
    server = await serve(**NOTE)
    _, conflict_id = await opened(server)
    other, _ = await opened(server, "globex")
    elsewhere = await run("show", conflict_id, "--tenant", "globex")
    assert f"there is no conflict {conflict_id} of globex" in elsewhere.refusal()
    execute(dsn, f"UPDATE conflict_resolution_log SET conflict_id = '{conflict_id}'")
    both = await run("resolve", conflict_id, "--choice", "client")
    assert "choose one with --tenant: acme, globex" in both.refusal()
    one = await run("resolve", conflict_id, "--choice", "client", "--tenant", "acme")
    assert one.status == 0
    assert await records(other) == [(1, "phone", {"a": 1, "b": True, "same": 0})]
    counts = "SELECT name, seq FROM tenants JOIN tenant_counters USING (tenant_id) ORDER BY 1"
    assert rows(dsn, counts) == [("acme", 2), ("globex", 1)]
    assert "there is no tenant no" in (await run("list", "--tenant", "no")).refusal()
    unknown = await run("show", "nothing")
    assert unknown.refusal() == "Error: there is no conflict nothing"


async def test_conflicts_command_impossible_decision_is_one_sentence(
    run: Run, serve: Serve, tmp_path: Path
) -> None:
    phone, conflict_id = await opened(await serve(**NOTE))
    file = tmp_path / "merged.json"
    for choice, text, said in (
        ("merged", None, "--choice merged needs --data"),
        ("client", "{}", "--choice merged needs --data"),
        ("merged", "{", "data: not JSON"),
        ("merged", "[" * 40 + "]" * 40, "nested deeper than 32"),
        ("merged", "[]", "data: an object is required"),
        ("merged", '{"a": 1e400}', "Number out of range"),
        ("merged", '{"a": 18446744073709551616}', "integers must be from"),
    ):
        data = []
        if text is not None:
            file.write_text(text)
            data = ["--data", str(file)]
        ended = await run("resolve", conflict_id, "--choice", choice, *data)
        assert said in ended.refusal()
    assert len(await records(phone)) == 1


async def test_conflicts_command_list_settled_shows_who_won_and_by_what(run: Run, serve: Serve) -> None:
    server = await serve(**NOTE)
    phone, conflict_id = await opened(server)
    tablet = await server.device("tablet")
    for number in (1, 2):
        await phone.push(item("put", "attendance", f"a{number}", data={"a": 1}, at=day(number)))
        await tablet.push(item("put", "attendance", f"a{number}", data={"a": 2}, at=day(9)))
    await run("resolve", conflict_id, "--choice", "client")
    found = json.loads((await run("list", "--settled", "--json")).out)
    assert [(one["record_id"], one["outcome"], one["settled_by"], one["policy"]) for one in found] == [
        ("n1", "client", "operator", "manual"),
        ("a2", "server", None, "server_wins"),
        ("a1", "server", None, "server_wins"),
    ]
    assert all(one["settled_at"] == one["opened_at"] for one in found[1:])  # by their policy, at once
    shown = json.loads((await run("show", conflict_id, "--json")).out)
    assert found[0]["settled_at"] == shown["settled"]["at"] != found[0]["opened_at"]
    assert found[0]["settled_at"] in (await run("list", "--settled")).out
    assert (await run("list", "--json")).out == "[]\n"
    printed = (await run("list", "--settled", "--limit", "1")).out.splitlines()
    assert printed[0].split()[:4] == ["ID", "TENANT", "DOMAIN", "RECORD"]
    assert printed[1].split()[2:8] == ["note", "n1", "tablet", "put", "client", "operator"]
    assert len(printed) == 2


async def test_conflicts_command_takes_the_beginning_of_an_id_that_no_other_begins_with(
    run: Run, serve: Serve
) -> None:
    server = await serve(**NOTE)
    _, conflict_id = await opened(server)
    whole = (await run("show", conflict_id)).out
    for chars in (4, 8, 31):
        assert (await run("show", conflict_id[:chars])).out == whole
    for wrong in (conflict_id[:3], "f" * 8, conflict_id[:8] + "z", conflict_id + "0"):
        assert f"there is no conflict {wrong}" in (await run("show", wrong)).refusal()
    other = conflict_id[:8] + ("0" if conflict_id[8] != "0" else "1") * 24
    execute(
        server.dsn,
        "CREATE TEMP TABLE one AS SELECT * FROM conflict_resolution_log",
        f"UPDATE one SET conflict_id = '{other}', record_id = 'n2'",
        "INSERT INTO conflict_resolution_log SELECT * FROM one",
    )
    refused = (await run("resolve", conflict_id[:8], "--choice", "server")).refusal()
    assert f"several ids begin with {conflict_id[:8]}: give more of it" in refused
    assert "settled: " in (await run("resolve", conflict_id[:9], "--choice", "server")).out
    outcome = "SELECT conflict_id FROM conflict_resolution_log WHERE outcome = 'server'"
    assert rows(server.dsn, outcome) == [(conflict_id,)]
