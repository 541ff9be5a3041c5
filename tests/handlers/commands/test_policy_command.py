"""``run.py policy``: what a script sees, and what running servers make of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.handlers.commands.test_commands import Run, run
from tests.harness.admin import add_tenants
from tests.harness.commands import Run as RunHere
from tests.harness.commands import command
from tests.harness.in_process_server import Serve
from tests.harness.services import rows
from tests.harness.ws_device import day, item

__all__ = ["command", "run"]

#: The policies that tenants have of their own.
OWN = "SELECT name, domain FROM tenant_conflict_policy JOIN tenants USING (tenant_id)"
GENERATION = "SELECT generation FROM cluster_state"


def listed(run: Run, *arguments: str) -> list[tuple[Any, ...]]:
    """What ``policy list`` prints, as rows without their tenant's defaults."""
    found = json.loads(run("policy", "list", "--json", *arguments).out)
    return [tuple(one.values()) for one in found if one["own"]]


def test_policy_command_is_set_and_listed(run: Run, dsn: str) -> None:
    for name in ("acme", "globex"):
        add_tenants(dsn, name)
    defaults = json.loads(run("policy", "list", "--tenant", "acme", "--json").out)
    assert [(one["domain"], one["policy"], one["fallback"], one["own"]) for one in defaults] == [
        ("attendance", "server_wins", None, False),
        ("journal", "client_wins", None, False),
        ("task", "field_merge", "most_recent_wins", False),
        ("ticket", "preserve_escalation", None, False),
        ("work_order", "field_merge", "most_recent_wins", False),
    ]
    before = rows(dsn, GENERATION)
    merged = run("policy", "set", "--tenant", "acme", "--domain", "task", "--policy", "field_merge")
    assert merged.out == "acme settles task by field_merge, then most_recent_wins\n"
    assert rows(dsn, GENERATION) != before
    assert listed(run) == [("acme", "task", "field_merge", "most_recent_wins", True)]
    other = ("--tenant", "acme", "--domain", "task", "--policy", "field_merge", "--fallback", "manual")
    assert run("policy", "set", *other).out == "acme settles task by field_merge, then manual\n"
    assert listed(run, "--tenant", "acme") == [("acme", "task", "field_merge", "manual", True)]
    plain = run("policy", "set", "--tenant", "acme", "--domain", "task", "--policy", "server_wins")
    assert plain.out == "acme settles task by server_wins\n"
    assert listed(run) == [("acme", "task", "server_wins", None, True)]
    text = run("policy", "list").out.splitlines()
    assert text[0].split() == ["TENANT", "DOMAIN", "POLICY", "FALLBACK", "FROM"]
    assert [line.split() for line in text if line.endswith("own")] == [["acme", "task", "server_wins", "own"]]
    assert len(text) == 1 + 2 * len(defaults)


async def test_policy_command_unset_own_policy_the_default_stands_again(command: RunHere, dsn: str) -> None:
    for name in ("acme", "globex"):
        add_tenants(dsn, name)
        await command("policy", "set", "--tenant", name, "--domain", "task", "--policy", "manual")
    before = rows(dsn, GENERATION)
    unset = ("policy", "unset", "--tenant", "acme", "--domain")
    assert (await command(*unset, "task")).out == (
        "acme settles task by the default, field_merge, then most_recent_wins\n"
    )
    assert rows(dsn, GENERATION) != before
    assert rows(dsn, OWN) == [("globex", "task")]
    before = rows(dsn, GENERATION)
    again = await command(*unset, "task")
    assert again.out == (
        "acme has no policy of its own for task: acme settles task by the default, field_merge,"
        " then most_recent_wins\n"
    )
    assert "there is no domain tasks with conflicts" in (await command(*unset, "tasks")).refusal()
    assert "there is no tenant nobody" in (await command(*unset[:3], "nobody", "--domain", "task")).refusal()
    assert rows(dsn, GENERATION) == before


async def test_policy_command_unset_domain_gone_from_the_settings_taken_back(
    command: RunHere, dsn: str
) -> None:
    add_tenants(dsn, "acme")
    known = {"TIDEMARK__DOMAINS__PATROL__POLICY": "manual"}
    chosen = ("--tenant", "acme", "--domain", "patrol")
    await command("policy", "set", *chosen, "--policy", "client_wins", **known)
    assert "which the settings do not know" in (await command("policy", "unset", *chosen)).out
    assert rows(dsn, "SELECT FROM tenant_conflict_policy") == []


MISTAKES: dict[str, tuple[list[str], str]] = {
    "an event's domain": (
        ["--domain", "voice", "--policy", "manual"],
        "no domain voice with conflicts: choose one of attendance, journal, task, ticket, work_order",
    ),
    "no such policy": (["--domain", "task", "--policy", "mine"], "'mine' is not one of 'server_wins'"),
    "no such fallback": (
        ["--domain", "task", "--policy", "field_merge", "--fallback", "field_merge"],
        "'field_merge' is not one of 'server_wins'",
    ),
    "a fallback of another policy": (
        ["--domain", "task", "--policy", "manual", "--fallback", "manual"],
        "--fallback is for field_merge: leave it out",
    ),
    "no such tenant": (["--domain", "task", "--policy", "manual"], "there is no tenant acme"),
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES)
def test_policy_command_mistake_changes_nothing(run: Run, dsn: str, arguments: list[str], said: str) -> None:
    before = rows(dsn, GENERATION)
    assert said in run("policy", "set", "--tenant", "acme", *arguments).refusal()
    assert rows(dsn, GENERATION) == before
    assert rows(dsn, "SELECT FROM tenant_conflict_policy") == []


def test_policy_command_policies_of_no_tenant_are_refused(run: Run) -> None:
    assert "there is no tenant acme" in run("policy", "list", "--tenant", "acme").refusal()


async def test_policy_command_running_server_follows_and_merges_older_records(serve: Serve, run: Run) -> None:
    """Of fields that changed before field_merge was switched on nothing is known: the server's stand."""
    server = await serve()
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.push(item("put", "journal", "r1", at=day(1), data={"a": 1, "b": 1}))
    await phone.push(item("patch", "journal", "r1", base=1, at=day(5), data={"a": 5}))
    command = ("policy", "set", "--tenant", "acme", "--domain", "journal", "--policy")
    run(*command, "field_merge", "--fallback", "server_wins")
    for device in (phone, tablet):
        told = await device.waited("policies")
        assert told["policies"] == device.welcome["policies"] | {"journal": "field_merge"}
    (old,) = await tablet.push(item("patch", "journal", "r1", base=1, at=day(7), data={"a": 7, "b": 7}))
    assert (old["policy"], old["winner"], old["data"]) == ("field_merge", "server", {"a": 5, "b": 1})
    await phone.push(item("patch", "journal", "r1", base=2, at=day(8), data={"a": 8}))
    (new,) = await tablet.push(item("patch", "journal", "r1", base=2, at=day(7), data={"a": 7, "b": 7}))
    assert (new["winner"], new["data"]) == ("merged", {"a": 8, "b": 7})
    run(*command, "client_wins")
    await tablet.waited("policies")
    await phone.push(item("patch", "journal", "r1", base=4, at=day(9), data={"b": 9}))
    run(*command, "field_merge", "--fallback", "server_wins")
    await tablet.waited("policies")
    late = {"a": 9, "b": 9, "c": 9}
    (again,) = await tablet.push(item("patch", "journal", "r1", base=4, at=day(9), data=late))
    assert (again["winner"], again["data"]) == ("server", {"a": 8, "b": 9})
