"""``run.py token``: signs a token, printed alone on stdout, and revokes tokens."""

from __future__ import annotations

import base64
import re
from functools import partial
from typing import Final, NamedTuple

import click
import jwt
from click.core import ParameterSource

from engine.operate.rows import SignedToken
from engine.runtime.ports import StoreError
from engine.wire.timestamps import to_text
from handlers.commands.deployment import Deployment, DeploymentError, checked_device, opened, with_deployment
from handlers.http.keys import signing_key
from handlers.http.tokens import Role, issue_token
from handlers.operate.printing import say

_LONGEST_S: Final = 315_360_000


#: Both the head and the body of a token are a JSON object in base64url and begin so. No random jti does.
_OBJECT: Final = re.compile(rb'\{\s*"\w')


class _Named(NamedTuple):
    """A token to revoke. ``read`` is True if a whole token was given; ``tenant`` is its tenant then."""

    token_id: str
    tenant: str | None = None
    read: bool = False


def _named(_: click.Context, __: click.Parameter, given: str) -> _Named:
    """Accept a jti, or a whole token, of which only the jti and the tenant are used."""
    bare = given.strip()
    if bare[:7].lower() == "bearer ":
        bare = bare[7:].strip()
    if _OBJECT.match(_decoded(bare.partition(".")[0])):
        return _read(bare)
    if not given or "\0" in given or not given.isprintable():
        raise click.BadParameter("a token's jti is required, a text without control characters.")
    return _Named(given)


def _decoded(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part[: len(part) // 4 * 4])
    except ValueError:
        return b""


def _read(whole: str) -> _Named:
    try:
        # The signature is not checked: this only reads the jti, and gives no access.
        claims = jwt.decode(whole, options={"verify_signature": False})
    except jwt.InvalidTokenError:
        raise click.BadParameter(
            "this looks like a part of a token: give its jti, or the whole token, x.y.z."
        ) from None
    token_id, tenant = claims.get("jti"), claims.get("tid")
    if not isinstance(token_id, str) or not token_id or not token_id.isprintable():
        raise click.BadParameter(
            "this token has no jti, and no server lets it in: revoke its device, run.py device revoke."
        )
    return _Named(token_id, tenant if isinstance(tenant, str) else None, read=True)


@click.group(
    "token",
    invoke_without_command=True,
    short_help="Sign a token for a device or a person, or revoke one.",
    epilog="""\b
Examples:
  run.py token --tenant acme --device phone-7
  run.py token --operator --user ann""",
)
@click.option("--tenant", metavar="T", help="The tenant; people without one see all of them.")
@click.option(
    "--device", metavar="D", callback=checked_device, help="The device's id: 1 to 255 of A-Z a-z 0-9 _ -."
)
@click.option("--user", metavar="U", help="Who uses the token: required for a person.")
@click.option("--role", type=click.Choice(["supervisor"]), help="May settle all conflicts of its tenant.")
@click.option("--operator", "person", flag_value="operator", help="A person who may change things.")
@click.option("--viewer", "person", flag_value="viewer", help="A person who may look.")
@click.option(
    "--ttl-s",
    type=click.IntRange(1, _LONGEST_S),
    metavar="N",
    help="Seconds until it expires; auth.token_ttl_s by default.",
)
@with_deployment()
async def token(
    deployment: Deployment,
    *,
    tenant: str | None,
    device: str | None,
    user: str | None,
    role: Role | None,
    person: Role | None,
    ttl_s: int | None,
) -> None:
    """Sign a token for a device (--tenant and --device) or a person (--operator or --viewer).

    The token has the time of signing and the number of its tenant, so that it is not valid for a later tenant
    of the same name. A tenant that the database does not know is refused. The audit log keeps the token's
    jti, and who signed it for whom. If the database cannot be asked, the token is signed without both, and a
    line on stderr says so.
    """
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in context.params):
            named = context.invoked_subcommand
            raise click.UsageError(f"Options of {named} stand behind it: run.py token {named} …")
        return
    if person is not None and (device is not None or role is not None):
        raise click.UsageError("--operator and --viewer are people: leave --device and --role out.")
    if person is not None and not user:
        raise click.UsageError("--operator and --viewer need --user: the audit log names who it was.")
    if person is None and (tenant is None or device is None):
        raise click.UsageError("A device needs --tenant and --device; a person --operator or --viewer.")
    key, auth = signing_key(deployment.keys()), deployment.settings.auth
    sign = partial(
        issue_token,
        key,
        audience=deployment.settings.audience,
        ttl_s=ttl_s or auth.token_ttl_s,
        role=person or role or "device",
        tenant=tenant,
        device_id=device,
        user=user,
    )
    try:
        async with opened("signing", deployment.tokens()) as tokens:
            number = None if tenant is None else await tokens.number(tenant)
            unknown = tenant is not None and number is None
            if not unknown:
                signed = sign(number=number)
                await tokens.note_signed(described(signed))
    except (DeploymentError, StoreError) as error:
        asked = "" if tenant is None else f"a look whether there is a tenant {tenant}, and without "
        say(f"signed without {asked}an event in the audit log: {error}", err=True)
        unknown, signed = False, sign()
    if unknown:
        add = f"`run.py tenant add {tenant}`"
        raise DeploymentError(f"there is no tenant {tenant} in {deployment.database()}: add it with {add}")
    click.echo(signed)


def described(token: str) -> SignedToken:
    """Return what the audit log keeps of a token that was just signed."""
    claims = jwt.decode(token, options={"verify_signature": False})
    return SignedToken(
        claims["jti"],
        claims.get("role", "device"),
        to_text(claims["exp"] * 1_000_000),
        claims.get("tid"),
        claims.get("tnr"),
        claims.get("did"),
        claims.get("sub"),
    )


@token.command("revoke", epilog="Example: run.py token revoke 5f0e6c1d2b3a4f58 --tenant acme")
@click.argument("named", metavar="JTI", callback=_named)
@click.option("--tenant", metavar="T", help="Of this tenant alone.")
@with_deployment(changes=True)
async def revoke(deployment: Deployment, *, named: _Named, tenant: str | None) -> None:
    """Revoke the tokens with this jti. Their connections close within a second.

    A whole token may be given in place of its jti; only its jti is kept. Without --tenant the tokens of every
    tenant and of people are revoked. This cannot be undone: sign a new token.
    """
    token_id = named.token_id
    if named.tenant is not None and tenant not in (None, named.tenant):
        raise click.UsageError(
            f"This token is of the tenant {named.tenant}: give that, or leave --tenant out."
        )
    async with opened("revoking", deployment.tenants()) as tenants:
        newly = await tenants.revoke_token(token_id, tenant)
    of = "" if tenant is None else f" of {tenant}"
    if named.read:
        say(f"the jti of that token is {token_id}", err=True)
    say(f"revoked token {token_id}{of}" if newly else f"token {token_id}{of} was revoked already")
