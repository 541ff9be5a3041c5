"""``run.py audit``: each change by a command leaves its event, in the transaction of the change."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest

from compose.deployment import open_deployment
from compose.signing import signed_for_device
from engine.model.audit import EVENTS, SERVER_EVENTS, EventName
from handlers.http.keys import key_set, signing_key
from run import cli
from storage.postgres.migrate import newest_migration, status
from storage.stores.audit import append_now, process_account
from tests.handlers.commands.test_wrong_database import leaves
from tests.harness.admin import add_tenants
from tests.harness.commands import Run, command
from tests.harness.in_process_server import Serve
from tests.harness.services import execute, rows
from tests.harness.ws_device import day, item

__all__ = ["command"]

#: The events of each command that changes something or gives data of records away.
EVENTS_OF: dict[str, set[EventName]] = {
    "serve": {"server_started", "settings_reloaded", "token_signed"},
    "migrate": {"migration_applied", "migration_taken_back"},
    "tenant add": {"tenant_added"},
    "tenant remove": {"tenant_removed"},
    "token": {"token_signed"},
    "doctor": {"token_signed"},
    "token revoke": {"token_revoked"},
    "device revoke": {"device_revoked"},
    "device restore": {"device_restored"},
    "device simulate": {"token_signed"},
    "policy set": {"policy_set"},
    "policy unset": {"policy_unset"},
    "epoch renew": {"epoch_renewed"},
    "conflicts show": {"data_shown"},
    "conflicts resolve": {"conflict_resolved"},
    "quarantine show": {"data_shown"},
    "quarantine retry": {"quarantine_retried", "data_shown"},
    "quarantine drop": {"quarantine_dropped"},
    "job uploads": {"job_run"},
    "job cleanup": {"job_run"},
    "job aggregate": {"job_run"},
    "job warm": {"job_run"},
    "job monitor": {"job_run"},
    "job reseal": {"job_run"},
    "keys rotate-master": {"master_key_rotated"},
    "keys rotate-tenant": {"tenant_key_rotated"},
    "keys seal-domain": {"domain_sealed"},
    "export": {"data_exported"},
}
#: Commands that need no event, and why.
NO_EVENT = {
    "worker": "serve starts it, and has the event",
    "nginx": "it prints a file of this checkout, and opens no database",
    "settings": "it prints settings without secrets, and opens no database",
    "completion": "it prints a file of this checkout, and opens no database",
    "verify": "it looks at the schema, and prints no rows",
    "bench": "it is a client with a server of its own, or with tokens of a server that it is given",
    "smoke": "it is a client; the tenant that it makes and erases has the events of those commands",
    "tenant files": "names of devices and records, no data of a record",
    "tenant list": "names and counts of tenants",
    "tenant usage": "counts of rows and bytes",
    "device list": "names of devices and counts of syncs, no data of a record",
    "device show": "as device list",
    "policy list": "settings",
    "conflicts list": "names of records, no data of one",
    "quarantine list": "names of records and why they were rejected, no data of one",
    "keys verify": "names of rows, no data of one",
    "keys status": "numbers and ids of keys, no key",
    "job list": "runs of jobs",
    "monitor": "counts; the alerts that it sends are rows of a table of their own",
    "analytics": "sums of counts, no data of a record",
    "audit": "the log itself",
}
_REJECTED = "SELECT quarantine_id FROM quarantine ORDER BY record_id"
ACCOUNT = process_account().name


async def entries(command: Run, *options: str) -> list[dict[str, Any]]:
    """The events, as a program reads them."""
    found: list[dict[str, Any]] = json.loads((await command("audit", "--json", *options)).out)
    return found


def what(found: list[dict[str, Any]]) -> list[tuple[str, str | None, str, dict[str, Any] | None]]:
    """What happened to which target."""
    return [(one["event"], one["tenant"], one["target"], one["details"]) for one in found]


def test_audit_each_command_has_an_event_or_a_reason_for_none() -> None:
    assert EVENTS_OF.keys() | NO_EVENT.keys() == set(leaves(cli)), "add the command to one of the two tables"
    assert not EVENTS_OF.keys() & NO_EVENT.keys()
    written = set.union(*EVENTS_OF.values())
    assert EVENTS.keys() - set(SERVER_EVENTS) <= written <= EVENTS.keys()


async def test_audit_tokens_signed_are_told_with_whom_they_are_for(command: Run, dsn: str) -> None:
    add_tenants(dsn, "acme")
    secret = {"TIDEMARK__AUTH__SECRET": "s" * 40}
    tokens = [
        (await command("token", *more, **secret)).out.strip()
        for more in (
            ("--tenant", "acme", "--device", "phone", "--ttl-s", "60"),
            ("--operator", "--user", "ann"),
        )
    ]
    claims = [jwt.decode(token, options={"verify_signature": False}) for token in tokens]
    found = (await entries(command))[1:]
    assert [(one["event"], one["actor"], one["target"]) for one in found] == [
        ("token_signed", ACCOUNT, one["jti"]) for one in claims
    ]
    device, operator = found
    assert (device["tenant"], device["tenant_number"], operator["tenant"]) == ("acme", 1, None)
    assert device["details"]["device_id"] == "phone"
    assert datetime.fromisoformat(device["details"]["expires_at"]).timestamp() == claims[0]["exp"]
    assert {name: operator["details"][name] for name in ("role", "user")} == {
        "role": "operator",
        "user": "ann",
    }
    assert not any(token in str(found) for token in tokens)


async def test_audit_token_of_the_demo_is_told_when_it_is_printed(command: Run, dsn: str) -> None:
    settings = open_deployment(None, {"auth": {"secret": "s" * 40}}).settings
    key = signing_key(key_set(settings.auth, None))
    signed = signed_for_device(key, settings, partial(append_now, dsn), "demo", "demo-device", 7)
    (found,) = await entries(command)
    assert (found["event"], found["tenant"], found["tenant_number"]) == ("token_signed", "demo", 7)
    assert found["target"] == jwt.decode(signed, options={"verify_signature": False})["jti"]


async def test_audit_migrations_are_told_in_their_own_transaction(command: Run, dsn: str) -> None:
    newest = newest_migration()
    await command("migrate")
    execute(dsn, "ALTER TABLE audit_log ADD CONSTRAINT nothing CHECK (false) NOT VALID")
    assert (await command("migrate", "--down", "--yes")).status == 1
    assert status(dsn)[-1].applied_at is not None
    execute(dsn, "ALTER TABLE audit_log DROP CONSTRAINT nothing")
    await command("migrate", "--down", "--yes")
    await command("migrate")
    assert what(await entries(command)) == [
        ("migration_taken_back", None, newest, None),
        ("migration_applied", None, newest, None),
    ]


async def test_audit_jobs_run_by_hand_are_told(command: Run, tmp_path: Path) -> None:
    await command("job", "cleanup", "--data-dir", str(tmp_path))
    await command("job", "warm")
    await command("job", "list")
    assert [(one["event"], one["target"]) for one in await entries(command)] == [
        *(("job_run", "uploads"), ("job_run", "cleanup"), ("job_run", "warm"))
    ]


async def test_audit_data_that_are_shown_are_told(command: Run, serve: Serve) -> None:
    server = await serve(domains={"note": {"policy": "manual", "required": ["n"]}})
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await tablet.push(item("put", "note", "n1", data={"n": 1}, at=day(1)))
    held, _ = await phone.push(
        item("put", "note", "n1", data={"n": 2}, at=day(2), base=9),
        item("put", "note", "n2", data={"m": 1}, at=day(1)),
    )
    ((rejected,),) = rows(server.dsn, _REJECTED)
    for arguments in (
        ("conflicts", "list"),
        ("quarantine", "list"),
        ("conflicts", "show", held["conflict_id"]),
        ("quarantine", "show", str(rejected), "--json"),
    ):
        assert (await command(*arguments)).status == 0
    assert what(await entries(command)) == [
        ("data_shown", "acme", held["conflict_id"], {"domain": "note", "record_id": "n1", "revealed": False}),
        ("data_shown", "acme", str(rejected), {"domain": "note", "record_id": "n2", "revealed": False}),
    ]


async def test_audit_tenants_added_and_removed_are_told_with_their_actor(command: Run) -> None:
    before = datetime.now(UTC)
    await command("tenant", "add", "acme")
    await command("tenant", "add", "acme")
    await command("tenant", "remove", "acme")
    found = await entries(command)
    assert what(found) == [
        ("tenant_added", "acme", "acme", None),
        ("tenant_removed", "acme", "acme", {"erased": False}),
    ]
    assert {(one["actor_kind"], one["actor"], one["times"]) for one in found} == {("account", ACCOUNT, 1)}
    assert len({one["tenant_number"] for one in found}) == 1
    assert all(before <= datetime.fromisoformat(one["at"]) <= datetime.now(UTC) for one in found)


async def test_audit_tenant_removed_with_its_data_is_told_as_erased(command: Run, serve: Serve) -> None:
    server = await serve(domains={"note": {}})
    await (await server.device("phone")).push(item("put", "note", "n1", data={"n": 1}, at=day(1)))
    assert (await command("tenant", "remove", "acme", "--erase", "--yes")).status == 0
    assert what(await entries(command))[-1] == ("tenant_removed", "acme", "acme", {"erased": True})


async def test_audit_policies_are_told_with_those_before(command: Run, dsn: str) -> None:
    add_tenants(dsn, "acme")
    policy = ("--tenant", "acme", "--domain", "task")
    await command("policy", "unset", *policy)
    await command("policy", "set", *policy, "--policy", "manual")
    await command("policy", "set", *policy, "--policy", "field_merge", "--fallback", "manual")
    await command("policy", "unset", *policy)
    found = [(one["event"], one["target"], one["details"]) for one in await entries(command)]
    assert found[1:] == [
        ("policy_set", "task", {"policy": "manual", "fallback": "most_recent_wins", "before": None}),
        ("policy_set", "task", {"policy": "field_merge", "fallback": "manual", "before": "manual"}),
        ("policy_unset", "task", None),
    ]


async def test_audit_revocations_are_told_once_each(command: Run, dsn: str) -> None:
    add_tenants(dsn, "acme")
    device = ("--tenant", "acme", "phone")
    for _ in range(2):
        await command("device", "revoke", "--yes", *device)
    for _ in range(2):
        await command("device", "restore", *device)
    await command("token", "revoke", "5f0e", "--tenant", "acme")
    await command("token", "revoke", "5f0e", "--tenant", "acme")
    await command("token", "revoke", "5f0e")
    assert what(await entries(command))[1:] == [
        ("device_revoked", "acme", "phone", None),
        ("device_restored", "acme", "phone", None),
        ("token_revoked", "acme", "5f0e", None),
        ("token_revoked", None, "5f0e", None),
    ]


async def test_audit_epoch_and_exports_are_told(command: Run, dsn: str) -> None:
    add_tenants(dsn, "acme")
    epoch = (await command("epoch", "renew")).out.strip()
    await command("export", "--tenant", "acme", "--domain", "task", "--from", "2026-01-01")
    await command("export", "--tenant", "acme", "--domain", "tusk")
    assert what(await entries(command))[1:] == [
        ("epoch_renewed", None, epoch, None),
        ("data_exported", "acme", "task", {"from": "2026-01-01T00:00:00Z", "to": None}),
    ]


async def test_epoch_renew_without_a_row_to_renew_says_so(command: Run, dsn: str) -> None:
    execute(dsn, "DELETE FROM cluster_state")
    refusal = (await command("epoch", "renew")).refusal()
    assert "cluster_state has no row: restore it from a backup" in refusal


async def test_audit_decisions_are_told_with_the_person_that_made_them(command: Run, serve: Serve) -> None:
    server = await serve(domains={"note": {"policy": "manual", "required": ["n"]}})
    phone = await server.device("phone")
    ann = await server.device("tablet", role="supervisor", sub="ann")
    supervisor = await server.device("desk", role="supervisor")
    held = []
    for name in ("n1", "n2", "n3"):
        await ann.push(item("put", "note", name, data={"n": 1}, at=day(1)))
        (one,) = await phone.push(item("put", "note", name, data={"n": 2}, at=day(2), base=9))
        held.append(one["conflict_id"])
    for who, conflict_id in ((ann, held[0]), (ann, held[0]), (supervisor, held[1])):
        await who.told("resolved", "resolve", conflict_id=conflict_id, choice="client", version=1)
    domain = {
        "TIDEMARK__DOMAINS__NOTE__POLICY": "manual",
        "TIDEMARK__DOMAINS__NOTE__REQUIRED": '["n"]',
    }
    await command("conflicts", "resolve", held[2], "--choice", "server", **domain)
    found = await entries(command, "--tenant", "acme")
    assert [(one["actor_kind"], one["actor"], one["target"], one["details"]["choice"]) for one in found] == [
        ("user", "ann", held[0], "client"),
        ("device", "desk", held[1], "client"),
        ("account", ACCOUNT, held[2], "server"),
    ]
    assert found[0]["details"] == {"domain": "note", "record_id": "n1", "choice": "client", "version": 2}


async def test_audit_rejected_items_retried_and_dropped_are_told(
    command: Run, serve: Serve, tmp_path: Path
) -> None:
    server = await serve(domains={"note": {"policy": "manual", "required": ["n"]}})
    phone = await server.device("phone")
    await phone.push(*(item("put", "note", name, data={"m": 1}, at=day(1)) for name in ("n1", "n2")))
    domain = {"TIDEMARK__DOMAINS__NOTE__POLICY": "manual", "TIDEMARK__DOMAINS__NOTE__REQUIRED": '["n"]'}
    first, second = [str(found[0]) for found in rows(server.dsn, _REJECTED)]
    file = tmp_path / "data.json"
    file.write_text('{"n": 1}')
    await command("quarantine", "retry", first, **domain)
    await command("quarantine", "retry", first, "--data", str(file), **domain)
    await command("quarantine", "drop", second, "--yes", **domain)
    assert what(await entries(command)) == [
        ("quarantine_retried", "acme", first, None),
        (
            "quarantine_dropped",
            "acme",
            second,
            {"device_id": "phone", "domain": "note", "record_id": "n2"},
        ),
    ]


_TABLES = (
    *("tenants", "removed_tenants", "tenant_conflict_policy", "devices", "revoked_tokens", "cluster_state"),
    *("conflict_resolution_log", "records", "tenant_counters"),
    "(SELECT quarantine_id FROM quarantine)",  # beside it, a try that failed is noted
)


def _contents(dsn: str) -> list[object]:
    """All rows that commands change."""
    return [rows(dsn, f"SELECT row_to_json(t)::text FROM {table} AS t ORDER BY 1") for table in _TABLES]


@pytest.mark.parametrize(
    "arguments",
    [
        ("tenant", "add", "new"),
        ("tenant", "remove", "globex"),
        ("policy", "set", "--tenant", "acme", "--domain", "task", "--policy", "manual"),
        ("policy", "unset", "--tenant", "acme", "--domain", "note"),
        ("device", "revoke", "--tenant", "acme", "phone"),
        ("device", "restore", "--tenant", "acme", "lost"),
        ("token", "revoke", "5f0e", "--tenant", "acme"),
        ("epoch", "renew"),
        ("conflicts", "resolve", "CONFLICT", "--choice", "client"),
        ("quarantine", "retry", "ITEM", "--data", "DATA"),
        ("quarantine", "drop", "ITEM", "--yes"),
        ("job", "warm"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
async def test_audit_change_of_which_no_event_can_be_written_is_not_made(
    command: Run, serve: Serve, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    server = await serve(domains={"note": {"policy": "manual", "required": ["n"]}})
    domain = {"TIDEMARK__DOMAINS__NOTE__POLICY": "manual", "TIDEMARK__DOMAINS__NOTE__REQUIRED": '["n"]'}
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await tablet.push(item("put", "note", "n1", data={"n": 1}, at=day(1)))
    held, _ = await phone.push(
        item("put", "note", "n1", data={"n": 2}, at=day(2), base=9),
        item("put", "note", "n2", data={"m": 1}, at=day(1)),
    )
    await server.drained()
    await command("device", "revoke", "--tenant", "acme", "lost", "--yes")
    await command("policy", "set", "--tenant", "acme", "--domain", "note", "--policy", "manual", **domain)
    file = tmp_path / "data.json"
    file.write_text('{"n": 1}')
    ((rejected,),) = rows(server.dsn, _REJECTED)
    known = {"CONFLICT": held["conflict_id"], "ITEM": str(rejected), "DATA": str(file)}
    execute(server.dsn, "ALTER TABLE audit_log ADD CONSTRAINT nothing CHECK (false) NOT VALID")
    before = _contents(server.dsn)
    ended = await command(*(known.get(word, word) for word in arguments), **domain)
    assert ended.status != 0
    assert _contents(server.dsn) == before
    execute(server.dsn, "ALTER TABLE audit_log DROP CONSTRAINT nothing")
    ended = await command(*(known.get(word, word) for word in arguments), **domain)
    assert ended.status == 0
    assert _contents(server.dsn) != before
    ((event,),) = rows(server.dsn, "SELECT event FROM audit_log ORDER BY audit_id DESC LIMIT 1")
    assert event in EVENTS_OF[" ".join(arguments[:2])]


async def test_audit_options_choose_the_events(command: Run, dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO audit_log (at, event, actor_kind, actor, tenant, target) VALUES"
        " (now() - interval '8 days', 'tenant_added', 'account', 'a@h', 'acme', 'old'),"
        " (now() - interval '2 days', 'tenant_added', 'account', 'a@h', 'acme', 'late'),"
        " (now() - interval '1 day', 'tenant_added', 'account', 'b@h', 'acme', 'other'),"
        " (now() - interval '1 hour', 'tenant_added', 'account', 'a@h', 'globex', 'theirs')",
    )

    async def targets(*options: str) -> list[str]:
        return [one["target"] for one in await entries(command, *options)]

    assert await targets() == ["late", "other", "theirs"]
    assert await targets("--since", "30d") == ["old", "late", "other", "theirs"]
    assert await targets("--since", "2h") == ["theirs"]
    assert await targets("--since", "2020-01-31", "--limit", "2") == ["other", "theirs"]
    assert await targets("--tenant", "acme") == ["late", "other"]
    assert await targets("--actor", "a@h", "--tenant", "acme") == ["late"]
    assert "a day or an instant such as" in (await command("audit", "--since", "soon")).err


async def test_audit_table_fits_and_escapes(command: Run, dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO audit_log (event, actor_kind, actor, target, details, times) VALUES"
        """ ('tenant_added', 'address', E'1.2.3.4\\x1b[2J', 'x', '{"code": "forbidden", "n": 3}', 7)""",
    )
    heading, line = (await command("audit")).out.splitlines()
    assert heading.split() == ["AT", "EVENT", "ACTOR", "TENANT", "TARGET", "TIMES", "DETAILS"]
    assert r"address 1.2.3.4\u001b[2J" in line
    assert line.endswith("7      code forbidden, n 3")
