"""``run.py epoch``: the step of every restore that makes devices pull afresh."""

from __future__ import annotations

import click

from handlers.commands.deployment import Deployment, with_deployment
from handlers.operate.printing import say


@click.group("epoch", short_help="After a restore: make devices pull afresh.")
def epoch() -> None:
    """Tell devices' cursors apart from those of before a restore."""


@epoch.command(
    "renew",
    short_help="Begin a new epoch.",
    epilog="Example: run.py epoch renew",
)
@with_deployment(changes=True)
def renew(deployment: Deployment) -> None:
    """Begin a new epoch and print it.

    After the database was restored from a backup, run it once before devices are let in: their cursors
    are of changes that the restored database may not have.
    """
    with deployment.epoch() as opened:
        say(opened.renew())
