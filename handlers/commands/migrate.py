"""``run.py migrate``: applies the migrations of the schema in order; each can be undone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import click

from engine.operate.ports import RefusedError
from engine.operate.rows import MigrationState
from handlers.commands.deployment import Deployment, as_json, confirm, with_deployment
from handlers.commands.terminal.progress import progress
from handlers.commands.terminal.tables import table
from handlers.operate.printing import say

#: The place of a migration in the list; four digits are the beginning of its name.
_PLACE: Final = re.compile(r"[0-9]{1,3}")


@click.command(
    "migrate",
    short_help="Bring the database's schema up to date, or back.",
    epilog="\b\nExamples:\n  run.py migrate --status\n  run.py migrate --to 0040 --down",
)
@click.option(
    "--to",
    metavar="N|NAME",
    help="Stop at this migration: 0040 or its name, or its place in the list of --status (its column N). 0 is"
    " none.",
)
@click.option("--down", is_flag=True, help="Take back the newest one, or all after --to, data and all.")
@click.option("--status", is_flag=True, help="Change nothing and list the migrations.")
@click.option("--yes", is_flag=True, help="Do not ask before --down.")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment(changes=True)
def migrate(
    deployment: Deployment, *, to: str | None, down: bool, status: bool, yes: bool, json_: bool
) -> None:
    """Bring the database's schema up to date. It is safe to run on several hosts at once.

    --down erases what the migrations brought, and refuses while servers use the database.
    """
    if status and (down or to is not None):
        raise click.UsageError("--status changes nothing: leave --to and --down out.")
    with progress("reading" if status else "changing the schema"), deployment.schema() as schema:
        last = None if to is None else _number(to, schema.status())
        if down and not yes:
            _ask(deployment, schema.taken_back(last))
        done = [] if status else schema.migrate(last, down=down)
        states = schema.status()
    if not status:
        _report(done, states, down=down, json_=json_)
    elif json_:
        as_json(states)
    else:
        table([_row(one) for one in states], ("N", "MIGRATION", "APPLIED"))


def _number(to: str, states: Sequence[MigrationState]) -> int:
    """Return the place of a migration in the list. Raises RefusedError if there is no such migration."""
    known = [one for one in states if one.number]
    found = [one.number for one in known if to in (one.name, one.name.partition(".")[0])]
    if found:
        return found[0]
    if not _PLACE.fullmatch(to) or int(to) > len(known):
        raise RefusedError(
            f"there is no migration {to}: they are named {known[0].name} to {known[-1].name}, and numbered 1"
            f" to {len(known)} in `run.py migrate --status`"
        )
    return int(to)


def _ask(deployment: Deployment, due: Sequence[str]) -> None:
    if due:
        confirm(f"Take back {', '.join(due)}, with all data that is kept there, in {deployment.database()}?")


def _row(state: MigrationState) -> tuple[str, str, str]:
    applied = "no" if state.applied_at is None else f"{state.applied_at:%Y-%m-%d %H:%M:%S}Z"
    return str(state.number or "?"), state.name, applied


def _report(done: Sequence[str], states: Sequence[MigrationState], *, down: bool, json_: bool) -> None:
    standing = max((one.number for one in states if one.applied_at is not None), default=0)
    if json_:
        as_json({"taken_back" if down else "applied": done, "standing": standing})
        return
    for name in done:
        say(f"{'took back' if down else 'applied'} {name}")
    say(f"the schema stands at {standing} of {max(one.number for one in states)}")
