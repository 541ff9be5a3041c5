"""``run.py token``: a signed token, alone on stdout."""

from __future__ import annotations

from typing import Final

import click

from engine.ports import StoreError
from handlers.auth import Role, issue_token
from handlers.commands.site import Site, SiteError, on_site
from handlers.keys import signing_key

_LONGEST_S: Final = 315_360_000


@click.command(
    "token",
    short_help="Sign a token for a device or a person.",
    epilog="Examples: run.py token --tenant acme --device phone-7 · run.py token --operator",
)
@click.option("--tenant", metavar="T", help="The tenant; people without one see all of them.")
@click.option("--device", metavar="D", help="The device's id: 1 to 255 of A-Z a-z 0-9 _ -.")
@click.option("--user", metavar="U", help="Who uses the device.")
@click.option("--role", type=click.Choice(["supervisor"]), help="May settle all conflicts of its tenant.")
@click.option("--operator", "person", flag_value="operator", help="A person who may change things.")
@click.option("--viewer", "person", flag_value="viewer", help="A person who may look.")
@click.option(
    "--ttl-s",
    type=click.IntRange(1, _LONGEST_S),
    metavar="N",
    help="Seconds until it expires; auth.token_ttl_s by default.",
)
@on_site()
def token(
    site: Site,
    *,
    tenant: str | None,
    device: str | None,
    user: str | None,
    role: Role | None,
    person: Role | None,
    ttl_s: int | None,
) -> None:
    """Sign a token for a device (--tenant and --device) or a person (--operator or --viewer).

    A tenant that the database does not know is refused. Where the database cannot be asked, the token is
    signed and a line on stderr says so.
    """
    if person is not None and (device is not None or role is not None):
        raise click.UsageError("--operator and --viewer are people: leave --device and --role out.")
    if person is None and (tenant is None or device is None):
        raise click.UsageError("A device needs --tenant and --device; a person --operator or --viewer.")
    key = signing_key(site.keys())
    if tenant is not None:
        _check_tenant(site, tenant)
    auth = site.settings.auth
    click.echo(
        issue_token(
            key,
            audience=auth.audience,
            ttl_s=ttl_s or auth.token_ttl_s,
            role=person or role or "device",
            tenant=tenant,
            device_id=device,
            user=user,
        )
    )


def _check_tenant(site: Site, name: str) -> None:
    """Look whether there is a tenant of that name. Raises SiteError if there is none."""
    try:
        found = site.has_tenant(name)
    except (SiteError, StoreError) as error:
        click.echo(f"signed without a look whether there is a tenant {name}: {error}", err=True)
        return
    if not found:
        add = f"`run.py tenant add {name}`"
        raise SiteError(f"there is no tenant {name} in {site.database()}: add it with {add}")
