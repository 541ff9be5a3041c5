"""``run.py quarantine``: rejected items, and how they are recovered."""

from __future__ import annotations

import re
from typing import BinaryIO, Final

import click
import msgspec

from engine.operate.conflict_view import RetryView, retry_view
from engine.operate.masking import Mask
from engine.operate.quarantine_retry import stays
from engine.operate.rows import QuarantineCase, Retried
from engine.wire.floats import json_decoder
from engine.wire.messages import ItemError
from engine.wire.timestamps import to_text
from handlers.commands.conflicts import show_client, show_differences, show_server
from handlers.commands.deployment import (
    Deployment,
    as_json,
    confirm,
    may_reveal,
    of_tenant,
    opened,
    with_deployment,
)
from handlers.commands.terminal.tables import table
from handlers.operate.printing import json_text, plain, say

#: The beginnings of error sentences about parts of an item that ``--data`` does not replace.
_NOT_OF_DATA: Final = re.compile(r"(op|id|base|at|changed|domain)\b|an? (op|id|domain)\b|.*required field")


@click.group("quarantine", short_help="List, show, retry and drop rejected items.")
def quarantine() -> None:
    """List, show, retry and drop rejected items, so that nothing that was entered is lost."""


@quarantine.command("list", epilog="Example: run.py quarantine list --tenant acme")
@of_tenant
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def list_(deployment: Deployment, *, tenant: str | None, json_: bool) -> None:
    """List rejected items by tenant, oldest first."""
    async with opened("reading", deployment.quarantine()) as admin:
        found = await admin.items(tenant)
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
    """A rejected item. ``item`` is as the device sent it; a text if it is no JSON."""

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
@may_reveal
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def show(
    deployment: Deployment, *, quarantine_id: str, tenant: str | None, reveal: bool, json_: bool
) -> None:
    """Show a rejected item as it was sent, and why it was rejected.

    Personal fields are masked, and all data of an item whose domain is not known.
    """
    async with opened("reading", deployment.quarantine()) as admin:
        case = await admin.find(quarantine_id, tenant)
        await admin.note_shown(case, revealed=reveal)
    shown = _shown(case)
    if not reveal:
        shown.item = Mask(deployment.settings.domains, shown.domain).item(shown.item)
    if json_:
        as_json(shown)
        return
    say(f"item      {shown.quarantine_id} of {shown.tenant}, sent by {shown.device_id} at {shown.at}")
    say(f"rejected  {shown.message} ({shown.code})")
    if shown.retried_at is not None:
        say(f"retried   {shown.retried_at}, and rejected again, for that reason")
    say()
    item = shown.item
    click.echo(plain(item) if isinstance(item, str) else json_text(bytes(item)))


def _shown(case: QuarantineCase) -> _Shown:
    row = case.row
    item: msgspec.Raw | str = msgspec.Raw(row.item)
    try:
        json_decoder().decode(row.item)
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


class _RetriedItems(msgspec.Struct):
    """A retry of an item and of those behind it; ``lost`` has both sides if the server's record won."""

    quarantine_id: str
    item: Retried
    behind: dict[str, Retried]
    lost: RetryView | None


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
@click.option(
    "--hold", is_flag=True, help="Leave a conflict to a person, whatever the policy; see run.py conflicts."
)
@may_reveal
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment(changes=True)
async def retry(
    deployment: Deployment,
    *,
    quarantine_id: str,
    tenant: str | None,
    data: BinaryIO | None,
    hold: bool,
    reveal: bool,
    json_: bool,
) -> None:
    """Send a rejected item again as its device did. It keeps its id and its time, and the same rules apply.

    Edits of the device that were rejected because of this item are sent with it, in their order. A stored
    item leaves the quarantine, and is stored once, however often this is tried. An item that is rejected
    again stays. So does an item that loses to the server's record by the policy: then both sides are shown,
    and nothing is written.
    """
    given = None if data is None else data.read()
    async with opened("storing", deployment.quarantine()) as admin:
        case = await admin.find(quarantine_id, tenant)
        quarantine_id = case.row.quarantine_id
        recovered = await admin.retry(case, given, hold=hold)
        if recovered.record is not None:  # both sides are shown
            await admin.note_shown(case, revealed=reveal)
    item, record = recovered.item, recovered.record
    view = None if record is None else retry_view(case.row, given, record)
    if view is not None and not reveal:
        view = Mask(deployment.settings.domains, case.row.domain).retry(view)
    if json_:
        as_json(_RetriedItems(quarantine_id, item, recovered.behind, view))
        staying = sum(map(stays, (item, *recovered.behind.values())))
        if staying:
            raise click.ClickException(f"{staying} of {1 + len(recovered.behind)} stay in the quarantine")
        return
    if view is not None:
        _show_retry(view, item)
    if stays(item):
        raise click.ClickException(plain(_why(item, quarantine_id)))
    say(_said(item))
    left = 0
    for behind_id, behind in recovered.behind.items():
        left += stays(behind)
        say(f"behind it {behind_id}: {_why(behind, behind_id) if stays(behind) else _said(behind)}")
    if left:
        raise click.ClickException(f"{left} of those behind it stay in the quarantine: retry them one by one")


def _show_retry(shown: RetryView, item: Retried) -> None:
    show_server(item.domain or "?", item.id or "?", shown.record)
    show_client(shown.client)
    show_differences(shown.differences)
    say()


@quarantine.command(
    "drop", epilog="Example: run.py quarantine drop 4f0c6d2e8b1a4c7f9e3d5a6b7c8d9e0f --tenant acme"
)
@click.argument("quarantine_id", metavar="ID")
@of_tenant
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_deployment(changes=True)
async def drop(deployment: Deployment, *, quarantine_id: str, tenant: str | None, yes: bool) -> None:
    """Delete a rejected item; this cannot be undone.

    Edits that were rejected because of it stay.
    """
    async with opened("dropping", deployment.quarantine()) as admin:
        case = await admin.find(quarantine_id, tenant)
        row, behind = case.row, len(await admin.behind(case.row))
        named = plain(f"{row.domain or '?'} {row.record_id or '?'} of {row.device_id}, tenant {case.tenant}")
        if not yes:
            confirm(f"Delete the rejected item {row.quarantine_id} ({named}) for good?")
        await admin.drop(case)
    say(f"dropped {row.quarantine_id} ({named})")
    if behind:
        say(f"{behind} edits that were rejected because of it stay: see run.py quarantine list")


def _why(result: Retried, quarantine_id: str) -> str:
    """Return why an item stays."""
    if result.error is not None:
        error = result.error
        return f"rejected again: {error.message} ({error.code}); it stays: {_remedy(error, quarantine_id)}"
    return (
        f"{result.domain} {result.id} moved on since, and by {result.policy} the server's record wins:"
        " nothing was written, and the item stays; with --hold it becomes a conflict for a person to settle"
    )


def _remedy(error: ItemError, quarantine_id: str) -> str:
    drop = f"give this one up with run.py quarantine drop {quarantine_id}"
    match error.code:
        case "unknown_domain":
            return f"no --data corrects that: add the domain to the settings and retry, or {drop}"
        case "unknown_base":
            return f"no --data corrects that: have a device send the whole record as a put, and {drop}"
        case "creation_rejected":
            return "retry what its device sent of the record before, and this one goes along"
    if _NOT_OF_DATA.match(error.message):
        return f"no --data corrects that: have its device send it anew without the mistake, and {drop}"
    return "correct it with --data, or the settings that refuse it"


def _said(result: Retried) -> str:
    """Return the outcome of an item that left the quarantine."""
    named = f"{result.domain} {result.id}"
    match result.status:
        case "conflict":
            return (
                f"held: {named} moved on meanwhile: settle it with run.py conflicts show {result.conflict_id}"
            )
        case "unchanged":
            return f"nothing to store: {named} is as the item has it already"
        case "resolved":
            return f"settled: {named} moved on meanwhile: by {result.policy} the winner is {result.winner}"
    version = "" if result.version is None else f" is at version {result.version}"
    return f"stored: {named}{version}"
