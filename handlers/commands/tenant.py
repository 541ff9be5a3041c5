"""``run.py tenant``: adds, lists and removes tenants, shows their usage, and looks at their files."""

from __future__ import annotations

import re
from datetime import UTC
from typing import Final

import click
import msgspec

from engine.uploads.blobs import BlobsError
from handlers.commands.deployment import (
    Deployment,
    DeploymentError,
    as_json,
    confirm,
    opened,
    with_deployment,
)
from handlers.commands.terminal.progress import progress, undisturbed
from handlers.commands.terminal.tables import table
from handlers.commands.terminal.units import size
from handlers.operate.printing import say

#: A tenant's name is used in tokens, URLs and command lines.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


def _checked(_: click.Context, __: click.Parameter, name: str) -> str:
    if not _NAME.match(name):
        raise click.BadParameter("a name is 1 to 63 of A-Z a-z 0-9 . _ - and begins with a letter or digit.")
    return name


@click.group("tenant", short_help="Add, list and remove tenants, and see what they hold.")
def tenant() -> None:
    """Add, list and remove tenants, and see what they hold. Running servers notice within a second."""


@tenant.command("add", epilog="Example: run.py tenant add acme")
@click.argument("name", callback=_checked)
@click.option("--yes", is_flag=True, help="Do not ask where the name was used before.")
@with_deployment(changes=True)
async def add(deployment: Deployment, *, name: str, yes: bool) -> None:
    """Add a tenant. For the name of an earlier tenant it asks first, since tokens of that may exist."""
    async with opened("adding", deployment.tenants()) as tenants:
        number = await tenants.number(name)
        removed_at = None if number is not None else await tenants.removed_at(name)
        if removed_at is not None:
            used = f"There was another tenant {name} until {removed_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC."
            with undisturbed():
                say(f"{used} Tokens that were signed for it are refused.", err=True)
            if not yes:
                confirm(f"Add a new tenant of the name {name}?")
        await tenants.add(name)
        number = await tenants.number(name)
    say(f"added {name}")
    if removed_at is not None:
        say(f'its tokens have to say "tnr": {number}, or an iat or nbf from now on', err=True)


@tenant.command("list", epilog="Example: run.py tenant list --json")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def list_(deployment: Deployment, *, json_: bool) -> None:
    """List tenants by name."""
    async with opened("reading", deployment.tenants()) as tenants:
        found = await tenants.tenants()
    if json_:
        as_json(found)
    else:
        table(
            [(one.name, str(one.number), f"{one.created_at:%Y-%m-%d}", str(one.changes)) for one in found],
            ("NAME", "NUMBER", "SINCE", "CHANGES"),
        )


@tenant.command("usage", epilog="Example: run.py tenant usage acme")
@click.argument("name", required=False)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def usage(deployment: Deployment, *, name: str | None, json_: bool) -> None:
    """Show the usage of a tenant, or of all of them, beside the limits.

    The limits are the settings tenant_limits and uploads.tenant_bytes.
    """
    async with opened("reading", deployment.usage()) as reads:
        found = await reads.usage(name)
    settings = deployment.settings
    bounds = msgspec.structs.asdict(settings.tenant_limits)
    rows = []
    for one in found:
        held = msgspec.structs.asdict(one.usage)
        files = settings.uploads.tenant_quotas.get(one.name, settings.uploads.tenant_bytes)
        for kind, used, bound in (
            *((kind, held[kind], bounds[kind]) for kind in held),
            ("file_bytes", one.file_bytes, files),
            ("device_rows", one.device_rows, bounds["device_rows"]),
        ):
            rows.append(UsageRow(one.name, kind, used, bound))
    if json_:
        as_json(rows)
        return
    table(
        [(one.tenant, one.kind, str(one.used), str(one.bound), f"{_part(one):.1%}") for one in rows],
        ("TENANT", "OF", "HOLDS", "MAY HOLD", "USED"),
    )


@tenant.command(
    "files",
    short_help="Look whether the bytes of files are there.",
    epilog="Example: run.py tenant files acme",
)
@click.argument("name", required=False)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def files(deployment: Deployment, *, name: str | None, json_: bool) -> None:
    """Look whether the bytes of every file are there, and of all tenants also for bytes without a row.

    The last byte of each file is read. Servers may run, and nothing is changed. The exit status is 1 if a
    file is missing or too short, as after a restore of files that are older than the database.
    """
    with progress("looking") as tell:
        async with deployment.files() as verifier:
            try:
                found = await verifier.verify(name, tell)
            except BlobsError as error:
                raise DeploymentError(f"the files cannot be listed: {error}") from None
    if json_:
        as_json(found)
    else:
        table(
            [
                (one.tenant, one.device_id, one.domain, one.record_id, one.file_id, one.found)
                for one in found.damaged
            ],
            ("TENANT", "DEVICE", "DOMAIN", "RECORD", "FILE", "FOUND"),
        )
        say(f"{found.files:,} files ({size(found.file_bytes)}), {found.damaged_files:,} of them damaged")
        if found.unlisted:
            say(
                f"{found.unlisted:,} files and drafts have no row ({size(found.unlisted_bytes)}): the job"
                " cleanup deletes each a day after it was written"
            )
    if found.damaged_files:
        raise SystemExit(1)


class UsageRow(msgspec.Struct, frozen=True):
    """The usage of one kind by one tenant, and the limit."""

    tenant: str
    kind: str
    used: int
    bound: int


def _part(one: UsageRow) -> float:
    return one.used / one.bound if one.bound else 1.0


@tenant.command("remove", epilog="Example: run.py tenant remove acme --erase")
@click.argument("name")
@click.option("--erase", is_flag=True, help="Erase all its data as well.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_deployment(changes=True)
async def remove(deployment: Deployment, *, name: str, erase: bool, yes: bool) -> None:
    """Remove a tenant. If it has data, --erase is required; this cannot be undone."""
    with progress("erasing" if erase else "removing") as tell:
        async with deployment.tenants() as tenants:
            if erase and not yes:
                confirm(f"Erase everything that {name} ever stored in {deployment.database()}?")
            await tenants.remove(name, erase=erase, watch=lambda rows: tell(f"{rows:,} rows"))
    say(f"removed {name}")
