"""``run.py quarantine``: what was rejected, and how it is recovered."""

from __future__ import annotations

from typing import BinaryIO

import click
import msgspec

from engine.administration import QuarantineCase, Retried
from engine.instants import to_text
from handlers.commands.site import Site, as_json, of_tenant, on_site, table


@click.group("quarantine", short_help="List, show and retry rejected items.")
def quarantine() -> None:
    """List, show and retry rejected items, so that nothing that was entered is lost."""


@quarantine.command("list", epilog="Example: run.py quarantine list --tenant acme")
@of_tenant
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@on_site()
def list_(site: Site, *, tenant: str | None, json_: bool) -> None:
    """List rejected items by tenant, oldest first."""
    with site.quarantine() as desk:
        found = desk.items(tenant)
    if json_:
        as_json(found)
    else:
        table(
            [
                (
                    one.quarantine_id,
                    one.tenant,
                    one.domain or "?",
                    one.record_id or "?",
                    one.device_id,
                    one.at,
                    one.message,
                )
                for one in found
            ],
            ("ID", "TENANT", "DOMAIN", "RECORD", "DEVICE", "SINCE", "WHY"),
        )


class _Shown(msgspec.Struct):
    """``item`` is as the device sent it, a text where that is no JSON."""

    tenant: str
    quarantine_id: str
    device_id: str
    domain: str | None
    record_id: str | None
    code: str
    message: str
    at: str
    retried_at: str | None
    item: msgspec.Raw | str


@quarantine.command("show", epilog="Example: run.py quarantine show 4f0c6d2e8b1a4c7f9e3d5a6b7c8d9e0f")
@click.argument("quarantine_id", metavar="ID")
@of_tenant
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@on_site()
def show(site: Site, *, quarantine_id: str, tenant: str | None, json_: bool) -> None:
    """Show a rejected item as it was sent, and why it was rejected."""
    with site.quarantine() as desk:
        shown = _shown(desk.item(quarantine_id, tenant))
    if json_:
        as_json(shown)
        return
    click.echo(f"item      {shown.quarantine_id} of {shown.tenant}, sent by {shown.device_id} at {shown.at}")
    click.echo(f"rejected  {shown.message} ({shown.code})")
    if shown.retried_at is not None:
        click.echo(f"retried   {shown.retried_at}, and rejected again")
    click.echo()
    item = shown.item
    click.echo(item if isinstance(item, str) else msgspec.json.format(bytes(item)).decode())


def _shown(case: QuarantineCase) -> _Shown:
    row = case.row
    item: msgspec.Raw | str = msgspec.Raw(row.item)
    try:
        msgspec.json.decode(row.item)
    except (msgspec.DecodeError, UnicodeDecodeError):
        item = row.item.decode()
    return _Shown(
        case.tenant,
        row.quarantine_id,
        row.device_id,
        row.domain,
        row.record_id,
        row.code,
        row.message,
        to_text(row.at_us),
        None if case.retried_at is None else f"{case.retried_at:%Y-%m-%dT%H:%M:%SZ}",
        item,
    )


@quarantine.command(
    "retry",
    epilog="Example: run.py quarantine retry 4f0c6d2e8b1a4c7f9e3d5a6b7c8d9e0f --data corrected.json",
)
@click.argument("quarantine_id", metavar="ID")
@of_tenant
@click.option(
    "--data",
    type=click.File("rb"),
    metavar="FILE",
    help="The record's data, a JSON object, in place of the item's own.",
)
@on_site()
def retry(site: Site, *, quarantine_id: str, tenant: str | None, data: BinaryIO | None) -> None:
    """Send a rejected item again as its device did: under its id, at its time, by the same rules.

    What is stored leaves the quarantine, once, however often it is tried; what is rejected again stays.
    """
    given = None if data is None else data.read()
    with site.quarantine() as desk:
        result = desk.retry(desk.item(quarantine_id, tenant), given)
    click.echo(_said(result))


def _said(result: Retried) -> str:
    """Say what became of an item. Raises ClickException for one that was rejected again."""
    named = f"{result.domain} {result.id}"
    match result.status:
        case "rejected":
            assert result.error is not None
            raise click.ClickException(
                f"rejected again: {result.error.message} ({result.error.code});"
                " it stays: correct it with --data, or the settings that refuse it"
            )
        case "conflict":
            return (
                f"held: {named} moved on meanwhile:"
                f" settle it with run.py conflicts show {result.conflict_id}"
            )
        case "unchanged":
            return f"nothing to store: {named} is as the item has it already"
        case "resolved":
            return f"settled: {named} moved on meanwhile: by {result.policy} the winner is {result.winner}"
        case "applied":
            version = "" if result.version is None else f" is at version {result.version}"
            return f"stored: {named}{version}"
