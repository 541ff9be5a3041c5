"""``run.py audit``: who did what to the security of the system."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click
import msgspec

from engine.operate.rows import AuditEntry
from handlers.commands.deployment import Deployment, as_json, opened, with_deployment
from handlers.commands.terminal.tables import table
from handlers.commands.terminal.times import Since


@click.command(
    "audit",
    short_help="List security events: who did what.",
    epilog="Example: run.py audit --tenant acme --since 7d",
)
@click.option("--tenant", metavar="T", help="Events of this tenant alone, also of one that was removed.")
@click.option("--actor", metavar="A", help="Events of this actor alone, such as root@host-1.")
@click.option(
    "--since",
    type=Since(),
    default="7d",
    show_default=True,
    metavar="TIME",
    help="Events from then on: a day, an instant, or so long ago, such as 15m, 24h or 7d.",
)
@click.option(
    "--limit",
    "most",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    metavar="N",
    help="The latest N events.",
)
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def audit(
    deployment: Deployment, *, tenant: str | None, actor: str | None, since: datetime, most: int, json_: bool
) -> None:
    """List security events, the latest last: what commands changed, and what servers refused.

    The actor of a command is the account of the system that ran it, and its host. The actor of a person's
    token is the `--user` that it was signed for. Times are in UTC. TIMES is how many events a row stands for.
    """
    async with opened("reading", deployment.audit()) as reads:
        found = await reads.entries(tenant, actor, since, most)
    if json_:
        as_json(found)
    else:
        table(
            [_row(one) for one in found],
            ("AT", "EVENT", "ACTOR", "TENANT", "TARGET", "TIMES", "DETAILS"),
            wrapped=sys.stdout.isatty(),
            spare=("TIMES",),
        )


def _row(one: AuditEntry) -> tuple[str, ...]:
    details = "" if one.details is None else ", ".join(f"{k} {_text(v)}" for k, v in one.details.items())
    at = f"{one.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    times = "" if one.times == 1 else str(one.times)
    return at, one.event, f"{one.actor_kind} {one.actor}", one.tenant or "", one.target, times, details


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
