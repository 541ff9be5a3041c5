"""``run.py keys``: the keys of sealed data, their rotation, and the sealing of domains."""

from __future__ import annotations

from datetime import datetime

import click
import msgspec

from engine.operate.key_admin import missing_keys, unreadable_values
from engine.operate.rows import KeyStatus, TenantKeyState
from engine.seal.sealer import MOST_SEALS
from handlers.commands.deployment import Deployment, as_json, of_tenant, opened, with_deployment
from handlers.commands.terminal.progress import progress
from handlers.commands.terminal.tables import table
from handlers.operate.printing import say

_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


class TenantRotation(msgspec.Struct, frozen=True):
    """A rotation of a tenant's key."""

    tenant: str
    key: int


class DomainSealing(msgspec.Struct, frozen=True):
    """A domain whose sealing was switched on; ``since`` is when it was on already."""

    domain: str
    since: datetime | None


@click.group("keys", short_help="Show and rotate the keys of sealed data, and seal domains.")
def keys() -> None:
    """Show and rotate the keys that seal personal data, and switch the sealing of a domain on.

    Old keys open what they sealed, new ones seal. Servers follow within a second.
    """


@keys.command(
    "status", short_help="Show all keys and sealed domains.", epilog="Example: run.py keys status --json"
)
@_json
@with_deployment()
async def status(deployment: Deployment, *, json_: bool) -> None:
    """Show the master keys, the sealed domains, and the keys of tenants.

    SEALED is the part of the 2^32 values that one key may seal; a key that is used up is replaced by itself.
    The exit status is 1 if a key is missing, or a value is known that cannot be opened.
    """
    async with opened("reading", deployment.sealing_keys()) as admin:
        found = await admin.status()
    if json_:
        as_json(found)
    else:
        _show(found)
    lacking = any(one.lost or one.missing_keys or one.unreadable_values for one in found.tenants)
    if lacking or _missing(found):
        raise SystemExit(1)


def _show(found: KeyStatus) -> None:
    for line in _heads(found):
        say(line)
    say()
    table(
        [_row(one) for one in found.tenants],
        ("TENANT", "KEY", "SINCE", "MASTER KEY", "SEALED", "OLD KEYS", "RE-SEALING"),
    )
    for one in found.tenants:
        if one.missing_keys:
            say(f"{one.tenant}: {missing_keys(one)}", err=True)
        if one.unreadable_values:
            say(f"{one.tenant}: {unreadable_values(one)}", err=True)


@keys.command(
    "verify", short_help="Open every sealed value.", epilog="Example: run.py keys verify --tenant acme --json"
)
@of_tenant
@_json
@with_deployment(changes=True)
async def verify(deployment: Deployment, *, tenant: str | None, json_: bool) -> None:
    """Open every sealed value of all tenants, or of one, and name what cannot be opened.

    Such a value was changed, is of another row, or its key is lost. Servers may run. Nothing but the figures
    of `keys status` and doctor is written. The exit status is 1 if any value cannot be opened.
    """
    with progress("verifying") as tell:
        async with deployment.sealing_keys() as admin:
            found = await admin.verify(tenant, tell)
    if json_:
        as_json(found)
    else:
        table(
            [(one.tenant, f"{one.rows:,}", one.error or f"{one.unreadable_values:,}") for one in found],
            ("TENANT", "SEALED ROWS", "CANNOT BE OPENED"),
        )
        for one in found:
            if one.unreadable_values:
                say(f"{one.tenant}: {unreadable_values(one)}", err=True)
    if any(one.error or one.unreadable_values for one in found):
        raise SystemExit(1)


@keys.command(
    "rotate-master",
    short_help="Wrap all keys by a new master key.",
    epilog="Example: run.py keys rotate-master",
)
@_json
@with_deployment(changes=True)
async def rotate_master(deployment: Deployment, *, json_: bool) -> None:
    """Wrap the keys of all tenants by a new master key, while servers run. Data are not sealed again.

    The embedded default makes a new master key. Anywhere else, put a new one before the old one in
    sealing.master_key_file (or where the master key comes from) on every host first. If this is killed, run
    it again.
    """
    with progress("rotating") as tell:
        async with deployment.sealing_keys() as admin:
            done = await admin.rotate_master(tell)
    if json_:
        as_json(done)
        return
    say(f"{done.keys} keys are wrapped by the master key {done.master_key} now")
    for old in done.retired:
        say(f"{old} wraps nothing now: keep it for as long as you keep backups from before", err=True)


@keys.command(
    "rotate-tenant",
    short_help="Make a new key for a tenant.",
    epilog="Example: run.py keys rotate-tenant --tenant acme",
)
@click.option("--tenant", metavar="T", required=True, help="The tenant.")
@_json
@with_deployment(changes=True)
async def rotate_tenant(deployment: Deployment, *, tenant: str, json_: bool) -> None:
    """Make a new key for a tenant. What the old ones sealed is sealed again by the job reseal."""
    async with opened("rotating", deployment.sealing_keys()) as admin:
        number = await admin.rotate_tenant(tenant)
    if json_:
        as_json(TenantRotation(tenant, number))
        return
    say(f"{tenant} seals with its key {number} now")
    say("old values are sealed again by the job reseal; `run.py job reseal` runs it now", err=True)


@keys.command("seal-domain", short_help="Seal a domain.", epilog="Example: run.py keys seal-domain voice")
@click.argument("domain")
@_json
@with_deployment(changes=True)
async def seal_domain(deployment: Deployment, *, domain: str, json_: bool) -> None:
    """Seal a domain that names pii fields: new data at once, stored data by the job reseal.

    It refuses while a server of an older version runs, which could not read sealed data, or one without the
    master key. No such server can start afterwards.
    """
    async with opened("sealing", deployment.sealing_keys()) as admin:
        since = await admin.seal_domain(domain)
    if json_:
        as_json(DomainSealing(domain, since))
        return
    say(f"{domain} is sealed" + (f" since {since:%Y-%m-%d %H:%M}" if since else " from now on"))
    say(
        "what is stored already is sealed by the job reseal; `run.py job reseal` runs it now, and"
        " `run.py keys status` shows how far it is",
        err=True,
    )


def _missing(found: KeyStatus) -> list[str]:
    return sorted(set(found.in_use) - set(found.given))


def _heads(found: KeyStatus) -> list[str]:
    given = ", ".join(found.given) or "none"
    lines = [f"master keys of the settings: {given}"]
    if missing := _missing(found):
        lines.append(f"MISSING: {', '.join(missing)}, without which sealed data cannot be read")
    sealed = [f"{one.domain} since {one.since:%Y-%m-%d %H:%M}" for one in found.domains]
    lines.append(f"sealed domains: {', '.join(sealed) or 'none'}")
    if found.unsealed:
        named = ", ".join(found.unsealed)
        lines.append(f"not sealed, though they name pii fields: {named} (`run.py keys seal-domain DOMAIN`)")
    return lines


def _row(one: TenantKeyState) -> tuple[str, ...]:
    if one.waits:
        passing = f"at {one.place}, {one.resealed or 0:,} values" if one.place else "waits for the job reseal"
    else:
        passing = "" if one.resealed_at is None else f"done {one.resealed_at:%Y-%m-%d %H:%M}"
    if one.unreadable_values:
        passing = f"{passing}, {one.unreadable_values:,} CANNOT BE OPENED".removeprefix(", ")
    if one.lost:
        return one.tenant, "LOST", "", "", "", str(one.old_keys), "restore tenant_keys from a backup"
    if one.key is None or one.since is None:
        return one.tenant, "none yet", "", "", "", str(one.old_keys), passing
    return (
        one.tenant,
        str(one.key),
        f"{one.since:%Y-%m-%d}",
        one.master_key or "",
        f"{(one.seals or 0) / MOST_SEALS:.2%}",
        str(one.old_keys),
        passing,
    )
