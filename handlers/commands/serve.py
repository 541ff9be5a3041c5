"""``run.py serve``, and its hint for a person who starts it without settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

import click

from handlers.commands.deployment import Deployment, with_deployment

DEMO_TENANT: Final = "demo"
_DEMO_PUSH: Final = (
    '{"type":"sync","key":"hello","items":[{"domain":"journal","id":"hello","op":"put",'
    '"base":null,"data":{"text":"hello"}}]}'
)


def _worker_count(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if value == "auto":
        return len(os.sched_getaffinity(0))
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise click.BadParameter("a number from 1, or auto for one per core.")


@click.command(
    "serve",
    short_help="Serve devices until told to stop.",
    epilog="Example: run.py serve --port 9090 --workers auto",
)
@click.option("--host", metavar="H", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="P", help="Port that all workers share.")
@click.option("--workers", callback=_worker_count, metavar="N|auto", help="Processes; auto is one per core.")
@with_deployment(
    serving=True, host=("server", "host"), port=("server", "port"), workers=("server", "workers")
)
def serve(deployment: Deployment) -> None:
    """Serve devices until SIGTERM, which answers all accepted messages first, and exits with 0.

    SIGHUP reads the settings again and starts new workers in the place of the old ones, which drain.
    """
    deployment.serve()


def announce_demo(url: str, sign: Callable[[], str], command: str) -> None:
    """Print on stderr where the server is, and one command to try.

    The token is printed only on a terminal. Elsewhere stderr may be a log that many people read while the
    token is valid; there the command that signs one is printed instead.
    """
    if not sys.stderr.isatty():
        click.echo(
            f"Tidemark serves at {url}. This prints a device's token of the tenant {DEMO_TENANT}: {command}",
            err=True,
        )
        return
    token = sign()
    click.echo(
        f"Tidemark serves at {url}. A device's token of the tenant {DEMO_TENANT}:\n\n{token}\n\n"
        f"Try it, then see what a device would see at {url}/v1/changes with the same header:\n\n"
        f"curl -sS {url}/v1/sync -H 'Authorization: Bearer {token}'"
        f" -H 'Content-Type: application/json' -d '{_DEMO_PUSH}'\n",
        err=True,
    )
