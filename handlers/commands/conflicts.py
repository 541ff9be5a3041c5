"""``run.py conflicts``: conflicts that wait for a person."""

from __future__ import annotations

from typing import BinaryIO

import click
import msgspec
from msgspec import UNSET

from engine.operate.conflict_view import ClientView, ConflictView, Difference, RecordView, conflict_view
from engine.operate.masking import Mask
from engine.wire.messages import Choice
from handlers.commands.deployment import Deployment, as_json, may_reveal, of_tenant, opened, with_deployment
from handlers.commands.terminal.tables import table
from handlers.operate.printing import say


@click.group("conflicts", short_help="List, show and settle what waits for a person.")
def conflicts() -> None:
    """List, show and settle the conflicts that wait for a person."""


@conflicts.command("list", epilog="Example: run.py conflicts list --tenant acme --settled")
@of_tenant
@click.option("--settled", is_flag=True, help="List what was settled, the latest first.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="With --settled: the most conflicts of each tenant.",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def list_(
    deployment: Deployment, *, tenant: str | None, settled: bool, limit: int, json_: bool
) -> None:
    """List open conflicts by tenant, oldest first. With --settled those that are settled."""
    async with opened("reading", deployment.conflicts()) as admin:
        found = await (admin.list_settled(tenant, limit) if settled else admin.list_open(tenant))
    if json_:
        as_json(found)
    elif settled:
        table(
            [
                (
                    one.conflict_id,
                    one.tenant,
                    one.domain,
                    one.record_id,
                    one.device_id,
                    one.op,
                    one.outcome,
                    one.settled_by or one.policy,
                    one.settled_at or "",
                )
                for one in found
            ],
            ("ID", "TENANT", "DOMAIN", "RECORD", "DEVICE", "OP", "WINNER", "BY", "AT"),
        )
    else:
        table(
            [
                (
                    one.conflict_id,
                    one.tenant,
                    one.domain,
                    one.record_id,
                    one.device_id,
                    one.op,
                    str(one.changes),
                    one.opened_at,
                )
                for one in found
            ],
            ("ID", "TENANT", "DOMAIN", "RECORD", "DEVICE", "OP", "CHANGES", "SINCE"),
        )


@conflicts.command("show", epilog="Example: run.py conflicts show 4f0c6d2e8b1a4c7f9e3d5a6b7c8d9e0f")
@click.argument("conflict_id", metavar="ID")
@of_tenant
@may_reveal
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def show(
    deployment: Deployment, *, conflict_id: str, tenant: str | None, reveal: bool, json_: bool
) -> None:
    """Show both sides of a conflict, the record, and what differs. Personal fields are masked."""
    async with opened("reading", deployment.conflicts()) as admin:
        case = await admin.find(conflict_id, tenant)
        await admin.note_shown(case, revealed=reveal)
    shown = conflict_view(case)
    if not reveal:
        shown = Mask(deployment.settings.domains, shown.domain).conflict(shown)
    if json_:
        as_json(shown)
    else:
        _show(shown)


def _show(shown: ConflictView) -> None:
    client, record = shown.client, shown.record
    say(f"conflict  {shown.conflict_id} of {shown.tenant}, opened {shown.opened_at} ({shown.policy})")
    if record is None:
        say(f"record    {shown.domain} {shown.record_id}, erased")
    else:
        show_server(shown.domain, shown.record_id, record)
    show_client(client)
    if shown.settled is not None:
        settled = shown.settled
        say(f"settled   {settled.choice}, version {settled.version}, {settled.at} by {settled.by}")
    elif shown.held_in is not None:
        say(f"held      as one change of the conflict {shown.held_in}")
    elif shown.outcome != "open":
        say(f"settled   {shown.outcome}, by its policy")
    show_differences(shown.differences)
    if shown.outcome == "open" and record is not None:
        say()
        say(
            f"run.py conflicts resolve {shown.conflict_id} --version {record.version}"
            f" --changes {client.changes} --choice server|client|merged"
        )


def show_server(domain: str, record_id: str, record: RecordView) -> None:
    """Print the server's side."""
    kind = "deleted" if record.data is None else f"version {record.version}"
    say(f"server    {domain} {record_id}, {kind}, of {record.at} by {record.device_id or 'nobody'}")


def show_client(client: ClientView) -> None:
    """Print the device's side."""
    base = "no base" if client.base is None else f"base {client.base}"
    many = "" if client.changes == 1 else f", {client.changes} changes"
    say(f"client    {client.op} of {client.at} by {client.device_id}, on {base}{many}")
    if client.data is None:
        say("          would delete the record")


def show_differences(differences: list[Difference]) -> None:
    """Print the fields that differ."""
    say()
    table(
        [(one.field, _cell(one.server), _cell(one.client)) for one in differences],
        ("FIELD", "SERVER NOW", "CLIENT"),
    )


def _cell(value: object) -> str:
    return "" if value is UNSET else msgspec.json.encode(value).decode()


@conflicts.command(
    "resolve",
    epilog="Example: run.py conflicts resolve 4f0c6d2e8b1a4c7f9e3d5a6b7c8d9e0f --choice merged"
    " --data merged.json",
)
@click.argument("conflict_id", metavar="ID")
@of_tenant
@click.option(
    "--choice",
    type=click.Choice(["server", "client", "merged"]),
    required=True,
    help="Whose side becomes the next version; merged is what --data holds.",
)
@click.option("--data", type=click.File("rb"), metavar="FILE", help="The merged data, a JSON object.")
@click.option(
    "--version",
    type=click.IntRange(min=1),
    metavar="N",
    help="The version that show showed: if another stands by now, nothing is settled. Else whatever stands.",
)
@click.option(
    "--changes",
    type=click.IntRange(min=1),
    metavar="N",
    help="The count of the device's changes that show showed: if there are more now, nothing is settled.",
)
@with_deployment(changes=True)
async def resolve(
    deployment: Deployment,
    *,
    conflict_id: str,
    tenant: str | None,
    choice: Choice,
    data: BinaryIO | None,
    version: int | None,
    changes: int | None,
) -> None:
    """Settle a conflict. Every choice writes a new version, so that all devices get it."""
    if (choice == "merged") is (data is None):
        raise click.UsageError("--choice merged needs --data FILE, and no other choice takes it.")
    merged = None if data is None else data.read()
    async with opened("settling", deployment.conflicts()) as admin:
        case = await admin.find(conflict_id, tenant)
        standing = case.record.version if case.record is not None else 1
        settled = await admin.settle(case, choice, version or standing, merged, changes)
    conflict = case.conflict
    say(f"settled: {conflict.domain} {conflict.record_id} is at version {settled.version}")
