#!/usr/bin/env python3
"""The command line: ``run.py --help``."""

from __future__ import annotations

import click

from compose.site import open_site
from handlers.commands.epoch import epoch
from handlers.commands.migrate import migrate
from handlers.commands.policy import policy
from handlers.commands.nginx import nginx
from handlers.commands.serve import serve
from handlers.commands.tenant import tenant
from handlers.commands.token import token


@click.group(epilog="Every command has its own --help with an example.")
def cli() -> None:
    """Tidemark, the sync engine: devices push, everybody else of the tenant sees it."""


@click.command(
    "bench",
    short_help="Measure a server under load.",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def bench(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Hand everything to the benchmark, which is a client and loaded only for this."""
    from bench.cli import bench as measured  # noqa: PLC0415  # no other command pays for it

    measured.main(list(arguments), prog_name=context.command_path)


for command in (serve, migrate, tenant, token, policy, epoch, nginx, bench):
    cli.add_command(command)


if __name__ == "__main__":
    cli(obj=open_site)
