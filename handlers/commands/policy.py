"""``run.py policy``: lists, sets and unsets conflict policies of tenants and domains."""

from __future__ import annotations

from typing import get_args

import click

from engine.model.domains import DomainPolicy, Fallback, Policy
from handlers.commands.deployment import Deployment, as_json, opened, with_deployment
from handlers.commands.terminal.tables import table
from handlers.operate.printing import say


@click.group("policy", short_help="List, set and unset conflict policies.")
def policy() -> None:
    """List, set and unset how conflicts are settled. Running servers follow within a second."""


@policy.command("list", epilog="Example: run.py policy list --tenant acme")
@click.option("--tenant", metavar="T", help="Only of this tenant.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def list_(deployment: Deployment, *, tenant: str | None, json_: bool) -> None:
    """List the policy in force for each tenant and domain. FROM is own if the tenant has set it."""
    async with opened("reading", deployment.policies()) as policies:
        found = await policies.policies(tenant)
    if json_:
        as_json(found)
    else:
        table(
            [
                (one.tenant, one.domain, one.policy, one.fallback or "", "own" if one.own else "default")
                for one in found
            ],
            ("TENANT", "DOMAIN", "POLICY", "FALLBACK", "FROM"),
        )


@policy.command("set", epilog="Example: run.py policy set --tenant acme --domain task --policy field_merge")
@click.option("--tenant", metavar="T", required=True, help="The tenant.")
@click.option("--domain", metavar="D", required=True, help="The domain, one of records.")
@click.option("--policy", "chosen", required=True, type=click.Choice(get_args(Policy)), help="The policy.")
@click.option(
    "--fallback",
    type=click.Choice(get_args(Fallback)),
    help="For field_merge: what settles a field that both changed; most_recent_wins by default.",
)
@with_deployment(changes=True)
async def set_(
    deployment: Deployment, *, tenant: str, domain: str, chosen: Policy, fallback: Fallback | None
) -> None:
    """Set a tenant's own policy for a domain. Conflicts that are open stay open."""
    if fallback is not None and chosen != "field_merge":
        raise click.UsageError("--fallback is for field_merge: leave it out.")
    new = DomainPolicy(chosen) if fallback is None else DomainPolicy(chosen, fallback)
    async with opened("storing", deployment.policies()) as policies:
        await policies.set(tenant, domain, new)
    behind = f", then {new.fallback}" if chosen == "field_merge" else ""
    say(f"{tenant} settles {domain} by {chosen}{behind}")


@policy.command("unset", epilog="Example: run.py policy unset --tenant acme --domain task")
@click.option("--tenant", metavar="T", required=True, help="The tenant.")
@click.option("--domain", metavar="D", required=True, help="The domain, one of records.")
@with_deployment(changes=True)
async def unset(deployment: Deployment, *, tenant: str, domain: str) -> None:
    """Give a tenant the default policy of a domain again. Conflicts that are open stay open."""
    async with opened("storing", deployment.policies()) as policies:
        done = await policies.unset(tenant, domain)
        default = next((one for one in await policies.policies(tenant) if one.domain == domain), None)
    if default is None:
        say(f"{tenant} has no policy for {domain} any more, which the settings do not know")
        return
    before = "" if done else f"{tenant} has no policy of its own for {domain}: "
    behind = f", then {default.fallback}" if default.fallback else ""
    say(f"{before}{tenant} settles {domain} by the default, {default.policy}{behind}")
