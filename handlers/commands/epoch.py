"""``run.py epoch``: after a restore, makes devices pull from the beginning."""

from __future__ import annotations

import click

from handlers.commands.deployment import Deployment, with_deployment
from handlers.commands.terminal.progress import progress
from handlers.operate.printing import say


@click.group("epoch", short_help="After a restore: make devices pull afresh.")
def epoch() -> None:
    """Make cursors from before a restore expire."""


@epoch.command(
    "renew",
    short_help="Begin a new epoch.",
    epilog="Example: run.py epoch renew",
)
@with_deployment(changes=True)
def renew(deployment: Deployment) -> None:
    """Begin a new epoch and print it.

    Run it once after the database was restored from a backup, before devices connect: their cursors may
    belong to changes that the restored database does not have.
    """
    with progress("renewing"), deployment.epoch() as admin:
        epoch = admin.renew()
    say(epoch)
