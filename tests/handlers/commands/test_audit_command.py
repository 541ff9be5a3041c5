"""``run.py audit``: each change by a command leaves its event, in the transaction of the change."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from storage.stores.audit import process_account
from tests.harness.commands import Run, command
from tests.harness.services import execute

__all__ = ["command"]

ACCOUNT = process_account().name


async def entries(command: Run, *options: str) -> list[dict[str, Any]]:
    """The events, as a program reads them."""
    found: list[dict[str, Any]] = json.loads((await command("audit", "--json", *options)).out)
    return found


def what(found: list[dict[str, Any]]) -> list[tuple[str, str | None, str, dict[str, Any] | None]]:
    """What happened to which target."""
    return [(one["event"], one["tenant"], one["target"], one["details"]) for one in found]


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
